"""Calls to one host over gRPC. Messages are serialized here and not inside grpcio, so that a wrong one is the caller's error."""

import os
import threading
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from idl.codes import Code, ServingError
from idl.messages import InferRequest
from inference_client.addresses import Address
from inference_client.channel import PUT_FILE, VALIDATE, Lost, RawAnswers, Unreachable, Verb, closed, too_large
from inference_client.deadline import Deadline, passed
from inference_client.grpc_codec import CODECS, Codec, FileMessages
from inference_client.grpc_status import NO_CONNECTION, failure
from inference_client.grpc_streams import PATH, GrpcAnswers
from inference_client.tls import Credentials

Q = TypeVar("Q")
R = TypeVar("R")

_STREAMED = frozenset({PUT_FILE.name, VALIDATE.name})
"""Verbs whose request is a stream."""
_ABANDONED: list[object] = []
"""Channels of a parent process. A forked child keeps them for ever: taking one apart would wait for threads that it does not have."""


class _Line:
    """One grpcio channel and how many calls are on it. Closed when it is retired and the last call has ended."""

    __slots__ = ("calls", "channel", "methods", "retired")

    def __init__(self, target: str, options: list[tuple[str, Any]], credentials: Credentials | None) -> None:
        self.channel = grpc.insecure_channel(target, options) if credentials is None else _secure(target, options, credentials)
        self.methods: dict[str, Any] = {}
        self.calls = 0
        self.retired = False

    def unary(self, path: str) -> Any:
        made = self.methods.get(path)
        if made is None:
            made = self.methods[path] = self.channel.unary_unary(path)
        return made


class GrpcChannel:
    """Thread-safe. `max_message_bytes` bounds a request's and a reply's message."""

    def __init__(
        self, address: Address, *, token: str, connect_timeout_s: float, max_message_bytes: int, credentials: Credentials | None = None
    ) -> None:
        self._credentials = credentials
        connect_ms = max(1, int(connect_timeout_s * 1000))
        self._target = f"unix:{address.path}" if address.path else f"dns:///{address.authority}"
        self._options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the back-off of an old one
            ("grpc.min_reconnect_backoff_ms", connect_ms),  # this is what bounds one attempt to connect
            ("grpc.initial_reconnect_backoff_ms", connect_ms),
        ]
        if address.path:
            self._options.append(("grpc.default_authority", "localhost"))
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._max_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._line: _Line | None = None
        self._closed = False

    def call(self, verb: Verb[Q, R], request: Q, deadline: Deadline) -> R:
        codec = CODECS[verb.name]
        payload: Any = codec.encode(request) if verb.name in _STREAMED else self._encode(codec, request)
        metadata: tuple[tuple[str, str], ...] = self._metadata
        request_id = ""
        if isinstance(request, InferRequest):
            request_id = request.id
            if request.traceparent:
                metadata = (*metadata, ("traceparent", request.traceparent))
        line = self._borrow()
        try:
            reply = _call(line, codec.path, payload, deadline, metadata)
        except grpc.RpcError as error:
            raise self._failed(line, error, request_id) from None
        except ValueError:  # grpcio's answer where the channel was closed between borrowing and calling
            raise closed() from None
        finally:
            self._give_back(line)
        return _decode(codec, reply)  # type: ignore[no-any-return]

    def stream(self, request: InferRequest, deadline: Deadline) -> RawAnswers:
        payload = self._encode(CODECS["ModelInfer"], request)
        metadata = (*self._metadata, ("traceparent", request.traceparent)) if request.traceparent else self._metadata
        line = self._borrow()
        try:
            call = line.channel.stream_stream(PATH)(iter((payload,)), timeout=deadline.left_or_none(), metadata=metadata)
        except ValueError:
            self._give_back(line)
            raise closed() from None
        except BaseException:
            self._give_back(line)
            raise
        return GrpcAnswers(call, lambda error: self._failed(line, error, request.id), lambda: self._give_back(line))

    def _encode(self, codec: Codec, request: Any) -> bytes:
        if isinstance(request, InferRequest):
            self._check_size(sum(len(tensor.data) for tensor in request.inputs))
        try:
            payload: bytes = codec.encode(request).SerializeToString()
        except (ValueError, TypeError) as error:
            raise ServingError(Code.INVALID_INPUT, f"the request cannot be written as protobuf: {error}") from None
        self._check_size(len(payload))
        return payload

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise too_large("request", size, self._max_bytes)

    def _failed(self, line: _Line, error: Any, request_id: str) -> ServingError:
        meant = failure(error, request_id)
        if isinstance(meant, Unreachable) and meant.reason == NO_CONNECTION and self._credentials is not None:
            meant = Unreachable(
                f"{NO_CONNECTION}: perhaps its certificate is not for this name or not of an authority known here, or it does not trust this client's"
            )
        if isinstance(meant, Unreachable):
            # grpc's core would back off by itself before it connects again; when to try again is decided by the dispatcher
            with self._lock:
                line.retired = True
                if self._line is line:
                    self._line = None
        if isinstance(meant, Lost) and meant.code is Code.DEADLINE_EXCEEDED:
            return passed()
        return meant

    def _borrow(self) -> _Line:
        with self._lock:
            if self._closed:
                raise closed()
            if self._line is None:
                self._line = _Line(self._target, self._options, self._credentials)
            self._line.calls += 1
            return self._line

    def _give_back(self, line: _Line) -> None:
        with self._lock:
            line.calls -= 1
            last = line.retired and not line.calls
        if last:
            line.channel.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            line, self._line = self._line, None
            if line is None:
                return
            line.retired = True
            last = not line.calls
        if last:
            line.channel.close()

    def abandon(self) -> None:
        _ABANDONED.append(self._line)


