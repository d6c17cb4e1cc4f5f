"""Streams of answers for callers whose protocol has only one answer for a call: a cursor, asked again and again.

A cursor holds no thread between two calls. One that nobody asks for IDLE_S is closed, and what is left of its answers is not computed.
"""

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse
from inference_server import errors
from inference_server.types import Answers, Inference

IDLE_S = 60.0
MOST_WAIT_S = 1.0
"""How long one call may wait for an answer, and hold a thread meanwhile; then it says that there was none."""
MOST_BYTES = 1024 * 1024
"""Of tensors, from which on a call takes no further answer along."""
MOST_AT_ONCE = 1024


@dataclass(slots=True, eq=False)
class _Cursor:
    """`busy`: who has it may use `answers`. `closed`: whoever has `busy` closes them. `failed`: what the next call is told."""

    answers: Answers
    used: float
    busy: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False
    failed: ServingError | None = None


class Cursors:
    """Thread-safe. At most `most` are open; at most `waiting` calls wait at a time, further ones get what is there."""

    def __init__(self, inference: Inference, most: int = 256, waiting: int = 4) -> None:
        self._inference = inference
        self._most = most
        self._waiting = threading.Semaphore(waiting)
        self._lock = threading.Lock()
        self._open: dict[str, _Cursor] = {}
        self._timer: threading.Timer | None = None
        """Looks for those that nobody asks for, while any are open."""

    def open(self, request: InferRequest) -> tuple[str, Sequence[InferResponse], bool]:
        """(cursor, the answers so far, whether these are all). Raises ServingError; then nothing is open."""
        self.sweep(time.monotonic())
        with self._lock:
            if len(self._open) >= self._most:
                raise errors.overloaded(f"{self._most} streams are open already", 1000)
            name = secrets.token_urlsafe(18)
            cursor = self._open[name] = _Cursor(self._inference.model_stream(request), time.monotonic())
            self._look_again()
        answers, done = self._take(name, cursor, MOST_AT_ONCE, MOST_WAIT_S)
        return name, answers, done

    def next(self, name: str, most: int, wait_s: float) -> tuple[Sequence[InferResponse], bool]:
        """At most `most` answers (0: as many as are there), after at most `wait_s` for the first, and whether these are the last.

        Raises what went wrong where an answer would be, and closes the cursor then; not_found; conflict where another call has it.
        """
        cursor = self._open.get(name)
        if cursor is None:
            raise ServingError(Code.NOT_FOUND, "there is no such stream: it has ended, was closed, or was not asked for a while")
        return self._take(name, cursor, min(most, MOST_AT_ONCE) if most > 0 else MOST_AT_ONCE, min(max(wait_s, 0.0), MOST_WAIT_S))

    def _take(self, name: str, cursor: _Cursor, most: int, wait_s: float) -> tuple[Sequence[InferResponse], bool]:
        if not cursor.busy.acquire(blocking=False):
            raise ServingError(Code.CONFLICT, "another call is taking answers of this stream")
        try:
            if cursor.closed:
                raise ServingError(Code.NOT_FOUND, "the stream was closed")
            if cursor.failed is not None:
                raise cursor.failed
            waits = self._waiting.acquire(blocking=False)
            try:
                answers, done = _gather(cursor, most, time.monotonic() + wait_s if waits else 0.0)
            finally:
                if waits:
                    self._waiting.release()
        except BaseException:
            self._drop(name)
            raise
        finally:
            cursor.used = time.monotonic()
            cursor.busy.release()
            _close(cursor)
        if done:
            self._drop(name)
        return answers, done

    def close(self, name: str) -> None:
        """Also of one that is not open."""
        self._drop(name)

    def _drop(self, name: str) -> None:
        with self._lock:
            cursor = self._open.pop(name, None)
            if not self._open and self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if cursor is not None:
            cursor.closed = True
            _close(cursor)

    def sweep(self, now: float) -> None:
        """Closes those that were not asked for a while; `now` in monotonic seconds."""
        for name, cursor in list(self._open.items()):
            if now - cursor.used > IDLE_S and not cursor.busy.locked():
                self._drop(name)

    def _look_again(self) -> None:
        """Under the lock."""
        if self._open and self._timer is None:
            self._timer = threading.Timer(IDLE_S / 4, self._look)
            self._timer.daemon, self._timer.name = True, "reap-cursors"
            self._timer.start()

    def _look(self) -> None:
        self.sweep(time.monotonic())
        with self._lock:
            if self._timer is threading.current_thread():
                self._timer = None
                self._look_again()

    def close_all(self) -> None:
        for name in list(self._open):
            self._drop(name)


def _close(cursor: _Cursor) -> None:
    """Ends a closed one where nobody has it; else whoever has it does so afterwards. It is not given back: nobody takes of it any more."""
    if cursor.closed and cursor.busy.acquire(blocking=False):
        cursor.answers.close()


def _gather(cursor: _Cursor, most: int, until: float) -> tuple[list[InferResponse], bool]:
    """An error behind answers is left to the next call: these are not lost for it."""
    found: list[InferResponse] = []
    size = 0
    while len(found) < most and size < MOST_BYTES and not cursor.closed:
        try:
            answer = cursor.answers.next(0.0 if found else until)
        except TimeoutError:
            break
        except ServingError as error:
            if not found:
                raise
            cursor.failed = error
            break
        if answer is None:
            return found, True
        found.append(answer)
        size += sum(len(tensor.data) for tensor in answer.outputs)
    return found, False
