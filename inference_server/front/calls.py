"""One ModelInfer call through the front: decoded, asked of an executor, answered. What the front has no answer to, it declines."""

import logging
import struct
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from idl import lane as frames
from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.lane import Frame, LaneError
from idl.lane_calls import REPLY_GRACE_S, ExecutorGone, Moved
from idl.lane_routes import Route, Routes
from inference_server.front.http_heads import DECLINED, Head, failure, success
from inference_server.front.lanes import Failure, Lane, Lanes
from inference_server.transports import grpc_codec as codec
from inference_server.transports import grpc_infer
from inference_server.transports.grpc_infer import Buffer, Described
from inference_server.transports.guard import Token, as_serving_error

log = logging.getLogger("outboard.server")

FRAME_BYTES = 5
"""gRPC's own, before each message: whether it is compressed, and its length."""
_TRIES = 4
_LENGTH = struct.Struct(">I")


class Caller(Protocol):
    """Who asked. `reply` says whether everything is on its way; if not, `sent` is called when it is, or never will be."""

    def reply(self, parts: Sequence[Buffer], lane: Lane | None = None) -> None: ...


class Packed:
    """A request as the lane takes it."""

    __slots__ = ("head", "id", "model", "parts", "size", "version")

    def __init__(self, model: str, version: str, name: str, head: bytes, parts: Sequence[tuple[int, Any]], size: int) -> None:
        self.model = model
        self.version = version
        self.id = name
        self.head = head
        self.parts = parts
        self.size = size


class Calls:
    """Begins calls, and ends those whose time is up. `default_timeout_s` is for callers that set none; sizes are bytes."""

    def __init__(self, routes: Routes, lanes: Lanes, token: Token, *, default_timeout_s: float, max_message_bytes: int) -> None:
        self.routes = routes
        self.lanes = lanes
        self.max_message_bytes = max_message_bytes
        self.logging = log.isEnabledFor(logging.DEBUG)
        self.running: set[Call] = set()
        self._token = token
        self._default_timeout_s = default_timeout_s

    def begin(self, caller: Caller, head: Head, body: Buffer) -> "Call | None":
        """Answers `caller` at once, or returns the call that will. `body` is a gRPC frame."""
        now = time.monotonic()
        try:
            self._token.check(head.token)
            if len(body) < FRAME_BYTES or body[0] or _LENGTH.unpack_from(body, 1)[0] != len(body) - FRAME_BYTES:
                caller.reply((DECLINED,))  # compressed, several messages or none: grpcio knows what to do with them
                return None
            packed = pack(body)
        except ServingError as error:
            caller.reply((failure(error),))
            return None
        except Exception as error:  # noqa: BLE001 - a request must not end the front
            caller.reply((failure(as_serving_error(error, "ModelInfer", head.request_id)),))
            return None
        if packed is None:
            caller.reply((DECLINED,))
            return None
        timeout = self._default_timeout_s if head.timeout_s is None else head.timeout_s
        call = Call(self, caller, head, packed, now, now + timeout)
        return call if call.ask() else None

    def sweep(self, now: float) -> None:
        """Ends the calls that should have been answered before `now` (monotonic seconds)."""
        for call in [call for call in self.running if now > call.deadline + REPLY_GRACE_S]:
            call.give_up()


