"""What is counted of the single answers of models that give several: by their place among them, as the statistics extension says."""

from pathlib import Path

import pytest

from idl.board import MOST_ANSWERS, Board, create
from idl.codes import Code, ServingError
from idl.messages import ResponseStatistics
from inference_server.engine import Engine
from tests.eventually import eventually
from tests.inference_server.test_streams import asked, everything, load
from tests.onnx_models import times

FAILING = """
import time
def infer(inputs, parameters):
    for number in range(int(inputs["count"][0])):
        if int(parameters.get("fail", -1)) == number:
            time.sleep(0.002)
            raise ValueError("on purpose")
        yield {"token": [str(number)]}
"""


def counted(engine: Engine, model: str = "m") -> list[ResponseStatistics]:
    return list(engine.model_statistics(model, "")[0].responses)


def outcomes(engine: Engine) -> list[tuple[str, int, int, int, int]]:
    """(place, given, failed, none left, cancelled)."""
    return [(each.key, each.success.count, each.fail.count, each.empty_response.count, each.cancel.count) for each in counted(engine)]


def test_each_place_and_the_end_are_counted(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    assert counted(engine) == []
    assert everything(engine.model_stream(asked(2))) == ["t0", "t1"]
    assert outcomes(engine) == [("0", 1, 0, 0, 0), ("1", 1, 0, 0, 0), ("2", 0, 0, 1, 0)]
    assert everything(engine.model_stream(asked(3))) == ["t0", "t1", "t2"] and everything(engine.model_stream(asked(0))) == []
    assert outcomes(engine) == [("0", 2, 0, 1, 0), ("1", 2, 0, 0, 0), ("2", 1, 0, 1, 0), ("3", 0, 0, 1, 0)]
    first, _, third, _ = counted(engine)
    assert first.compute_infer.count == 3 and first.compute_output.count == 2, "no tensor is encoded where there is none"
    assert first.success.ns + first.empty_response.ns == first.compute_infer.ns + first.compute_output.ns > 0
    assert third.compute_infer.count == 2 and third.compute_output.count == 1
    assert engine.model_statistics("m", "")[0].success.count == 3, "a request is one success, however many answers it has"


def test_who_asks_for_one_answer_is_counted_too(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    engine.model_infer(asked(1))
    assert outcomes(engine) == [("0", 1, 0, 0, 0)]
    with pytest.raises(ServingError, match="several answers"):
        engine.model_infer(asked(2))
    assert outcomes(engine) == [("0", 1, 1, 0, 0)]


def test_a_failure_is_that_of_its_place(engine: Engine, repository: Path) -> None:
    load(engine, repository, FAILING)
    stream = engine.model_stream(asked(4, parameters={"fail": 2}))
    with pytest.raises(ServingError) as caught:
        everything(stream)
    assert caught.value.code is Code.MODEL_FAILED
    assert outcomes(engine) == [("0", 1, 0, 0, 0), ("1", 1, 0, 0, 0), ("2", 0, 1, 0, 0)]
    failed = counted(engine)[2]
    assert failed.fail.ns >= 2_000_000 and failed.compute_infer.count == failed.compute_output.count == 1


def test_who_goes_away_leaves_a_cancelled_answer(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    stream = engine.model_stream(asked(1_000_000))
    stream.next()
    stream.close()
    eventually(lambda: sum(each.cancel.count for each in counted(engine)) == 1, "it was counted")
    assert all(each.fail.count == each.empty_response.count == 0 for each in counted(engine))


def test_answers_after_the_last_place_are_counted_with_it(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    assert len(everything(engine.model_stream(asked(MOST_ANSWERS + 10)))) == MOST_ANSWERS + 10
    found = counted(engine)
    assert [each.key for each in found] == [str(index) for index in range(MOST_ANSWERS)]
    assert found[-1].success.count == 11 and found[-1].empty_response.count == 1 and found[-2].success.count == 1


def test_counts_outlive_the_process_and_are_summed_over_instances(engine: Engine, repository: Path) -> None:
    load(engine, repository, None, "instances = 2\n")
    for _ in range(4):
        everything(engine.model_stream(asked(1)))
    assert outcomes(engine) == [("0", 4, 0, 0, 0), ("1", 0, 0, 4, 0)]
    served = engine._library.route("m", "")
    before = set(served.executors)
    for executor in before:
        executor.kill()
    eventually(lambda: len(served.executors) == 2 and not before & set(served.executors), "they are back")
    everything(engine.model_stream(asked(1)))
    assert outcomes(engine) == [("0", 5, 0, 0, 0), ("1", 0, 0, 5, 0)]


def test_other_models_have_none(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    engine.repository_model_load("m", {})
    from tests.inference_server.conftest import request

    engine.model_infer(request("m", [[1, 2]]))
    assert counted(engine) == []


def test_a_board_that_counted_no_answer_has_none_of_their_memory() -> None:
    import os

    descriptor = create()
    try:
        board = Board(descriptor, writable=True)
        assert list(board.answers()) == []
        untouched = os.fstat(descriptor).st_blocks
        board.answered(5, "success", 7, 8)
        assert [counts[0] for counts in board.answers()] == [0, 0, 0, 0, 0, 1]
        assert os.fstat(descriptor).st_blocks > untouched
    finally:
        os.close(descriptor)