def _secure(target: str, options: list[tuple[str, Any]], credentials: Credentials) -> grpc.Channel:
    try:
        found = credentials.pems()
    except OSError as error:
        raise Unreachable(f"the client's TLS files cannot be read: {(error.strerror or 'no reason given').lower()}") from None
    made = grpc.ssl_channel_credentials(found.ca, found.key, found.certificate)
    return grpc.secure_channel(target, made, options)


def _call(line: _Line, path: str, payload: bytes | FileMessages, deadline: Deadline, metadata: tuple[tuple[str, str], ...]) -> bytes:
    """Raises `grpc.RpcError`; for a stream also what ended it on this side."""
    if isinstance(payload, bytes):
        if deadline.watch >= 0:
            return _call_watching(line.unary(path), payload, deadline, metadata)
        reply: bytes = line.unary(path)(payload, timeout=deadline.left(), metadata=metadata)
        return reply
    try:
        call = line.channel.stream_unary(path).future(payload, timeout=deadline.left(), metadata=metadata)
    except BaseException:
        payload.give_up()
        raise
    try:
        reply = call.result()
    except BaseException:
        call.cancel()  # Ctrl-C: without this grpcio would go on sending from its own thread
        if payload.error is not None:
            raise payload.error from None
        raise
    return reply


def _call_watching(method: Any, payload: bytes, deadline: Deadline, metadata: tuple[tuple[str, str], ...]) -> bytes:
    """The same, given up when the watched descriptor is hung up: the call's end is made something that can be polled beside it."""
    done = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        call = method.future(payload, timeout=deadline.left(), metadata=metadata)
        call.add_done_callback(lambda _: os.eventfd_write(done, 1))
        try:
            _wait(call, done, deadline)
        finally:
            os.eventfd_read(done)  # not before grpcio's own thread has written: once closed, the number may be another file's
    finally:
        os.close(done)
    reply: bytes = call.result()
    return reply


def _wait(call: Any, done: int, deadline: Deadline) -> None:
    try:
        deadline.wait_for(done)
    except ServingError as error:
        if error.code is Code.DEADLINE_EXCEEDED:
            return  # grpcio's own clock says so in a moment
        call.cancel()
        raise
    except BaseException:
        call.cancel()
        raise


def _decode(codec: Codec, reply: bytes) -> Any:
    try:
        return codec.decode(codec.reply.FromString(reply))
    except (DecodeError, ValueError, TypeError, OverflowError) as error:
        raise Lost(Code.INTERNAL, f"the model host's answer cannot be read: {error}") from None
