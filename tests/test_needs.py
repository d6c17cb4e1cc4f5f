"""CI has what the tests need, and elsewhere a test that cannot run says which package is missing."""

import re

import pytest

from tests import needs
from tests.processes import ROOT

OF_DEBIAN_ITSELF = {"util-linux"}


def test_ci_installs_every_package_that_a_test_needs() -> None:
    packages = re.search(r"^packages=\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert packages is not None
    assert {*needs.PACKAGES.values(), "bubblewrap"} - OF_DEBIAN_ITSELF <= set(packages[1].split())


def test_a_missing_program_is_skipped_over_with_its_package_and_an_error_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs.shutil, "which", lambda name, path: None if name in ("sshd", "ssh", "ssh-keygen") else f"/usr/bin/{name}")
    monkeypatch.setattr(needs, "IN_CI", False)
    assert needs.missing("curl", "openssl") == "" and needs.needs("curl").args == (False,)
    why = "not installed: ssh, ssh-keygen, sshd (Debian: apt-get install openssh-client openssh-server)"
    assert needs.needs("ssh", "ssh-keygen", "sshd", "curl").kwargs == {"reason": why}
    with pytest.raises(pytest.skip.Exception, match="openssh-server"):
        needs.need("sshd")
    monkeypatch.setattr(needs, "IN_CI", True)
    for ask in (needs.needs, needs.need):
        with pytest.raises((RuntimeError, AssertionError), match="openssh-server"):
            ask("sshd")
    with pytest.raises(KeyError):
        needs.needs("a program that no package is named for")


def test_without_a_box_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs.sandbox, "unusable", lambda: "bubblewrap is not installed")
    monkeypatch.setattr(needs, "IN_CI", False)
    assert not needs.has_box()
    with pytest.raises(pytest.skip.Exception, match="bubblewrap"):
        needs.need_box()
    monkeypatch.setattr(needs, "IN_CI", True)
    for ask in (needs.has_box, needs.need_box):
        with pytest.raises(AssertionError, match="bubblewrap"):
            ask()
