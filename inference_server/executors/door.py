"""The connections of one executor: lets callers in, reads what they ask, notices that they go, and sends what they get.

Everything here is done by one thread at a time: the executor's own, or, while that one is inside the model, the one that keeps the door.
"""

import contextlib
import os
import select
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from idl import board as boards
from idl import lane
from idl.board import Board
from idl.codes import Code, ServingError
from idl.lane_calls import NO_ROOM
from idl.linger import Linger
from idl.spare import Spare
from inference_server.executors.requests import Connection, Waiting


class Door:
    """`asked` gets each request frame with its connection and whether nothing else has happened, `left` each request whose caller went away, `control` is called when the
    supervisor's socket is readable. `board_descriptor` is for callers: through it the board can only be read.
    """

    def __init__(
        self,
        listener: socket.socket,
        control: socket.socket,
        board: Board,
        board_descriptor: int,
        memory_limit: int,
        *,
        asked: Callable[[Connection, lane.Frame, bool], None],
        left: Callable[[Waiting], None],
        commanded: Callable[[], None],
    ) -> None:
        self._listener, self._control, self._board, self._board_descriptor = listener, control, board, board_descriptor
        self.memory_limit = memory_limit
        self._asked, self._left, self._commanded = asked, left, commanded
        self._connections: dict[int, Connection] = {}
        self._spare = Spare()
        self._free = deque(range(boards.CONNECTIONS))  # a cell of the journal is used again as late as can be
        self._poll = select.epoll()
        self._look = partial(self._poll.poll, 0)
        self._linger = Linger()
        self._soon = False
        """Who asked last looks for the answer, and will ask again at once."""
        for sock in (listener, control):
            sock.setblocking(False)
            self._poll.register(sock.fileno(), select.EPOLLIN)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._stop, select.EPOLLIN)

    def step(self, wait_s: float, linger: bool = False) -> bool:
        """Handles what has happened, waiting for something for `wait_s` (negative: for ever). False after `stop`.

        `linger`: it may look for a moment before it sleeps, where a caller said that this is worth it."""
        if 0 < wait_s < 0.01:  # epoll counts milliseconds, which is long for a batch's delay
            select.select([self._poll.fileno()], [], [], wait_s)
            wait_s = 0
        going = True
        events = self._linger.wait(self._look, self._poll.poll) if linger and wait_s < 0 and self._soon else self._poll.poll(wait_s)
        alone = len(events) == 1
        for descriptor, _ in events:
            connection = self._connections.get(descriptor)
            if connection is not None:
                self._read(descriptor, connection, alone)
            elif descriptor == self._listener.fileno():
                self._accept()
            elif descriptor == self._stop:
                os.eventfd_read(self._stop)
                going = False
            elif descriptor == self._control.fileno():
                self._commanded()
        return going

    def stop(self) -> None:
        """Makes a `step` in another thread return False."""
        os.eventfd_write(self._stop, 1)

    def _accept(self) -> None:
        sock = self._spare.accept(self._listener)
        if sock is None:  # it went already, or this process has no descriptors left: the caller tries elsewhere
            return
        if not self._free:
            sock.close()
            return
        sock.setblocking(False)
        slot = self._free.popleft()
        self._board.begin(slot, 0)
        try:
            connection = Connection(lane.LaneEnd(sock, self.memory_limit), slot)
            connection.end.welcome(slot, self._board_descriptor)
            self._poll.register(sock.fileno(), select.EPOLLIN)
        except OSError:
            sock.close()
            self._free.append(slot)
            return
        self._connections[sock.fileno()] = connection

    def _read(self, descriptor: int, connection: Connection, alone: bool) -> None:
        try:
            frame = connection.end.receive()
        except BlockingIOError:
            return
        except (OSError, lane.LaneError):
            frame = None
        if frame is not None and frame.kind == lane.TAKEN:
            request = connection.request
            if request is not None and frame.sequence == request.sequence:  # else it crossed the end of its stream
                request.taken = frame.numbers[0]
            return
        if frame is None or frame.kind != lane.INFER or connection.request is not None:
            self._drop(descriptor, connection)  # gone, or it broke the rules
            return
        self._soon = alone and frame.numbers[1] & lane.SOON != 0
        try:
            self._asked(connection, frame, alone)
        except Exception:  # noqa: BLE001 - one caller's frame must not end the model for the others
            traceback.print_exc()
            if self._connections.get(descriptor) is connection:
                self._drop(descriptor, connection)

    def _drop(self, descriptor: int, connection: Connection) -> None:
        if connection.request is not None:
            self._left(connection.request)
        self._poll.unregister(descriptor)
        del self._connections[descriptor]
        connection.end.close()
        self._free.append(connection.slot)

    def send(
        self,
        connection: Connection,
        kind: int,
        sequence: int,
        numbers: tuple[int, int, int, int],
        head: bytes = b"",
        parts: Sequence[tuple[int, Any]] = (),
        size: int = 0,
    ) -> bool:
        """False where the caller has gone. Raises ServingError for a result that this host has no memory for, or no frame has room for."""
        try:
            connection.end.send(kind, sequence, numbers, head, parts, size)
        except lane.LaneError as error:
            raise ServingError(Code.TOO_LARGE, f"the answer cannot be sent: {error}") from error
        except OSError as error:
            if error.errno in NO_ROOM and kind == lane.RESULT:
                raise ServingError(
                    Code.INSUFFICIENT_CAPACITY, f"this host has no room for an answer of {size} bytes: {error.strerror}"
                ) from error
            descriptor = connection.end.sock.fileno()
            connection.request = None
            if self._connections.get(descriptor) is connection:  # gone, or not reading what it asked for
                self._drop(descriptor, connection)
            return False
        return True

    def close(self) -> None:
        for descriptor, connection in list(self._connections.items()):
            self._drop(descriptor, connection)
        self._poll.close()
        self._spare.close()
        for resource in (self._stop, self._board_descriptor):
            with contextlib.suppress(OSError):
                os.close(resource)


class Doorkeeper:
    """Keeps the door while the model runs, in a thread of its own: new requests are queued or refused at once, and callers that go away
    leave the queue. The hand-over costs some 20 microseconds, so it is for runs that take milliseconds.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._go = os.eventfd(0, os.EFD_CLOEXEC)
        self._done = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, name="doorkeeper", daemon=True)
            self._thread.start()
        os.eventfd_write(self._go, 1)

    def __exit__(self, *_: object) -> None:
        self._door.stop()
        os.eventfd_read(self._done)

    def _keep(self) -> None:
        while True:
            os.eventfd_read(self._go)
            if self._closed:
                return
            try:
                while self._door.step(-1):
                    pass
            finally:
                os.eventfd_write(self._done, 1)

    def close(self) -> None:
        if self._thread is not None:
            self._closed = True
            os.eventfd_write(self._go, 1)
            self._thread.join()
        os.close(self._go)
        os.close(self._done)
