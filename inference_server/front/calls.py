"""One ModelInfer call through the front: decoded, asked of an executor, answered. What the front has no answer to, it declines."""

import logging
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from idl import affinity
from idl import lane as frames
from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.lane import Frame
from idl.lane_calls import known
from idl.lane_loop import Lane, Lanes
from idl.lane_requests import Packed, Request, Requests
from idl.lane_routes import Routes
from idl.traces import Asked, Trace, Tracer
from inference_server.transports import grpc_codec as codec
from inference_server.transports import grpc_infer
from inference_server.transports.grpc_infer import Buffer, Described
from inference_server.transports.guard import as_serving_error
from inference_server.transports.tokens import Token

log = logging.getLogger("outboard.server")

_VIEWED_BYTES = 64 * 1024
"""From here on a copy costs more than a view."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a call says outside its message. `timeout_s` None: the caller set none; texts are "" where absent."""

    timeout_s: float | None
    token: str
    request_id: str
    traceparent: str


class Caller(Protocol):
    """Who asked, and gets one of these."""

    def succeed(self, parts: list[Buffer], size: int, lane: Lane) -> None:
        """The parts of a message of `size` bytes. They may lie in the memory of `lane`, which is to be given back afterwards."""

    def fail(self, error: ServingError) -> None: ...

    def decline(self) -> None:
        """There is no answer here: the server is to be asked."""


class Message(Packed):
    """A request that has an id."""

    __slots__ = ("id",)

    def __init__(self, name: str, model: str, version: str, head: bytes, parts: Any, size: int, sequence: str) -> None:
        super().__init__(model, version, head, parts, size, sequence)
        self.id = name


class Calls(Requests):
    """Begins calls, and ends those whose time is up. `default_timeout_s` is for callers that set none; sizes are bytes."""

    tracer: Tracer | None = None
    """Who is told of calls; None: nobody."""

    def __init__(self, routes: Routes, lanes: Lanes, token: Token, *, default_timeout_s: float, max_message_bytes: int) -> None:
        super().__init__(routes, lanes)
        self.max_message_bytes = max_message_bytes
        self._token = token
        self._default_timeout_s = default_timeout_s

    @property
    def logging(self) -> bool:
        """Whether every request is logged; can change while the server runs."""
        return log.isEnabledFor(logging.DEBUG)

    def begin(self, caller: Caller, head: Head, message: bytes | memoryview) -> "Call | None":
        """Answers `caller` at once, or returns the call that will."""
        now = time.monotonic()
        try:
            self._token.check(head.token, "ModelInfer")
            packed = pack(message)
            if packed is not None:
                self._token.check(head.token, "ModelInfer", packed.model)
        except ServingError as error:
            caller.fail(error)
            return None
        except Exception as error:  # noqa: BLE001 - a request must not end the front
            caller.fail(as_serving_error(error, "ModelInfer", head.request_id))
            return None
        if packed is None:
            caller.decline()
            return None
        timeout = self._default_timeout_s if head.timeout_s is None else head.timeout_s
        call = Call(self, caller, head, packed, now, now + timeout)
        return call if call.ask() else None


