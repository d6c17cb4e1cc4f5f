"""What surrounds every gRPC call: a bounded pool of threads, the call's own data, and errors as statuses.

Every method is registered as a streaming one, also those with one request message. grpcio reads a unary call's message inside the
pool thread before our code runs, so that a client which sends headers and no body would hold a thread for ever; here the wait is
ours and ends (measured: the same speed). On the wire the two look alike.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from idl.codes import Code, ServingError
from inference_server.errors import invalid_input
from inference_server.transports import grpc_codec as codec
from inference_server.transports import grpc_status
from inference_server.transports.guard import as_serving_error
from inference_server.transports.tokens import Token, model_of

STATUS: dict[Code, grpc.StatusCode] = {
    code: next(known for known in grpc.StatusCode if known.value[0] == status) for code, status in grpc_status.STATUS.items()
}
"""Every error code -> its gRPC status."""

RETRY_BUSY_MS = 100
"""What a caller is told to wait when every thread is taken and enough calls wait already."""
NO_DEADLINE_S = 1e9
"""grpcio says some 9e18 seconds where a call has no deadline."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a request says outside its message. `deadline` in seconds of `time.monotonic()`; the texts are "" where absent. `active`: whether
    its caller still waits.
    """

    deadline: float
    request_id: str
    traceparent: str
    token: str = ""
    active: Callable[[], bool] = lambda: True


Verb = Callable[[Any, Call], Any]
"""One method of a service: (request message, or an iterator of them) -> response message."""
Stream = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
"""A method that answers with a stream: request messages -> response messages, both as bytes."""


class Workers:
    """A bounded pool of threads, and a bound on the calls that may wait for one of them."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._places = threads + waiting
        self._taken = 0
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Takes a place; False when none is free."""
        with self._lock:
            free = self._taken < self._places
            self._taken += free
            return free

    def leave(self) -> None:
        with self._lock:
            self._taken -= 1

    def close(self) -> int:
        """Ends the threads, waits for those that are idle, and returns how many calls were still running."""
        with self._lock:
            running = self._taken
        self.executor.shutdown(wait=not running, cancel_futures=True)
        return running


class Receiving:
    """The calls that wait for a message from their client; `sweep` ends those that have waited too long."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: dict[grpc.ServicerContext, float] = {}

    def next(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """The next message, None at the end. Raises grpc.RpcError when the call is over."""
        self._since[context] = time.monotonic()
        try:
            return next(messages, None)
        finally:
            del self._since[context]

    def sweep(self, now: float) -> None:
        """`now` in seconds of `time.monotonic()`."""
        for context, since in list(self._since.items()):
            if now - since > self._limit_s:
                context.cancel()


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Full method name -> its handler, while its workers have room."""

    def __init__(self, token: Token, receiving: Receiving, *, default_timeout_s: float, max_message_bytes: int, refusing: Workers) -> None:
        self._token = token
        self._receiving = receiving
        self._default_timeout_s = default_timeout_s
        self._max_message_bytes = max_message_bytes
        self._refusing = refusing
        self._handlers: dict[str, tuple[Workers, grpc.RpcMethodHandler]] = {}
        self._overloaded = self._refusal(overloaded())
        self._unknown = self._refusal(ServingError(Code.UNSUPPORTED, "this server does not have that method"))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """What grpcio asks for each call, on its one serving thread: nothing here may wait."""
        workers, handler = self._handlers.get(handler_call_details.method, (None, self._unknown))
        if workers is not None and not workers.enter():
            return self._overloaded
        return handler

    def add(self, method: Any, verb: Verb, workers: Workers, *, public: bool) -> None:
        """`method`: the method's descriptor. A verb of a client stream gets an iterator of messages. `public`: needs no token."""
        answer = self._answer(method, verb, workers, public)
        answer.experimental_thread_pool = workers.executor  # type: ignore[attr-defined]
        self._handlers[f"/{method.containing_service.full_name}/{method.name}"] = (workers, grpc.stream_unary_rpc_method_handler(answer))

    def add_stream(self, path: str, stream: Stream, workers: Workers, *, public: bool = True) -> None:
        """A method that answers with a stream; `path` is its full name with both slashes. `public`: needs no token."""

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                if not public:
                    self._token.check(grpc_status.token_of(dict(context.invocation_metadata())), path.rpartition("/")[2])
                yield from stream(messages, context)
            except grpc.RpcError:
                raise
            except Exception as error:  # noqa: BLE001  as below
                failed = as_serving_error(error, path)
                refuse(context, failed)
            finally:
                workers.leave()

        answer.experimental_thread_pool = workers.executor  # type: ignore[attr-defined]
        self._handlers[path] = (workers, grpc.stream_stream_rpc_method_handler(answer))

    def _answer(self, method: Any, verb: Verb, workers: Workers, public: bool) -> Callable[..., bytes]:
        kind = GetMessageClass(method.input_type)

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            call = Call(0.0, "", "")
            try:
                metadata = dict(context.invocation_metadata())
                call = self._call(metadata, context)
                if not public:
                    self._token.check(call.token, method.name)  # before anything is read
                if method.client_streaming:
                    request = self._parts(kind, messages, context, call.token, method.name)
                else:
                    request = self._one(kind, messages, context)
                    if not public:
                        self._token.check(call.token, method.name, model_of(method.name, request))
                return serialized(verb(request, call), self._max_message_bytes)
            except grpc.RpcError:  # the call is over, and grpcio knows
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, the caller gets an error of ours
                return refuse(context, as_serving_error(error, method.name, call.request_id))
            finally:
                workers.leave()

        return answer

    def _call(self, metadata: dict[str, Any], context: grpc.ServicerContext) -> Call:
        left = context.time_remaining()
        deadline = time.monotonic() + (left if left < NO_DEADLINE_S else self._default_timeout_s)
        request_id, traceparent = metadata.get("x-request-id", ""), metadata.get("traceparent", "")
        return Call(deadline, request_id, traceparent, grpc_status.token_of(metadata), context.is_active)

    def _one(self, kind: Any, messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        data = self._receiving.next(messages, context)
        if data is None:
            raise invalid_input("the call carries no message")
        request = codec.parse(kind, data)
        if not context.is_active():
            raise ServingError(Code.CANCELLED, "the client has gone")
        return request

    def _parts(self, kind: Any, messages: Iterator[bytes], context: grpc.ServicerContext, token: str, verb: str) -> Iterator[Any]:
        first = True
        while (data := self._receiving.next(messages, context)) is not None:
            part = codec.parse(kind, data)
            if first:  # the header, which names the model
                self._token.check(token, verb, model_of(verb, part.header))
            first = False
            yield part

    def _refusal(self, error: ServingError) -> grpc.RpcMethodHandler:
        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            return refuse(context, error)

        answer.experimental_thread_pool = self._refusing.executor  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(answer)


def refuse(context: grpc.ServicerContext, error: ServingError) -> bytes:
    """Ends the call with the error's status, message and metadata. Never returns: grpcio's `abort` raises."""
    metadata = [("outboard-code", error.code.value)]
    if error.retry_after_ms > 0:
        metadata.append(("retry-after-ms", str(error.retry_after_ms)))
    context.set_trailing_metadata(tuple(metadata))
    context.abort(STATUS[error.code], grpc_status.details(error))
    raise AssertionError("abort returned")


def overloaded() -> ServingError:
    """The refusal where no worker and no place to wait for one is left."""
    return ServingError(Code.OVERLOADED, "every worker is busy and enough calls wait", retry_after_ms=RETRY_BUSY_MS)


def serialized(message: Any, limit: int) -> bytes:
    """Raises too_large where it has more than `limit` bytes."""
    data: bytes = message.SerializeToString()
    if len(data) > limit:
        raise ServingError(Code.TOO_LARGE, f"the answer has {len(data)} bytes, at most {limit} may be sent")
    return data
