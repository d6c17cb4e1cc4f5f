"""Inference over HTTP through everything, as `outboard up` starts it: nginx, uWSGI, Flask, Thrift, a model's own process."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import skimage

from tests.gateway.model_host import ADMINISTRATOR, fill
from tests.needs import needs
from tests.processes import ROOT, Process, start_up

pytestmark = needs("nginx", "curl")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("up")
    (folder / "models").mkdir()
    fill(folder / "models")
    made = start_up(folder / "data", "--models", str(folder / "models"), OUTBOARD_ADMIN_PASSWORD=ADMINISTRATOR[1])
    yield made
    assert made.stop() == 0, made.log.read_text()


def ask(up: Process, path: str, body: object, token: str = "") -> dict[str, object]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(urllib.request.Request(up["http"] + path, json.dumps(body).encode(), headers), timeout=30) as answer:
        return dict(json.load(answer))


def test_official_client(up: Process) -> None:
    name, password = ADMINISTRATOR
    token = str(ask(up, "/v1/tokens", {"username": name, "password": password})["access_token"])
    ask(up, "/v2/repository/models/unloaded/unload", {}, token)
    program = ROOT / "tests" / "gateway" / "triton_client.py"
    command = [sys.executable, str(program), urlsplit(up["http"]).netloc, token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_photograph_with_curl(up: Process) -> None:
    picture = Path(skimage.__file__).parent / "data" / "coffee.png"
    address = f"{up['http']}/v1/models/efficientnet-lite0/predictions"
    done = subprocess.run(["curl", "-sS", "-F", f"image=@{picture}", address], capture_output=True, timeout=60, check=True)
    best = json.loads(done.stdout)["labels"][0][0]
    assert best["label"] == "espresso" and abs(best["score"] - 0.951) < 1e-3
