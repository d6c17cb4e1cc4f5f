"""Several answers to one request: in order, computed as they are taken, each stream at its reader's pace."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from idl import board as boards
from idl import tensors
from idl.codes import Code, ServingError
from idl.lane_streams import WINDOW
from idl.messages import InferRequest, InferResponse, Tensor
from inference_server.engine import Engine
from inference_server.engine_stream import EngineStream
from inference_server.executors import streams
from inference_server.executors.requests import Waiting
from inference_server.types import Answer
from tests.eventually import eventually
from tests.onnx_models import times
from tests.python_models import TOKENS_TOML, python_model, tokens

COUNTING = """
import pathlib
def infer(inputs, parameters):
    where = pathlib.Path(parameters["where"])
    try:
        for number in range(int(inputs["count"][0])):
            (where / "computed").write_text(str(number + 1))
            yield {"token": [f"{number}" + "x" * int(parameters.get("size", 0))]}
    finally:
        (where / "closed").touch()
"""
OFF = '[python]\nsandbox = "off"\n'


def asked(count: int, model: str = "m", **more: Any) -> InferRequest:
    return InferRequest(model, (Tensor("count", "INT32", (1,), np.int32([count]).tobytes()),), **more)


def token(answer: InferResponse) -> str:
    (text,) = tensors.decode("token", "BYTES", (1,), answer.outputs[0].data).tolist()
    return str(text.decode())


def everything(stream: EngineStream) -> list[str]:
    found = []
    while (answer := stream.next()) is not None:
        found.append(token(answer))
    return found


def load(engine: Engine, repository: Path, code: str | None = None, more: str = "") -> None:
    if code is None:
        tokens(repository / "m", more)
    else:
        python_model(repository / "m", code, more + TOKENS_TOML + OFF)
    engine.repository_model_load("m", {})


def test_answers_come_in_their_order_and_end(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    for count in (0, 1, WINDOW, 1000):
        stream = engine.model_stream(asked(count, id="r", parameters={"word": "w"}))
        assert everything(stream) == [f"w{number}" for number in range(count)]
        assert stream.next() is None
    statistics = engine.model_statistics("m", "")[0]
    assert (statistics.success.count, statistics.fail.count, statistics.inference_count) == (4, 0, 4)
    assert engine.in_flight() == 0
    assert engine.model_config("m", "")["model_transaction_policy"] == {"decoupled": True}


def test_any_other_model_gives_its_one(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 3)
    engine.repository_model_load("m", {})
    stream = engine.model_stream(InferRequest("m", (Tensor("x", "FP32", (1, 2), np.float32([1, 2]).tobytes()),), id="one"))
    answer = stream.next()
    assert answer is not None and (answer.id, answer.model_version) == ("one", "1")
    assert np.frombuffer(answer.outputs[0].data, np.float32).tolist() == [3, 6]
    assert stream.next() is None
    with pytest.raises(ServingError) as caught:
        engine.model_stream(InferRequest("nobody", ())).next()
    assert caught.value.code is Code.MODEL_NOT_FOUND


def test_who_asks_for_one_answer_gets_the_only_one_or_is_told(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    assert token(engine.model_infer(asked(1))) == "t0"
    for count in (0, 2):
        with pytest.raises(ServingError) as caught:
            engine.model_infer(asked(count))
        assert caught.value.code is Code.UNSUPPORTED and "ask for a stream" in caught.value.message
    assert engine.in_flight() == 0


def test_nothing_is_computed_far_ahead_of_who_reads(engine: Engine, repository: Path, tmp_path: Path) -> None:
    load(engine, repository, COUNTING)
    stream = engine.model_stream(asked(1000, parameters={"where": str(tmp_path)}))
    assert stream.next() is not None
    computed = lambda: int((tmp_path / "computed").read_text() or 0)  # noqa: E731
    eventually(lambda: computed() == WINDOW, "the window is full")
    (tmp_path / "other").mkdir()
    other = engine.model_stream(asked(50, parameters={"where": str(tmp_path / "other"), "size": 0}))
    assert len(everything(other)) == 50, "a slow reader keeps nobody else waiting"
    assert computed() == WINDOW, "and while another's was computed, nothing of its own"
    assert len(everything(stream)) == 999
    stream.close()


@pytest.mark.parametrize("size", [0, 5_000, 200_000])
def test_giving_up_in_the_middle_ends_the_model_and_frees_everything(engine: Engine, repository: Path, tmp_path: Path, size: int) -> None:
    load(engine, repository, COUNTING)
    for _ in range(3):
        (tmp_path / "closed").unlink(missing_ok=True)
        stream = engine.model_stream(asked(1000, parameters={"where": str(tmp_path), "size": size}))
        for number in range(30):
            answer = stream.next()
            assert answer is not None and token(answer) == f"{number}" + "x" * size
        stream.close()
        eventually((tmp_path / "closed").exists, "the model was told")
        eventually(lambda: engine.in_flight() == 0, "nothing is left inside")
    assert engine.model_statistics("m", "")[0].fail.count == 3


def test_its_mistakes_come_where_the_answer_would(engine: Engine, repository: Path) -> None:
    code = """
    from outboard_model import InvalidInput
    def infer(inputs, parameters):
        yield {"token": ["a"]}
        if parameters["do"] == "refuse": raise InvalidInput("enough")
        if parameters["do"] == "fail": raise ValueError("broken")
        if parameters["do"] == "die":
            import os; os._exit(1)
        yield {"other": ["b"]}
    """
    load(engine, repository, code)
    for what, code_, words in (
        ("refuse", Code.INVALID_INPUT, "enough"),
        ("fail", Code.MODEL_FAILED, "model.py, line 6: ValueError: broken"),
        ("wrong", Code.MODEL_FAILED, "infer gave no output 'token'; it gave 'other'"),
        ("die", Code.MODEL_FAILED, "died while it had the request"),
    ):
        stream = engine.model_stream(asked(1, id="r-1", parameters={"do": what}))
        first = stream.next()
        assert first is not None and token(first) == "a"
        with pytest.raises(ServingError) as caught:
            stream.next()
        assert caught.value.code is code_ and words in caught.value.message and caught.value.request_id == "r-1"
        assert stream.next() is None
        eventually(lambda: engine.in_flight() == 0, "nothing is left inside")


def test_a_deadline_is_for_all_of_them(engine: Engine, repository: Path) -> None:
    load(engine, repository, "import time\ndef infer(inputs):\n  while True:\n    time.sleep(0.01)\n    yield {'token': ['a']}\n")
    begun = time.monotonic()
    stream = engine.model_stream(asked(1, deadline=begun + 0.3))
    with pytest.raises(ServingError) as caught:
        while stream.next() is not None:
            pass
    assert caught.value.code is Code.DEADLINE_EXCEEDED and 0.2 < time.monotonic() - begun < 5
    with pytest.raises(TimeoutError):
        other = engine.model_stream(asked(1))
        try:
            while True:
                other.next(time.monotonic())
        finally:
            other.close()


def test_a_hundred_at_once_take_turns(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    streams = [engine.model_stream(asked(40, parameters={"word": f"{number}-"})) for number in range(100)]
    found: list[list[str]] = [[] for _ in streams]
    for _ in range(40):
        for number, stream in enumerate(streams):
            answer = stream.next()
            assert answer is not None
            found[number].append(token(answer))
    assert found == [[f"{number}-{turn}" for turn in range(40)] for number in range(100)]
    assert all(stream.next() is None for stream in streams)


def test_more_than_the_most_wait_in_the_queue_which_has_an_end(engine: Engine, repository: Path) -> None:
    load(engine, repository, more="max_streams = 2\nmax_queue_size = 1\n")
    running = [engine.model_stream(asked(100)) for _ in range(2)]
    assert all(stream.next() is not None for stream in running)
    waiting = engine.model_stream(asked(3))
    with pytest.raises(TimeoutError):
        waiting.next(time.monotonic() + 0.05)
    with pytest.raises(ServingError) as caught:
        engine.model_stream(asked(3)).next()
    assert caught.value.code is Code.OVERLOADED and caught.value.retry_after_ms > 0
    running[0].close()
    assert everything(waiting) == ["t0", "t1", "t2"]
    assert len(everything(running[1])) == 99


def test_a_crowd_that_comes_at_once_is_let_in_as_far_as_there_are_places(engine: Engine, repository: Path, tmp_path: Path) -> None:
    """While the model is inside an answer all the others come; only who has no place needs one in the queue."""
    code = """
