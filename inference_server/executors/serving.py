"""What runs inside an executor process: takes requests off the lane, runs the model, answers.

One thread. It reads whatever has arrived into a queue, then runs the oldest request that is still wanted: a caller that hung up or
whose deadline has passed is never run. Batching will take several off the same queue.
"""

import ctypes
import json
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from idl import lane, tensors
from idl.codes import Code, ServingError
from idl.lane_calls import NO_ROOM
from idl.messages import Tensor
from idl.tensors import Array
from inference_server import errors
from inference_server.types import Signature

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


class Backend(Protocol):
    """A loaded model: what it takes and gives, and one run of it."""

    signature: Signature
    providers: tuple[str, ...]

    def run(self, inputs: dict[str, Array], wanted: list[str]) -> list[Array]: ...


@dataclass(slots=True)
class Waiting:
    """One request off the wire. `body` is the connection's own memory: it holds until the answer is sent."""

    end: lane.LaneEnd
    frame: lane.Frame
    arrived_ns: int


class Executor:
    """The loop of one model instance. `control` is the supervisor's socket: its end of file ends the process."""

    def __init__(self, listener: socket.socket, control: socket.socket, memory_limit: int) -> None:
        self._listener = listener
        self._control = control
        self._memory_limit = memory_limit
        self._ends: dict[int, lane.LaneEnd] = {}
        self._queue: deque[Waiting] = deque()
        self._asking: set[int] = set()  # descriptors with a request in the queue: one at a time each
        self._poll = select.epoll()
        for sock in (listener, control):
            sock.setblocking(False)
            self._poll.register(sock.fileno(), select.EPOLLIN)
        self._model: Backend | None = None
        self._running = True

    def serve(self, load: Callable[[dict[str, Any]], Backend]) -> None:
        """Until the supervisor goes away. `load` makes the model that the supervisor's first message describes."""
        while self._running:
            for descriptor, events in self._poll.poll(0 if self._queue else -1):
                self._event(descriptor, events, load)
            self._run_one()

    def _event(self, descriptor: int, events: int, load: Callable[[dict[str, Any]], Backend]) -> None:
        if descriptor == self._control.fileno():
            self._command(load)
        elif descriptor == self._listener.fileno():
            self._accept()
        elif end := self._ends.get(descriptor):
            self._read(descriptor, end)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        self._ends[sock.fileno()] = lane.LaneEnd(sock, self._memory_limit)
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, descriptor: int, end: lane.LaneEnd) -> None:
        try:
            frame = end.receive()
        except BlockingIOError:
            return
        except (OSError, lane.LaneError):
            frame = None
        if frame is None or frame.kind != lane.INFER or descriptor in self._asking:
            self._drop(descriptor, end)
            return
        self._asking.add(descriptor)
        self._queue.append(Waiting(end, frame, time.monotonic_ns()))

    def _drop(self, descriptor: int, end: lane.LaneEnd) -> None:
        """The caller is gone (or broke the rules): what it asked for is not run."""
        if descriptor in self._asking:
            self._asking.discard(descriptor)
            self._queue = deque(waiting for waiting in self._queue if waiting.end is not end)
        self._poll.unregister(descriptor)
        del self._ends[descriptor]
        end.close()

    def _run_one(self) -> None:
        if not self._queue:
            return
        waiting = self._queue.popleft()
        self._asking.discard(waiting.end.sock.fileno())
        started = time.monotonic_ns()
        deadline = waiting.frame.numbers[0]
        try:
            if deadline and started > deadline:
                raise errors.deadline_exceeded("the deadline passed in the queue; the request was not run")
            self._answer(waiting, started)
        except ServingError as error:
            self._refuse(waiting, error)
        except lane.LaneError as error:
            self._refuse(waiting, errors.invalid_input(str(error)))
        except Exception as error:  # noqa: BLE001 - one request must not end the model for the others
            self._refuse(waiting, ServingError(Code.MODEL_FAILED, f"the model's answer cannot be used: {type(error).__name__}: {error}"))

    def _answer(self, waiting: Waiting, started: int) -> None:
        if self._model is None:
            raise errors.not_ready("the model is loading")
        head = lane.unpack_head(waiting.frame.head)
        wanted = list(head.wanted) or [spec.name for spec in self._model.signature.outputs]
        inputs = _decode(head, waiting.frame.body)
        decoded = time.monotonic_ns()
        arrays = self._model.run(inputs, wanted)
        computed = time.monotonic_ns()
        described, parts, size = _encode(self._model.signature, wanted, arrays)
        if size > self._memory_limit:
            raise ServingError(Code.TOO_LARGE, f"the answer has {size} bytes, at most {self._memory_limit} are sent")
        numbers = (started - waiting.arrived_ns, decoded - started, computed - decoded, time.monotonic_ns() - computed)
        self._send(waiting, lane.RESULT, numbers, described, parts, size)

    def _refuse(self, waiting: Waiting, error: ServingError) -> None:
        said = json.dumps({"code": error.code.value, "message": error.message[:2000]}).encode()
        self._send(waiting, lane.ERROR, (error.retry_after_ms, 0, 0, 0), said, [], 0)

    def _send(
        self, waiting: Waiting, kind: int, numbers: tuple[int, int, int, int], head: bytes, parts: list[tuple[int, Any]], size: int
    ) -> None:
        try:
            waiting.end.send(kind, waiting.frame.sequence, numbers, head, parts, size)
        except OSError as error:
            if error.errno in NO_ROOM and kind == lane.RESULT:
                raise ServingError(
                    Code.INSUFFICIENT_CAPACITY, f"this host has no room for an answer of {size} bytes: {error.strerror}"
                ) from error
            # gone, or not reading what it asked for
            descriptor = waiting.end.sock.fileno()
            if descriptor in self._ends:
                self._drop(descriptor, waiting.end)

    def _command(self, load: Callable[[dict[str, Any]], Backend]) -> None:
        try:
            text = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        if not text:
            self._running = False
            return
        try:
            self._model = load(json.loads(text))
            reply = {"ready": _describe(self._model.signature), "providers": list(self._model.providers)}
        except ServingError as error:
            reply = {"failed": error.code.value, "message": error.message}
        self._control.send(json.dumps(reply).encode())


