"""A server of framed requests: one thread waits on every connection, and a frame is answered there or by a worker.

The thread of the loop reads frames and writes replies. A frame that the handler's shortcut takes is answered without a thread of its own;
any other goes to one of the workers, who may wait. An idle peer, a slow sender and a slow reader hold none of them.

Whatever touches a connection holds the one lock: the loop while it runs handlers, a worker that brings an answer, `sweep` and `stop`.
"""

import errno
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from idl.event_loop import READ, Loop
from inference_server.transports.framed_connection import Connection, Running
from inference_server.transports.framed_tls import HANDSHAKE_S, CurrentContext, TlsConnection
from inference_server.transports.framing import Buffer, Frame, Lost

log = logging.getLogger("outboard.server")

TICK_S = 0.1
_SWEEP_S = 5.0
_ACCEPTS = 64
_LOG_EVERY_S = 1.0
_END_S = 0.5
"""What the threads get to end in, however long the grace was."""


class FrameHandler(Protocol):
    """What answers frames; called by many threads at once. Both raise Lost where there is nobody to answer to."""

    start: bytes
    """What every frame begins with."""

    def answer(self, frame: Buffer) -> Sequence[Buffer]: ...

    def too_large(self, head: Buffer, size: int) -> Sequence[Buffer]: ...


class Shortcut(Protocol):
    """Answers frames without a thread of their own; called with the server's lock held."""

    def begin(self, connection: Connection, frame: Buffer, otherwise: Callable[[], None]) -> Running | None:
        """Answers at once, or later, or calls `otherwise`, now or later: then a worker answers. Never waits."""

    def tick(self, now: float) -> None:
        """Called every `TICK_S` or so; `now` in seconds of `time.monotonic()`."""

    def close(self) -> None:
        """After the last frame."""


MakeShortcut = Callable[[Loop], Shortcut]


