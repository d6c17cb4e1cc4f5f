"""One connection of length-prefixed frames over a non-blocking socket: frames in, replies out, never a wait.

A frame is a 4-byte big-endian length and that many bytes (Apache Thrift, framed transport). The length is believed for what it
forbids and never for what it promises: memory grows with the bytes that have arrived.
"""

import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 16
_TURN = 1 << 22
"""Bytes that are read for one connection before the others get their turn."""
_HEAD = 512
"""Bytes that are kept of a frame over the limit: enough to know whom to answer."""
_ALONE = 1 << 15
"""A part of a reply from this size on is sent as it is, smaller ones are joined."""
_LEAST, _MOST = 12, 2**31 - 1
_SINK = bytearray(1 << 18)
"""Where bytes go that nobody wants; written by any thread, read by none."""


class Lost(Exception):
    """The peer has gone, or what it sends is no frame: the connection is to be closed."""


Buffer = bytes | memoryview


class Frame(NamedTuple):
    """A whole frame; or, where `size` is over the limit, its first bytes: the rest has been passed over. A small one is bytes."""

    data: Buffer
    size: int


class FrameReader:
    """Frames from a non-blocking socket. `start`: the bytes that every frame must begin with, so that a stranger is noticed at once."""

    def __init__(self, sock: socket.socket, limit: int, start: bytes) -> None:
        self._sock = sock
        self._limit = limit
        self._start = start
        self._ahead = b""
        """What has been read and belongs to no frame begun: at most one chunk."""
        self._body: bytearray | None = None
        self._size = self._filled = self._unwanted = 0

    @property
    def ahead(self) -> bool:
        """Whether bytes of a further frame are here already."""
        return bool(self._ahead)

    @property
    def idle(self) -> bool:
        """Whether the peer is between two frames."""
        return self._body is None and not self._ahead

    def next(self) -> Frame | None:
        """The next frame; None where it is not there yet, or where others should get their turn. Raises Lost."""
        if self._body is None:
            size = self._length()
            if size is None:
                return None
            if size <= self._limit and len(self._ahead) >= 4 + size:
                data, self._ahead = self._ahead[4 : 4 + size], self._ahead[4 + size :]
                return Frame(data, size)
            self._begin(size)
        return self._finish() if self._fill() else None

    def _length(self) -> int | None:
        """The announced size of the frame that begins with `_ahead`, None until it can be told."""
        if len(self._ahead) < 8:
            self._ahead += self._receive()
        if len(self._ahead) < 4:
            return None
        (size,) = _LENGTH.unpack_from(self._ahead)
        if not _LEAST <= size <= _MOST:
            raise Lost(f"a frame of {size} bytes is announced")
        if len(self._ahead) < 4 + len(self._start):
            return None
        if not self._ahead.startswith(self._start, 4):
            raise Lost("what came is not the protocol's")
        return int(size)

    def _begin(self, size: int) -> None:
        keep = size if size <= self._limit else min(size, _HEAD)
        here = self._ahead[4 : 4 + size]
        self._ahead = self._ahead[4 + size :]
        self._body = bytearray(here[:keep])
        self._size, self._filled = size, len(self._body)
        self._unwanted = size - keep - (len(here) - self._filled)

    def _fill(self) -> bool:
        """Reads on; True when the frame is complete."""
        body, keep = self._body, self._size if self._size <= self._limit else min(self._size, _HEAD)
        assert body is not None
        turn = _TURN
        while turn > 0 and self._filled < keep:
            if self._filled == len(body):
                body.extend(bytes(min(keep - self._filled, max(self._filled, _CHUNK))))
            with memoryview(body) as view, view[self._filled :] as space:
                got = self._receive_into(space)
            if not got:
                return False
            self._filled += got
            turn -= got
        while turn > 0 and self._filled == keep and self._unwanted:
            got = self._receive_into(memoryview(_SINK)[: self._unwanted])
            if not got:
                return False
            self._unwanted -= got
            turn -= got
        return self._filled == keep and not self._unwanted

    def _finish(self) -> Frame:
        assert self._body is not None
        frame = Frame(memoryview(self._body)[: self._filled], self._size)
        self._body = None
        return frame

    def _receive(self) -> bytes:
        """What is there, b"" where nothing is. Raises Lost at the end of the stream."""
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Lost(str(error)) from None
        if not data:
            raise Lost("the peer has closed")
        return data

    def _receive_into(self, space: memoryview) -> int:
        """How many bytes came, 0 where none are there. Raises Lost at the end of the stream."""
        try:
            got = self._sock.recv_into(space)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Lost(str(error)) from None
        if not got:
            raise Lost("the peer has closed")
        return got


class Outbox:
    """Replies on their way to a peer that may read slowly."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: deque[memoryview] = deque()

    @property
    def empty(self) -> bool:
        return not self._waiting

    def put(self, parts: Sequence[Buffer]) -> None:
        """Appends a reply; its large parts are not copied."""
        if sum(map(len, parts)) < _ALONE:
            self._waiting.append(memoryview(b"".join(parts)))
            return
        small: list[Buffer] = []
        for part in parts:
            if len(part) < _ALONE:
                small.append(part)
                continue
            self._append(b"".join(small))
            self._append(part)
            small = []
        self._append(b"".join(small))

    def _append(self, data: Buffer) -> None:
        if data:
            self._waiting.append(memoryview(data))

    def send(self, data: bytes) -> bool:
        """As `put` and `flush`, of a reply in one piece."""
        if self._waiting:
            self._waiting.append(memoryview(data))
            return self.flush()
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Lost(str(error)) from None
        if sent == len(data):
            return True
        self._waiting.append(memoryview(data)[sent:])
        return False

    def drop(self) -> None:
        """What has not gone out never will."""
        self._waiting.clear()

    def flush(self) -> bool:
        """Sends what the peer takes now; True when nothing is left. Raises Lost."""
        waiting = self._waiting
        while waiting:
            try:
                sent = self._sock.send(waiting[0])
            except BlockingIOError:
                return False
            except OSError as error:
                raise Lost(str(error)) from None
            if sent < len(waiting[0]):
                waiting[0] = waiting[0][sent:]
            else:
                waiting.popleft()
        return True