def _decode(head: lane.Head, body: memoryview) -> dict[str, Array]:
    if head.body_size > len(body):
        raise lane.LaneError("the tensors are longer than their frame")
    return {t.name: tensors.decode(t.name, t.datatype, t.shape, body[t.offset : t.offset + t.size]) for t in head.tensors}


def _encode(signature: Signature, wanted: list[str], arrays: list[Array]) -> tuple[bytes, list[tuple[int, Any]], int]:
    datatypes = {spec.name: spec.datatype for spec in signature.outputs}
    made: list[Tensor] = []
    for name, array in zip(wanted, arrays, strict=True):
        data: Any = (
            tensors.encode(array, "BYTES") if datatypes[name] == "BYTES" else np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        )
        made.append(Tensor(name, datatypes[name], array.shape, data))
    return lane.pack_request(made, (), {})


def _describe(signature: Signature) -> dict[str, Any]:
    def specs(many: Any) -> list[list[Any]]:
        return [[spec.name, spec.datatype, list(spec.shape)] for spec in many]

    return {
        "platform": signature.platform,
        "inputs": specs(signature.inputs),
        "outputs": specs(signature.outputs),
        "batch_axis": signature.batch_axis,
    }


def be_an_executor(name: str) -> None:
    """Process-wide set-up: dies with its parent, is told apart in `ps`, and leaves Ctrl-C and SIGTERM to the supervisor."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NAME, name.encode()[:15])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def load_onnx(asked: dict[str, Any]) -> Backend:
    """Loads and warms up. Raises invalid_model; a model that does not take the generated warm-up input is loaded all the same."""
    from inference_server.backends.onnx import OnnxModel, OnnxOptions, sample_inputs

    options = OnnxOptions(asked["threads"], tuple(asked["providers"]))
    model = OnnxModel(Path(asked["path"]), asked["name"], options)
    try:
        model.run(sample_inputs(model.signature), [spec.name for spec in model.signature.outputs])
    except ServingError as error:
        if error.code is not Code.INVALID_INPUT and error.code is not Code.MODEL_FAILED:
            raise
    return model
