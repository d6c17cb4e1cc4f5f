"""What tests need of the machine: without it they are skipped and say which package it is in; with CI=true that is an error."""

import os
import shutil

import pytest

from inference_server.executors import sandbox

IN_CI = os.environ.get("CI") == "true"
PACKAGES = {
    "chromium-headless-shell": "chromium-headless-shell",
    "curl": "curl",
    "h2load": "nghttp2-client",
    "java": "default-jre-headless",
    "nginx": "nginx-light",
    "node": "nodejs",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "thrift": "thrift-compiler",
}
"""Program -> the Debian package that it is in; `.ci/run` installs them."""


STAND_INS = {"chromium-headless-shell": "chromium"}
"""What does as well, where it is there: Chromium itself takes half as much processor time again."""


def program(name: str) -> str:
    """Its path, or that of what does as well; "" where there is neither."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return shutil.which(name, path=path) or (shutil.which(STAND_INS[name], path=path) if name in STAND_INS else "") or ""


def missing(*programs: str) -> str:
    """What of these is not installed, and how it would be; "" where nothing is missing."""
    named = {name: PACKAGES[name] for name in programs}
    gone = [name for name in named if not program(name)]
    packages = " ".join(dict.fromkeys(named[name] for name in gone))
    return f"not installed: {', '.join(gone)} (Debian: apt-get install {packages})" if gone else ""


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips where a program is not installed, but in CI that is an error."""
    why = missing(*programs)
    if why and IN_CI:
        raise RuntimeError(f"CI=true, and {why}")
    return pytest.mark.skipif(bool(why), reason=why)


def need(*programs: str) -> None:
    """The same inside a test or a fixture."""
    why = missing(*programs)
    if why:
        assert not IN_CI, why
        pytest.skip(why)


def has_box() -> bool:
    """Whether code can be boxed here. In CI it must be."""
    assert not (IN_CI and sandbox.unusable()), sandbox.unusable()
    return not sandbox.unusable()


boxed = pytest.mark.skipif(bool(sandbox.unusable()) and not IN_CI, reason=sandbox.unusable())
"""Needs a box for code. In CI the test runs, and fails, without one."""


def need_box() -> None:
    """The same inside a test or a fixture."""
    if not has_box():
        pytest.skip(sandbox.unusable())
