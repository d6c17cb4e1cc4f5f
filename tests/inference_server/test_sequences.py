"""Sequences: the server carries a model's state from one request to the next, for many at a time, and never mixes them up."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from idl import affinity
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, Tensor
from inference_server.engine import Engine
from tests.eventually import eventually
from tests.inference_server.conftest import floats
from tests.onnx_models import save

STATE = '[state.sum]\noutput = "next"\nbatch_axis = 1\n'


def summing(path: Path) -> Path:
    """x [N, 2], by [] -> y [N, 2], the sum of by * x of all requests; sum [1, N, 2] is carried to next."""

    def value(name: str, shape: tuple[Any, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    nodes = [
        helper.make_node("Mul", ["x", "by"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", "axes"], ["deep"]),
        helper.make_node("Add", ["sum", "deep"], ["next"]),
        helper.make_node("Squeeze", ["next", "axes"], ["y"]),
    ]
    inputs = [value("x", ("N", 2)), value("by", ()), value("sum", (1, "N", 2))]
    return save(helper.make_graph(nodes, "summing", inputs, [value("y", ("N", 2)), value("next", (1, "N", 2))], [axes]), path)


def load(engine: Engine, repository: Path, toml: str = STATE) -> None:
    summing(repository / "m" / "1" / "model.onnx")
    (repository / "m" / "model.toml").write_text(toml)
    engine.repository_model_load("m", {})


def ask(engine: Engine, x: Any, sequence: Any = None, by: float = 1, **flags: bool) -> InferResponse:
    array = np.float32([x])
    tensors = (Tensor("x", "FP32", array.shape, array.tobytes()), Tensor("by", "FP32", (), np.float32(by).tobytes()))
    parameters = {} if sequence is None else {"sequence_id": sequence}
    return engine.model_infer(InferRequest("m", tensors, parameters=parameters | {f"sequence_{name}": on for name, on in flags.items()}))


def refused(engine: Engine, *arguments: Any, **flags: bool) -> ServingError:
    with pytest.raises(ServingError) as caught:
        ask(engine, *arguments, **flags)
    return caught.value


def test_the_state_is_the_servers(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    metadata = engine.model_metadata("m", "")
    assert [spec.name for spec in (*metadata.inputs, *metadata.outputs)] == ["x", "by", "y"]
    assert floats(ask(engine, (1, 2), 7, start=True)) == [1, 2]
    assert floats(ask(engine, (1, 2), 7)) == [2, 4]
    assert floats(ask(engine, (5, 5), "8", start=True)) == [5, 5], "another one"
    assert floats(ask(engine, (1, 2), 7, 10)) == [12, 24]
    assert floats(ask(engine, (1, 1))) == [1, 1], "one that stands alone begins anew, and leaves nothing"
    assert floats(ask(engine, (1, 2), 7, end=True)) == [13, 26]
    assert floats(ask(engine, (0, 0), 8)) == [5, 5], "a text of digits is that number"
    error = refused(engine, (1, 2), 7)
    assert error.code is Code.CONFLICT and "sequence 7 of model 'm' is not known here: it has ended" in error.message
    assert floats(ask(engine, (1, 1), 8, start=True)) == [1, 1], "begun again"
    assert refused(engine, (1, 1), start=True).message == "sequence_start needs a sequence_id"
    assert refused(engine, (1, 1), 9, 1, start="perhaps").code is Code.INVALID_INPUT  # type: ignore[arg-type]


def test_many_at_once_are_put_together_and_never_mixed_up(engine: Engine, repository: Path) -> None:
    load(engine, repository, "max_queue_delay_us = 20000\n" + STATE)
    failures: list[str] = []

    def talk(number: int) -> None:
        total = np.zeros(2, np.float32)
        for turn in range(20):
            x, by = np.float32([number, turn]), float(1 + number % 2)
            total += by * x
            got = floats(ask(engine, x.tolist(), number, by, start=turn == 0, end=turn == 19))
            if got != total.tolist():
                failures.append(f"{number}, {turn}: {got}, not {total.tolist()}")

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    statistics = engine.model_statistics("m", "")[0]
    assert statistics.success.count == 240 and statistics.execution_count < 200, "some shared a run"


def test_rows_of_one_sequence_stay_those_of_its_beginning(engine: Engine, repository: Path) -> None:
    """Two that change their rows at the same time, so that together these fit: neither gets the other one's state."""
    load(engine, repository, "max_queue_delay_us = 100000\n" + STATE)

    def rows(values: Any, sequence: int, **flags: bool) -> Any:
        x = np.float32(values)
        tensors = (Tensor("x", "FP32", x.shape, x.tobytes()), Tensor("by", "FP32", (), np.float32(1).tobytes()))
        try:
            answer = engine.model_infer(
                InferRequest("m", tensors, parameters={"sequence_id": sequence} | {f"sequence_{name}": on for name, on in flags.items()})
            )
        except ServingError as error:
            return error
        return floats(answer)

    assert rows([[100, 100]], 1, start=True) == [100, 100]
    assert rows([[5, 5], [6, 6], [7, 7]], 2, start=True) == [5, 5, 6, 6, 7, 7]
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: rows(np.zeros((2, 2)), n)})) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, known in ((1, 1), (2, 3)):
        assert found[number].code is Code.INVALID_INPUT, found
        assert f"sequence {number} has gone on with {known} rows and this request has 2" in found[number].message
    assert rows(np.zeros((1, 2)), 1) == [100, 100] and rows(np.zeros((3, 2)), 2) == [5, 5, 6, 6, 7, 7], "both go on as they were"


