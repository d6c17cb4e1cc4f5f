"""What the inference faces take from a request before anything looks at it: who calls, until when, and the whole body."""

import re
import time

from flask import request
from werkzeug.exceptions import LengthRequired, RequestEntityTooLarge

from gateway.context import principal, request_id, services
from gateway.operations.compression import decompress
from gateway.operations.inference import Call
from idl.codes import Code, ServingError
from idl.tensors import invalid

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def current_call() -> Call:
    """This request's call. Raises unauthenticated for a token that is not valid."""
    traceparent = request.headers.get("Traceparent", "")
    return Call(
        principal=principal(),
        request_id=request_id(),
        deadline=time.monotonic() + services().settings.request_timeout_s,
        traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
    )


def read_body() -> bytes:
    """The whole body without its content coding. Raises too_large, unsupported_media, and invalid_input for a damaged coding."""
    _require_length()
    limit = services().settings.max_body_bytes
    try:
        body = request.get_data(cache=False)
    except OSError:
        raise invalid("the body broke off, or is not in valid chunks") from None
    except RequestEntityTooLarge:
        raise ServingError(Code.TOO_LARGE, f"the body is over {limit} bytes") from None
    encoding = request.headers.get("Content-Encoding", "")
    return decompress(body, encoding, limit) if encoding else body


def _require_length() -> None:
    """Refuses (411) a body whose length nobody announced and whose end the server in front does not mark: it would look empty."""
    is_chunked = request.content_length is None and "Transfer-Encoding" in request.headers
    if is_chunked and not request.environ.get("wsgi.input_terminated"):
        raise LengthRequired("the request needs a Content-Length")
