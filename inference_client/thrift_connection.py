"""One framed Thrift connection: a request's bytes out, the reply's frame in, by a deadline."""

import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from idl.codes import Code, ServingError
from inference_client.addresses import Address
from inference_client.channel import Lost, Unreachable, too_large
from inference_client.deadline import Deadline, passed

Taken = TypeVar("Taken")

_LENGTH = struct.Struct(">I")
_FIRST_READ = 64 * 1024
"""Bytes asked for at first: a small reply arrives with one system call."""
_JOIN_BELOW = 16 * 1024
"""Parts smaller than this are joined before sending, larger ones are sent from where they lie."""
_MAX_PARTS = 512
"""Buffers for one system call, below IOV_MAX."""


_SLICE_S = 1.0
_SLICE = struct.pack("ll", int(_SLICE_S), 0)
"""A wait looks at the clock this often. Python's own time-outs cost two more system calls for each of ours."""


class NothingSent(Exception):
    """The peer had closed the connection before the first byte went out."""


class Connection:
    """For one thread at a time. After any exception of `exchange` it is of no use: a late reply could be taken for the next call's."""

    __slots__ = ("_poll", "_socket", "fresh", "sequence")

    def __init__(self, address: Address, connect_timeout_s: float, deadline: Deadline) -> None:
        """Connects. Raises Unreachable; deadline_exceeded where the call's own time ran out first."""
        left = deadline.left()
        try:
            self._socket = _connect(address, min(connect_timeout_s, left))
        except TimeoutError:
            if left < connect_timeout_s:
                raise passed() from None
            raise Unreachable("no answer to the connection") from None
        except OSError as error:
            raise Unreachable((error.strerror or "the name is not known").lower()) from None
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _SLICE)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self.fresh = True
        self.sequence = 0

    def is_quiet(self) -> bool:
        """Nothing has arrived since the last reply: neither the end of the stream nor bytes that nobody asked for."""
        return not self._poll.poll(0)

    def exchange(self, parts: Sequence[bytes | memoryview], deadline: Deadline, max_bytes: int) -> memoryview:
        """Sends `parts`, returns the body of the one frame that comes back.

        Raises NothingSent, Lost (unavailable: the connection broke; too_large or internal: what came is not a reply that we can take),
        deadline_exceeded, cancelled.
        """
        self._send(_joined(parts), deadline)
        self.fresh = False
        try:
            if deadline.watch >= 0:
                deadline.wait_for(self._socket.fileno())
            return self._receive(deadline, max_bytes)
        except TimeoutError:
            raise passed() from None
        except OSError as error:
            raise _broken(error) from None

    def _send(self, buffers: list[bytes | memoryview], deadline: Deadline) -> None:
        sent_any = False
        try:
            while buffers:
                try:
                    sent = self._send_some(buffers)
                except BlockingIOError:
                    self._wait_to_send(deadline)
                    continue
                sent_any = True
                while buffers and sent >= len(buffers[0]):
                    sent -= len(buffers.pop(0))
                if sent:
                    buffers[0] = memoryview(buffers[0])[sent:]
        except TimeoutError:
            raise passed() from None
        except OSError as error:
            if not sent_any:
                raise NothingSent from None
            raise _broken(error) from None

    def _send_some(self, buffers: list[bytes | memoryview]) -> int:
        if len(buffers) == 1:
            return self._socket.send(buffers[0], socket.MSG_DONTWAIT)
        return self._socket.sendmsg(buffers[:_MAX_PARTS], (), socket.MSG_DONTWAIT)

    def _wait_to_send(self, deadline: Deadline) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if not poll.poll(deadline.left() * 1000):
            raise TimeoutError

    def _waiting(self, deadline: Deadline, take: Callable[[], Taken]) -> Taken:
        """What `take` receives, which returns without it after a slice of the wait. Raises TimeoutError."""
        end = time.monotonic() + deadline.left()
        while True:
            left = end - time.monotonic()
            if left < _SLICE_S and not self._poll.poll(max(left, 0) * 1000):
                raise TimeoutError
            try:
                return take()
            except BlockingIOError:
                continue  # a slice of the wait is over

    def _receive(self, deadline: Deadline, max_bytes: int) -> memoryview:
        head = self._some(deadline)
        while len(head) < 4:
            head += self._some(deadline)
        (length,) = _LENGTH.unpack_from(head)
        if length > max_bytes:
            raise Lost(Code.TOO_LARGE, too_large("reply", length, max_bytes).message)
        have = len(head) - 4
        if have > length:
            raise Lost(Code.INTERNAL, "the model host sent more than one reply to one request")
        if have == length:
            return memoryview(head)[4:]
        # not a bytearray: that would write zeros, so that a length that lies would cost its memory before a byte has come
        frame = np.empty(length, np.uint8).data
        frame[:have] = head[4:]
        while have < length:
            received = self._waiting(deadline, partial(self._socket.recv_into, frame[have:]))
            if not received:
                raise _broken(None)
            have += received
        return frame

    def _some(self, deadline: Deadline) -> bytes:
        data = self._waiting(deadline, self._recv)
        if not data:
            raise _broken(None)
        return data

    def _recv(self) -> bytes:
        return self._socket.recv(_FIRST_READ)

    def close(self) -> None:
        self._socket.close()


def _connect(address: Address, timeout_s: float) -> socket.socket:
    """Tries every address of the host's name within the one time-out. Looking the name up is not bounded by it: the resolver's own is."""
    if address.path:
        return _open(socket.AF_UNIX, address.path, timeout_s)
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    end = time.monotonic() + timeout_s
    for family, _, _, _, target in found[:-1]:
        try:
            return _open(family, target, end - time.monotonic())
        except TimeoutError:
            raise
        except OSError:
            continue
    return _open(found[-1][0], found[-1][4], end - time.monotonic())


def _open(family: int, target: object, timeout_s: float) -> socket.socket:
    if timeout_s <= 0:
        raise TimeoutError
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.settimeout(timeout_s)
        opened.connect(target)  # type: ignore[arg-type]
        if family != socket.AF_UNIX:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        opened.close()
        raise
    return opened


def _joined(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The same bytes in few buffers, none of them empty."""
    if sum(map(len, parts)) < _JOIN_BELOW:
        whole = b"".join(parts)
        return [whole] if whole else []
    buffers: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    for part in parts:
        if len(part) < _JOIN_BELOW:
            small.append(part)
            continue
        buffers += [b"".join(small), part]
        small = []
    buffers.append(b"".join(small))
    return [buffer for buffer in buffers if buffer]


def _broken(error: OSError | None) -> ServingError:
    reason = "closed by the host" if error is None else (error.strerror or type(error).__name__).lower()
    return Lost(Code.UNAVAILABLE, f"the connection to the model host broke before its answer was here: {reason}")
