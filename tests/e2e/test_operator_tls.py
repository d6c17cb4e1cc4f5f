"""The operator's commands against a model host with TLS, and against one that asks who they are."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from outboard.__main__ import main
from tests.certificates import Authority
from tests.onnx_models import times
from tests.processes import ROOT, Process, environment, start_server

Said = tuple[int, str, str]


@dataclass(frozen=True)
class World:
    """`plain`: with TLS, behind nginx where it is installed; `mutual`: asks for certificates, gRPC without nginx."""

    plain: Process
    mutual: Process
    folder: Path

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def mine(self, name: str = "me") -> list[str]:
        return ["--ca", self.file("ca.pem"), "--certificate", self.file(f"{name}.pem"), "--key", self.file(f"{name}.key")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tls")
    authority, strangers = Authority(folder), Authority(folder, "strangers")
    host = authority.sign("host")
    authority.sign("me")
    strangers.sign("stranger")
    times(folder / "models" / "m" / "1" / "model.onnx", 2)
    environ = {"OUTBOARD_SERVER_TLS_CERTIFICATE": str(host.certificate), "OUTBOARD_SERVER_TLS_KEY": str(host.key)}
    made = []
    asks = {"OUTBOARD_SERVER_TLS_CLIENT_CA": str(authority.file)}
    for name, more, front in (("plain", dict[str, str](), "auto"), ("mutual", asks, "grpcio")):
        (folder / name).mkdir()
        made.append(start_server(folder / "models", folder / name, "--grpc-front", front, wait=True, **environ, **more))
    yield World(made[0], made[1], folder)
    for server in made:
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    for name in ("OUTBOARD_CA", "OUTBOARD_CERTIFICATE", "OUTBOARD_KEY", "OUTBOARD_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Said:
        code = main([str(each) for each in arguments])
        return code, *capsys.readouterr()

    return run


def test_a_host_is_trusted_by_its_authority(world: World, run: Callable[..., Said]) -> None:
    for address in (f"grpcs://{world.plain['grpc']}", f"thrifts://{world.plain['thrift']}"):
        code, out, err = run("models", "list", "--host", address, "--ca", world.file("ca.pem"))
        assert (code, err) == (0, "") and "READY" in out
        code, _, err = run("models", "list", "--host", address)
        assert code == 1 and "of an authority that is not trusted" in err, "the system's authorities do not know it"
        code, _, err = run("models", "list", "--host", address, "--ca", world.file("strangers.pem"))
        assert code == 1 and "of an authority that is not trusted" in err
        assert str(world.folder) not in err
    code, _, err = run("models", "list", "--host", world.plain["grpc"])
    assert code == 1 and "READY" not in err, "without TLS nobody is answered"


def test_a_host_that_asks_gets_a_certificate(world: World, run: Callable[..., Said]) -> None:
    address = f"grpcs://{world.mutual['grpc']}"
    for verb in (["models", "list"], ["models", "capacity"], ["models", "smoke-test"]):
        code, out, err = run(*verb, "--host", address, *world.mine())
        assert code == 0, err
    assert "ok" in out
    code, _, _ = run("models", "list", "--host", address, "--ca", world.file("ca.pem"))
    assert code == 1, "no certificate"
    code, _, _ = run("models", "list", "--host", address, *world.mine("stranger"))
    assert code == 1, "one of another authority"
    assert run("health", "--ready", address, *world.mine())[0] == 0
    assert run("health", f"thrifts://{world.mutual['thrift']}", *world.mine())[0] == 0
    assert run("health", address, "--ca", world.file("ca.pem"))[0] == 1
    code, out, err = run("top", "--once", "--interval", 0.1, "--metrics", world.mutual["metrics"], "--host", address, *world.mine())
    assert code == 0 and "MODEL" in out and "does not answer" not in out, (out, err)


def test_a_push_goes_over_tls(world: World, run: Callable[..., Said], tmp_path: Path) -> None:
    file = times(tmp_path / "double.onnx", 2)
    code, out, err = run("models", "push", file, "--name", "pushed", "--host", f"grpcs://{world.mutual['grpc']}", *world.mine())
    assert code == 0 and "pushed: version 1 serves" in out, err


def test_the_environment_stands_for_the_options(world: World, run: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in (("CA", "ca.pem"), ("CERTIFICATE", "me.pem"), ("KEY", "me.key")):
        monkeypatch.setenv(f"OUTBOARD_{name}", world.file(file))
    assert run("models", "list", "--host", f"grpcs://{world.mutual['grpc']}")[0] == 0
    code, _, err = run("models", "list", "--host", f"grpcs://{world.mutual['grpc']}", "--ca", world.file("strangers.pem"))
    assert code == 1 and "not trusted" in err, "an option stands above it"
    code, _, err = run("models", "list", "--host", f"grpcs://{world.mutual['grpc']}", "--certificate", "")
    assert code == 1 and "a client's certificate and its key go together" in err
    code, _, err = run("models", "list", "--host", "127.0.0.1:1")
    assert code == 1 and "--ca" not in err, "an address without TLS does not care"


def test_scripts_take_the_same(world: World) -> None:
    command = [str(ROOT / "scripts" / "list-models"), "--host", f"grpcs://{world.mutual['grpc']}", *world.mine()]
    environ = environment()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "READY" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "127.0.0.1:1", "--ca", "ca.pem"], "--ca is for an address that begins with grpcs:// or thrifts://, and 127.0.0.1:1 does not"),
        (["--host", "grpc://127.0.0.1:1", "--key", "me.key"], "--key is for an address"),
        (["--host", "grpcs://127.0.0.1:1", "--key", "me.key"], "a client's certificate and its key go together"),
        (["--host", "grpcs://127.0.0.1:1", "--ca", "absent.pem"], "tls: absent.pem cannot be used: No such file or directory"),
        (["--host", "grpcs://127.0.0.1:1", "--ca", "me.key"], "cannot be used"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_why(
    world: World, run: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(world.folder)
    code, _, err = run("models", "list", *options)
    assert code == 1 and said in err and "Traceback" not in err


def test_the_doctor_asks_over_tls(world: World, run: Callable[..., Said], tmp_path: Path) -> None:
    port = {name: address.rpartition(":")[2] for name, address in world.mutual.addresses.items()}
    here = ["--data", tmp_path, "--http-port", 0, "--grpc-port", port["grpc"], "--thrift-port", port["thrift"], "--metrics-port", 0]
    _, out, _ = run("doctor", *here, *world.mine())
    lines = [line for line in out.splitlines() if any(word in line for word in ("grpc port", "thrift port", "server"))]
    assert not any("PROBLEM" in line for line in lines) and any("is ready, with" in line for line in lines), out
    _, out, _ = run("doctor", *here, "--ca", world.file("absent.pem"))
    assert "cannot be used" in out and "Traceback" not in out
