"""Models that answer many requests side by side without this thread's help: pipelines, whose work is done by other processes.

A request goes in as soon as it comes and there is room, and is answered when it is done, whatever the others do. Answers are handed out by the
executor's one thread, which is woken for them.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from idl import board as boards
from idl import lane
from idl.board import Board
from idl.codes import ServingError
from idl.messages import Tensor
from inference_server import errors
from inference_server.executors.counting import Times
from inference_server.executors.door import Door
from inference_server.executors.merging import Encoded
from inference_server.executors.requests import Waiting

MOST = 64
"""Requests under way at once; the others wait in the queue, where priorities and deadlines count."""

Outcome = tuple[list[Tensor], dict[str, Any]] | ServingError


class Concurrent(Protocol):
    """What computes: see `backends.pipeline.PipelineModel.start`."""

    def start(
        self,
        given: Sequence[Tensor],
        wanted: Sequence[str],
        parameters: Mapping[str, Any],
        deadline: float | None,
        watch: int,
        done: Callable[[Outcome, tuple[str, ...]], None],
        traced: bool,
    ) -> None: ...


@dataclass(slots=True, eq=False)
class _Run:
    """One request under way. `watch`: of its caller's socket a descriptor of our own, -1 for none; times in ns of CLOCK_MONOTONIC."""

    request: Waiting
    watch: int
    started: int
    begun: int
    computed: int = 0
    outcome: Outcome | None = None


class SideBySide:
    """Those of one executor. `refuse` ends a request with an error; `hand_out` with an answer, and counts it."""

    def __init__(
        self,
        door: Door,
        board: Board,
        model: Concurrent,
        *,
        most: int,
        refuse: Callable[[Waiting, ServingError], None],
        hand_out: Callable[[Waiting, Encoded, Times, int], None],
    ) -> None:
        self._door, self._board, self._model, self._most = door, board, model, most
        self._refuse, self._hand_out = refuse, hand_out
        self._inside = 0
        self._over: deque[_Run] = deque()

    @property
    def free(self) -> int:
        """So many more may be under way."""
        return max(0, self._most - self._inside)

    @property
    def full(self) -> bool:
        return not self.free

    @property
    def starts(self) -> int:
        """All of them: to begin one takes no time."""
        return self.free

    @property
    def empty(self) -> bool:
        return not self._inside

    def due_in(self, now: int) -> int | None:
        """0 where there are answers to hand out."""
        return 0 if self._over else None

    def begin(self, request: Waiting) -> None:
        """Of one that has left the queue."""
        started = request.started_ns = time.monotonic_ns()
        request.begun = True
        self._board.begin(request.connection.slot, request.sequence)
        self._inside += 1
        self._board.cells[boards.RUNNING] += 1
        watch = -1
        with contextlib.suppress(OSError):  # without a descriptor to spare its caller is not watched
            watch = os.dup(request.connection.end.sock.fileno())
        prepared, body = request.prepared, request.body
        given = [Tensor(t.name, t.datatype, t.shape, body[t.offset : t.offset + t.size]) for t in prepared.tensors]
        run = _Run(request, watch, started, time.monotonic_ns())
        deadline = request.deadline_ns / 1e9 if request.deadline_ns else None
        self._model.start(
            given,
            prepared.wanted,
            prepared.parameters,
            deadline,
            watch,
            lambda outcome, steps: self._done(run, outcome, steps),
            request.traced,
        )

    def _done(self, run: _Run, outcome: Outcome, steps: tuple[str, ...]) -> None:
        """In whatever thread."""
        run.computed = time.monotonic_ns()
        run.outcome, run.request.steps = outcome, steps
        self._over.append(run)
        self._door.stop()  # which only wakes the executor's thread here: no other one keeps the door

    def step(self) -> None:
        """Hands out what is done."""
        while self._over:
            run = self._over.popleft()
            self._inside -= 1
            if run.watch >= 0:
                os.close(run.watch)
            self._answer(run)

    def _answer(self, run: _Run) -> None:
        request, outcome = run.request, run.outcome
        assert outcome is not None
        if isinstance(outcome, ServingError):
            self._refuse(request, outcome)
            return
        outputs, parameters = outcome
        try:
            described = [(t.name, t.datatype, t.shape, len(t.data)) for t in outputs]
            head, offsets, size = lane.pack_head(described, request.steps, parameters)
        except (ValueError, TypeError) as error:
            self._refuse(request, errors.model_failed(f"the answer cannot be used: {error}"))
            return
        parts = [(offset, tensor.data) for offset, tensor in zip(offsets, outputs, strict=True)]
        times = Times(run.started, run.begun - run.started, run.computed - run.begun, time.monotonic_ns() - run.computed)
        self._board.executed(1, times.input_ns, times.compute_ns, times.output_ns)
        self._hand_out(request, (head, parts, size), times, run.computed)
