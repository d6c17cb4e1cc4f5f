"""Several answers to one request over Thrift: a cursor on the host, asked again and again."""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse
from inference_client.channel import STREAM_CLOSE, STREAM_NEXT, STREAM_OPEN, StreamChunk, StreamOrder, StreamTurn
from inference_client.deadline import Deadline, passed

WAIT_MS = 1000
"""How long the host is asked to wait for an answer, in one call."""
CALL_S = 30.0
"""What one call may take, its wait included."""
_CLOSE_S = 2.0
_PAUSE_S = 0.01
"""Between two calls where the host did not wait: all its waits are taken."""


class CursorAnswers:
    """Satisfies `streams.RawAnswers`. `call` is the channel's; `deadline` is for all answers."""

    def __init__(self, call: Callable[[Any, Any, Deadline], Any], request: InferRequest, deadline: Deadline) -> None:
        self._call = call
        self._request = request
        self._deadline = deadline
        self._ready: deque[InferResponse] = deque()
        self._stream = ""
        self._done = False
        self._opened = False

    def next(self, until: float | None = None) -> InferResponse | None:
        if until is not None and not self._ready and not self._done:  # asking takes a while
            raise TimeoutError
        while not self._ready and not self._done:
            begun = time.monotonic()
            chunk = self._turn()
            self._opened = True
            self._stream, self._done = chunk.stream, chunk.done
            self._ready.extend(chunk.answers)
            if not chunk.answers and not chunk.done and time.monotonic() - begun < _PAUSE_S:
                time.sleep(_PAUSE_S)
        return self._ready.popleft() if self._ready else None

    def _turn(self) -> StreamChunk:
        left = self._deadline.left_or_none()
        at = Deadline(time.monotonic() + CALL_S, watch=self._deadline.watch)
        try:
            if not self._opened:
                order = StreamOrder(self._request, max(1, int(left * 1000)) if left is not None else 0)
                opened: StreamChunk = self._call(STREAM_OPEN, order, at)
                return opened
            wait_ms = WAIT_MS if left is None else max(1, min(WAIT_MS, int(left * 1000)))
            following: StreamChunk = self._call(STREAM_NEXT, StreamTurn(self._stream, 0, wait_ms), at)
            return following
        except ServingError as error:
            self._done = True
            if error.code is Code.NOT_FOUND and self._deadline.is_passed():
                raise passed() from None
            raise

    def close(self) -> None:
        """Idempotent; a host that cannot be told closes the cursor by itself."""
        if self._opened and not self._done:
            self._done = True
            with contextlib.suppress(ServingError):
                self._call(STREAM_CLOSE, self._stream, Deadline(time.monotonic() + _CLOSE_S))
        self._done = True
        self._ready.clear()
