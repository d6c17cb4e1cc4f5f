"""What an executor counts of each request, on its board: every request that was accepted is finished once, whatever becomes of it."""

import time
from dataclasses import dataclass

from idl import board as boards
from idl.board import Board
from idl.codes import Code
from inference_server.executors.requests import Waiting

AT_ITS_DEADLINE_NS = 25_000_000
"""A caller that hangs up so shortly before its deadline does it because of that: on the wire a deadline is a rest of time, which begins
anew wherever it arrives."""


@dataclass(slots=True)
class Times:
    """Of one run: when it started, and how long its parts took, in ns."""

    started: int
    input_ns: int
    compute_ns: int
    output_ns: int


class Counts:
    """Of one board."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def succeeded(self, request: Waiting, times: Times, now: int, sign: int = 1) -> None:
        """A success; `sign` -1 takes it back. `now` in ns of CLOCK_MONOTONIC."""
        cells = self._board.cells
        cells[boards.RUNNING] -= sign  # first: what is inside when the process dies is counted as failed
        cells[boards.FINISHED] += sign
        queue_ns = times.started - request.arrived_ns
        self._board.succeeded(now - request.arrived_ns, queue_ns, times.input_ns, times.compute_ns, times.output_ns, sign)
        cells[boards.LAST_INFERENCE] = time.time_ns() // 1_000_000

    def gone(self, request: Waiting, now: int) -> None:
        """Nobody took the answer: its time was up, or its caller went away."""
        late = request.deadline_ns and now > request.deadline_ns - AT_ITS_DEADLINE_NS
        code = Code.DEADLINE_EXCEEDED if late else Code.CANCELLED
        cells = self._board.cells
        cells[boards.CANCELLED] += 1
        cells[boards.CANCELLED_NS] += now - request.arrived_ns
        self._board.failed(code.value, now - request.arrived_ns)
        self._finished(request)

    def failed(self, request: Waiting, code: Code, now: int) -> None:
        self._finished(request)
        self._board.failed(code.value, now - request.arrived_ns)

    def refused(self, code: Code) -> None:
        """It never came into the queue."""
        self._board.failed(code.value, 0)

    def _finished(self, request: Waiting) -> None:
        cells = self._board.cells
        cells[boards.FINISHED] += 1
        if request.begun and cells[boards.RUNNING]:
            cells[boards.RUNNING] -= 1
