"""The caller's side of the local lane: one connection to an executor, and what becomes of a request on it."""

import errno
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from idl import lane, tensors
from idl.board import Board
from idl.codes import Code, ServingError
from idl.messages import InferRequest, Tensor

if TYPE_CHECKING:
    from idl.lane_pool import LanePool

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})
"""What making shared memory fails with when the host is short of something: the peer is well."""
REPLY_GRACE_S = 0.25
"""How long past a request's deadline its answer is still waited for: the executor, too, gives up at the deadline and says so."""

SLICE_S = 1.0
_SLICE = struct.pack("ll", int(SLICE_S), 0)
"""A blocking wait looks at the clock this often. Python's own time-outs cost three more system calls for each request."""


_STREAMED = (lane.PART, lane.END, lane.RESULT)
_LOOKING = threading.Lock()
"""Held by the one caller of this process that may look instead of sleeping (see `idl.linger`)."""


class LaneAnswer(NamedTuple):
    """What an executor gave: outputs with their bytes, a backend's parameters, and where the time went in nanoseconds."""

    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Any]
    queue_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int
    steps: tuple[str, ...] = ()
    """Of a pipeline, for who traces: see `idl.steps`."""


class Answered(ServingError):
    """An executor's own refusal or failure, or the end of the wait for it: the executor counts it."""

    times: tuple[int, ...] = ()
    """ns in the queue, 0, ns in the model, 0, where the executor knows them."""
    steps: tuple[str, ...] = ()


def known(error: Exception) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(times, steps) of a request that has failed, as far as its executor says."""
    return (error.times, error.steps) if isinstance(error, Answered) else ((), ())


class Moved(Exception):
    """The executor is on its way out: the request was not run, and the routes say where it can go."""


class ExecutorGone(Exception):
    """The connection broke. `ran`: the request had begun to run; otherwise it certainly did not. `path`: the executor's socket, where it ran."""

    def __init__(self, ran: bool, path: str = "") -> None:
        super().__init__("the executor closed the connection")
        self.ran = ran
        self.path = path


