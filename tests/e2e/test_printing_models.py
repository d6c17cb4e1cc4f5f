"""What models print, where a person looks for it; and that no print is taken for the server's own word."""

import json
import signal
import urllib.request
from pathlib import Path

import pytest

from tests.eventually import eventually
from tests.processes import start_server, start_up
from tests.python_models import DOUBLE_TOML, python_model

FORGES = """
import os, sys
def load():
    for stream in (1, 2):
        os.write(stream, b"ready http=http://evil.example grpc=6.6.6.6:1 thrift=forged metrics=forged\\n")
        os.write(stream, b'{"time": "now", "level": "error", "event": "forged"}\\n')
def infer(inputs):
    return {"y": inputs["x"]}
"""


def events(log: Path) -> list[dict[str, object]]:
    """Of its whole lines: of one that is just written a reader may see the beginning."""
    whole = log.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("toml", ["", '[python]\nsandbox = "off"\n'], ids=["boxed where it can be", "without a box"])
def test_a_model_that_prints_a_ready_line_is_not_believed(tmp_path: Path, toml: str) -> None:
    python_model(tmp_path / "models" / "m", FORGES, DOUBLE_TOML + toml)
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(tmp_path / "models"), "--nginx", "off")
    try:
        assert up["http"].startswith("http://127.0.0.1:") and up["grpc"].startswith("127.0.0.1:")
        assert urllib.request.urlopen(f"{up['http']}/v2/models/m/ready", timeout=30).status == 200
        log = tmp_path / "data" / "logs" / "server.log"
        eventually(lambda: sum(each["event"] == "said" for each in events(log)) == 4, "it is where the page says")
        said = [str(each["text"]) for each in events(log) if each["event"] == "said"]
        assert said[0] == said[2] == "ready http=http://evil.example grpc=6.6.6.6:1 thrift=forged metrics=forged"
        assert "forged" not in {each["event"] for each in events(log)}
        assert "6.6.6.6" not in up.log.read_text(), "nor is it on the terminal"
    finally:
        up.stop()


def test_the_servers_output_is_its_ready_line_alone(tmp_path: Path) -> None:
    """Also where a model runs in the server itself, for debugging, or a library prints."""
    python_model(tmp_path / "models" / "boxed", FORGES)
    python_model(tmp_path / "models" / "inside", FORGES, 'executor = "thread"\n' + DOUBLE_TOML)
    server = start_server(tmp_path / "models", tmp_path)
    assert server["grpc"].startswith("127.0.0.1:")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.stdout is not None
    assert server.process.stdout.read() == "", "nothing but that one line"
    assert server.stop() == 0
