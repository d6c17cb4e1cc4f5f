"""A request that never leaves its model: its caller is told at its deadline, the process is ended soon after, and the model serves again."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from inference_client import Client
from tests.onnx_models import looping
from tests.processes import Process, start_server

QUICK, ENDLESS = np.int64([3]), np.int64([10**12])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    for name in ("m", "other"):
        looping(tmp_path / "models" / name / "1" / "model.onnx")
        (tmp_path / "models" / name / "model.toml").write_text("max_batch_size = 1\nthreads = 1\n")
    made = start_server(tmp_path / "models", tmp_path, OUTBOARD_SERVER_HANG_GRACE_S="0.5")
    yield made
    assert made.stop() == 0, made.log.read_text()


@pytest.mark.parametrize("protocol", ["grpc", "thrift"])
def test_a_model_that_hangs_comes_back(server: Process, protocol: str) -> None:
    with Client(f"{protocol}://{server[protocol]}") as client:
        assert client.infer("m", {"x": QUICK}).outputs["y"].tolist() == [3]
        with pytest.raises(ServingError) as caught:
            client.infer("m", {"x": ENDLESS}, timeout_s=2)  # in which its process takes it up, or nothing hangs
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert client.infer("other", {"x": QUICK}).outputs["y"].tolist() == [3]
        # it waits in the queue of a process that hangs, and goes to the next one unharmed
        assert client.infer("m", {"x": QUICK}, timeout_s=20).outputs["y"].tolist() == [3]
    died = [line for line in map(json.loads, server.log.read_text().splitlines()) if line["event"] == "executor died"]
    assert [line["reason"] for line in died] == ["killed: it hung, far past the deadline of its request"]