class LaneConnection:
    """One connection; not thread-safe. After any exception but ServingError and Moved it must be closed, never used again.

    Blocking: `call`. With an event loop: `send`, and `receive` each time that `fileno()` is readable, until it gives an answer.
    """

    __slots__ = ("_board", "_end", "_memory_limit", "_path", "_pool", "_sequence", "_slot", "last_used")

    def __init__(self, path: str, memory_limit: int, pool: "LanePool | None" = None) -> None:
        """Connects, without waiting. Raises ExecutorGone where nobody listens (any more); ServingError overloaded where too many wait to
        be let in, insufficient_capacity where this process or host is short of something."""
        sock = _connect(path)
        try:
            self._end = lane.LaneEnd(sock, memory_limit)
        except OSError as error:
            sock.close()
            raise _short_of(error) from error
        self._path = path
        self._memory_limit = memory_limit
        self._pool = pool
        self._board: Board | None = None
        self._slot = -1
        self._sequence = 0
        self.last_used = 0.0

    def fileno(self) -> int:
        return self._end.sock.fileno()

    def call(self, request: InferRequest, watch: int = -1) -> LaneAnswer:
        """Sends and waits. Raises as `send` and `receive` do, and TimeoutError past the deadline. `watch`: see LanePool.call."""
        self.send(request)
        return read_answer(self._await(request.deadline, watch))

    def ask(self, head: bytes, parts: Sequence[tuple[int, Any]], size: int, deadline: float | None, watch: int = -1) -> lane.Frame:
        """As `call`, for what `lane.pack_head` made; the RESULT frame as it came, good until the next request on this connection."""
        self.send_packed(deadline, head, parts, size)
        return self._await(deadline, watch)

    def _await(self, deadline: float | None, watch: int) -> lane.Frame:
        pool = self._pool
        if pool is None or watch >= 0:
            return self._sleep(deadline, watch)
        if not _LOOKING.acquire(blocking=False):  # others would be kept from the interpreter by several that look
            return self._sleep(deadline, watch)
        try:
            frame = pool.linger.wait(self._glance, lambda: self._sleep(deadline, watch))
        finally:
            _LOOKING.release()
        assert frame is not None, "who sleeps wakes up with one"
        return frame

    def _glance(self) -> lane.Frame | None:
        """The answer, where it is there already."""
        try:
            return self.receive_frame(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def _sleep(self, deadline: float | None, watch: int) -> lane.Frame:
        while True:
            if watch >= 0 or (deadline is not None and deadline + REPLY_GRACE_S - time.monotonic() < SLICE_S):
                self._wait(watch, deadline)
            try:
                frame = self.receive_frame()
            except BlockingIOError:
                continue  # a slice of the wait is over
            if frame is not None:
                return frame  # else it was only the executor's greeting

    def _wait(self, watch: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self._end.sock.fileno(), select.POLLIN)
        if watch >= 0:
            poll.register(watch, select.POLLRDHUP)
        ready = poll.poll(None if deadline is None else (max(0.0, deadline - time.monotonic()) + REPLY_GRACE_S) * 1000)
        if not ready:
            raise TimeoutError
        if not any(descriptor != watch for descriptor, _ in ready):
            raise CallerGone

    def send(self, request: InferRequest) -> None:
        """Raises ExecutorGone, LaneError, TimeoutError; ServingError insufficient_capacity where the host has no memory for it,
        too_large, and invalid_input for what no frame can hold."""
        try:
            head, parts, size = lane.pack_request(request.inputs, request.outputs, request.parameters)
        except (struct.error, TypeError, ValueError) as error:
            raise _unpackable(request, error) from error
        if size > self._memory_limit and (bytes_in := sum(len(tensor.data) for tensor in request.inputs)) > self._memory_limit:
            raise ServingError(Code.TOO_LARGE, f"the request has {bytes_in} bytes of tensors, at most {self._memory_limit} are taken")
        self.send_packed(request.deadline, head, parts, size, traced=request.traced)

    def send_packed(
        self, deadline: float | None, head: bytes, parts: Sequence[tuple[int, Any]], size: int, window: int = 0, traced: bool = False
    ) -> None:
        """As `send`, for what `lane.pack_request` or `lane.pack_head` made. `window`: see INFER; the answers then come by `receive_part`."""
        if lane.HEADER.size + len(head) > lane.FRAME_BYTES:
            limit = lane.FRAME_BYTES - lane.HEADER.size
            raise ServingError(
                Code.TOO_LARGE, f"the names, shapes and parameters of the request have {len(head)} bytes, at most {limit} are taken"
            )
        self._sequence += 1
        bits = lane.SOON if self._pool is not None and self._pool.linger.worth and not window else 0
        if traced:
            bits |= lane.TRACED
        try:
            self._end.send(lane.INFER, self._sequence & 0xFFFFFFFF, (_nanoseconds(deadline), bits, window, 0), head, parts, size)
        except (TimeoutError, BlockingIOError) as error:
            raise TimeoutError from error
        except OSError as error:
            if error.errno in NO_ROOM:
                raise ServingError(
                    Code.INSUFFICIENT_CAPACITY, f"this host has no room for {size} bytes of tensors: {error.strerror}"
                ) from error
            raise ExecutorGone(ran=False) from error

    def receive(self) -> LaneAnswer | None:
        """The answer; None where what came was only the executor's greeting, and the answer is still to come.

        Raises Answered as the executor says, Moved, ExecutorGone, LaneError; BlockingIOError on a non-blocking socket with nothing there.
        """
        frame = self.receive_frame()
        return None if frame is None else read_answer(frame)

    def receive_frame(self, flags: int = 0) -> lane.Frame | None:
        """As `receive`, the RESULT frame as it came: its body holds until the next request on this connection. `flags`: of recvmsg."""
        frame = self._receive(flags)
        if frame is not None and frame.kind != lane.RESULT:
            raise _no_result(frame)
        return frame

    def receive_part(self, flags: int = 0) -> lane.Frame | None:
        """As `receive_frame`, for a stream: RESULT, the only answer, or one PART of many, or their END."""
        frame = self._receive(flags)
        if frame is not None and frame.kind not in _STREAMED:
            raise _no_result(frame)
        return frame

    def taken(self, parts: int) -> None:
        """Tells the executor how many parts of the stream were taken. Raises ExecutorGone."""
        try:
            self._end.send(lane.TAKEN, self._sequence & 0xFFFFFFFF, (parts, 0, 0, 0), b"", (), 0)
        except OSError as error:
            raise ExecutorGone(self._ran(), self._path) from error

    def _receive(self, flags: int) -> lane.Frame | None:
        try:
            frame = self._end.receive(flags)
        except (TimeoutError, BlockingIOError):
            raise
        except OSError:
            frame = None
        if frame is None:
            raise ExecutorGone(self._ran(), self._path)
        if frame.kind == lane.WELCOME:
            self._greeted(frame)
            return None
        if frame.sequence != self._sequence & 0xFFFFFFFF:
            raise lane.LaneError("an answer to another request")
        self.last_used = time.monotonic()
        return frame

    def _greeted(self, frame: lane.Frame) -> None:
        self._slot = frame.numbers[0]
        try:
            if self._pool is None:
                self._board = Board(frame.descriptor, writable=False)
            else:
                self._board = self._pool.share(frame.descriptor)
        except (OSError, ValueError) as error:
            raise lane.LaneError(f"a board that cannot be read: {error}") from error
        finally:
            os.close(frame.descriptor)

    def _ran(self) -> bool:
        """Whether the executor had begun to run the last request. Without a greeting it never saw this connection."""
        return self._board is not None and self._board.began(self._slot) == self._sequence & 0xFFFFFFFF

    def close(self) -> None:
        self._end.close()
        self._board = None


_LONGEST_S = 9e9
"""Seconds whose nanoseconds a frame can hold: three hundred years."""


def _nanoseconds(deadline: float | None) -> int:
    """0 for none, and for one that nobody lives to see."""
    return int(deadline * 1e9) if deadline is not None and deadline < _LONGEST_S else 0


def _connect(path: str) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise _short_of(error) from error
    try:
        sock.setblocking(False)  # connecting waits where the executor's backlog is full: an event loop would wait with it
        sock.connect(path)
        sock.setblocking(True)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, _SLICE)
    except BlockingIOError as error:
        sock.close()
        raise ServingError(Code.OVERLOADED, "too many callers wait to be let in by the model's process", retry_after_ms=100) from error
    except OSError as error:
        sock.close()
        raise ExecutorGone(ran=False) from error
    return sock


