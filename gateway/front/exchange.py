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
from gateway.front.heads import DECLINED, Head
from gateway.front.known import Known
from gateway.hot_routes import PREDICTIONS, Target
from gateway.operations import inference, v2_inference
from gateway.operations.v2_inference import Answer
from gateway.operations.v2_messages import InferBody
from idl import lane as frames
from idl.codes import Code, ServingError
from idl.lane import Frame, LaneError
from idl.lane_calls import REPLY_GRACE_S, ExecutorGone, Moved
from idl.lane_loop import Failure, Lane, Lanes
from idl.lane_routes import Route, Routes, timed
from idl.messages import Tensor
from idl.nginx_http import Buffer, Connection

MOST_BYTES = 64 * 1024
"""Of a body: what takes longer to read would keep the others waiting. nginx is told, and takes larger ones to the workers."""
_LARGE_ANSWER = 32 * 1024
"""Bytes of tensors from which a thread writes the answer's text."""
_TRIES = 4


class Exchanges:
    """Begins exchanges, and ends those whose time is up. A `nginx_http.Service`."""

    most_bytes = MOST_BYTES

    def __init__(self, services: Services, routes: Routes, lanes: Lanes, errands: Errands) -> None:
        self.services = services
        self.routes = routes
        self.lanes = lanes
        self.errands = errands
        self.running: set[Exchange] = set()
        self._known = Known(services, errands)
        self._timeout_s = services.settings.request_timeout_s

    def parse(self, head: bytes) -> Head:
        return heads.parse(head)

    def begin(self, caller: Connection, head: Head, body: Buffer) -> "Exchange | None":
        started = time.perf_counter()
        target = head.target
        if target is None or target.endpoint is PREDICTIONS or not _is_plain(head):
            caller.reply((DECLINED,))
            return None
        exchange = Exchange(self, caller, head, target, started)
        try:
            if not self._is_allowed(head, target):
                caller.reply((DECLINED,))
                return None
            asked = v2_inference.decode(bytes(body), head.fields.heads)
        except ServingError as error:
            exchange.refuse(error)
            return None
        except Exception as error:  # noqa: BLE001 - a request must not end the front
            exchange.refuse(error)
            return None
        deadline = inference.earliest(time.monotonic() + self._timeout_s, asked)
        return exchange if exchange.ask(asked, deadline) else None

    def _is_allowed(self, head: Head, target: Target) -> bool:
        """False where that is not known now. Raises unauthenticated."""
        authorization = head.fields.authorization
        if authorization is not None:
            return self._known.principal(authorization) is not None
        declaration = self._known.declaration(target)
        if declaration is None:
            return False
        inference.require_public(declaration, target.model)
        return True

    def sweep(self, now: float) -> None:
        """Ends the exchanges that should have been answered before `now` (monotonic seconds)."""
        for exchange in [each for each in self.running if now > each.deadline + REPLY_GRACE_S]:
            exchange.give_up()


def _is_plain(head: Head) -> bool:
    """Whether the body is JSON, perhaps with tensors behind it, as it stands."""
    fields = head.fields
    return not fields.content_encoding and fields.length > 0 and (fields.heads.length is None or not v2_inference.is_raw(fields.heads))


def _packed(asked: InferBody) -> tuple[bytes, Sequence[tuple[int, Any]], int]:
    return frames.pack_request(asked.inputs, tuple(asked.outputs), asked.parameters)


