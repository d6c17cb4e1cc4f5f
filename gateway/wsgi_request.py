"""What the gateway takes from a WSGI environment before anything looks at the body: the request's id, who asks, until when, and the bytes.

The Flask routes and the hot routes both read their requests here.
"""

import re
import time
import uuid
from typing import TYPE_CHECKING

from werkzeug.exceptions import LengthRequired

from gateway.operations.compression import decompress
from gateway.operations.deployed import Deployed
from gateway.operations.inference import Call
from gateway.operations.tokens import Tokens
from gateway.types import Principal
from idl.codes import Code, ServingError
from idl.tensors import invalid

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_PIECE = 1 << 16


def request_id(environ: "WSGIEnvironment") -> str:
    """The caller's id where it can be logged as it stands, else a new one."""
    given = environ.get("HTTP_X_REQUEST_ID")
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def principal(environ: "WSGIEnvironment", tokens: Tokens) -> Principal | None:
    """Who asks, None for a request without a token. Raises unauthenticated for a token that is not valid (any more)."""
    header = environ.get("HTTP_AUTHORIZATION")
    return None if header is None else tokens.authenticate(bearer_token(header))


def bearer_token(header: str) -> str:
    """The token of an Authorization header. Raises unauthenticated for another scheme."""
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise ServingError(Code.UNAUTHENTICATED, "the Authorization header must be: Bearer <access token>")
    return token


def call(
    caller: Principal | None, number: str, timeout_s: float, traceparent: str, connection: int = -1, deployed: Deployed | None = None
) -> Call:
    """The inference call of a request with the id `number`; `traceparent`: the header, "" without it; `connection`: the request's
    descriptor, -1 where it is not known."""
    if traceparent and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = ""
    return Call(caller, number, time.monotonic() + timeout_s, traceparent, connection, deployed)


def read_body(environ: "WSGIEnvironment", limit: int) -> bytes:
    """The whole body without its content coding. Raises too_large, unsupported_media, and invalid_input for one that broke off or a
    damaged coding; LengthRequired (411) where nobody announced its length and the server in front does not mark its end: it would look
    empty."""
    try:
        body = _whole(environ, limit)
    except OSError:
        raise _broke_off() from None
    encoding = environ.get("HTTP_CONTENT_ENCODING", "")
    return decompress(body, encoding, limit) if encoding else body


def _whole(environ: "WSGIEnvironment", limit: int) -> bytes:
    length = environ.get("CONTENT_LENGTH") or ""
    if not length:
        return _until_end(environ, limit)
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise invalid(f"Content-Length is {length[:40]!r}, not a number of bytes")
    size = int(length)
    if size > limit:
        raise _too_large(limit)
    body: bytes = environ["wsgi.input"].read(size)
    if len(body) < size:
        raise _broke_off()
    return body


def _until_end(environ: "WSGIEnvironment", limit: int) -> bytes:
    """A body without an announced length: only a server that marks its end may be read from."""
    if "HTTP_TRANSFER_ENCODING" not in environ:
        return b""
    if not environ.get("wsgi.input_terminated"):
        raise LengthRequired("the request needs a Content-Length")
    parts, size = [], 0
    while piece := environ["wsgi.input"].read(_PIECE):
        parts.append(piece)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> ServingError:
    return ServingError(Code.TOO_LARGE, f"the body is over {limit} bytes")


def _broke_off() -> ServingError:
    return invalid("the body broke off, or is not in valid chunks")