def _short_of(error: OSError) -> Exception:
    if error.errno in NO_ROOM:
        return ServingError(Code.INSUFFICIENT_CAPACITY, f"this host has no room for a connection to the model: {error.strerror}")
    return ExecutorGone(ran=False)


class CallerGone(Exception):
    """The descriptor that a call watches was hung up: nobody waits for the answer."""


def read_answer(frame: lane.Frame) -> LaneAnswer:
    """Of a RESULT frame, its bytes copied out. Raises LaneError."""
    head = lane.unpack_head(frame.head)
    return LaneAnswer(lane.unpack_tensors(head, frame.body), head.parameters, *frame.numbers, head.wanted)


def _unpackable(request: InferRequest, error: Exception) -> ServingError:
    """Why a request does not fit the lane's fields."""
    for tensor in request.inputs:
        try:
            tensors.element_count(tensor.name, tensor.shape)
        except ServingError as said:
            return said
    return tensors.invalid(f"the request cannot be sent to the model: {error}")


def _no_result(frame: lane.Frame) -> Exception:
    """What an answer without a result is raised as."""
    if frame.kind == lane.MOVED:
        return Moved()
    if frame.kind != lane.ERROR:
        return lane.LaneError(f"a frame of kind {frame.kind} as an answer")
    try:
        said = json.loads(frame.head)
        retry_ms, queue_ns, run_ns, _ = frame.numbers
        error = Answered(Code(said["code"]), said["message"], retry_after_ms=retry_ms)
        error.times = (queue_ns, 0, run_ns, 0) if queue_ns or run_ns else ()
        error.steps = tuple(said.get("steps", ()))
        return error
    except (ValueError, KeyError, TypeError):
        return lane.LaneError("an error that cannot be read")
