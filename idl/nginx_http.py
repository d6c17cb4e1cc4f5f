"""The little HTTP/1.1 that nginx and our event loops speak over a unix socket: one request at a time on a connection, kept open for the next.

nginx has read the body whole, so a request is a head and as many bytes as its Content-Length says; heads and answers are bytes, and what
they mean is the service's.
"""

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from idl.event_loop import READ, WRITE, Loop
from idl.spare import Spare

log = logging.getLogger("outboard")

Buffer = bytes | memoryview

END = b"\r\n\r\n"
LONGEST_HEAD = 64 * 1024
"""Bytes; nginx takes less from its callers."""
_AT_ONCE = 64 * 1024
_JOINED = 32 * 1024
"""Bytes up to which copying an answer together is cheaper than handing over its parts."""


class Head(Protocol):
    """What comes before a body of `length` bytes."""

    @property
    def length(self) -> int: ...


class Call(Protocol):
    def cancel(self) -> None:
        """Its caller has gone."""
        ...


class Service(Protocol):
    """Answers requests whose body has at most `most_bytes`."""

    most_bytes: int

    def parse(self, head: bytes) -> Head:
        """`head` without the empty line at its end. Raises ValueError where it is none of nginx's."""
        ...

    def begin(self, caller: "Connection", head: Any, body: Buffer) -> Call | None:
        """Answers `caller` at once, or returns the call that will. Raises nothing."""
        ...


class Door:
    """Takes nginx's connections from a listening socket, for as long as it is open."""

    def __init__(self, listener: socket.socket, loop: Loop, service: Service) -> None:
        self._listener = listener
        self._loop = loop
        self._service = service
        self._buffer = memoryview(bytearray(_AT_ONCE))
        """What arrives first lands here, for whichever connection."""
        self._spare = Spare()
        self.connections: set[Connection] = set()
        listener.setblocking(False)
        loop.add(listener.fileno(), self._accept)

    def _accept(self, events: int) -> None:
        while True:
            sock = self._spare.accept(self._listener)
            if sock is None:
                return
            sock.setblocking(False)
            try:
                self.connections.add(Connection(sock, self._loop, self._service, self._buffer, self.connections.discard))
            except OSError:  # no room to wait for one more
                sock.close()

    def close(self) -> None:
        """Takes nobody any more; who is here stays. Idempotent."""
        if self._listener.fileno() >= 0:
            self._loop.remove(self._listener.fileno())
            self._listener.close()
            self._spare.close()


class Connection:
    """One of nginx's. Of use to its service: `reply`."""

    __slots__ = (
        "_begun",
        "_body",
        "_buffer",
        "_call",
        "_closed",
        "_done",
        "_filled",
        "_head",
        "_loop",
        "_rest",
        "_service",
        "_sock",
        "busy",
    )

    def __init__(
        self, sock: socket.socket, loop: Loop, service: Service, buffer: memoryview, closed: "Callable[[Connection], None]"
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._service = service
        self._buffer = buffer
        self._closed = closed
        self._begun = b""
        """A head that is not whole yet."""
        self._head: Head | None = None
        self._body = memoryview(b"")
        self._filled = 0
        self._call: Call | None = None
        self.busy = False
        """A request has come, and its answer has not left."""
        self._rest: list[memoryview] = []
        """Of an answer, what the socket did not take yet."""
        self._done: Callable[[], None] | None = None
        loop.add(sock.fileno(), self._ready)

    def _ready(self, events: int) -> None:
        try:
            if self._rest and events & WRITE:
                self._flush()
            if events & ~WRITE:
                self._read()
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self.close()
        except Exception:
            log.exception("a connection is broken off")
            self.close()

    def _read(self) -> None:
        if self._head is not None:
            self._read_body()
            return
        size = self._sock.recv_into(self._buffer)
        if not size or self.busy:  # nginx went away, or broke its rule of one request at a time
            self.close()
            return
        data = bytes(self._buffer[:size])
        if self._begun:
            data = self._begun + data
        end = data.find(END)
        if end < 0:
            if len(data) > LONGEST_HEAD:
                raise ValueError("a head without an end")
            self._begun = data
            return
        self._begun = b""
        head, start = self._service.parse(data[:end]), end + len(END)
        if head.length + start == len(data):
            self._begin(head, data[start:])
        else:
            self._begin_body(head, data[start:])

    def _begin(self, head: Head, body: Buffer) -> None:
        self.busy = True
        call = self._service.begin(self, head, body)
        if self.busy:
            self._call = call

    def _begin_body(self, head: Head, data: bytes) -> None:
        if not len(data) < head.length <= self._service.most_bytes:
            raise ValueError("more or less than nginx lets through")
        self._head, self._body, self._filled = head, memoryview(bytearray(head.length)), len(data)
        self._body[: len(data)] = data
        self._read_body()

    def _read_body(self) -> None:
        head, body = self._head, self._body
        assert head is not None, "there is a body to read"
        while self._filled < len(body):
            size = self._sock.recv_into(body[self._filled :])
            if not size:
                raise OSError("nginx went away in the middle of a body")
            self._filled += size
        self._head, self._body = None, memoryview(b"")
        self._begin(head, body)

    def reply(self, parts: Sequence[Buffer], done: Callable[[], None] | None = None) -> None:
        """The whole answer. `done` is called once the bytes of `parts` are not needed any more."""
        self._call = None
        try:
            if sum(map(len, parts)) <= _JOINED:
                data = b"".join(parts)
                if done is not None:
                    done()
                if self._sock.send(data) != len(data):
                    raise OSError("nginx does not take a small answer")
                self.busy = False
                return
            self._done = done
            self._rest = [memoryview(part) for part in parts]
            self._flush()
        except OSError:
            self.close()

    def detach(self) -> socket.socket:
        """Its socket, non-blocking as it is, which is the caller's from now on; for a service that answers elsewhere, from `begin` alone."""
        self._loop.remove(self._sock.fileno())
        sock = socket.socket(fileno=self._sock.detach())
        self.busy = False
        self._closed(self)
        return sock

    def _flush(self) -> None:
        waited = False
        while self._rest:
            try:
                sent = self._sock.sendmsg(self._rest)
            except BlockingIOError:
                waited = True
                break
            while self._rest and sent >= len(self._rest[0]):
                sent -= len(self._rest.pop(0))
            if sent:
                self._rest[0] = self._rest[0][sent:]
        self._loop.watch(self._sock.fileno(), READ | WRITE if waited else READ)
        if not waited:
            self._free()

    def _free(self) -> None:
        self._rest, self.busy = [], False
        done, self._done = self._done, None
        if done is not None:
            done()

    def close(self) -> None:
        """Idempotent. A call under way is given up."""
        descriptor = self._sock.fileno()
        if descriptor >= 0:
            self._loop.remove(descriptor)
            self._sock.close()
            self._closed(self)
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._free()
