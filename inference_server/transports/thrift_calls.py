"""What surrounds every Thrift call: from a frame to a verb and back, and errors as the declared exception.

Every failure of a known method is answered with `ServingError`, because an exception that the IDL does not declare costs clients
their connection; an unknown method gets the TApplicationException that the protocol has for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from idl.codes import Code, ServingError
from idl.thrift_binary import CALL, EXCEPTION, I32, REPLY, STRING, MalformedThrift, Reader, message
from idl.thrift_schema import Inference
from inference_server.errors import invalid_input
from inference_server.transports import thrift_codec as codec
from inference_server.transports import thrift_infer
from inference_server.transports.framing import Buffer, Lost
from inference_server.transports.guard import PUBLIC, as_serving_error
from inference_server.transports.tokens import Token, model_of

_UNKNOWN_METHOD = 1
_NAME_MAX = 256
_INFER = "ModelInfer"
_CONTROL = "Control"
"""Which right it needs is decided where the verb in it is known."""

Verb = Callable[[Any], Any]
"""One method of the service: request structure -> response structure."""


class ApplicationException:
    """The protocol's own TApplicationException, for what no declared exception can be sent for."""

    thrift_spec: Final = {1: (STRING, "message", False), 2: (I32, "type", False)}

    def __init__(self, text: str, kind: int) -> None:
        self.message = text
        self.type = kind


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    verb: Verb
    arguments: type[Any]
    result: type[Any]


class Dispatcher:
    """A `FrameHandler` of the IDL's service."""

    start = b"\x80\x01"

    def __init__(self, verbs: dict[str, Verb], token: Token, max_frame_bytes: int) -> None:
        self._token = token
        self._max_frame_bytes = max_frame_bytes
        self._methods = {
            name: Method(name, verb, *(getattr(Inference, f"{name}_{part}") for part in ("args", "result"))) for name, verb in verbs.items()
        }

    def answer(self, frame: Buffer) -> Sequence[Buffer]:
        """Frame -> the parts of the reply, its length first. Raises Lost for what is no call."""
        reader = Reader(frame, views=True)
        name, sequence = _call(reader)
        method = self._methods.get(name)
        if method is None:
            return message(name, EXCEPTION, sequence, ApplicationException(f"there is no method {name!r}", _UNKNOWN_METHOD))
        request, result = None, method.result()
        try:
            request = thrift_infer.read(frame, reader.position) if name == _INFER else None
            if request is None:
                request = _request(reader, method)
            if name not in PUBLIC and name != _CONTROL:
                self._token.check(request.token or "", name, model_of(name, request))
            result.success = method.verb(request)
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets an error of ours
            request_id = getattr(request, "id", None) or ""
            result.error = codec.serving_error(as_serving_error(error, name, request_id), request_id)
        return self._reply(method, sequence, result)

    def _reply(self, method: Method, sequence: int, result: Any) -> Sequence[Buffer]:
        if method.name == _INFER and result.error is None:
            parts = thrift_infer.write(result.success, sequence)
        else:
            parts = message(method.name, REPLY, sequence, result)
        size = int.from_bytes(parts[0])
        if size <= self._max_frame_bytes:
            return parts
        error = ServingError(Code.TOO_LARGE, f"the answer has {size} bytes, at most {self._max_frame_bytes} may be sent")
        return message(method.name, REPLY, sequence, method.result(error=codec.serving_error(error, "")))

    def too_large(self, head: Buffer, size: int) -> Sequence[Buffer]:
        """The reply to a frame over the limit, of which `head` are the first bytes."""
        name, sequence = _call(Reader(head))
        method = self._methods.get(name)
        if method is None:
            return message(name, EXCEPTION, sequence, ApplicationException(f"there is no method {name!r}", _UNKNOWN_METHOD))
        error = ServingError(Code.TOO_LARGE, f"the message has {size} bytes, at most {self._max_frame_bytes} are taken")
        return message(name, REPLY, sequence, method.result(error=codec.serving_error(error, "")))


def _call(reader: Reader) -> tuple[str, int]:
    """(method, sequence id). What is not a call cannot be answered."""
    try:
        name, kind, sequence = reader.message_begin()
    except MalformedThrift as error:
        raise Lost(str(error)) from None
    if kind != CALL or len(name) > _NAME_MAX:
        raise Lost(f"a message of type {kind} came where a call belongs")
    return name, sequence


def _request(reader: Reader, method: Method) -> Any:
    try:
        request = reader.struct(method.arguments()).request
    except MalformedThrift as error:
        raise invalid_input(f"the message cannot be read: {error}") from None
    if request is None:
        raise invalid_input(f"{method.name} has no argument 'request'")
    if reader.position != reader.end:
        raise invalid_input(f"{reader.end - reader.position} bytes follow the message in its frame")
    return request
