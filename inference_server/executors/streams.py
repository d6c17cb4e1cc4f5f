"""Models that give several answers for one request: each answer is computed when its caller has room for it, in turn with the others'.

A slow reader keeps its own stream waiting, no other. Everything is computed by the executor's one thread; while it is inside the model,
the one that keeps the door only notes who has gone and what was taken.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from idl import board as boards
from idl import lane
from idl.board import Board
from idl.codes import ServingError
from idl.tensors import Array
from inference_server import errors
from inference_server.executors.door import Door
from inference_server.executors.merging import Encoded, Heads, Results, decode
from inference_server.executors.requests import Waiting
from inference_server.types import Answer

STALLED_NS = 600_000_000_000
"""A reader that takes nothing for so long has left, whatever its connection says."""
CLOSE_NS = 10_000_000_000
"""What a model may take to end a stream that nobody wants any more, where its caller has set no deadline."""
LONG_PART_NS = 2_000_000
"""From this on somebody else keeps the door while an answer is computed."""


class Many(Protocol):
    """What gives the answers: `wanted` outputs, in that order, with parameters of its own."""

    def answers(self, inputs: dict[str, Array], wanted: list[str], parameters: Any) -> Iterator[Answer]: ...


@dataclass(slots=True, eq=False)
class Stream:
    """One request under way. `ready`: an answer that waits for room. Durations in ns, of all answers; `begun`, `computed`: of the one that is being
    made, 0 where none is.
    """

    request: Waiting
    answers: Iterator[Answer]
    started: int
    input_ns: int
    compute_ns: int = 0
    output_ns: int = 0
    sent: int = 0
    begun: int = 0
    computed: int = 0
    seen_taken: int = 0
    seen_at: int = 0
    ready: tuple[Encoded, tuple[int, int, int, int]] | None = field(default=None)

    @property
    def may_go_on(self) -> bool:
        """There is room for an answer, or it is over."""
        request, waiting = self.request, self.ready
        if request.gone:
            return True
        if waiting is not None:
            return request.taken >= self.sent
        return self.sent - request.taken < max(1, request.window)

    def left_ns(self, now: int) -> int:
        """How long it may still wait for its reader."""
        request = self.request
        if request.taken != self.seen_taken or not self.seen_at:
            self.seen_taken, self.seen_at = request.taken, now
        left = self.seen_at + STALLED_NS - now
        return min(left, request.deadline_ns - now) if request.deadline_ns else left


class Streams:
    """Those of one executor. `keeper` keeps the door; `refuse`, `gone` and `succeeded` end a request as the executor does."""

    def __init__(
        self,
        door: Door,
        board: Board,
        model: Many,
        datatypes: dict[str, str],
        keeper: AbstractContextManager[None],
        *,
        most: int,
        refuse: Callable[[Waiting, ServingError], None],
        gone: Callable[[Waiting, int], None],
        succeeded: Callable[[Stream, int], None],
    ) -> None:
        self._door, self._board, self._model, self._datatypes, self._keeper = door, board, model, datatypes, keeper
        self._most = most
        self._refuse, self._gone, self._succeeded = refuse, gone, succeeded
        self._heads: Heads = {}
        self._running: list[Stream] = []
        self._part_ns = 0

    @property
    def free(self) -> int:
        """So many more may be under way."""
        return max(0, self._most - len(self._running))

    @property
    def full(self) -> bool:
        """No further one may begin."""
        return not self.free

    @property
    def starts(self) -> int:
        """How many may begin before the next step: as many as are under way, so that neither old nor new ones have to wait for long."""
        return min(self.free, max(1, len(self._running)))

    @property
    def empty(self) -> bool:
        return not self._running

    def due_in(self, now: int) -> int | None:
        """Nanoseconds until something can be computed, or is to be ended; None: nothing is there."""
        if any(stream.may_go_on for stream in self._running):
            return 0
        return max(0, min(stream.left_ns(now) for stream in self._running)) if self._running else None

    def begin(self, request: Waiting) -> None:
        """Its first answer is computed at once."""
        now = request.started_ns = time.monotonic_ns()
        request.begun = True
        self._board.begin(request.connection.slot, request.sequence)
        try:
            inputs = decode(request.prepared, request.body)
            decoded = time.monotonic_ns()
            answers = self._model.answers(inputs, request.prepared.wanted, request.prepared.parameters)
        except ServingError as error:
            self._board.answered(0, "fail", time.monotonic_ns() - now)
            self._refuse(request, error)
            return
        stream = Stream(request, answers, now, decoded - now)
        self._running.append(stream)
        self._advance(stream)

    def step(self) -> None:
        """One answer of each that may go on; and the end of those that have waited for too long."""
        now = time.monotonic_ns()
        for stream in list(self._running):
            if stream.may_go_on or (stream.request.deadline_ns and now > stream.request.deadline_ns):
                self._advance(stream)
            elif stream.left_ns(now) <= 0:
                self._fail(
                    stream, errors.deadline_exceeded(f"the reader of the stream has taken nothing for {STALLED_NS // 1_000_000_000} s")
                )

    def _advance(self, stream: Stream) -> None:
        request, cells = stream.request, self._board.cells
        if request.gone:
            self._cancel(stream)
            return
        if request.deadline_ns and time.monotonic_ns() > request.deadline_ns:
            self._fail(stream, errors.deadline_exceeded("the deadline passed before the last answer"))
            return
        cells[boards.RUNNING] = len(self._running)
        cells[boards.RUNNING_DEADLINE] = request.deadline_ns
        cells[boards.RUNNING_SINCE] = time.monotonic_ns()
        try:
            self._give(stream)
        except ServingError as error:
            self._fail(stream, error)
        except Exception as error:  # noqa: BLE001 - one request must not end the model for the others
            self._fail(stream, errors.model_failed(f"the model's answer cannot be used: {type(error).__name__}: {error}"))
        finally:
            cells[boards.RUNNING] = len(self._running)
            cells[boards.RUNNING_SINCE] = 0

    def _give(self, stream: Stream) -> None:
        waiting, stream.ready = stream.ready, None
        if waiting is None:
            waiting = self._compute(stream)
            if waiting is None:
                return
            if waiting[0][2] > lane.SMALL_PART and stream.request.taken < stream.sent:
                stream.ready = waiting
                return
        (head, parts, size), numbers = waiting
        request = stream.request
        kind = lane.PART if request.window else lane.RESULT
        if not request.window:
            self._check_alone(stream)
            self._end(stream)
            self._succeeded(stream, time.monotonic_ns())
            self._board.answered(0, "success", numbers[2], numbers[3])  # as the request itself: who has it may ask for the counts
        if self._door.send(request.connection, kind, request.sequence, numbers, head, parts, size):
            if request.window:
                self._board.answered(stream.sent, "success", numbers[2], numbers[3])
            stream.sent += 1
            return
        request.gone = True
        if request.window:
            self._cancel(stream)

    def _compute(self, stream: Stream) -> tuple[Encoded, tuple[int, int, int, int]] | None:
        """The next answer, encoded, with its times; None where there was none left, and the stream is over."""
        stream.computed, begun = 0, time.monotonic_ns()
        stream.begun = begun
        answer = self._next(stream)
        stream.computed = computed = time.monotonic_ns()
        stream.compute_ns += computed - begun
        self._part_ns = (3 * self._part_ns + computed - begun) // 4
        if answer is None:
            stream.begun = 0
            self._board.answered(stream.sent, "empty", computed - begun)
            self._finish(stream)
            return None
        request = stream.request
        encoded = Results(self._datatypes, request.prepared.wanted, answer.outputs, self._heads, answer.parameters).whole()
        if encoded[2] > self._door.memory_limit:
            raise errors.too_large(f"the answer has {encoded[2]} bytes, at most {self._door.memory_limit} are sent")
        given, stream.begun = time.monotonic_ns(), 0
        stream.output_ns += given - computed
        queue_ns = stream.started - request.arrived_ns if not stream.sent else 0
        return encoded, (queue_ns, stream.input_ns if not stream.sent else 0, computed - begun, given - computed)

    def _next(self, stream: Stream) -> Answer | None:
        if self._part_ns > LONG_PART_NS:
            with self._keeper:
                return next(stream.answers, None)
        return next(stream.answers, None)

    def _check_alone(self, stream: Stream) -> None:
        """Who asked for one answer gets the only one, or is told that there are more."""
        if self._next(stream) is not None:
            raise errors.unsupported(
                "the model gives several answers for this request: ask for a stream (ModelStreamInfer, generate_stream, StreamOpen)"
            )

    def _finish(self, stream: Stream) -> None:
        request = stream.request
        self._end(stream)
        if not request.window:
            self._refuse(request, errors.unsupported("the model gives no answer at all for this request: ask for a stream"))
            return
        if request.gone:
            self._gone(request, time.monotonic_ns())
            return
        self._succeeded(stream, time.monotonic_ns())
        self._door.send(request.connection, lane.END, request.sequence, (stream.sent, 0, 0, 0))

    def _fail(self, stream: Stream, error: ServingError) -> None:
        now = time.monotonic_ns()
        computed = stream.computed or now
        times = (computed - stream.begun, now - computed) if stream.begun else (0, 0)
        self._board.answered(stream.sent, "fail", *times)
        self._end(stream)
        self._refuse(stream.request, error)

    def _cancel(self, stream: Stream) -> None:
        """Nobody waits for it any more."""
        cells, begun = self._board.cells, time.monotonic_ns()
        cells[boards.RUNNING_DEADLINE] = max(stream.request.deadline_ns, begun + CLOSE_NS)
        cells[boards.RUNNING_SINCE] = begun
        self._end(stream)
        cells[boards.RUNNING_SINCE] = 0
        now = time.monotonic_ns()
        self._board.answered(stream.sent, "cancel", now - begun)
        self._gone(stream.request, now)

    def _end(self, stream: Stream) -> None:
        """The model is told that nobody wants more of it."""
        if stream in self._running:
            self._running.remove(stream)
        close = getattr(stream.answers, "close", None)
        if close is not None:
            try:
                close()
            except Exception:  # noqa: BLE001 - the owner's code again
                traceback.print_exc()
        self._board.cells[boards.RUNNING] = len(self._running)