def test_requests_of_one_sequence_run_in_their_order(engine: Engine, repository: Path) -> None:
    """Also where they wait together: none shares a run with another of its own."""
    from idl.lane_calls import LaneConnection

    load(engine, repository, "max_queue_delay_us = 50000\nmax_batch_size = 4\n" + STATE)
    (executor,) = engine._served["m"].versions[1].executors
    connections = [LaneConnection(str(executor.path), 1 << 20) for _ in range(4)]
    for number, connection in enumerate(connections):
        x = np.float32([[1, number]])
        parameters = {"sequence_id": 3, "sequence_start": number == 0}
        connection.send(
            InferRequest(
                "m", (Tensor("x", "FP32", (1, 2), x.tobytes()), Tensor("by", "FP32", (), np.float32(1).tobytes())), parameters=parameters
            )
        )
    answers = []
    for connection in connections:
        while (answer := connection.receive()) is None:
            pass
        answers.append(np.frombuffer(answer.outputs[0].data, np.float32).tolist())
        connection.close()
    assert answers == [[1, 0], [2, 1], [3, 3], [4, 6]]


def test_idle_ones_are_forgotten_and_there_is_a_most(engine: Engine, repository: Path) -> None:
    load(engine, repository, STATE + "[sequence]\nmax_sequences = 2\n")
    ask(engine, (1, 1), 1, start=True)
    ask(engine, (1, 1), 2, start=True)
    error = refused(engine, (1, 1), 3, start=True)
    assert error.code is Code.OVERLOADED and error.retry_after_ms
    load(engine, repository, STATE + "[sequence]\nidle_timeout_s = 0.2\nmax_sequences = 2\n")  # none is forgotten before it is refused
    ask(engine, (1, 1), 1, start=True)
    ask(engine, (1, 1), 2, start=True)
    eventually(lambda: floats(ask(engine, (1, 1), 3, start=True)) == [1, 1] if not _full(engine) else False, "the others were forgotten")
    assert "idle for 0.2 s" in refused(engine, (1, 1), 1).message


def _full(engine: Engine) -> bool:
    try:
        ask(engine, (1, 1), 4, start=True, end=True)
        ask(engine, (1, 1), 3, start=True)
    except ServingError:
        return True
    return False


