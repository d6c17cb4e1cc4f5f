"""gRPC statuses -> the contract's errors. The one table of this edge."""

import re
from typing import Any

import grpc

from idl.codes import Code, ServingError
from inference_client import tls
from inference_client.channel import Lost, Unreachable

CODES: dict[grpc.StatusCode, Code] = {
    grpc.StatusCode.CANCELLED: Code.CANCELLED,
    grpc.StatusCode.UNKNOWN: Code.INTERNAL,
    grpc.StatusCode.INVALID_ARGUMENT: Code.INVALID_INPUT,
    grpc.StatusCode.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
    grpc.StatusCode.NOT_FOUND: Code.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Code.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED: Code.FORBIDDEN,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Code.OVERLOADED,
    grpc.StatusCode.FAILED_PRECONDITION: Code.CONFLICT,
    grpc.StatusCode.ABORTED: Code.CONFLICT,
    grpc.StatusCode.OUT_OF_RANGE: Code.INVALID_INPUT,
    grpc.StatusCode.UNIMPLEMENTED: Code.UNSUPPORTED,
    grpc.StatusCode.INTERNAL: Code.INTERNAL,
    grpc.StatusCode.UNAVAILABLE: Code.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS: Code.INTERNAL,
    grpc.StatusCode.UNAUTHENTICATED: Code.UNAUTHENTICATED,
}
"""For a status without `outboard-code`: gRPC's own, a proxy's, or that of a server which is not Outboard."""

_NOT_CONNECTED = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed", "empty address list")
"""How grpc's core begins the details of a call that it failed before it had a connection; a test shows that these still hold."""
_TOO_LARGE = "message larger than max"
_HTTP_TOO_LARGE = "http2 header with status: 413"
_REASONS = {
    "connection refused": "connection refused",
    "no such file or directory": "no such file or directory",
    "timed out": "no answer to the connection",
    "timeout": "no answer to the connection",
    "resol": "the name is not known",
}
NO_CONNECTION = "no connection"
"""Where grpc's core gives no reason: as where a host ends a TLS handshake, over 1.3 after the client's part of it."""
_ADDRESS = re.compile(r"\b(?:ipv4|ipv6|unix|dns):\S+")


def failure(error: Any, request_id: str) -> ServingError:
    """What a failed call means; `error` is both a `grpc.RpcError` and a `grpc.Call`.

    A ServingError where the host declared one by `outboard-code`, Unreachable where the request was never sent, else Lost.
    """
    status, details = error.code(), error.details() or ""
    metadata = dict(error.trailing_metadata() or ())
    declared = metadata.get("outboard-code")
    if isinstance(declared, str):
        return ServingError(_code(declared, status), details, retry_after_ms=_number(metadata.get("retry-after-ms")), request_id=request_id)
    if status is grpc.StatusCode.UNAVAILABLE and not metadata and details.startswith(_NOT_CONNECTED):
        return Unreachable(_reason(details))
    code = CODES.get(status, Code.INTERNAL)
    if _TOO_LARGE in details or _HTTP_TOO_LARGE in details:
        code = Code.TOO_LARGE
    return Lost(code, _ADDRESS.sub("the host", details) or f"the model host answered {status.name}", request_id=request_id)


def _code(declared: str, status: grpc.StatusCode) -> Code:
    try:
        return Code(declared)
    except ValueError:  # a newer server's
        return CODES.get(status, Code.INTERNAL)


def _number(text: str | bytes | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _reason(details: str) -> str:
    """In few words and without the address: this may go on to somebody who must not see it."""
    if (meaning := tls.reason(details)) is not None:
        return meaning
    lowered = details.lower()
    return next((reason for sign, reason in _REASONS.items() if sign in lowered), NO_CONNECTION)
