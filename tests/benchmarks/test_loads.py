"""Load generators see what was refused: a refusal is quick, and would pass for speed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import payloads
from benchmarks.loads import callers, h2load
from benchmarks.repository import make_tiny
from benchmarks.workload import Workload
from tests.needs import needs
from tests.processes import Process, start_server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Workload]]:
    folder = tmp_path_factory.mktemp("benchmarks")
    load = make_tiny(folder / "models")
    made = start_server(folder / "models", folder)
    yield made, load
    assert made.stop() == 0


@needs("h2load")
def test_h2load_sees_errors_that_travel_in_trailers(served: tuple[Process, Workload], tmp_path: Path) -> None:
    server, load = served
    size = payloads.check_grpc(server["grpc"], load)
    body = tmp_path / "body"
    body.write_bytes(payloads.grpc_message(load))
    good = h2load.load(server["grpc"], payloads.GRPC_METHOD, body, 4, 1, answer_bytes=size)
    assert good.errors == 0 and good.requests > 0
    unknown = Workload("unknown", load.file, load.inputs, load.output, load.expected)
    body.write_bytes(payloads.grpc_message(unknown))
    bad = h2load.load(server["grpc"], payloads.GRPC_METHOD, body, 4, 1, answer_bytes=size)
    assert bad.errors == bad.requests > 0


def test_an_answer_of_another_model_is_noticed(served: tuple[Process, Workload]) -> None:
    server, load = served
    wrong = Workload(load.model, load.file, load.inputs, load.output, load.expected + np.float32(0.5))
    with pytest.raises(RuntimeError, match="is not what onnxruntime gives"):
        payloads.check_grpc(server["grpc"], wrong)
    with pytest.raises(RuntimeError, match="is not what onnxruntime gives"):
        payloads.check_thrift(server["thrift"], wrong)


@pytest.mark.parametrize(("kind", "scheme"), [("inference_client", "thrift://"), ("tritonclient.grpc", "")])
def test_python_callers_measure_and_end(served: tuple[Process, Workload], tmp_path: Path, kind: str, scheme: str) -> None:
    server, load = served
    target = f"{scheme}{server['thrift' if scheme else 'grpc']}"
    found = callers.load(kind, target, callers.write_workload(tmp_path / "load", load), 2, 0.1)
    assert found.requests > 0 and found.errors == 0 and 0 < found.p50_ms <= found.p99_ms <= found.max_ms


@pytest.mark.parametrize(
    ("answers", "received", "size", "expected"),
    [(100, 9000, 90, 0), (100, 8950, 90, 0), (100, 0, 90, 100), (100, 4500, 90, 46), (10, 5 * 2**24, 2**24, 5), (100, 1, 0, 0)],
)
def test_answers_without_a_message_are_counted_by_their_bytes(answers: int, received: int, size: int, expected: int) -> None:
    assert h2load.without_message(answers, received, size) == expected