def test_each_instance_keeps_its_own_and_is_found_again(engine: Engine, repository: Path) -> None:
    load(engine, repository, "instances = 3\n" + STATE)
    for number in range(1, 31):
        ask(engine, (number, 0), number, start=True)
    for number in range(1, 31):
        assert floats(ask(engine, (1, 1), number)) == [number + 1, 1]
    used = [executor.board.kind("success")[0] for executor in engine._served["m"].versions[1].executors]
    assert sum(used) == 60 and min(used) > 0 and all(count % 2 == 0 for count in used)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_instances_get_equally_many(count: int) -> None:
    names = [(f"/run/outboard/x{number}.lane", number) for number in range(8, 8 + count)]  # as executors are named
    shares = Counter(affinity.choose(names, str(sequence)) for sequence in range(3000))
    assert all(0.85 < shares[number] * count / 3000 < 1.15 for _, number in names), shares


def test_a_number_and_its_text_are_one_sequence_everywhere() -> None:
    assert len({affinity.of({"sequence_id": given}) for given in (7, "7", "007")}) == 1
    assert affinity.of({"sequence_id": "7a"}) == "7a" and affinity.of({"sequence_id": "0"}) == ""


def test_an_instance_that_goes_takes_only_its_own_along() -> None:
    names = [(f"x{number}.lane", number) for number in range(5)]
    before = {sequence: affinity.choose(names, str(sequence)) for sequence in range(500)}
    after = {sequence: affinity.choose([each for each in names if each[1] != 2], str(sequence)) for sequence in range(500)}
    assert set(before.values()) == set(range(5))
    assert all(after[sequence] == where for sequence, where in before.items() if where != 2)
    assert affinity.of({}) == affinity.of({"sequence_id": 0}) == affinity.of({"sequence_id": ""}) == ""
    assert affinity.of({"sequence_id": 12}) == affinity.of({"sequence_id": "12"}) == "12"


def test_after_a_crash_or_a_reload_a_sequence_is_to_begin_again(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    ask(engine, (1, 1), 1, start=True)
    engine.repository_model_load("m", {})
    assert refused(engine, (1, 1), 1).code is Code.CONFLICT


def test_a_model_without_a_state_has_no_sequences(engine: Engine, repository: Path) -> None:
    load(engine, repository, "")
    array = np.float32([[1, 1]])
    tensors = tuple(
        Tensor(name, "FP32", shape, array[:, : max(1, shape[-1] if shape else 1)].tobytes()[: 4 * int(np.prod(shape))])
        for name, shape in (("x", (1, 2)), ("by", ()), ("sum", (1, 1, 2)))
    )
    with pytest.raises(ServingError) as caught:
        engine.model_infer(InferRequest("m", tensors, parameters={"sequence_id": 1}))
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ('[state.total]\noutput = "next"\n', "state.total: the model has no input 'total'; it has 'x', 'by', 'sum'"),
        ('[state.sum]\noutput = "last"\n', "state.sum.output: the model has no output 'last'; it has 'y', 'next'"),
        ('[state.sum]\noutput = "next"\n', "state.sum: size 1 of [1, -1, 2] is open: say the batch_axis, or the shape that it begins with"),
        ('[state.sum]\noutput = "next"\nbatch_axis = 3\n', "state.sum.batch_axis is 3, and the model's input has shape [1, -1, 2]"),
        ('[state.sum]\noutput = "next"\nshape = [2, 1, 2]\n', "state.sum.shape is [2, 1, 2], and the model's input has [1, -1, 2]"),
        ("[state.sum]\nbatch_axis = 1\n", "state.sum does not say which output it is the next time: state.sum.output"),
    ],
)
def test_what_does_not_fit_the_model_is_said(engine: Engine, repository: Path, toml: str, reason: str) -> None:
    with pytest.raises(ServingError) as caught:
        load(engine, repository, toml)
    assert reason in caught.value.message
    assert caught.value.code is Code.INVALID_MODEL
