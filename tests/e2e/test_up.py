"""`outboard up` as a new user meets it: the ready line, what it prepares, how it stops, what it says when it cannot start."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from inference_client import Client
from outboard import demo
from tests.needs import needs
from tests.onnx_models import times
from tests.processes import ROOT, Process, alive, command, descendants, environment, start_up, wait_until_gone

READY = re.compile(r"http=http://127\.0\.0\.1:\d+ grpc=127\.0\.0\.1:\d+ thrift=127\.0\.0\.1:\d+ metrics=http://127\.0\.0\.1:\d+/metrics")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 2)
    return tmp_path / "models"


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def predict(up: Process, model: str) -> object:
    body = json.dumps({"inputs": {"x": [[1, 2]]}}).encode()
    request = urllib.request.Request(f"{up['http']}/v1/models/{model}/predictions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["outputs"]["y"]


@needs("nginx")
def test_everything_starts_answers_and_stops(models: Path, tmp_path: Path) -> None:
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    assert READY.fullmatch(" ".join(f"{name}={value}" for name, value in up.addresses.items())), up.addresses
    assert "served by nginx" in up.log.read_text()
    assert get(f"{up['http']}/livez")[0] == 200 and get(f"{up['http']}/readyz")[0] == 200
    assert predict(up, "m") == [[2, 4]]
    assert b"outboard_requests_total" in get(up["metrics"])[1]
    with Client(f"thrift+unix://{tmp_path / 'data' / 'run' / 'thrift.sock'}") as client:
        client.put_file(models / "m" / "1" / "model.onnx", "ann.m", 1, "model.onnx", user=True)
    assert (tmp_path / "data" / "user-models" / "ann.m" / "1" / "model.onnx").is_file()
    below = descendants(up.process.pid)
    assert len(alive(below)) >= 6
    assert up.stop(signal.SIGINT) == 0
    assert not wait_until_gone(below)
    assert sorted(path.name for path in models.rglob("*")) == ["1", "m", "model.onnx"], "an operator's repository is not written to"
    # warm: the same state again
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    assert predict(up, "m") == [[2, 4]]
    assert up.stop(signal.SIGTERM) == 0


def test_without_nginx_uwsgi_serves_http(models: Path, tmp_path: Path) -> None:
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models), "--nginx", "off")
    below = descendants(up.process.pid)
    assert "uWSGI's own HTTP port (nginx is off)" in up.log.read_text()
    assert predict(up, "m") == [[2, 4]]
    assert up.stop(signal.SIGINT) == 0
    assert not wait_until_gone(below)


def test_a_killed_up_takes_everything_along(models: Path, tmp_path: Path) -> None:
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    below = descendants(up.process.pid)
    up.stop(signal.SIGKILL)
    assert not wait_until_gone(below, 40)
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    assert predict(up, "m") == [[2, 4]]
    assert up.stop() == 0


def test_a_part_that_dies_ends_the_whole_and_is_named(models: Path, tmp_path: Path) -> None:
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    below = descendants(up.process.pid)
    servers = [pid for pid in below if b"inference_server\0" in command(pid)]
    os.kill(servers[0], signal.SIGKILL)
    assert up.process.wait(60) == 1
    up.stop()
    assert "server ended with status" in up.log.read_text()
    assert not wait_until_gone(below)


@needs("nginx")
def test_a_killed_web_server_leaves_no_worker_behind(models: Path, tmp_path: Path) -> None:
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    below = descendants(up.process.pid)
    commands = {pid: command(pid) for pid in below}
    (master,) = [pid for pid, line in commands.items() if b"nginx: master" in line and b"/run/nginx.conf" in line]
    os.kill(master, signal.SIGKILL)
    assert up.process.wait(60) == 1
    up.stop()
    assert not wait_until_gone(below)


def test_one_model_that_fails_is_named_and_the_others_serve(models: Path, tmp_path: Path) -> None:
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "model.onnx").write_bytes(b"junk")
    (models / "flat").mkdir()
    (models / "flat" / "model.onnx").write_bytes(b"junk")
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    try:
        assert predict(up, "m") == [[2, 4]]
        assert get(f"{up['http']}/readyz")[0] == 503
        assert "not served: broken version 1" in up.log.read_text()
        assert f"not served: {models.name}/flat: not a model: model.onnx lies beside the version folders" in up.log.read_text()
        assert (tmp_path / "data" / "logs" / "server.log").read_text().count('"event": "not a model"') == 1
    finally:
        assert up.stop() == 0


def served(up: Process) -> set[str]:
    body = urllib.request.Request(f"{up['http']}/v2/repository/index", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(body, timeout=30) as response:
        return {entry["name"] for entry in json.load(response)}


def test_no_demo_serves_none_of_an_earlier_start(models: Path, tmp_path: Path) -> None:
    """Wherever the demo lies: in its own repository, or in that of what is pushed, where earlier releases had it."""
    data = tmp_path / "data"
    up = start_up(data)
    assert served(up) == {"efficientnet-lite0", "dialogue"}
    assert up.stop() == 0
    (data / "demo" / "efficientnet-lite0").rename(data / "models" / "efficientnet-lite0")
    times(data / "models" / "pushed" / "1" / "model.onnx", 2)
    up = start_up(data, "--no-demo", "--models", str(models))
    assert served(up) == {"m", "pushed"}
    assert up.stop() == 0
    assert (data / "demo" / "efficientnet-lite0" / "1" / "model.onnx").is_file()
    assert [path.name for path in (data / "models").iterdir()] == ["pushed"]
    up = start_up(data, "--models", str(models))
    assert served(up) == {"m", "pushed", "efficientnet-lite0", "dialogue"}
    assert up.stop() == 0
    assert "preparing the demo" in (log := up.log.read_text()) and log.count("preparing the demo") == 1


def test_a_model_with_the_demos_name_that_is_somebodys_own_stays(tmp_path: Path) -> None:
    own = times(tmp_path / "models" / demo.NAME / "1" / "model.onnx", 2)
    (tmp_path / "models" / demo.NAME / "LICENSE.txt").write_text("all rights reserved\n")
    assert not demo.move(tmp_path / "models", tmp_path / "demo")
    assert own.is_file() and not (tmp_path / "demo").exists()


def test_the_first_administrator(models: Path, tmp_path: Path) -> None:
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    link = re.search(r'"signup_token": "([\w-]+)"', up.log.read_text())
    assert link and link[1] not in "".join(path.read_text() for path in (tmp_path / "data" / "logs").iterdir())
    body = json.dumps({"username": "admin", "password": "correct horse battery", "signup_token": link[1]}).encode()
    request = urllib.request.Request(f"{up['http']}/v1/users", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        assert response.status == 201 and json.load(response)["role"] == "administrator"
    assert up.stop() == 0


@pytest.mark.parametrize(
    ("options", "env", "status", "said"),
    [
        (["--models", "/no/such/folder"], {}, 2, "/no/such/folder"),
        (["--http-port", "99999"], {}, 2, "99999"),
        ([], {"OUTBOARD_COLOUR": "red"}, 2, "OUTBOARD_COLOUR"),
        (["--no-demo", "--data", "/tmp/" + "x" * 120], {}, 1, "shorter folder"),
        (["--no-demo", "--host", "0.0.0.0"], {}, 1, "OUTBOARD_SERVER_TOKEN"),
        (["--no-demo"], {"OUTBOARD_SERVER_GRPC_PORT": "5"}, 1, "OUTBOARD_SERVER_GRPC_PORT is decided"),
    ],
)
def test_what_cannot_start_says_why(tmp_path: Path, options: list[str], env: dict[str, str], status: int, said: str) -> None:
    up = start_up(tmp_path / "data", *options, wait=False, **env)
    assert up.process.wait(60) == status
    up.stop()
    log = up.log.read_text()
    assert said in log and "Traceback" not in log


def test_a_second_up_on_the_same_data_and_a_taken_port(models: Path, tmp_path: Path) -> None:
    first = start_up(tmp_path / "data", "--no-demo", "--models", str(models))
    second = start_up(tmp_path / "data", "--no-demo", wait=False)
    assert second.process.wait(60) == 1
    third = start_up(tmp_path / "other", "--no-demo", "--http-port", first["http"].rpartition(":")[2], wait=False)
    assert third.process.wait(60) == 1
    for up in (second, third):
        up.stop()
    assert "another `outboard up`" in second.log.read_text()
    assert "for HTTP: Address already in use" in third.log.read_text()
    assert first.stop() == 0


def test_scripts_up_is_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run([str(ROOT / "scripts" / "up"), "--help"], capture_output=True, text=True, env=environment(), check=True)
    assert "--data" in done.stdout and "--no-demo" in done.stdout


def test_an_environment_is_never_made_with_the_python_inside_of_it() -> None:
    """Who has activated .venv and pulled a new lock file: the folder is removed and made anew, and its own Python would be gone by then."""
    command = ["bash", "-c", f". scripts/_env.sh; _outside {sys.executable}"]
    made_with = Path(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=30).stdout.strip())
    assert made_with.is_file() and not made_with.is_relative_to(sys.prefix)