class Call:
    """One request on its way. Satisfies `lanes.Waiting`."""

    __slots__ = ("_begun", "_caller", "_calls", "_head", "_lane", "_packed", "_route", "_tries", "deadline")

    def __init__(self, calls: Calls, caller: Caller, head: Head, packed: Packed, begun: float, deadline: float) -> None:
        self.deadline = deadline
        self._calls = calls
        self._caller = caller
        self._head = head
        self._packed = packed
        self._begun = begun
        self._tries = 0
        self._lane: Lane | None = None
        self._route: Route | None = None

    def ask(self) -> bool:
        """Sends it to an executor; False where the caller was told instead that there is no answer here."""
        calls, packed = self._calls, self._packed
        while self._tries < _TRIES:
            self._tries += 1
            route = calls.routes.find(packed.model, packed.version)
            if route is None or not route.sockets or (packed.size > route.limit and _contents(packed) > route.limit):
                break
            try:
                lane = calls.lanes.take(route)
                lane.ask(self, self.deadline, packed.head, packed.parts, packed.size)
            except ExecutorGone:
                continue  # it has just gone: the routes know, or will
            except (ServingError, LaneError):
                break  # it was not even sent: the server refuses it in its own words, and counts it
            self._lane, self._route = lane, route
            calls.running.add(self)
            return True
        self._caller.reply((DECLINED,))
        return False

    def answered(self, lane: Lane, frame: Frame) -> None:
        self._calls.running.discard(self)
        route, packed, limit = self._route, self._packed, self._calls.max_message_bytes
        assert route is not None, "nothing is answered that was not asked"
        queue_ns, _, compute_ns, _ = frame.numbers
        described, spans, parameters = _described(frame.head)
        timed = {**parameters, "queue_us": queue_ns // 1000, "compute_us": compute_ns // 1000}
        body = frame.body
        contents = [body[begin:end] for begin, end in spans]
        parts = grpc_infer.answer(route.model, route.version, packed.id, timed, described, contents)
        size = sum(map(len, parts))
        if size > limit:
            lane.give_back()
            self._end(ServingError(Code.TOO_LARGE, f"the answer has {size} bytes, at most {limit} may be sent"))
            return
        parts.insert(0, success(size))
        if self._calls.logging:
            self._log("ok")
        self._caller.reply(parts, lane)

    def failed(self, error: Failure) -> None:
        self._calls.running.discard(self)
        self._lane = None
        if isinstance(error, Moved) or (isinstance(error, ExecutorGone) and not error.ran):
            self.ask()
        elif isinstance(error, ServingError):
            self._end(error)
        elif isinstance(error, ExecutorGone):
            self._end(ServingError(Code.MODEL_FAILED, f"the process of model {self._packed.model!r} died while it had the request"))
        else:
            self._end(ServingError(Code.INTERNAL, f"the lane to model {self._packed.model!r} broke: {error}"))

    def give_up(self) -> None:
        """Past its deadline: what still waits is not run, and the caller is told."""
        self.cancel()
        self._end(ServingError(Code.DEADLINE_EXCEEDED, f"model {self._packed.model!r} did not answer before the deadline"))

    def cancel(self) -> None:
        """The caller has gone."""
        self._calls.running.discard(self)
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()

    def _end(self, error: ServingError) -> None:
        if self._calls.logging:
            self._log(error.code.value)
        self._caller.reply((failure(error),))

    def _log(self, code: str) -> None:
        packed = self._packed
        fields = {
            "model": packed.model[:128],
            "version": self._route.version if self._route and code == "ok" else packed.version[:128],
            "request_id": packed.id or self._head.request_id,
            "code": code,
            "ms": round((time.monotonic() - self._begun) * 1e3, 3),
        }
        log.debug("request", extra={"fields": fields | ({"traceparent": self._head.traceparent} if self._head.traceparent else {})})


def pack(body: Buffer) -> Packed | None:
    """The message of a gRPC frame, ready for the lane; None for what the lane cannot hold. Raises ServingError."""
    found = grpc_infer.read(body, FRAME_BYTES)
    if found is None:
        return _pack_general(body)
    described, name, contents = found
    try:
        head, offsets, size = _lane_head(described, tuple(map(len, contents)))
    except (struct.error, ValueError):
        return None
    return Packed(described.model_name, described.model_version, name, head, list(zip(offsets, contents, strict=True)), size)


@lru_cache(maxsize=512)
def _lane_head(described: Described, sizes: tuple[int, ...]) -> tuple[bytes, tuple[int, ...], int]:
    tensors = [(*tensor, size) for tensor, size in zip(described.tensors, sizes, strict=True)]
    return frames.pack_head(tensors, described.outputs, described.parameters)


def _pack_general(body: Buffer) -> Packed | None:
    request = codec.infer_request(codec.parse(pb.ModelInferRequest, bytes(body[FRAME_BYTES:])), "", 0.0, "")
    try:
        head, parts, size = frames.pack_request(request.inputs, request.outputs, request.parameters)
    except (struct.error, TypeError, ValueError):
        return None
    return Packed(request.model_name, request.model_version, request.id, head, parts, size)


def _contents(packed: Packed) -> int:
    return sum(len(data) for _, data in packed.parts)


@lru_cache(maxsize=1024)
def _described(head: bytes) -> tuple[bytes, tuple[tuple[int, int], ...], Any]:
    """(the answer's description of its tensors, where each lies in the frame's body, a backend's parameters)."""
    known = frames.unpack_head(head)
    tensors = tuple((tensor.name, tensor.datatype, tensor.shape) for tensor in known.tensors)
    return grpc_infer.outputs(tensors), tuple((tensor.offset, tensor.offset + tensor.size) for tensor in known.tensors), known.parameters