class Call(Request):
    """One request on its way."""

    __slots__ = ("_begun", "_caller", "_calls", "_head", "_message", "_trace")

    def __init__(self, calls: Calls, caller: Caller, head: Head, message: Message, begun: float, deadline: float) -> None:
        super().__init__(calls, message, deadline)
        self._calls = calls
        self._caller = caller
        self._head = head
        self._message = message
        self._begun = begun
        self._trace: Trace | None = None

    def _is_traced(self) -> bool:
        tracer = self._calls.tracer
        if tracer is None:
            return False
        self._trace = tracer.enter(self._head.traceparent, self._message.model)
        return self._trace is not None

    def _answer(self, lane: Lane, frame: Frame) -> None:
        try:
            parts, size = self._written(frame)
        except Exception as error:  # noqa: BLE001 - an executor's odd answer must not end the front
            lane.close()
            self._end(as_serving_error(error, "ModelInfer", self._message.id))
            return
        limit = self._calls.max_message_bytes
        if size > limit:
            lane.give_back()
            self._end(ServingError(Code.TOO_LARGE, f"the answer has {size} bytes, at most {limit} may be sent"))
            return
        if self._calls.logging:
            self._log("ok")
        if self._trace is not None:
            self._tell(self._trace, frame.numbers, frames.unpack_head(frame.head).wanted)
        self._caller.succeed(parts, size, lane)

    def _written(self, frame: Frame) -> tuple[list[Buffer], int]:
        route = self._route
        assert route is not None, "nothing is answered that was not asked"
        queue_ns, _, compute_ns, _ = frame.numbers
        head = frame.head
        outputs, spans, parameters = (_described if len(head) <= frames.REMEMBERED_BYTES else _described.__wrapped__)(head)
        timed = {**parameters, "queue_us": queue_ns // 1000, "compute_us": compute_ns // 1000}
        body = frame.body
        contents = [body[begin:end] for begin, end in spans]
        parts = grpc_infer.answer(route.model, route.version, self._message.id, timed, outputs, contents)
        return parts, sum(map(len, parts))

    def cancel(self) -> None:
        """The caller has gone."""
        self.leave()
        if self._trace is not None:
            self._tell(self._trace, (), (), Code.CANCELLED.value)

    def _decline(self) -> None:
        self._caller.decline()

    def _end(self, error: ServingError) -> None:
        if self._calls.logging:
            self._log(error.code.value)
        if self._trace is not None:
            times, steps = known(error)
            self._tell(self._trace, times, steps, error.code.value)
        self._caller.fail(error)

    def _tell(self, trace: Trace, times: tuple[int, ...], steps: tuple[str, ...], error: str = "") -> None:
        message, route, tracer = self._message, self._route, self._calls.tracer
        assert tracer is not None, "it began the trace"
        asked = Asked(message.model, route.version if route else message.version, message.id or self._head.request_id)
        tracer.inference(trace, asked, int((time.monotonic() - self._begun) * 1e9), times, error, steps=steps)

    def _log(self, code: str) -> None:
        message = self._message
        fields = {
            "model": message.model[:128],
            "version": self._route.version if self._route and code == "ok" else message.version[:128],
            "request_id": message.id or self._head.request_id,
            "code": code,
            "ms": round((time.monotonic() - self._begun) * 1e3, 3),
        }
        log.debug("request", extra={"fields": fields | ({"traceparent": self._head.traceparent} if self._head.traceparent else {})})


def pack(message: bytes | memoryview) -> Message | None:
    """A `ModelInferRequest`, ready for the lane; None for what the lane cannot hold. Raises ServingError."""
    if len(message) > _VIEWED_BYTES:
        message = memoryview(message)
    found = grpc_infer.read(message)
    if found is None:
        return _pack_general(bytes(message))
    described, name, contents = found
    try:
        sizes = tuple(map(len, contents))
        pack = _lane_head if len(message) - sum(sizes) <= frames.REMEMBERED_BYTES else _lane_head.__wrapped__
        head, offsets, size = pack(described, sizes)
    except (struct.error, ValueError):
        return None
    return Message(
        name,
        described.model_name,
        described.model_version,
        head,
        list(zip(offsets, contents, strict=True)),
        size,
        affinity.of(described.parameters),
    )


@lru_cache(maxsize=512)
def _lane_head(described: Described, sizes: tuple[int, ...]) -> tuple[bytes, tuple[int, ...], int]:
    tensors = [(*tensor, size) for tensor, size in zip(described.tensors, sizes, strict=True)]
    return frames.pack_head(tensors, described.outputs, described.parameters)


def _pack_general(message: bytes) -> Message | None:
    parsed = codec.parse(pb.ModelInferRequest, message)
    if codec.is_extended(parsed):  # the server has the regions and the labels
        return None
    request = codec.infer_request(parsed, "", 0.0, "")
    try:
        head, parts, size = frames.pack_request(request.inputs, request.outputs, request.parameters)
    except (struct.error, TypeError, ValueError):
        return None
    return Message(request.id, request.model_name, request.model_version, head, parts, size, affinity.of(request.parameters))


@lru_cache(maxsize=1024)
def _described(head: bytes) -> tuple[bytes, tuple[tuple[int, int], ...], Any]:
    """(the answer's description of its tensors, where each lies in the frame's body, a backend's parameters)."""
    known = frames.unpack_head(head)
    tensors = tuple((tensor.name, tensor.datatype, tensor.shape) for tensor in known.tensors)
    return grpc_infer.outputs(tensors), tuple((tensor.offset, tensor.offset + tensor.size) for tensor in known.tensors), known.parameters
