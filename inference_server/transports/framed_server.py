"""A server of framed requests whose threads wait together: a connection holds one only while its request is being answered.

Every connection and listener stands in one epoll set with EPOLLONESHOT. The thread that an event wakes owns that connection: it reads
what is there, and when a frame is complete it answers it, sends what the peer takes, and arms the connection again. An idle peer, a
slow sender and a slow reader therefore hold no thread.

Hazard: a descriptor's number is used again as soon as it is closed. Only the owner of a connection closes it, after it has left the
table; everybody else calls `shutdown`, which wakes an owner.
"""

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from inference_server.transports.framing import Connection, Frame, Lost

log = logging.getLogger("outboard.server")

_IN = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
_OUT = select.EPOLLOUT | select.EPOLLONESHOT
_FRAMES = 16
"""Frames of one pipelining peer that are answered before the others get their turn."""
_ACCEPTS = 64
_TICK_S = 5.0
_NUDGE_S = 0.05
_LOG_EVERY_S = 1.0


class FrameHandler(Protocol):
    """What answers frames; called by many threads at once. Both raise Lost where there is nobody to answer to."""

    start: bytes
    """What every frame begins with."""

    def answer(self, frame: memoryview) -> list[bytes]: ...

    def too_large(self, head: memoryview, size: int) -> list[bytes]: ...


