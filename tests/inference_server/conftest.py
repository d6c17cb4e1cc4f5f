"""An engine over a repository in a temporary folder, with real executor processes."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from idl.messages import InferRequest, InferResponse, Tensor
from inference_server.executors.process import Watcher, Zygote
from tests.engines import engine_fixture, repository_fixture, started_once  # noqa: F401
from tests.processes import descriptors

zygote, watcher = started_once("session")


@pytest.fixture(autouse=True)
def nothing_left_over(zygote: Zygote, watcher: Watcher) -> Iterator[None]:
    """Fails the test that leaves a thread, a descriptor or an executor process behind."""
    before = threads(), descriptors(), children(zygote)
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(("retire-", "mend-", "reap-", "control-")):
            thread.join(10)
    deadline = time.monotonic() + 5
    while not children(zygote) <= before[2] and time.monotonic() < deadline:
        time.sleep(0.001)  # dead, but not yet reaped by the zygote
    after = threads(), descriptors(), children(zygote)
    assert after[0] <= before[0], f"threads left over: {after[0] - before[0]}"
    assert after[1] <= before[1], f"{after[1]} descriptors, {before[1]} before"
    assert after[2] <= before[2], "executor processes left over"


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("ThreadPool")}


def children(zygote: Zygote) -> set[str]:
    pid = zygote._process.pid
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def request(
    model: str, values: object, *, name: str = "x", version: str = "", deadline: float | None = None, request_id: str = ""
) -> InferRequest:
    array = np.asarray(values, np.float32)
    return InferRequest(model, (Tensor(name, "FP32", array.shape, array.tobytes()),), version, request_id, deadline=deadline)


def floats(response: InferResponse) -> list[float]:
    return np.frombuffer(response.outputs[0].data, np.float32).tolist()
