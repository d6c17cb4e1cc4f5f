"""What gRPC says around its messages, without gRPC's library: statuses, details, time-outs, tokens."""

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from idl.codes import Code, ServingError


class Status(IntEnum):
    """gRPC's status codes, those that we use."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


STATUS: dict[Code, Status] = {
    Code.INVALID_INPUT: Status.INVALID_ARGUMENT,
    Code.UNAUTHENTICATED: Status.UNAUTHENTICATED,
    Code.FORBIDDEN: Status.PERMISSION_DENIED,
    Code.MODEL_NOT_FOUND: Status.NOT_FOUND,
    Code.VERSION_NOT_FOUND: Status.NOT_FOUND,
    Code.NOT_FOUND: Status.NOT_FOUND,
    Code.ALREADY_EXISTS: Status.ALREADY_EXISTS,
    Code.CONFLICT: Status.FAILED_PRECONDITION,
    Code.GONE: Status.NOT_FOUND,
    Code.TOO_LARGE: Status.RESOURCE_EXHAUSTED,
    Code.UNSUPPORTED_MEDIA: Status.INVALID_ARGUMENT,
    Code.UNSUPPORTED: Status.UNIMPLEMENTED,
    Code.DEPLOYMENT_PAUSED: Status.FAILED_PRECONDITION,
    Code.INVALID_MODEL: Status.FAILED_PRECONDITION,
    Code.CANCELLED: Status.CANCELLED,
    Code.OVERLOADED: Status.RESOURCE_EXHAUSTED,
    Code.DEADLINE_EXCEEDED: Status.DEADLINE_EXCEEDED,
    Code.NOT_READY: Status.UNAVAILABLE,
    Code.UNAVAILABLE: Status.UNAVAILABLE,
    Code.INSUFFICIENT_CAPACITY: Status.RESOURCE_EXHAUSTED,
    Code.MODEL_FAILED: Status.INTERNAL,
    Code.INTERNAL: Status.INTERNAL,
}
"""Every error code -> its gRPC status."""

_DETAILS_MAX = 2048
"""Bytes of a message: details travel percent-encoded in headers, of which clients take 16 KiB by default."""
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}


def details(error: ServingError) -> str:
    """The message that travels with a status."""
    return error.message.encode()[:_DETAILS_MAX].decode(errors="ignore")


def percent_encoded(text: str) -> bytes:
    """gRPC over HTTP/2, "Status-Message"."""
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in text.encode())


def timeout_s(text: str) -> float | None:
    """The header `grpc-timeout` (gRPC over HTTP/2, "Timeout"); None for none, and for what is not one."""
    match = _TIMEOUT.fullmatch(text)
    return int(match[1]) * _SECONDS[match[2]] if match else None


def bearer(authorization: str) -> str:
    """The token of an `authorization` header; "" where it holds none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def token_of(metadata: Mapping[str, Any]) -> str:
    """The token of a call; "" where it brings none."""
    return bearer(str(metadata.get("authorization", "")))
