"""A log on a full disk: nothing can be written there, and everything is answered all the same."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from inference_client import Client
from tests.eventually import eventually
from tests.onnx_models import times
from tests.processes import descendants, start_server, wait_until_gone

X = np.ones((1, 2), np.float32)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted by this user: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """To the last byte."""
    file = disk / "filler"
    with file.open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
    assert os.statvfs(disk).f_bavail == 0
    return file


def events(log: Path) -> list[str]:
    """Of the whole lines; the disk may have cut one short."""
    found = []
    for line in log.read_text().splitlines():
        try:
            found.append(json.loads(line)["event"])
        except ValueError:
            continue
    return found


def test_a_server_whose_log_cannot_be_written_goes_on(small_disk: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    times(models / "m" / "1" / "model.onnx", 2)
    server = start_server(models, small_disk, "--log-level", "debug")
    below = descendants(server.process.pid)
    with Client(server["grpc"]) as client:
        filler = fill(small_disk)
        (models / "m" / "2").mkdir()
        times(models / "m" / "2" / "model.onnx", 3)
        for number in range(50):  # each writes a line
            assert client.infer("m", {"x": X}, request_id=f"unlogged-{number}").outputs["y"].tolist() == [[2, 2]]
        client.load_model("m")
        assert client.infer("m", {"x": X}).outputs["y"].tolist() == [[3, 3]]
        executor = next(pid for pid in descendants(server.process.pid) if comm(pid) == "outboard:m")
        os.kill(executor, signal.SIGKILL)
        eventually(lambda: answers(client), "mended without a log")
        assert "unlogged-49" not in server.log.read_text()
        filler.unlink()
        client.infer("m", {"x": X}, request_id="logged-again")
    assert server.stop() == 0
    assert not wait_until_gone(below)
    assert "logged-again" in server.log.read_text() and "stopped" in events(server.log)


def answers(client: Client) -> bool:
    try:
        return client.infer("m", {"x": X}).outputs["y"].tolist() == [[3, 3]]
    except ServingError as error:
        assert error.code in (Code.MODEL_FAILED, Code.NOT_READY), error
        return False


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has just ended
        return ""


def test_a_disk_that_is_full_from_the_start_does_not_keep_it_from_serving(small_disk: Path, tmp_path: Path) -> None:
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 2)
    fill(small_disk)
    server = start_server(tmp_path / "models", small_disk)
    with Client(f"thrift://{server['thrift']}") as client:
        assert client.infer("m", {"x": X}).outputs["y"].tolist() == [[2, 2]]
    assert server.stop() == 0
    assert server.log.read_text() == ""
