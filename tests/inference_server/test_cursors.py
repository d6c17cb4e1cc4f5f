"""Streams for protocols with one answer to a call: nothing that was given is lost, and nothing stays that nobody asks for."""

import threading
import time

import pytest

from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse
from inference_server.transports import cursors
from inference_server.transports.cursors import Cursors
from tests.eventually import eventually

REQUEST = InferRequest("m", ())


class Answers:
    """Gives `count` answers, then `error` or the end; waits for `gate` before each where there is one."""

    def __init__(self, count: int, error: ServingError | None = None, gate: threading.Semaphore | None = None) -> None:
        self.left, self.error, self.gate = count, error, gate
        self.closed, self.inside = 0, threading.Lock()

    def next(self, until: float | None = None) -> InferResponse | None:
        assert self.inside.acquire(blocking=False), "two threads at one stream"
        try:
            assert not self.closed, "asked after its end"
            wait = None if until is None else max(0.0, until - time.monotonic())
            if self.gate is not None and not self.gate.acquire(timeout=wait):
                raise TimeoutError
            if not self.left:
                if self.error is not None:
                    raise self.error
                return None
            self.left -= 1
            return InferResponse("m", "1", str(self.left), (), {})
        finally:
            self.inside.release()

    def close(self) -> None:
        assert self.inside.acquire(blocking=False), "closed under another thread"
        self.closed += 1
        self.inside.release()


class Inference:
    def __init__(self, *streams: Answers) -> None:
        self.streams = list(streams)

    def model_stream(self, request: InferRequest) -> Answers:
        return self.streams.pop(0)


def opened(*streams: Answers) -> Cursors:
    return Cursors(Inference(*streams))  # type: ignore[arg-type]


def test_answers_before_an_error_are_not_lost() -> None:
    broken = ServingError(Code.MODEL_FAILED, "broken")
    stream = Answers(3, broken)
    made = opened(stream)
    name, answers, done = made.open(REQUEST)
    assert len(answers) == 3 and not done
    with pytest.raises(ServingError, match="broken"):
        made.next(name, 0, 1.0)
    assert stream.closed == 1
    with pytest.raises(ServingError) as caught:
        made.next(name, 0, 1.0)
    assert caught.value.code is Code.NOT_FOUND


def test_closing_while_another_call_waits() -> None:
    gate = threading.Semaphore(1)
    stream = Answers(10, gate=gate)
    made = opened(stream)
    name, answers, _ = made.open(REQUEST)
    assert len(answers) == 1
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(made.next(name, 0, 0.5)))
    waiting.start()
    eventually(stream.inside.locked, "it waits inside")
    made.close(name)
    assert not stream.closed, "whoever is inside closes it"
    waiting.join(10)
    assert stream.closed == 1 and found == [([], False)]


def test_many_threads_at_one_cursor() -> None:
    for _ in range(50):
        gate = threading.Semaphore(3)
        stream = Answers(10, gate=gate)
        made = opened(stream)
        name, _, _ = made.open(REQUEST)
        wrong: list[BaseException] = []

        def ask(made: Cursors = made, name: str = name, wrong: list[BaseException] = wrong) -> None:
            try:
                made.next(name, 1, 0.001)
            except ServingError as error:
                if error.code not in (Code.CONFLICT, Code.NOT_FOUND):
                    wrong.append(error)
            except BaseException as error:  # noqa: BLE001
                wrong.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)] + [threading.Thread(target=made.close, args=(name,))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not wrong and stream.closed == 1


def test_what_nobody_asks_for_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anybody opening another one."""
    monkeypatch.setattr(cursors, "IDLE_S", 0.05)
    stream = Answers(10, gate=threading.Semaphore(1))
    made = opened(stream)
    made.open(REQUEST)
    eventually(lambda: stream.closed == 1, "it is closed by itself")
    eventually(lambda: made._timer is None, "nothing looks where nothing is open")