class Exchange:
    """One request on its way. Satisfies `nginx_http.Call` and `lane_loop.Waiting`."""

    __slots__ = ("_asked", "_caller", "_front", "_head", "_lane", "_over", "_route", "_started", "_target", "_tries", "deadline")

    def __init__(self, front: Exchanges, caller: Connection, head: Head, target: Target, started: float) -> None:
        self.deadline = 0.0
        self._front = front
        self._caller = caller
        self._head = head
        self._target = target
        self._started = started
        self._tries = 0
        self._over = False
        """Answered, or given up."""
        self._asked: InferBody | None = None
        self._lane: Lane | None = None
        self._route: Route | None = None

    def ask(self, asked: InferBody, deadline: float) -> bool:
        """Sends it to an executor; False where nginx was told instead that there is no answer here."""
        self._asked, self.deadline = asked, deadline
        try:
            packed = _packed(asked)
        except (struct.error, TypeError, ValueError):  # the workers know the words for it
            self._caller.reply((DECLINED,))
            return False
        self._front.services.metrics.begin()
        return self._send(*packed)

    def _send(self, head: bytes, parts: Sequence[tuple[int, Any]], size: int) -> bool:
        front, target = self._front, self._target
        while self._tries < _TRIES:
            self._tries += 1
            route = front.routes.find(target.model, target.version)
            if route is None or not route.sockets or size > route.limit:
                break
            try:
                lane = front.lanes.take(route)
                lane.ask(self, self.deadline, head, parts, size)
            except ExecutorGone:
                continue  # it has just gone: the routes know, or will
            except (ServingError, LaneError, OSError):
                break
            self._lane, self._route = lane, route
            front.running.add(self)
            return True
        front.services.metrics.withdraw()
        self._caller.reply((DECLINED,))
        return False

    def answered(self, lane: Lane, frame: Frame) -> None:
        self._front.running.discard(self)
        self._lane = None
        try:
            head = frames.unpack_head(frame.head)
            outputs = frames.unpack_tensors(head, frame.body)
        except LaneError as error:
            lane.close()
            self.failed(error)
            return
        lane.give_back()
        parameters = timed(head.parameters, frame.numbers[0], frame.numbers[2])
        if frame.body.nbytes > _LARGE_ANSWER:
            self._front.errands.run(lambda: self._written(outputs, parameters), self._finish)
        else:
            self._finish(self._written(outputs, parameters))

    def _written(self, outputs: Sequence[Tensor], parameters: Mapping[str, Any]) -> Answer | Exception:
        assert self._asked is not None and self._route is not None, "it was sent"
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
            self._caller.reply((heads.success(result, self._head.request_id),))
        else:
            self._fail(result if isinstance(result, Exception) else TypeError(type(result)))

    def failed(self, error: Failure) -> None:
        self._front.running.discard(self)
        self._lane = None
        model = self._target.model
        if isinstance(error, Moved) or (isinstance(error, ExecutorGone) and not error.ran):
            self._again()
        elif isinstance(error, ServingError):
            self._fail(error)
        elif isinstance(error, ExecutorGone):
            self._fail(ServingError(Code.MODEL_FAILED, f"the process of model {model!r} died while it had the request"))
        else:
            self._fail(ServingError(Code.INTERNAL, f"the lane to model {model!r} broke: {error}"))

    def _again(self) -> None:
        assert self._asked is not None, "it was sent"
        self._send(*_packed(self._asked))

    def refuse(self, error: Exception) -> None:
        """Answers a request that was never sent."""
        self._front.services.metrics.begin()
        self._fail(error)

    def give_up(self) -> None:
        """Past its deadline: what still waits is not run, and the caller is told."""
        self._leave()
        self._fail(ServingError(Code.DEADLINE_EXCEEDED, f"model {self._target.model!r} did not answer before the deadline"))

    def cancel(self) -> None:
        """The caller has gone: what still waits is not run."""
        self._leave()
        self._note(STATUS[Code.CANCELLED])

    def _leave(self) -> None:
        self._front.running.discard(self)
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()

    def _fail(self, error: Exception) -> None:
        head = self._head
        if isinstance(error, ServingError):
            answer = problem(error, head.path, head.request_id)
        else:
            answer = internal(error, "POST", head.path, head.request_id)
        self._note(answer.status_code)
        self._caller.reply((heads.failure(answer, head.request_id),))

    def _note(self, status: int) -> None:
        head, self._over = self._head, True
        observation.end(self._front.services.metrics, self._started, head.request_id, self._target.endpoint, "POST", head.path, status)
