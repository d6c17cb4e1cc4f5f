"""One inference through the front: read, asked of an executor, answered. What the front has no answer to, it hands back to nginx."""

import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gateway import observation
from gateway.context import Services
from gateway.errors import STATUS, internal, problem
from gateway.front import heads
from gateway.front.errands import Errands
from gateway.front.events import LaneEvents
from gateway.front.heads import DECLINED, Head
from gateway.front.known import Known
from gateway.front.streaming import RETRY_MS, Streaming
from gateway.hot_routes import STREAMS, V1, Target
from gateway.operations import generate, inference, v2_inference
from gateway.operations.access import Can, require_scope
from gateway.operations.deployment_errors import V2
from gateway.operations.inference import Call
from gateway.operations.v2_inference import Answer
from gateway.operations.v2_messages import InferBody
from gateway.types import Principal, Scope
from idl import affinity
from idl import lane as frames
from idl.codes import Code, ServingError
from idl.event_loop import Loop
from idl.lane import Frame, LaneError
from idl.lane_calls import known
from idl.lane_loop import Lane, Lanes
from idl.lane_requests import Packed, Request, Requests
from idl.lane_routes import Routes, timed
from idl.messages import Tensor
from idl.nginx_http import Buffer, Connection
from idl.traces import INTERNAL, Asked, Trace

MOST_BYTES = 64 * 1024
"""Of a body: what takes longer to read would keep the others waiting. nginx is told, and takes larger ones to the workers."""
_LARGE_ANSWER = 32 * 1024
"""Bytes of tensors from which a thread writes the answer's text."""


