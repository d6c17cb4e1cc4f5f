"""`outboard.Control` over Thrift: its protobuf messages in calls that each end soon.

What a call begins runs in a thread of its own, fed by the calls that follow. It is given up where nobody asks for it any more.
"""

import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message_factory import GetMessageClass

from idl.codes import Code, ServingError
from idl.generated import control_pb2 as control
from idl.thrift_schema import schema
from inference_server import errors
from inference_server.transports import grpc_codec as codec
from inference_server.transports.control_verbs import ControlVerbs
from inference_server.transports.grpc_calls import Call
from inference_server.transports.guard import as_serving_error
from inference_server.transports.tokens import Token, model_of
from inference_server.types import Operations

IDLE_S = 30.0
"""Between two calls that bring something; what only waits for its answer is given up sooner."""
WAITING_IDLE_S = 10.0
MOST_WAIT_S = 1.0
_MOST_OPEN = 8
_MESSAGES_AHEAD = 4
_LOOK_S = 0.05
_METHODS = {method.name: method for method in control.DESCRIPTOR.services_by_name["Control"].methods}


@dataclass(slots=True, eq=False)
class _Open:
    """One verb under way."""

    verb: str
    used: float
    messages: "queue.Queue[bytes | None]" = field(default_factory=lambda: queue.Queue(_MESSAGES_AHEAD))
    done: threading.Event = field(default_factory=threading.Event)
    taken: threading.Event = field(default_factory=threading.Event)
    has_all: bool = False
    cancelled: bool = False
    answer: bytes = b""
    error: ServingError | None = None

    def is_active(self) -> bool:
        return not self.cancelled and time.monotonic() - self.used < (WAITING_IDLE_S if self.has_all else IDLE_S)


class ControlCalls:
    """The verb `Control`. Thread-safe. `waiting`: calls that may wait for an answer at a time, and hold a thread meanwhile."""

    def __init__(self, operations: Operations, token: Token, *, default_timeout_s: float, max_bytes: int, waiting: int) -> None:
        verbs = ControlVerbs(operations)
        self._verbs = {name: getattr(verbs, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()) for name in _METHODS}
        self._token = token
        self._default_timeout_s = default_timeout_s
        self._max_bytes = max_bytes
        self._waiting = threading.Semaphore(waiting)
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}

    def control(self, request: Any) -> Any:
        """Raises what the verb raises, unauthenticated and forbidden as every transport does, not_found for a call that is not open."""
        messages = [bytes(each) for each in request.messages or ()]
        name = request.call or ""
        if name:
            with self._lock:
                found = self._open.get(name)
            if found is None:
                raise ServingError(Code.NOT_FOUND, "there is no such call: it has ended, was given up, or was not asked for a while")
            self._token.check(request.token or "", found.verb)
        else:
            name, found = self._begin(request, messages)
        found.used = time.monotonic()
        if request.cancel:
            found.cancelled = True
            found.taken.set()
        else:
            self._feed(found, messages, last=bool(request.last))
        return self._answer(name, found, min(max(request.wait_ms or 0, 0) / 1000, MOST_WAIT_S))

    def _begin(self, request: Any, messages: list[bytes]) -> tuple[str, _Open]:
        verb = request.verb or ""
        if verb not in _METHODS:
            raise ServingError(Code.UNSUPPORTED, f"this server has no control verb {verb[:128]!r}")
        token = request.token or ""
        self._token.check(token, verb)  # before anything is read
        if not messages:
            raise errors.invalid_input("the call carries no message")
        first = codec.parse(GetMessageClass(_METHODS[verb].input_type), messages[0])
        self._token.check(token, verb, model_of(verb, getattr(first, "header", first)))
        timeout_s = request.timeout_ms / 1000 if request.timeout_ms and request.timeout_ms > 0 else self._default_timeout_s
        name, made = secrets.token_urlsafe(18), _Open(verb, time.monotonic())
        with self._lock:
            if len(self._open) >= _MOST_OPEN:
                raise errors.overloaded(f"{_MOST_OPEN} control calls are under way", 1000)
            self._open[name] = made
        call = Call(time.monotonic() + timeout_s, "", "", token, made.is_active)
        threading.Thread(target=self._run, args=(name, made, call), name=f"control-{verb}", daemon=True).start()
        return name, made

    def _feed(self, found: _Open, messages: list[bytes], *, last: bool) -> None:
        for message in (*messages, *((None,) if last else ())):
            if found.has_all:
                raise errors.invalid_input("a message follows the last one")
            found.has_all = message is None
            while not found.done.is_set():
                try:
                    found.messages.put(message, timeout=_LOOK_S)
                    break
                except queue.Full:
                    found.used = time.monotonic()

    def _answer(self, name: str, found: _Open, wait_s: float) -> Any:
        if found.has_all and not found.cancelled and self._waiting.acquire(blocking=False):
            try:
                found.done.wait(wait_s)
            finally:
                self._waiting.release()
            found.used = time.monotonic()
        if not found.done.is_set():
            return schema.ControlResponse(call="" if found.cancelled else name, done=found.cancelled, message=b"")
        found.taken.set()
        with self._lock:
            self._open.pop(name, None)
        if found.error is not None:
            raise found.error
        return schema.ControlResponse(call="", done=True, message=found.answer)

    def _run(self, name: str, found: _Open, call: Call) -> None:
        try:
            method = _METHODS[found.verb]
            parts = self._parts(GetMessageClass(method.input_type), found, call.deadline)
            request = parts if method.client_streaming else next(parts)
            answer: bytes = self._verbs[found.verb](request, call).SerializeToString()
            if len(answer) > self._max_bytes:
                raise errors.too_large(f"the answer has {len(answer)} bytes, at most {self._max_bytes} may be sent")
            found.answer = answer
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets an error of ours
            found.error = as_serving_error(error, found.verb)
        finally:
            found.done.set()
        found.taken.wait(WAITING_IDLE_S)  # the answer is there for a while
        with self._lock:
            self._open.pop(name, None)

    def _parts(self, kind: Any, found: _Open, deadline: float) -> Iterator[Any]:
        """Raises cancelled where nobody sends any more, deadline_exceeded."""
        while True:
            try:
                message = found.messages.get(timeout=_LOOK_S)
            except queue.Empty:
                if not found.is_active():
                    raise ServingError(Code.CANCELLED, "the client has gone") from None
                if time.monotonic() > deadline:
                    raise errors.deadline_exceeded("the messages of the call did not come in time") from None
                continue
            if message is None:
                return
            yield codec.parse(kind, message)

    def close_all(self) -> None:
        """What is under way is given up."""
        with self._lock:
            for found in self._open.values():
                found.cancelled = True
                found.taken.set()
