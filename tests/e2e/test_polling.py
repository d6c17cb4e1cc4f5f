"""`serve --model-control poll`: a repository that others write into is followed, without a word to the server."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from idl.codes import ServingError
from inference_client import Client
from tests.eventually import eventually
from tests.onnx_models import times
from tests.processes import start_server


def test_models_come_change_and_go(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    models.mkdir()
    server = start_server(models, tmp_path, "--model-control", "poll", "--poll-interval", "0.05")
    with Client(f"grpc://{server['grpc']}") as client:

        def answers(factor: float, version: str = "") -> bool:
            try:
                return client.infer("m", {"x": np.ones((1, 2), np.float32)}, version=version).outputs["y"].tolist() == [[factor, factor]]
            except ServingError:
                return False

        assert client.server_ready() and client.repository_index() == ()
        times(elsewhere / "m" / "1" / "model.onnx", 1)
        (elsewhere / "m").rename(models / "m")
        eventually(lambda: answers(1), "a new model")
        (models / "m" / "2").mkdir()
        part = models / "m" / "2" / "model.onnx.part"
        part.write_bytes(times(elsewhere / "model.onnx", 2).read_bytes())
        part.rename(part.with_suffix(""))
        eventually(lambda: answers(2), "a new version")
        (models / "m" / "model.toml").write_text('version_policy = "all"\n')
        eventually(lambda: answers(1, "1") and answers(2, "2"), "another policy")
        (models / "m" / "3").mkdir()
        (models / "m" / "3" / "model.onnx").write_bytes(times(elsewhere / "model.onnx", 3).read_bytes()[:-20])
        reasons: dict[str, str] = {}

        def failed() -> bool:
            reasons.update({entry.version: entry.reason for entry in client.repository_index()})
            return "protobuf" in reasons.get("3", "").lower()

        eventually(failed, f"a truncated version is refused: {reasons}")
        assert answers(2) and client.server_ready()
        times(models / "m" / "3" / "model.onnx", 3)
        eventually(lambda: answers(3), "the same version, whole")
        shutil.rmtree(models / "m")
        eventually(lambda: client.repository_index() == (), "a model that is gone")
        assert client.server_ready()
    assert server.stop() == 0, server.log.read_text()


def test_ready_means_that_what_was_just_copied_is_served(tmp_path: Path) -> None:
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 3)
    server = start_server(tmp_path / "models", tmp_path, "--model-control", "poll", "--poll-interval", "2")
    with Client(f"grpc://{server['grpc']}") as client:
        assert client.server_ready()
        assert client.infer("m", {"x": np.ones((1, 2), np.float32)}).outputs["y"].tolist() == [[3, 3]]
    assert server.stop() == 0, server.log.read_text()


@pytest.mark.parametrize("options", [["--poll-interval", "0"], ["--poll-interval", "nan"]])
def test_a_wrong_interval_is_refused(tmp_path: Path, options: list[str]) -> None:
    server = start_server(tmp_path, tmp_path, "--model-control", "poll", *options, wait=False)
    assert server.process.wait(30) == server.stop() == 2 and "POLL_INTERVAL_S" in server.log.read_text()
