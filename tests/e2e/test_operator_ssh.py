"""`outboard models push` over SSH, through a real sshd."""

import getpass
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from inference_client import Client
from outboard.models_copy import over_ssh
from tests.e2e.conftest import Run, served
from tests.eventually import eventually
from tests.needs import needs
from tests.onnx_models import times

pytestmark = needs("ssh", "ssh-keygen", "sshd")
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""


@pytest.fixture
def ssh_config(tmp_path: Path) -> Path:
    """An ssh configuration in which the machine `gpu-host` is a real sshd of this test's own: it speaks over ssh's ProxyCommand."""
    keys = tmp_path / "ssh"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    (keys / "known").write_text(f"gpu-host {(keys / 'host.pub').read_text()}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation folder, made by its service elsewhere
    (keys / "sshd").write_text(
        f"HostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\nStrictModes no\nUsePAM {'yes' if os.geteuid() == 0 else 'no'}\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
    )
    config = keys / "config"
    config.write_text(
        f"Host gpu-host\n  ProxyCommand {SSHD} -i -f {keys}/sshd\n  User {getpass.getuser()}\n  IdentityFile {keys}/user\n"
        f"  IdentitiesOnly yes\n  BatchMode yes\n  UserKnownHostsFile {keys}/known\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n"
    )
    return config


def test_push_over_ssh(outboard: Run, client: Client, repository: Path, ssh_config: Path, tmp_path: Path) -> None:
    ssh = ("--ssh", "gpu-host", "--ssh-path", repository, "--ssh-config", ssh_config)
    settings = tmp_path / "model.toml"
    settings.write_text('description = "by SSH"\n')
    code, out, err = outboard("push", times(tmp_path / "m.onnx", 1), "--name", "by-ssh", "--model-toml", settings, *ssh)
    assert code == 0, err
    assert "by-ssh/1/model.onnx: copied, SHA-256 verified" in out
    assert "by-ssh/model.toml: copied, SHA-256 verified" in out
    assert served(client, "by-ssh") == ("1", 1)
    code, out, err = outboard("push", times(tmp_path / "m.onnx", 2), "--name", "by-ssh", *ssh)
    assert (code, served(client, "by-ssh")) == (0, ("2", 2)), err
    code, out, _ = outboard("push", times(tmp_path / "m.onnx", 2), "--name", "by-ssh", "--version", 2, *ssh)
    assert code == 0
    assert "the same bytes were there already" in out
    code, _, err = outboard("push", times(tmp_path / "m.onnx", 3), "--name", "by-ssh", "--version", 2, *ssh)
    assert code == 1
    assert "already_exists" in err
    assert served(client, "by-ssh") == ("2", 2)
    assert sorted(str(path.relative_to(repository)) for path in (repository / "by-ssh").rglob("*") if path.is_file()) == [
        "by-ssh/1/model.onnx",
        "by-ssh/2/model.onnx",
        "by-ssh/model.toml",
    ]


def test_ssh_that_fails_says_why(outboard: Run, repository: Path, ssh_config: Path, tmp_path: Path) -> None:
    file = times(tmp_path / "m.onnx", 1)
    (tmp_path / "a file").touch()
    code, _, err = outboard("push", file, "--name", "m", "--ssh", "gpu-host", "--ssh-path", tmp_path / "a file", "--ssh-config", ssh_config)
    assert code == 1
    assert "the copy over SSH failed" in err
    assert "Not a directory" in err
    elsewhere = tmp_path / "it's elsewhere; $HOME"
    code, _, err = outboard("push", file, "--name", "m", "--ssh", "gpu-host", "--ssh-path", elsewhere, "--ssh-config", ssh_config)
    assert code == 1
    assert "model_not_found" in err, "the copy is whole, but lies where this host does not look"
    assert (elsewhere / "m" / "1" / "model.onnx").read_bytes() == file.read_bytes()
    code, _, err = outboard("push", file, "--name", "m", "--ssh", "no-such-host.invalid", "--ssh-path", "/x", "--ssh-config", ssh_config)
    assert code == 1
    assert "the copy over SSH failed" in err


def test_an_ssh_copy_that_is_cut_off_leaves_nothing(repository: Path, ssh_config: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(os.urandom(3 * 2**20))

    def cut(sent: int, _: int) -> None:
        if sent > 2**20:
            raise KeyboardInterrupt

    folders = [str(tmp_path / "models" / "cut"), str(tmp_path / "models" / "cut" / "1")]
    (tmp_path / "models").mkdir()
    with pytest.raises(KeyboardInterrupt):
        over_ssh("gpu-host", str(ssh_config), file, folders, "model.onnx", cut)
    eventually(lambda: not list((tmp_path / "models").iterdir()), "the far side ends by itself, and leaves nothing")
