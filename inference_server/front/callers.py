"""The connections from nginx: one call at a time on each, kept open for the next."""

import socket

from idl.codes import ServingError
from idl.event_loop import READ, WRITE, Loop
from idl.lane_loop import Lane
from inference_server.front import http_heads
from inference_server.front.calls import Call, Calls, Head
from inference_server.transports.grpc_infer import Buffer

FRAME_BYTES = 5
"""gRPC's own, before each message: whether it is compressed, and its length."""
_AT_ONCE = 64 * 1024
_JOINED = 32 * 1024
"""Bytes up to which copying an answer together is cheaper than handing over its parts."""
_NOTHING = memoryview(b"")


class Door:
    """Takes nginx's connections from a listening socket."""

    def __init__(self, listener: socket.socket, loop: Loop, calls: Calls) -> None:
        self._listener = listener
        self._loop = loop
        self._calls = calls
        self.buffer = memoryview(bytearray(_AT_ONCE))
        """What arrives first lands here, for whichever connection."""
        listener.setblocking(False)
        loop.add(listener.fileno(), self._accept)

    def _accept(self, events: int) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # nobody any more, or no descriptor: nginx asks grpcio, or waits
                return
            sock.setblocking(False)
            Connection(sock, self._loop, self._calls, self.buffer)


class Connection:
    """Satisfies `calls.Caller`."""

    __slots__ = ("_begun", "_body", "_buffer", "_call", "_calls", "_filled", "_head", "_lane", "_loop", "_rest", "_sock")

    def __init__(self, sock: socket.socket, loop: Loop, calls: Calls, buffer: memoryview) -> None:
        self._sock = sock
        self._loop = loop
        self._calls = calls
        self._buffer = buffer
        self._begun = b""
        """A head that is not whole yet."""
        self._head: Head | None = None
        """Of a request whose body is not whole yet."""
        self._body = _NOTHING
        self._filled = 0
        self._call: Call | None = None
        self._rest: list[memoryview] = []
        """Of an answer, what the socket did not take yet, with the lane whose memory it is in."""
        self._lane: Lane | None = None
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

    def _read(self) -> None:
        if self._head is not None:
            self._read_body(self._head)
            return
        size = self._sock.recv_into(self._buffer)
        if not size or self._call is not None:  # nginx went away, or broke its rule of one call at a time
            self.close()
            return
        data = bytes(self._buffer[:size])
        if self._begun:
            data = self._begun + data
        end = data.find(http_heads.END)
        if end < 0:
            if len(data) > http_heads.LONGEST_HEAD:
                self.close()
            self._begun = data
            return
        self._begun = b""
        (length, head), start = http_heads.parse(data[:end]), end + len(http_heads.END)
        if len(data) - start == length:
            self._ask(head, data[start:])
            return
        if not len(data) - start < length <= self._calls.max_message_bytes + FRAME_BYTES:
            raise ValueError("more or less than nginx lets through")
        self._head, self._body, self._filled = head, memoryview(bytearray(length)), len(data) - start
        self._body[: self._filled] = data[start:]

    def _read_body(self, head: Head) -> None:
        size = self._sock.recv_into(self._body[self._filled :])
        self._filled += size
        if not size:
            self.close()
        elif self._filled == len(self._body):
            body, self._head, self._body = self._body, None, _NOTHING
            self._ask(head, body)

    def _ask(self, head: Head, body: bytes | memoryview) -> None:
        if len(body) < FRAME_BYTES or body[0] or int.from_bytes(body[1:FRAME_BYTES], "big") != len(body) - FRAME_BYTES:
            self.decline()  # compressed, several messages or none: grpcio knows what to do with them
        else:
            self._call = self._calls.begin(self, head, body[FRAME_BYTES:])

    def succeed(self, parts: list[Buffer], size: int, lane: Lane) -> None:
        self._call = None
        parts.insert(0, http_heads.success(size))
        if size <= _JOINED:
            self._send(b"".join(parts))
            lane.give_back()
            return
        self._lane = lane
        self._rest = [memoryview(part) for part in parts]
        try:
            self._flush()
        except OSError:
            self.close()

    def fail(self, error: ServingError) -> None:
        self._call = None
        self._send(http_heads.failure(error))

    def decline(self) -> None:
        self._call = None
        self._send(http_heads.DECLINED)

    def _send(self, data: bytes) -> None:
        try:
            if self._sock.send(data) == len(data):
                return
        except OSError:
            pass
        self.close()  # nginx has gone: it always takes a small answer

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
        self._rest = []
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.give_back()

    def close(self) -> None:
        """Idempotent. A call under way is given up."""
        descriptor = self._sock.fileno()
        if descriptor >= 0:
            self._loop.remove(descriptor)
            self._sock.close()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._free()