class FramedServer:
    """Serves `listeners`, bound stream sockets that it closes in `stop`, with `threads` threads.

    Closes a connection that has been idle for `idle_timeout_s`, and one whose peer takes nothing of its reply for `send_timeout_s`.
    """

    def __init__(
        self,
        handler: FrameHandler,
        *,
        listeners: Sequence[socket.socket],
        threads: int,
        max_frame_bytes: int,
        idle_timeout_s: float,
        send_timeout_s: float,
        max_connections: int,
    ) -> None:
        self._handler = handler
        self._max_frame_bytes = max_frame_bytes
        self._idle_timeout_s, self._send_timeout_s = idle_timeout_s, send_timeout_s
        self._max_connections = max_connections
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._resting: set[int] = set()
        """Listeners that wait for a free descriptor."""
        self._connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._threads = [threading.Thread(target=self._work, name=f"thrift-{number}", daemon=True) for number in range(threads)]
        self._tick_s = min(_TICK_S, idle_timeout_s / 4, send_timeout_s / 4)
        self._next_sweep = time.monotonic() + self._tick_s
        self._next_log = 0.0
        self._lock = threading.Lock()
        self._working = 0
        self._stopping = threading.Lock()
        self._draining = self._ending = self._stopped = False
        self._empty = threading.Event()

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            self._epoll.register(fd, _IN)
        self._working = len(self._threads)
        for thread in self._threads:
            thread.start()

    # the threads -----------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._ending:
                for fd, events in self._epoll.poll(self._tick_s, 1):
                    self._handle(fd, events)
                now = time.monotonic()
                if now >= self._next_sweep:
                    self._next_sweep = now + self._tick_s
                    self.sweep(now)
        finally:
            with self._lock:
                self._working -= 1
                last = not self._working
            if last:
                self._release()

    def _handle(self, fd: int, events: int) -> None:
        connection = self._connections.get(fd)
        if connection is not None:
            self._turn(connection, events)
        elif fd in self._listeners:
            self._accept(self._listeners[fd])

    def _turn(self, connection: Connection, events: int) -> None:
        """One owner's turn. Armed again inside the lock: whoever is woken by it waits a moment."""
        with connection.lock:
            if connection.closed:
                return
            try:
                connection.touched = time.monotonic()
                self._epoll.modify(connection.sock.fileno(), self._serve(connection, events))
            except Lost as reason:
                log.debug("connection closed", extra={"fields": {"reason": str(reason)}})
                self._close(connection)
            except Exception:
                log.exception("connection broken off")
                self._close(connection)

    def _serve(self, connection: Connection, events: int) -> int:
        """Answers what is there; returns the events to wait for. Raises Lost."""
        reader, outbox = connection.reader, connection.outbox
        if not outbox.flush():
            return _OUT
        for _ in range(_FRAMES):
            frame = reader.next()
            if frame is None:
                if self._draining and reader.idle:
                    raise Lost("the server stops")
                return _IN
            if events & select.EPOLLRDHUP:
                raise Lost("the peer has gone, and nobody waits for the answer")
            outbox.put(self._answer(frame))
            if not outbox.flush():
                return _OUT
            connection.touched = time.monotonic()
            if not reader.ahead and not self._draining:
                return _IN
        return _IN | _OUT  # it can be written to: its next turn comes when the others have had theirs

    def _answer(self, frame: Frame) -> list[bytes]:
        if frame.size > self._max_frame_bytes:
            return self._handler.too_large(frame.data, frame.size)
        return self._handler.answer(frame.data)

    def _close(self, connection: Connection) -> None:
        connection.closed = True
        self._connections.pop(connection.sock.fileno(), None)
        connection.sock.close()
        if self._draining and not self._connections:
            self._empty.set()

    # new and old connections -----------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        fd = listener.fileno()
        try:
            for _ in range(_ACCEPTS):
                self._admit(listener.accept()[0])
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC):
                self._complain("no more connections can be accepted", reason=error.strerror)
                self._resting.add(fd)
                return
        with suppress(OSError, ValueError):  # closed meanwhile
            self._epoll.modify(fd, _IN)

    def _admit(self, sock: socket.socket) -> None:
        if self._draining or len(self._connections) >= self._max_connections:
            sock.close()
            if not self._draining:
                self._complain("a connection was refused", reason=f"{self._max_connections} are open, which is the limit")
            return
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock, self._max_frame_bytes, self._handler.start)
        with connection.lock:  # an event of the number's last owner may still be on its way
            self._connections[sock.fileno()] = connection
            try:
                self._epoll.register(sock.fileno(), _IN)
            except OSError:  # no more watches for this user
                self._close(connection)
                raise

    def _complain(self, event: str, **fields: object) -> None:
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + _LOG_EVERY_S
            log.warning(event, extra={"fields": fields})

    def sweep(self, now: float) -> None:
        """Ends what has not moved for too long. `now` in seconds of `time.monotonic()`."""
        for connection in list(self._connections.values()):
            if not connection.lock.acquire(blocking=False):
                continue  # in use
            try:
                limit = self._idle_timeout_s if connection.outbox.empty else self._send_timeout_s
                if now - connection.touched > limit:
                    _wake_owner(connection)
            finally:
                connection.lock.release()
        while self._resting:
            with suppress(OSError, ValueError):
                self._epoll.modify(self._resting.pop(), _IN)

    # the end ---------------------------------------------------------------------------------------------------------------------

    def stop(self, grace_s: float) -> None:
        """Accepts nothing more, answers the frames that are here or on their way, for `grace_s` seconds, and cuts off the rest."""
        with self._stopping:
            if self._stopped:
                return
            self._stopped = True
            deadline = time.monotonic() + grace_s
            self._draining = True
            for listener in self._listeners.values():
                listener.close()
            while self._connections and self._working and (left := deadline - time.monotonic()) > 0:
                self._nudge()
                self._empty.wait(min(left, _NUDGE_S))
            self._end(deadline)

    def _nudge(self) -> None:
        """Gives every connection that is not in use a turn, in which an idle one is closed."""
        for connection in list(self._connections.values()):
            if connection.lock.acquire(blocking=False):
                try:
                    if not connection.closed:
                        self._epoll.modify(connection.sock.fileno(), _IN | _OUT)
                finally:
                    connection.lock.release()

    def _end(self, deadline: float) -> None:
        if self._connections:
            log.warning("Thrift connections cut off", extra={"fields": {"connections": len(self._connections)}})
        if not self._working:
            self._release()
            return
        for connection in list(self._connections.values()):
            _wake_owner(connection)
        with self._lock:  # the last thread to leave closes what it is woken by
            self._ending = True
            os.eventfd_write(self._wake, 1)  # never read: it wakes every thread
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.5))

    def _release(self) -> None:
        """Closes everything; called by the last thread on its way out, which may be later than `stop` where a call would not end."""
        for connection in list(self._connections.values()):
            self._close(connection)
        self._epoll.close()
        os.close(self._wake)


def _wake_owner(connection: Connection) -> None:
    with suppress(OSError):  # not connected any more
        connection.sock.shutdown(socket.SHUT_RDWR)