import pathlib, time
def infer(inputs, parameters):
    if "wait" in parameters:
        while not pathlib.Path(parameters["wait"], "go").exists(): time.sleep(0.001)
    for number in range(int(inputs["count"][0])): yield {"token": [f"t{number}"]}
"""
    load(engine, repository, code, "max_streams = 20\nmax_queue_size = 2\n")
    crowd = [engine.model_stream(asked(2, parameters={"wait": str(tmp_path)} if not number else {})) for number in range(22)]
    for stream in crowd:
        with pytest.raises(TimeoutError):
            stream.next(time.monotonic() + 0.02)  # it is sent now
    (tmp_path / "go").touch()
    assert [everything(stream) for stream in crowd] == [["t0", "t1"]] * 22


def test_one_that_nobody_reads_ends_at_its_deadline_and_those_in_the_queue_at_theirs(engine: Engine, repository: Path) -> None:
    load(engine, repository, more="max_streams = 1\n")
    lasting = engine.model_stream(asked(1000))
    assert lasting.next() is not None
    short = engine.model_stream(asked(3, deadline=time.monotonic() + 0.75))
    with pytest.raises(TimeoutError):
        short.next(time.monotonic() + 0.01)
    eventually(lambda: engine.model_statistics("m", "")[0].fail.count == 1, "the one in the queue is refused while the place is taken")
    lasting.close()
    unread = engine.model_stream(asked(1000, deadline=time.monotonic() + 0.75))
    assert unread.next() is not None
    assert everything(engine.model_stream(asked(3, deadline=time.monotonic() + 10))) == ["t0", "t1", "t2"]
    unread.close()
    short.close()


class _Told:
    """A door that lets everything through."""

    memory_limit = 1 << 20

    def __init__(self) -> None:
        self.sent: list[int] = []

    def send(self, connection: Any, kind: int, *rest: Any) -> bool:
        self.sent.append(kind)
        return True


class _Tokens:
    """Gives texts without end, and notes what the board says while it is ended."""

    def __init__(self, board: boards.Board) -> None:
        self.board = board
        self.ended: list[tuple[int, int]] = []

    def answers(self, inputs: Any, wanted: list[str], parameters: Any) -> Iterator[Answer]:
        try:
            while True:
                yield Answer([np.array([b"a"], object)], {})
        finally:
            self.ended.append((self.board.cells[boards.RUNNING_SINCE], self.board.cells[boards.RUNNING_DEADLINE]))


@pytest.fixture
def alone() -> Iterator[tuple[streams.Streams, _Tokens, Waiting, list[ServingError]]]:
    """The streams of an executor without a process, one request that wants four answers ahead, and what was refused."""
    descriptor = boards.create()
    board = boards.Board(descriptor, writable=True)
    os.close(descriptor)
    model, refused = _Tokens(board), []
    made = streams.Streams(
        _Told(),  # type: ignore[arg-type]
        board,
        model,
        {"token": "BYTES"},
        contextlib.nullcontext(),
        most=1,
        refuse=lambda request, error: refused.append(error),
        gone=lambda request, now: None,
        succeeded=lambda stream, now: None,
    )
    prepared = SimpleNamespace(layout=(), tensors=(), wanted=["token"], parameters={})
    connection = SimpleNamespace(slot=0)
    request = Waiting(connection, 1, memoryview(b""), prepared, 1, 0, 0)  # type: ignore[arg-type]
    request.window = 4
    made.begin(request)
    yield made, model, request, refused


def test_a_reader_that_takes_nothing_for_long_loses_its_place(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, model, request, refused = alone
    while made.due_in(time.monotonic_ns()) == 0:
        made.step()
    due = made.due_in(time.monotonic_ns())
    assert due is not None and 0 < due <= streams.STALLED_NS and made.full
    request.taken = 1
    made.step()
    assert (made.due_in(time.monotonic_ns()) or 0) > due - 1_000_000_000 and not refused, "it has begun to wait again"
    monkeypatch.setattr(streams, "STALLED_NS", 0)
    assert made.due_in(time.monotonic_ns()) == 0
    made.step()
    assert made.empty and len(model.ended) == 1 and "has taken nothing for" in refused[0].message


def test_a_model_that_hangs_at_the_end_of_a_stream_is_seen_to_hang(alone: Any) -> None:
    """Also where its caller, who has gone, had set no deadline: the board says since when, and until when, for who watches."""
    made, model, request, _ = alone
    request.gone = True
    made.step()
    ((since, deadline),) = model.ended
    assert since > 0 and deadline == since + streams.CLOSE_NS
    assert made.empty and model.board.cells[boards.RUNNING_SINCE] == 0


def test_a_reload_lets_those_under_way_finish(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    stream = engine.model_stream(asked(500))
    assert stream.next() is not None
    rest: list[str] = []
    reader = threading.Thread(target=lambda: rest.extend(everything(stream)))
    reloading = threading.Thread(target=engine.repository_model_load, args=("m", {}))
    reloading.start()
    reader.start()
    reader.join()
    reloading.join()
    assert len(rest) == 499
    assert len(everything(engine.model_stream(asked(2)))) == 2


def test_large_answers_wait_until_those_before_were_taken(engine: Engine, repository: Path, tmp_path: Path) -> None:
    """They lie in memory that is used again."""
    load(engine, repository, COUNTING)
    for size in (3_000, 50_000, 300_000):
        stream = engine.model_stream(asked(40, parameters={"where": str(tmp_path), "size": size}))
        found = everything(stream)
        assert [text.rstrip("x") for text in found] == [str(number) for number in range(40)]
        assert {len(text.lstrip("0123456789")) for text in found} == {size}
