"""The usual case in few steps: a request that is known to be right comes alone and finds the model free.

It does what the executor's longer way does, queue and batches left out; on a small model each step of that way costs as much as the model.
"""

import time
from collections.abc import Callable
from typing import Any

from idl import board as boards
from idl import lane
from idl.board import Board
from idl.codes import ServingError
from idl.tensors import Array
from inference_server import errors
from inference_server.executors.door import Door
from inference_server.executors.merging import SMALL_BYTES, Heads, Results, decode
from inference_server.executors.prepared import Prepared
from inference_server.executors.requests import Connection, Waiting

Run = Callable[[dict[str, Array], list[str]], list[Array]]


class Express:
    """Of one loaded model. `known`: heads that were checked before; `refuse` answers a request that is inside with an error, `gone` counts
    one whose caller has gone, `ran` hears how long each run took.
    """

    def __init__(
        self,
        door: Door,
        board: Board,
        run: Run,
        datatypes: dict[str, str],
        known: dict[bytes, Prepared],
        *,
        refuse: Callable[[Waiting, ServingError], None],
        gone: Callable[[Waiting, int], None],
        ran: Callable[[int], None],
    ) -> None:
        self._door, self._board, self._run, self._datatypes, self._known = door, board, run, datatypes, known
        self._refuse, self._gone, self._ran = refuse, gone, ran
        self._heads: Heads = {}

    def __call__(self, connection: Connection, frame: lane.Frame) -> bool:
        """False where it is not that case: nothing was done."""
        prepared, deadline = self._known.get(frame.head), frame.numbers[0]
        started = time.monotonic_ns()
        if prepared is None or not prepared.layout or prepared.rows != 1 or prepared.body_size > len(frame.body):
            return False
        if deadline and started > deadline:
            return False
        board = self._board
        board.begin_alone(connection.slot, frame.sequence, started, deadline)
        try:
            inputs = decode(prepared, frame.body)
            decoded = time.monotonic_ns()
            arrays = self._run(inputs, prepared.wanted)
            computed = time.monotonic_ns()
            head, parts, size = Results(self._datatypes, prepared.wanted, arrays, self._heads).whole()
        except Exception as error:  # noqa: BLE001 - one request must not end the model for the others
            self._fail(connection, frame, prepared, started, _as_serving_error(error))
            return True
        given = time.monotonic_ns()
        self._ran(computed - decoded)
        if size > SMALL_BYTES or len(head) > SMALL_BYTES or (deadline and computed > deadline):
            return self._longer_way(connection, frame, prepared, (started, decoded, computed, given), head, parts, size)
        times = (given - started, 0, decoded - started, computed - decoded, given - computed)
        board.end_alone(*times, time.time_ns() // 1_000_000)
        numbers = (0, times[2], times[3], times[4])
        if not self._door.send(connection, lane.RESULT, frame.sequence, numbers, head, parts, size):
            self._take_back(connection, frame, prepared, started, times)
        return True

    def _longer_way(
        self,
        connection: Connection,
        frame: lane.Frame,
        prepared: Prepared,
        moments: tuple[int, int, int, int],
        head: bytes,
        parts: list[tuple[int, Any]],
        size: int,
    ) -> bool:
        """A result that may be too large for this host or its caller, or is too late."""
        started, decoded, computed, given = moments
        board, deadline = self._board, frame.numbers[0]
        times = (given - started, 0, decoded - started, computed - decoded, given - computed)
        limit = self._door.memory_limit
        if size > limit or (deadline and computed > deadline):
            board.executed(1, *times[2:])
            late = errors.deadline_exceeded("the deadline passed while the model ran")
            self._fail(
                connection,
                frame,
                prepared,
                started,
                late if size <= limit else errors.too_large(f"the answer has {size} bytes, at most {limit} are sent"),
            )
            return True
        board.end_alone(*times, time.time_ns() // 1_000_000)
        try:
            sent = self._door.send(connection, lane.RESULT, frame.sequence, (0, *times[2:]), head, parts, size)
        except ServingError as error:
            board.succeeded(*times, times=-1)
            board.cells[boards.FINISHED] -= 1
            self._fail(connection, frame, prepared, started, error)
            return True
        if not sent:
            self._take_back(connection, frame, prepared, started, times)
        return True

    def _take_back(
        self, connection: Connection, frame: lane.Frame, prepared: Prepared, started: int, times: tuple[int, int, int, int, int]
    ) -> None:
        """It was counted as a success, and its caller had gone."""
        self._board.succeeded(*times, times=-1)
        self._board.cells[boards.FINISHED] -= 1
        self._gone(_waiting(connection, frame, prepared, started), time.monotonic_ns())

    def _fail(self, connection: Connection, frame: lane.Frame, prepared: Prepared, started: int, error: ServingError) -> None:
        self._refuse(_waiting(connection, frame, prepared, started), error)
        cells = self._board.cells
        cells[boards.RUNNING] = cells[boards.RUNNING_SINCE] = 0


def _waiting(connection: Connection, frame: lane.Frame, prepared: Prepared, started: int) -> Waiting:
    return Waiting(
        connection, frame.sequence, frame.body, prepared, started, frame.numbers[0], frame.numbers[0], begun=True, started_ns=started
    )


def _as_serving_error(error: Exception) -> ServingError:
    if isinstance(error, ServingError):
        return error
    return errors.model_failed(f"the model's answer cannot be used: {type(error).__name__}: {error}")
