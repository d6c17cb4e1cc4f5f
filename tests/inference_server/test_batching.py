"""Real models in real executors: what shares a run, what must not, and what a full queue, a deadline or a crash does to those who wait."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from idl import board as boards
from idl.codes import Code, ServingError
from idl.lane_calls import LaneConnection
from idl.messages import InferRequest, InferResponse, Tensor
from inference_server.engine import Engine
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.onnx_models import save, slow, times

BATCH = ("batch", 2)


def toml(repository: Path, name: str, text: str) -> None:
    (repository / name).mkdir(exist_ok=True)
    (repository / name / "model.toml").write_text(text)


def graph(
    path: Path, nodes: list[onnx.NodeProto], *, x: tuple[object, ...] = BATCH, y: tuple[object, ...] = BATCH, kind: int = TensorProto.FLOAT
) -> Path:
    inputs = [helper.make_tensor_value_info("x", kind, x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    table = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "table")
    one = numpy_helper.from_array(np.array([0], np.int64), "axes")
    used = {name for node in nodes for name in node.input}
    return save(helper.make_graph(nodes, "g", inputs, outputs, [t for t in (table, one) if t.name in used]), path)


def together(engine: Engine, requests: list[InferRequest]) -> list[InferResponse | ServingError]:
    """Answers or errors of requests made at once."""

    def ask(one: InferRequest) -> InferResponse | ServingError:
        try:
            return engine.model_infer(one)
        except ServingError as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, requests))


def tuning(engine: Engine, name: str = "m") -> tuple[int, str]:
    (served,) = engine._served[name].versions.values()
    return served.loaded.tuning.max_batch_size, served.loaded.tuning.reason


def answered(result: InferResponse | ServingError) -> InferResponse:
    assert isinstance(result, InferResponse), result
    return result


def test_requests_at_once_share_one_run_and_get_their_own_rows(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 3)
    toml(repository, "m", "max_batch_size = 6\nmax_queue_delay_us = 2000000")
    engine.load_all()
    asked = [request("m", [[number, number]] * rows) for number, rows in enumerate((1, 2, 3))]
    results = together(engine, asked)
    for number, rows in enumerate((1, 2, 3)):
        assert floats(answered(results[number])) == [3.0 * number] * 2 * rows
    (statistics,) = engine.model_statistics("m", "")
    assert (statistics.inference_count, statistics.execution_count) == (3, 1)


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("max_batch_size = 4", 4),
        ("max_batch_size = 4\nbatching = false", 0),
        ("max_batch_size = 1", 0),
        ("", 0),
        ("config.pbtxt", 3),
        ("instances = 2\nmax_batch_size = 4", 4),
    ],
)
def test_a_request_above_its_owners_size_is_refused_and_above_a_measured_one_is_not(
    engine: Engine, repository: Path, text: str, most: int
) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    if text == "config.pbtxt":
        (repository / "m" / text).write_text("max_batch_size: 3")
    else:
        toml(repository, "m", text)
    engine.load_all()
    rows = most or 5000
    assert len(floats(engine.model_infer(request("m", [[1, 1]] * rows)))) == 2 * rows
    if most:
        for _ in range(2):
            with pytest.raises(
                ServingError, match=rf"the request has {most + 1} rows, and model 'm' takes at most {most} \(max_batch_size\)"
            ) as caught:
                engine.model_infer(request("m", [[1, 1]] * (most + 1)))
            assert caught.value.code is Code.INVALID_INPUT


def test_an_open_first_axis_that_is_no_batch_has_no_most_rows(engine: Engine, repository: Path) -> None:
    graph(repository / "m" / "1" / "model.onnx", [helper.make_node("Softmax", ["x"], ["y"], axis=0)])
    toml(repository, "m", "max_batch_size = 2")
    engine.load_all()
    assert floats(engine.model_infer(request("m", [[1, 1]] * 4))) == [0.25] * 8


def test_only_what_fits_together_shares_a_run(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2, ("batch", "width"))
    toml(repository, "m", "max_batch_size = 2\nmax_queue_delay_us = 2000000")
    engine.load_all()
    results = together(engine, [request("m", [[1] * width]) for width in (2, 3, 2, 3)])
    assert [floats(answered(result)) for result in results] == [[2.0] * width for width in (2, 3, 2, 3)]
    assert engine.model_statistics("m", "")[0].execution_count == 2


def test_one_bad_request_never_harms_its_neighbours(engine: Engine, repository: Path) -> None:
    path = repository / "m" / "1" / "model.onnx"
    graph(path, [helper.make_node("Gather", ["table", "x"], ["y"])], x=("batch",), y=BATCH, kind=TensorProto.INT64)
    toml(repository, "m", "max_batch_size = 3\nmax_queue_delay_us = 2000000")
    engine.load_all()
    assert tuning(engine) == (3, "")

    def row(index: int) -> InferRequest:
        return InferRequest("m", (Tensor("x", "INT64", (1,), np.array([index], np.int64).tobytes()),))

    for place in range(3):
        indices = [0, 1, 2]
        indices[place] = 77
        results = together(engine, [row(index) for index in indices])
        for index, result in zip(indices, results, strict=True):
            if index == 77:
                assert isinstance(result, ServingError) and result.code in (Code.INVALID_INPUT, Code.MODEL_FAILED)
            else:
                assert floats(answered(result)) == [2.0 * index, 2.0 * index + 1]


@pytest.mark.parametrize(
    ("nodes", "shapes", "why"),
    [
        ([helper.make_node("Identity", ["x"], ["y"])], {"x": (3, 2), "y": (3, 2)}, "first dimension"),
        ([helper.make_node("Softmax", ["x"], ["y"], axis=0)], {}, "depends on the other rows"),
        ([helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])], {"y": ("two", "batch")}, "first dimension"),
        (
            [helper.make_node("RandomUniformLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["y"])],
            {},
            "different answers",
        ),
        ([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], {"y": ("some", 2)}, "cannot be told apart"),
    ],
    ids=["fixed", "softmax over the batch", "batch on another axis", "random", "more rows than came"],
)
@pytest.mark.parametrize("asked", ["", "max_batch_size = 8"])
def test_batching_is_refused_where_it_would_be_wrong(
    engine: Engine, repository: Path, nodes: list[onnx.NodeProto], shapes: dict[str, tuple[object, ...]], why: str, asked: str
) -> None:
    graph(repository / "m" / "1" / "model.onnx", nodes, **shapes)  # type: ignore[arg-type]
    toml(repository, "m", asked)
    engine.load_all()
    size, reason = tuning(engine)
    assert size == 1 and why in reason, reason


def test_what_was_measured_is_kept_with_the_file(engine: Engine, repository: Path) -> None:
    path = times(repository / "m" / "1" / "model.onnx", 3)
    measured = engine._library._starter._measured._folder  # type: ignore[attr-defined]
    before = set(measured.glob("*.json"))
    engine.load_all()
    (kept,) = set(measured.glob("*.json")) - before
    first = tuning(engine)
    said = json.loads(kept.read_text())
    kept.write_text(json.dumps(said | {"max_batch_size": 7}))
    engine._library._starter._measured._known.clear()  # type: ignore[attr-defined]
    engine.repository_model_load("m", {})
    assert tuning(engine)[0] == 7 != first[0], "what is kept is used"
    kept.write_text("half a fi")
    engine._library._starter._measured._known.clear()  # type: ignore[attr-defined]
    os.utime(path, ns=(1, 1))
    engine.repository_model_load("m", {})
    assert tuning(engine)[0] != 7, "another file is measured anew"


def busy(engine: Engine, rounds: int = 3000) -> Callable[[], InferResponse]:
    """One request inside the model `m`, a slow one. Returns what waits for its answer."""
    executor = engine._served["m"].versions[1].executors[0]
    with ThreadPoolExecutor(1) as pool:
        future: Future[InferResponse] = pool.submit(engine.model_infer, request("m", [1]))
        eventually(lambda: executor.board.cells[boards.RUNNING], "the request is in the model")
        pool.shutdown(wait=False)
    return future.result


@pytest.fixture
def slow_model(engine: Engine, repository: Path) -> Callable[[str], Engine]:
    def made(settings: str) -> Engine:
        slow(repository / "m" / "1" / "model.onnx", 1500)
        toml(repository, "m", settings)
        engine.load_all()
        engine.model_infer(request("m", [1]))  # from here on it knows that its runs are long
        return engine

    return made


def queued(engine: Engine, count: int) -> None:
    executor = engine._served["m"].versions[1].executors[0]
    eventually(lambda: executor.outstanding == count, f"{count} are inside")


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_full_queue_says_so_at_once_while_the_model_runs(slow_model: Callable[[str], Engine]) -> None:
    engine = slow_model("max_queue_size = 2")
    results: list[InferResponse | ServingError] = []
    asking = start(lambda: results.extend(together(engine, [request("m", [number]) for number in range(3)])))
    queued(engine, 3)  # one runs, two wait
    began = time.monotonic()
    with pytest.raises(ServingError) as refused:
        engine.model_infer(request("m", [9]))
    took = time.monotonic() - began
    asking.join()
    one = engine.model_statistics("m", "")[0].compute_infer
    assert refused.value.code is Code.OVERLOADED and refused.value.retry_after_ms >= 10
    assert took < one.ns / one.count / 1e9, "it did not wait for the run to end"
    assert all(isinstance(result, InferResponse) for result in results)
    assert engine.model_statistics("m", "")[0].fail.count == 1


def test_time_in_the_queue_is_bounded_by_the_request_and_by_the_settings(slow_model: Callable[[str], Engine]) -> None:
    engine = slow_model("default_timeout_us = 1000")
    inputs = request("m", [1]).inputs
    asked = [InferRequest("m", inputs), InferRequest("m", inputs, parameters={"timeout": 2000}), InferRequest("m", inputs)]
    results = together(engine, asked)
    late = [result for result in results if isinstance(result, ServingError)]
    assert len(late) == 2 and {error.code for error in late} == {Code.DEADLINE_EXCEEDED}
    assert engine.model_statistics("m", "")[0].execution_count == 2, "what was late was not run"
    for bad in (-1, "soon", 1.5, True):
        with pytest.raises(ServingError, match="timeout"):
            engine.model_infer(InferRequest("m", inputs, parameters={"timeout": bad}))


def test_a_high_priority_overtakes(slow_model: Callable[[str], Engine]) -> None:
    engine = slow_model("priority_levels = 2\ndefault_priority = 2")
    order: list[int] = []

    def ask(priority: int) -> None:
        engine.model_infer(InferRequest("m", request("m", [1]).inputs, parameters={"priority": priority}))
        order.append(priority)

    threads = [start(lambda: ask(0))]
    queued(engine, 1)
    for number, priority in enumerate((2, 2, 1)):
        threads.append(start(lambda priority=priority: ask(priority)))  # type: ignore[misc]
        queued(engine, number + 2)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 2]


def test_what_a_caller_that_left_had_queued_is_not_run(slow_model: Callable[[str], Engine]) -> None:
    engine = slow_model("")
    executor = engine._served["m"].versions[1].executors[0]
    first = start(lambda: engine.model_infer(request("m", [1])))
    queued(engine, 1)
    gone = [LaneConnection(str(executor.path), LIMIT) for _ in range(5)]
    for connection in gone:
        connection.send(request("m", [1]))
    queued(engine, 6)
    for connection in gone:
        connection.close()
    queued(engine, 1)  # noticed while the model runs
    first.join()
    (statistics,) = engine.model_statistics("m", "")
    assert statistics.execution_count == 2
    assert executor.board.cells[boards.CANCELLED] == 5 and statistics.fail.count == 5


def test_a_crash_fails_what_was_inside_and_nothing_else(slow_model: Callable[[str], Engine]) -> None:
    engine = slow_model("")
    results: list[InferResponse | ServingError] = []
    asking = start(lambda: results.extend(together(engine, [request("m", [number]) for number in range(6)])))
    queued(engine, 6)
    os.kill(engine._served["m"].versions[1].executors[0].pid, signal.SIGKILL)
    asking.join()
    failed = [result for result in results if isinstance(result, ServingError)]
    assert [error.code for error in failed] == [Code.MODEL_FAILED]
    assert sorted(floats(result)[0] for result in results if isinstance(result, InferResponse)) == sorted(
        number for number, result in enumerate(results) if isinstance(result, InferResponse)
    )
    (statistics,) = engine.model_statistics("m", "")
    assert (statistics.success.count, statistics.fail.count) == (6, 1), "with the one before"


def test_instances_come_and_go_without_a_dropped_request(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    toml(repository, "m", "instances = 2")
    engine.load_all()
    version = engine._served["m"].versions[1]
    assert version.instances == 2 and len({executor.pid for executor in version.executors}) == 2
    stop, failures, answers = threading.Event(), [], [0]

    def ask() -> None:
        while not stop.is_set():
            try:
                assert floats(engine.model_infer(request("m", [[1, 2]]))) == [2, 4]
                answers[0] += 1
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    threads = [start(ask) for _ in range(4)]
    for count in (1, 3, 1, 2):
        engine.set_instances("m", "", count)
        assert version.instances == count
        seen = answers[0]
        eventually(lambda seen=seen: answers[0] > seen + 20 or failures, "requests go on")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    engine.repository_model_load("m", {})
    assert engine._served["m"].versions[1].instances == 2, "what an operator set is kept over a reload"


def test_the_instance_with_the_least_work_gets_the_next_request(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    toml(repository, "m", "instances = 2\nmax_batch_size = 8\nmax_queue_delay_us = 300000")
    engine.load_all()
    executors = engine._served["m"].versions[1].executors
    asking = []
    for number in range(4):
        asking.append(start(lambda: engine.model_infer(request("m", [[1, 2]]))))
        eventually(lambda number=number: sum(executor.outstanding for executor in executors) == number + 1, "it waits for company")
    assert [executor.outstanding for executor in executors] == [2, 2]
    for thread in asking:
        thread.join()
