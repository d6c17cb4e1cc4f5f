"""Calls to one host over framed Thrift.

A connection on which anything but the right reply or the declared ServingError came is thrown away: a late reply of one call must
never become the next call's. So sequence ids are compared, and the request's id with the one that the reply repeats.
"""

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

from idl import thrift_binary
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse
from inference_client import thrift_infer
from inference_client.addresses import Address
from inference_client.channel import Lost, RawAnswers, Unreachable, Verb, too_large
from inference_client.deadline import Deadline
from inference_client.thrift_codec import ARGUMENTS, CODECS, RESULTS, Codec, declared_error
from inference_client.thrift_connection import Connection, NothingSent
from inference_client.thrift_pool import Pool
from inference_client.thrift_streams import CursorAnswers
from inference_client.tls import Credentials

Q = TypeVar("Q")
R = TypeVar("R")

_SEQUENCES = 2**31
_UNKNOWN_METHOD = 1
"""TApplicationException's type for a method that the peer does not have."""


class _ApplicationError:
    """Thrift's own exception, which no IDL declares: 1: message, 2: type."""

    thrift_spec = {1: (thrift_binary.STRING, "message", False), 2: (thrift_binary.I32, "type", False)}  # noqa: RUF012 - thriftpy2's name and form
    message: str = ""
    type: int = 0


class ThriftChannel:
    """Thread-safe. `max_message_bytes` bounds a request's and a reply's frame."""

    def __init__(
        self,
        address: Address,
        *,
        token: str,
        connect_timeout_s: float,
        max_connections: int,
        max_message_bytes: int,
        credentials: Credentials | None = None,
    ) -> None:
        self._pool = Pool(address, connect_timeout_s, max_connections, credentials)
        self._token = token
        self._max_bytes = max_message_bytes
        self._replies = thrift_infer.Replies()

    def call(self, verb: Verb[Q, R], request: Q, deadline: Deadline) -> R:
        codec = CODECS.get(verb.name)
        if codec is None:
            return self._control(verb.name, request, deadline)  # type: ignore[no-any-return]
        if isinstance(request, InferRequest):
            self._check_size(sum(len(tensor.data) for tensor in request.inputs))
        while True:
            connection = self._pool.borrow(deadline)
            fresh = connection.fresh
            try:
                reply: R = self._call_on(connection, verb.name, codec, request, deadline)
            except NothingSent:
                # an idle connection that the host closed between the check and the sending: nothing ran, another one will do
                if fresh:
                    raise Unreachable("it closed the connection") from None
                continue
            return reply

    def _control(self, name: str, request: Any, deadline: Deadline) -> Any:
        from inference_client.thrift_control import ControlCall, is_control  # protobuf: nothing else here pays for it

        if not is_control(name):
            raise ServingError(Code.UNSUPPORTED, f"{name} needs a gRPC address")
        return ControlCall(self.call, name, deadline).run(request)

    def stream(self, request: InferRequest, deadline: Deadline) -> RawAnswers:
        return CursorAnswers(self.call, request, deadline)

    def _call_on(self, connection: Connection, name: str, codec: Codec, request: Any, deadline: Deadline) -> Any:
        """One exchange. Whatever happens, the connection goes back or is closed."""
        healthy = True
        try:
            parts = self._encode(connection, name, codec, request, deadline)
            healthy = False
            frame = connection.exchange(parts, deadline, self._max_bytes)
            outcome = self._outcome(frame, name, connection.sequence, codec, request)
            healthy = True
        finally:
            self._pool.give_back(connection, healthy=healthy)
        if isinstance(outcome, ServingError):
            raise outcome
        return outcome

    def _encode(self, connection: Connection, name: str, codec: Codec, request: Any, deadline: Deadline) -> Sequence[bytes | memoryview]:
        connection.sequence = (connection.sequence + 1) % _SEQUENCES
        timeout_ms = max(1, int(deadline.left() * 1000))
        try:
            parts: Sequence[bytes | memoryview]
            if isinstance(request, InferRequest):
                parts = thrift_infer.write(request, self._token, timeout_ms, connection.sequence)
            else:
                arguments = ARGUMENTS[name](request=codec.encode(request, self._token, timeout_ms))
                parts = thrift_binary.message(name, thrift_binary.CALL, connection.sequence, arguments)
        except (struct.error, ValueError, TypeError, AttributeError) as error:
            raise ServingError(Code.INVALID_INPUT, f"the request cannot be written as Thrift: {error}") from None
        self._check_size(sum(map(len, parts)) - 4)
        return parts

    def _outcome(self, frame: memoryview, name: str, sequence: int, codec: Codec, request: Any) -> Any:
        """As `_decode`."""
        if not isinstance(request, InferRequest):
            return _decode(frame, name, sequence, codec, request)
        reply = self._replies.read(frame, sequence)
        if reply is not None and (not request.id or reply.id == request.id):
            return reply
        outcome = _decode(frame, name, sequence, codec, request)
        if isinstance(outcome, InferResponse):
            self._replies.remember(frame, outcome)
        return outcome

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise too_large("request", size, self._max_bytes)

    def close(self) -> None:
        self._pool.close()

    def abandon(self) -> None:
        self._pool.abandon()


def _decode(frame: memoryview, name: str, sequence: int, codec: Codec, request: Any) -> Any:
    """The reply's value, or the ServingError that the host declared. Raises Lost for anything that is not the reply to this call."""
    try:
        reader = thrift_binary.Reader(frame, views=True)
        replied, kind, number = reader.message_begin()
        if number != sequence or replied != name:
            raise _doubtful("the reply belongs to another call")
        if kind == thrift_binary.EXCEPTION:
            raise _refused(reader.struct(_ApplicationError()))
        if kind != thrift_binary.REPLY:
            raise _doubtful(f"message type {kind} where a reply belongs")
        result = reader.struct(RESULTS[name]())
        if reader.position != reader.end:
            raise _doubtful("bytes follow the reply")
        return _outcome(result, codec, request)
    except (thrift_binary.MalformedThrift, ValueError, TypeError, AttributeError) as error:
        raise _doubtful(str(error)) from None


def _outcome(result: Any, codec: Codec, request: Any) -> Any:
    request_id = request.id if isinstance(request, InferRequest) else ""
    if result.error is not None:
        error = declared_error(result.error, request_id)
        if request_id and error.request_id != request_id:
            raise _doubtful("the error belongs to another request")
        return error
    if result.success is None:
        raise _doubtful("neither a result nor an error")
    value = codec.decode(result.success)
    if isinstance(value, InferResponse) and request_id and value.id != request_id:
        raise _doubtful("the reply belongs to another request")
    return value


def _doubtful(why: str) -> Lost:
    return Lost(Code.INTERNAL, f"the model host's answer is not a reply to the request: {why}")


def _refused(error: _ApplicationError) -> ServingError:
    """Thrift's own exception; the connection is given up with it, as with all that is not declared."""
    if error.type == _UNKNOWN_METHOD:
        return ServingError(Code.UNSUPPORTED, "the model host does not have this method")
    return Lost(Code.INTERNAL, f"the model host failed: {error.message}")
