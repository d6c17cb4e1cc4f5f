"""`outboard web` and `outboard health` as processes, secrets from files, and what a wheel has: what the container images are made of."""

import http.client
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from outboard.secret_files import InvalidSecret, with_secrets
from tests.needs import needs
from tests.onnx_models import times
from tests.processes import ROOT, Process, descendants, environment, free_port, start, start_server, wait_until_gone

TOKEN = "a token from a file"
PASSWORD = "correct horse battery"


def outboard(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outboard", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("host")
    times(folder / "models" / "double" / "1" / "model.onnx", 2, ("n",))
    made = start_server(folder / "models", folder, OUTBOARD_SERVER_TOKEN=TOKEN)
    yield made
    assert made.stop() == 0


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "OUTBOARD_GATEWAY_MODEL_HOST_TOKEN").write_text(TOKEN + "\n")
    (folder / "OUTBOARD_GATEWAY_ADMIN_PASSWORD").write_text(PASSWORD)
    (folder / "server.pem").write_text("somebody else's")
    return folder


def web(tmp_path: Path, host: Process, *options: str, **env: str) -> Process:
    settings = {"OUTBOARD_GATEWAY_DATA_DIR": str(tmp_path / "data"), "OUTBOARD_GATEWAY_MODEL_HOSTS": f"thrift://{host['thrift']}"}
    return start(["outboard", "web", "--listen", f"127.0.0.1:{free_port()}", *options], tmp_path / "web.log", **settings, **env)


@needs("nginx")
def test_web_serves_a_prediction_with_secrets_from_files_and_ends_clean(tmp_path: Path, host: Process, secrets: Path) -> None:
    made = web(tmp_path, host, OUTBOARD_SECRETS=str(secrets))
    below = descendants(made.process.pid)
    connection = http.client.HTTPConnection(made["http"].removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/models/double/predictions", "x=1&x=21", {"Content-Type": "application/x-www-form-urlencoded"})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Server")) == (200, "nginx"), answer.read()
    answer.read()
    connection.request("POST", "/v1/tokens", f'{{"username": "admin", "password": "{PASSWORD}"}}', {"Content-Type": "application/json"})
    assert connection.getresponse().status in (200, 201)
    connection.close()
    assert outboard("health", made["http"], "--ready").returncode == 0
    assert TOKEN not in made.log.read_text() and PASSWORD not in made.log.read_text()
    assert made.stop() == 0
    assert not wait_until_gone(below)
    assert outboard("health", made["http"]).returncode == 1


@needs("nginx")
def test_web_ends_when_a_part_ends_and_says_which(tmp_path: Path, host: Process) -> None:
    made = web(tmp_path, host)
    below = descendants(made.process.pid)
    pid = int((tmp_path / "data" / "run" / "nginx.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    assert made.process.wait(60) == 1
    assert "nginx ended with status -9" in made.log.read_text()
    assert not wait_until_gone(below)
    made.stop()


@needs("nginx")
@pytest.mark.parametrize(
    ("options", "env", "status", "says"),
    [
        (["--listen", "8080"], {}, 2, "HOST:PORT"),
        (["--listen", "127.0.0.1:0"], {}, 2, "HOST:PORT"),
        (["--certificate", "x.pem"], {}, 2, "--certificate-key"),
        (["--redirect-listen", "127.0.0.1:81"], {}, 2, "certificate"),
        (["--metrics-from", "10.0.0.0/8; deny all"], {}, 2, "10.0.0.0/8; deny all"),
        ([], {"OUTBOARD_GATEWAY_COLOUR": "red"}, 2, "OUTBOARD_GATEWAY_COLOUR"),
        ([], {"OUTBOARD_SECRETS": "/nowhere/at/all"}, 2, "OUTBOARD_SECRETS"),
    ],
)
def test_what_web_cannot_use_is_named(tmp_path: Path, options: list[str], env: dict[str, str], status: int, says: str) -> None:
    done = outboard("web", *options, OUTBOARD_GATEWAY_DATA_DIR=str(tmp_path / "data"), **env)
    assert done.returncode == status and says in done.stderr and "Traceback" not in done.stderr


@needs("nginx")
def test_a_port_that_is_taken_is_named(tmp_path: Path, host: Process) -> None:
    done = outboard("web", "--listen", host["thrift"], OUTBOARD_GATEWAY_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode == 1 and host["thrift"] in done.stderr and "Traceback" not in done.stderr


def test_health_asks_a_model_host(host: Process) -> None:
    for protocol in ("grpc", "thrift"):
        assert outboard("health", f"{protocol}://{host[protocol]}").returncode == 0, "nobody needs a token for it"
    done = outboard("health", f"grpc://127.0.0.1:{free_port()}", "--ready", "--timeout", "2")
    assert done.returncode == 1 and "cannot be reached" in done.stderr
    done = outboard("health", "ftp://127.0.0.1")
    assert done.returncode == 2 and "ftp" in done.stderr and "Traceback" not in done.stderr


def test_secrets_are_read_from_files(secrets: Path) -> None:
    found = with_secrets({"OUTBOARD_SECRETS": str(secrets), "PATH": "/bin"})
    assert found == {"PATH": "/bin", "OUTBOARD_GATEWAY_MODEL_HOST_TOKEN": TOKEN, "OUTBOARD_GATEWAY_ADMIN_PASSWORD": PASSWORD}
    assert with_secrets({"OUTBOARD_SECRETS": ""}) == {}


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"\xff\xfe", b"x" * 70_000, b"nul\0"])
def test_a_file_that_is_no_secret_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "OUTBOARD_TOKEN").write_bytes(content)
    with pytest.raises(InvalidSecret, match="OUTBOARD_TOKEN") as error:
        with_secrets({"OUTBOARD_SECRETS": str(tmp_path)})
    assert "lines" not in str(error.value).replace("more than one line", "") and "nul" not in str(error.value)


def test_a_secret_that_is_set_twice_is_refused(secrets: Path) -> None:
    with pytest.raises(InvalidSecret, match="OUTBOARD_GATEWAY_ADMIN_PASSWORD"):
        with_secrets({"OUTBOARD_SECRETS": str(secrets), "OUTBOARD_GATEWAY_ADMIN_PASSWORD": "other"})
    (secrets / "OUTBOARD_SERVER_TOKEN").mkdir()
    with pytest.raises(InvalidSecret, match="OUTBOARD_SERVER_TOKEN"):
        with_secrets({"OUTBOARD_SECRETS": str(secrets)})


# what images are made of -----------------------------------------------------------------------------------------------------------


def test_the_wheel_has_every_file_of_the_packages(tmp_path: Path) -> None:
    """Templates and schemas too, so that an installed wheel runs without a checkout."""
    packages = ("gateway", "idl", "inference_client", "inference_server", "nginx", "outboard")
    tracked = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(tmp_path / "source.tar", "w") as archive:  # what git ignores, and an old build/, stay out
        for name in [*tracked, "pyproject.toml", "README.md", "LICENSE"]:
            if (ROOT / name).exists():
                archive.add(ROOT / name, name)
    with tarfile.open(tmp_path / "source.tar") as archive:
        archive.extractall(source, filter="data")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in tracked if (ROOT / name).exists() and not name.endswith("Dockerfile")} - inside == set()


def test_the_images_install_the_locked_versions() -> None:
    done = subprocess.run([sys.executable, "scripts/lock-images", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
