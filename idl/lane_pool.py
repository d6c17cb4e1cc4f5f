"""Connections to one executor, lent to one request at a time."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from idl.board import Board
from idl.codes import Code, ServingError
from idl.lane_calls import Answered, CallerGone, LaneAnswer, LaneConnection, Moved
from idl.linger import Linger
from idl.messages import InferRequest

Result = TypeVar("Result")


class LanePool:
    """Connections to one executor. Thread-safe; usable after a fork (a child starts with none of its parent's connections)."""

    def __init__(self, path: str, memory_limit: int) -> None:
        self.path = path
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._idle: list[LaneConnection] = []
        self._lent = 0
        self._closed = False
        self._pid = os.getpid()
        self._board: Board | None = None
        self.linger = Linger()

    @property
    def outstanding(self) -> int:
        """Requests that the executor has not answered: everybody's where its board is known, else this pool's."""
        board = self._board
        return board.in_flight if board is not None else self._lent

    def call(self, request: InferRequest, watch: int = -1) -> LaneAnswer:
        """As LaneConnection.call; past the deadline it raises Answered deadline_exceeded.

        `watch`: a descriptor whose hang-up means that nobody waits any more; then the call is given up and Answered cancelled raised.
        """
        return self.lend(request.model_name, lambda connection: connection.call(request, watch))

    def lend(self, model: str, use: Callable[[LaneConnection], Result]) -> Result:
        """What `use` makes of a connection, which does one request with it. Raises as `call` does; `model` stands in the messages."""
        connection = self.take()
        try:
            result = use(connection)
        except (ServingError, Moved):
            self.give_back(connection)
            raise
        except TimeoutError:
            self.drop(connection)  # the executor sees that the caller is gone and drops what is still queued
            raise Answered(Code.DEADLINE_EXCEEDED, f"model {model!r} did not answer before the deadline") from None
        except CallerGone:
            self.drop(connection)
            raise Answered(Code.CANCELLED, "the caller has gone") from None
        except BaseException:
            self.drop(connection)
            raise
        self.give_back(connection)
        return result

    def share(self, descriptor: int) -> Board:
        """The board, mapped once for every connection."""
        with self._lock:
            if self._board is None:
                self._board = Board(descriptor, writable=False)
            return self._board

    def take(self) -> LaneConnection:
        """A connection, lent until `give_back` or `drop`. Raises ExecutorGone. For event loops; `call` does all of it."""
        with self._lock:
            if self._pid != os.getpid():
                self._idle, self._pid, self._lent = [], os.getpid(), 0
            self._lent += 1
            if self._idle:
                return self._idle.pop()
        try:
            return LaneConnection(self.path, self._memory_limit, self)
        except BaseException:
            with self._lock:
                self._lent -= 1
            raise

    def give_back(self, connection: LaneConnection) -> None:
        with self._lock:
            self._lent -= 1
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def drop(self, connection: LaneConnection) -> None:
        """Closes it: a request that still waits in the executor's queue is not run."""
        with self._lock:
            self._lent -= 1
        connection.close()

    def trim(self, idle_since: float) -> None:
        """Closes connections that were last used before `idle_since` (monotonic seconds); their memory goes back on both sides."""
        with self._lock:
            old = [connection for connection in self._idle if connection.last_used < idle_since]
            self._idle = [connection for connection in self._idle if connection.last_used >= idle_since]
        for connection in old:
            connection.close()

    def close(self) -> None:
        """Idempotent; connections that are lent close when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._board = None
        for connection in idle:
            connection.close()