class FramedServer:
    """Serves `listeners`, bound stream sockets that it closes in `stop`, with `threads` workers.

    `tls`: what new TCP connections are made with, whose context makes TlsSockets; None, and on unix sockets: plain ones.
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
        shortcut: MakeShortcut | None = None,
        tls: CurrentContext | None = None,
    ) -> None:
        self._handler = handler
        self._max_frame_bytes = max_frame_bytes
        self._idle_timeout_s, self._send_timeout_s = idle_timeout_s, send_timeout_s
        self._max_connections = max_connections
        self._tls = tls
        self._lock = threading.Lock()
        self._loop = Loop(min(TICK_S, idle_timeout_s / 4, send_timeout_s / 4), self._tick, self._lock)
        self._shortcut = shortcut(self._loop) if shortcut is not None else None
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._resting: set[int] = set()
        """Listeners that wait for a free descriptor."""
        self._connections: dict[int, Connection] = {}
        self._jobs: queue.SimpleQueue[tuple[Connection, Frame] | None] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads = [threading.Thread(target=self._work, name=f"thrift-{number}", daemon=True) for number in range(threads)]
        self._threads.append(threading.Thread(target=self._loop.run_or_end, name="thrift-loop", daemon=True))
        self._next_sweep = self._next_log = 0.0
        self._stopping = threading.Lock()
        self._started = self._draining = self._stopped = False
        self._empty = threading.Event()

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            self._loop.add(fd, partial(self._accept, listener))
        self._loop.add(self._wake, lambda _: None)  # written to once, at the end
        self._started = True
        for thread in self._threads:
            thread.start()

    # frames ----------------------------------------------------------------------------------------------------------------------

    def _ask(self, connection: Connection, frame: Frame) -> Running | None:
        shortcut = self._shortcut
        if shortcut is None or frame.size > self._max_frame_bytes:
            self._jobs.put((connection, frame))
            return None
        return shortcut.begin(connection, frame.data, lambda: self._jobs.put((connection, frame)))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            connection, frame = job
            with self._lock:
                waits = connection.waits()
            if waits:
                self._answer(connection, frame)
            del job, connection, frame  # while this thread waits, their memory is free

    def _answer(self, connection: Connection, frame: Frame) -> None:
        try:
            if frame.size > self._max_frame_bytes:
                parts = self._handler.too_large(frame.data, frame.size)
            else:
                parts = self._handler.answer(frame.data)
        except Lost as reason:
            with self._lock:
                connection.fail(str(reason))
            return
        except Exception:
            log.exception("connection broken off")
            with self._lock:
                connection.close()
            return
        with self._lock:
            connection.reply(parts)

    # new and old connections -----------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, events: int) -> None:
        try:
            for _ in range(_ACCEPTS):
                self._admit(listener.accept()[0])
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC):
                self._complain("no more connections can be accepted", reason=error.strerror)
                self._resting.add(listener.fileno())
                self._loop.watch(listener.fileno(), 0)

    def _admit(self, sock: socket.socket) -> None:
        if len(self._connections) >= self._max_connections:
            sock.close()
            self._complain("a connection was refused", reason=f"{self._max_connections} are open, which is the limit")
            return
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection = self._connect(sock)
        except OSError:  # no more watches for this user
            sock.close()
            raise
        if connection is not None:
            self._connections[connection.sock.fileno()] = connection

    def _connect(self, sock: socket.socket) -> Connection | None:
        """None where the peer has gone already."""
        kind: type[Connection] = Connection
        if self._tls is not None and sock.family != socket.AF_UNIX:
            try:
                sock = self._tls().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:
                sock.close()
                return None
            kind = TlsConnection
        try:
            return kind(sock, self._loop, self._ask, self._ended, limit=self._max_frame_bytes, start=self._handler.start)
        except OSError:
            sock.close()
            raise

    def _ended(self, connection: Connection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        if self._draining and not self._connections:
            self._empty.set()

    def _complain(self, event: str, **fields: object) -> None:
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + _LOG_EVERY_S
            log.warning(event, extra={"fields": fields})

    def _tick(self, now: float) -> None:
        if self._shortcut is not None:
            self._shortcut.tick(now)
        if now >= self._next_sweep:
            self._next_sweep = now + min(_SWEEP_S, self._idle_timeout_s / 4, self._send_timeout_s / 4)
            self._sweep(now)

    def sweep(self, now: float) -> None:
        """Ends what has not moved for too long. `now` in seconds of `time.monotonic()`."""
        with self._lock:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        for connection in list(self._connections.values()):
            sending = not connection.outbox.empty
            if connection.busy and not sending:
                continue
            patience = self._send_timeout_s if sending else self._idle_timeout_s
            if now - connection.touched > (min(HANDSHAKE_S, patience) if connection.opening else patience):
                connection.close()
        while self._resting:
            self._loop.watch(self._resting.pop(), READ)

    # the end ---------------------------------------------------------------------------------------------------------------------

    def stop(self, grace_s: float) -> None:
        """Accepts nothing more, answers the frames that are here or on their way, for `grace_s` seconds, and cuts off the rest."""
        with self._stopping:
            if self._stopped:
                return
            self._stopped = True
            deadline = time.monotonic() + grace_s
            with self._lock:
                self._leave()
            if self._connections:
                self._empty.wait(grace_s)
            self._end(deadline)

    def _leave(self) -> None:
        self._draining = True
        self._resting.clear()
        for fd, listener in self._listeners.items():
            self._loop.remove(fd)
            listener.close()
        for connection in list(self._connections.values()):
            connection.leaving = True
            if not connection.busy:
                connection.ready(0)  # closes it where nothing has come

    def _end(self, deadline: float) -> None:
        with self._lock:
            if self._connections:
                log.warning("Thrift connections cut off", extra={"fields": {"connections": len(self._connections)}})
            for connection in list(self._connections.values()):
                connection.close()
        if self._started:
            for _ in self._threads[:-1]:
                self._jobs.put(None)
            self._loop.stop()
            os.eventfd_write(self._wake, 1)
            until = max(deadline, time.monotonic() + _END_S)
            for thread in self._threads:
                thread.join(max(until - time.monotonic(), 0))
        if self._shortcut is not None:
            self._shortcut.close()
        self._loop.close()
        with suppress(OSError):
            os.close(self._wake)