class Exchanges(Requests):
    """Begins exchanges, and ends those whose time is up. A `nginx_http.Service`."""

    most_bytes = MOST_BYTES

    def __init__(self, services: Services, routes: Routes, lanes: Lanes, errands: Errands, loop: Loop) -> None:
        super().__init__(routes, lanes)
        self.loop = loop
        self.events: set[LaneEvents] = set()
        """Streams whose first answer has come."""
        self.services = services
        self.errands = errands
        self.streaming = Streaming(services, services.settings.max_streams)
        """Whoever begins one has asked `_streams` before."""
        self._known = Known(services, errands)
        self._timeout_s = services.settings.request_timeout_s

    def parse(self, head: bytes) -> Head:
        return heads.parse(head)

    def begin(self, caller: Connection, head: Head, body: Buffer) -> "Exchange | LaneEvents | None":
        started = time.perf_counter()
        target = head.target
        if target is not None and target.endpoint in STREAMS:
            return self._begin_stream(caller, head, target, started, bytes(body))
        if target is None or target.endpoint in V1 or not _is_plain(head):
            caller.reply((DECLINED,))
            return None
        try:
            if not self._is_allowed(head, target):
                caller.reply((DECLINED,))
                return None
            asked = v2_inference.decode(bytes(body), head.fields.heads)
        except Exception as error:  # noqa: BLE001 - a request must not end the front
            self.services.metrics.begin()
            self.refuse(caller, head, target, started, error)
            return None
        if asked.extended is not None:
            caller.reply((DECLINED,))
            return None
        try:
            head_, parts, size = frames.pack_request(asked.inputs, tuple(asked.outputs), asked.parameters)
            packed = Packed(target.model, target.version, head_, parts, size, affinity.of(asked.parameters))
        except (struct.error, TypeError, ValueError):  # the workers know the words for it
            caller.reply((DECLINED,))
            return None
        self.services.metrics.begin()
        deadline = inference.earliest(time.monotonic() + self._timeout_s, asked)
        exchange = Exchange(self, caller, head, target, started, asked, packed, deadline)
        return exchange if exchange.ask() else None

    def _begin_stream(self, caller: Connection, head: Head, target: Target, started: float, body: bytes) -> LaneEvents | None:
        """In the loop where everything about it is known, else by a thread."""
        tracer = self.services.tracer
        trace = None if tracer is None else tracer.begin(head.fields.traceparent, target.model)
        try:
            most = self.services.settings.max_streams
            if self._streams() >= most:
                raise ServingError(Code.OVERLOADED, f"{most} streams are open already", retry_after_ms=RETRY_MS)
            metadata = self.services.models.recall_metadata(target.model, target.version)
            unknown = metadata is None or head.fields.content_encoding or not self._is_allowed(head, target)
            if metadata is None or unknown or (trace is not None and trace.sampled):  # the thread tells of traces
                self.stream_by_thread(caller, head, target, started, body, trace)
                return None
            deadline = time.monotonic() + self.services.settings.stream_timeout_s
            call = Call(None, head.request_id, deadline, trace.header if trace else head.fields.traceparent)
            stream = LaneEvents(
                self, caller, head, target, started, deadline, generate.from_body(metadata, call, target.model, target.version, body), body
            )
        except Exception as error:  # noqa: BLE001 - a request must not end the front
            self.services.metrics.begin()
            is_asked_first = isinstance(error, ServingError) and error.code is Code.OVERLOADED
            self.refuse(caller, head, target, started, error, trace, kept=not is_asked_first)
            return None
        stream.trace = trace
        self.services.metrics.begin()
        return stream if stream.ask() else None

    def _streams(self) -> int:
        """How many there are: with a thread, under way in this loop, and asked for in it."""
        asked = sum(isinstance(request, LaneEvents) and request not in self.events for request in self.running)
        return self.streaming.running + len(self.events) + asked

    def stream_by_thread(
        self, caller: Connection, head: Head, target: Target, started: float, body: bytes, trace: Trace | None = None
    ) -> None:
        """Refuses where too many are there."""
        try:
            self.streaming.begin(caller, head, target, body, trace)
        except ServingError as error:
            self.services.metrics.begin()
            self.refuse(caller, head, target, started, error, trace)

    def _is_allowed(self, head: Head, target: Target) -> bool:
        """False where that is not known now. Raises unauthenticated, and forbidden for an API key that is not for calls."""
        authorization, caller = head.fields.authorization, None
        if authorization is not None:
            caller = self._known.principal(authorization)
            if caller is None:
                return False
            require_scope(caller, Scope.CALL)
        if "." in target.model and (answer := self._may_call(caller, target)) is not None:
            return answer
        if caller is not None:
            return True
        declaration = self._known.declaration(target)
        if declaration is None:
            return False
        inference.require_public(declaration, target.model)
        return True

    def _may_call(self, caller: Principal | None, target: Target) -> bool | None:
        """Whether it is a deployment that runs, without a script, and may be called; None where it is an operator's model."""
        known = self._known.deployment(caller, target.model)
        if known is None:
            return False
        deployment, can = known
        if deployment is None:
            declaration = self._known.declaration(target)
            return None if declaration is not None and not declaration.user else False
        return Can.CALL in can and deployment.is_running and not deployment.script_name

    def refuse(
        self,
        caller: Connection,
        head: Head,
        target: Target,
        started: float,
        error: Exception,
        trace: Trace | None = None,
        *,
        kept: bool = True,
    ) -> None:
        """Answers with an error; the request counts among those that have begun. `trace`: where one was begun. `kept`: among the last errors of
        the deployment, which a stranger must not fill.
        """
        if kept:
            self.keep(head, target, error)
        if isinstance(error, ServingError):
            answer = problem(error, head.path, head.request_id)
        else:
            answer = internal(error, "POST", head.path, head.request_id)
        self.note(head, target, started, answer.status_code)
        if self.services.tracer is not None:
            trace = trace or self.services.tracer.begin(head.fields.traceparent, target.model)
            self.tell(trace, head, target, started, answer.status_code, code_of(error))
        caller.reply((heads.failure(answer, head.request_id),))

    def keep(self, head: Head, target: Target, error: Exception) -> None:
        """Among the last errors of the deployment, where it is one."""
        if (deployment_id := self.services.deployed.recall_id(target.model)) is not None:
            self.services.deployed.errors.note(deployment_id, head.request_id, V2, error)

    def note(self, head: Head, target: Target, started: float, status: int) -> None:
        observation.end(self.services.metrics, started, head.request_id, target.endpoint, "POST", head.path, status)

    def tell(self, trace: Trace, head: Head, target: Target, started: float, status: int, code: str) -> None:
        """The request's span."""
        if self.services.tracer is not None:
            observation.tell(self.services.tracer, trace, started, head.request_id, target.endpoint, "POST", head.path, status, code)


def code_of(error: Exception) -> str:
    return error.code.value if isinstance(error, ServingError) else Code.INTERNAL.value


