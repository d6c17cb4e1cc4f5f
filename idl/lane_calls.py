"""The caller's side of the local lane: a pool of connections to one executor, lent to one request at a time."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idl import lane
from idl.codes import Code, ServingError
from idl.messages import InferRequest, Tensor

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})
"""What making shared memory fails with when the host is short of something: the peer is well."""
REPLY_GRACE_S = 0.25
"""How long past a request's deadline its answer is still waited for: the executor, too, gives up at the deadline and says so."""


@dataclass(frozen=True, slots=True)
class LaneAnswer:
    """What an executor gave: outputs with their bytes, a backend's parameters, and where the time went in nanoseconds."""

    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Any]
    queue_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int


class ExecutorGone(Exception):
    """The connection broke. `sent`: the request had left, so it may have run."""

    def __init__(self, sent: bool) -> None:
        super().__init__("the executor closed the connection")
        self.sent = sent


class LaneConnection:
    """One connection; not thread-safe. After any exception but ServingError it must be closed, never used again."""

    def __init__(self, path: str, memory_limit: int) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            raise ExecutorGone(sent=False) from error
        self._end = lane.LaneEnd(sock, memory_limit)
        self._sequence = 0
        self.last_used = 0.0

    def call(self, request: InferRequest) -> LaneAnswer:
        """Sends and waits. Raises ServingError as the executor says, ExecutorGone, LaneError, or TimeoutError past the deadline."""
        head, parts, size = lane.pack_request(request.inputs, request.outputs, request.parameters)
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        now = time.monotonic()
        deadline = request.deadline
        self._end.sock.settimeout(None if deadline is None else max(0.0, deadline - now) + REPLY_GRACE_S)
        try:
            self._end.send(lane.INFER, sequence, (0 if deadline is None else int(deadline * 1e9), 0, 0, 0), head, parts, size)
        except TimeoutError:
            raise
        except OSError as error:
            if error.errno in NO_ROOM:
                raise ServingError(
                    Code.INSUFFICIENT_CAPACITY, f"this host has no room for {size} bytes of tensors: {error.strerror}"
                ) from error
            raise ExecutorGone(sent=False) from error
        try:
            frame = self._end.receive()
        except TimeoutError:
            raise
        except OSError as error:
            raise ExecutorGone(sent=True) from error
        if frame is None:
            raise ExecutorGone(sent=True)
        if frame.sequence != sequence:
            raise lane.LaneError("an answer to another request")
        self.last_used = now
        return _answer(frame)

    def close(self) -> None:
        self._end.close()


def _answer(frame: lane.Frame) -> LaneAnswer:
    a, b, c, d = frame.numbers
    if frame.kind == lane.RESULT:
        head = lane.unpack_head(frame.head)
        return LaneAnswer(lane.unpack_tensors(head, frame.body), head.parameters, a, b, c, d)
    if frame.kind != lane.ERROR:
        raise lane.LaneError(f"a frame of kind {frame.kind} as an answer")
    said = json.loads(frame.head)
    raise ServingError(Code(said["code"]), said["message"], retry_after_ms=a)


class LanePool:
    """Connections to one executor. Thread-safe; usable after a fork (a child starts with none of its parent's connections)."""

    def __init__(self, path: str, memory_limit: int) -> None:
        self.path = path
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._idle: list[LaneConnection] = []
        self._closed = False
        self._pid = os.getpid()

    def call(self, request: InferRequest) -> LaneAnswer:
        """As LaneConnection.call; past the deadline it raises ServingError deadline_exceeded."""
        connection = self._take()
        try:
            answer = connection.call(request)
        except ServingError:
            self._give_back(connection)
            raise
        except TimeoutError:
            connection.close()  # the executor sees that the caller is gone and drops what is still queued
            raise ServingError(Code.DEADLINE_EXCEEDED, f"model {request.model_name!r} did not answer before the deadline") from None
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)
        return answer

    def _take(self) -> LaneConnection:
        with self._lock:
            if self._pid != os.getpid():
                self._idle, self._pid = [], os.getpid()
            if self._idle:
                return self._idle.pop()
        return LaneConnection(self.path, self._memory_limit)

    def _give_back(self, connection: LaneConnection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
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
        for connection in idle:
            connection.close()