def _is_plain(head: Head) -> bool:
    """Whether the body is JSON, perhaps with tensors behind it, as it stands."""
    fields = head.fields
    return not fields.content_encoding and fields.length > 0 and (fields.heads.length is None or not v2_inference.is_raw(fields.heads))


class Exchange(Request):
    """One request on its way. Satisfies `nginx_http.Call`."""

    __slots__ = ("_asked", "_caller", "_front", "_head", "_is_told_of", "_over", "_started", "_target", "_trace")

    def __init__(
        self,
        front: Exchanges,
        caller: Connection,
        head: Head,
        target: Target,
        started: float,
        asked: InferBody,
        packed: Packed,
        deadline: float,
    ) -> None:
        super().__init__(front, packed, deadline)
        self._front = front
        self._caller = caller
        self._head = head
        self._target = target
        self._started = started
        self._asked = asked
        self._trace: Trace | None = None
        self._over = False
        """Answered, or given up."""
        self._is_told_of = False
        """Of the inference, as a span."""

    def _is_traced(self) -> bool:
        tracer = self._front.services.tracer
        if tracer is None:
            return False
        self._trace = tracer.begin(self._head.fields.traceparent, self._target.model)
        return self._trace.sampled

    def _answer(self, lane: Lane, frame: Frame) -> None:
        try:
            head = frames.unpack_head(frame.head)
            outputs = frames.unpack_tensors(head, frame.body)
        except LaneError as error:
            lane.close()
            self.failed(error)
            return
        lane.give_back()
        if self._trace is not None:
            self._tell_inference(self._trace, frame.numbers, head.wanted)
        parameters = timed(head.parameters, frame.numbers[0], frame.numbers[2])
        if frame.body.nbytes > _LARGE_ANSWER:
            self._front.errands.run(lambda: self._written(outputs, parameters), self._finish)
        else:
            self._finish(self._written(outputs, parameters))

    def _written(self, outputs: Sequence[Tensor], parameters: Mapping[str, Any]) -> Answer | Exception:
        assert self._route is not None, "it was sent"
        try:
            accept = self._head.fields.heads.accept_encoding
            return v2_inference.answer(self._target.model, self._route.version, outputs, parameters, self._asked, accept)
        except Exception as error:  # noqa: BLE001 - the caller is owed an answer
            return error

    def _finish(self, result: object) -> None:
        if self._over:  # the caller went away while a thread wrote the answer
            return
        if isinstance(result, Answer):
            self._note(200)
            if self._trace is not None:
                self._front.tell(self._trace, self._head, self._target, self._started, 200, "")
            self._caller.reply((heads.success(result, self._head.request_id),))
        else:
            self._end(result if isinstance(result, Exception) else TypeError(type(result)))

    def _end(self, error: Exception) -> None:
        self._over = True
        if self._trace is not None and not self._is_told_of:
            times, steps = known(error)
            self._tell_inference(self._trace, times, steps, code_of(error))
        self._front.refuse(self._caller, self._head, self._target, self._started, error, self._trace)

    def _tell_inference(self, trace: Trace, times: Sequence[int], steps: Sequence[str], error: str = "") -> None:
        """The request's own span comes when that is over."""
        tracer = self._front.services.tracer
        assert tracer is not None, "it began the trace"
        self._is_told_of = True
        if not trace.sampled:
            return
        asked = Asked(
            self._target.model, self._route.version if self._route else self._target.version, self._asked.id or self._head.request_id
        )
        ns = int((time.perf_counter() - self._started) * 1e9)
        tracer.inference(trace.child(), asked, ns, times, error, INTERNAL, steps)

    def _decline(self) -> None:
        self._over = True
        self._front.services.metrics.withdraw()
        self._caller.reply((DECLINED,))

    def cancel(self) -> None:
        """The caller has gone: what still waits is not run."""
        self.leave()
        self._note(STATUS[Code.CANCELLED])
        if self._trace is not None:
            if not self._is_told_of:
                self._tell_inference(self._trace, (), (), Code.CANCELLED.value)
            self._front.tell(self._trace, self._head, self._target, self._started, STATUS[Code.CANCELLED], Code.CANCELLED.value)

    def _note(self, status: int) -> None:
        self._over = True
        self._front.note(self._head, self._target, self._started, status)
