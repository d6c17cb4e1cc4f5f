"""The error codes of the contract, and the one exception that carries them.

Domain code on both sides raises `ServingError`; each edge (HTTP, gRPC, Thrift, form API) owns one table from `Code` to its own
vocabulary, and a test proves that every code stands in every table.
"""

from enum import StrEnum


class Code(StrEnum):
    """What went wrong, in one word that every edge knows."""

    INVALID_INPUT = "invalid_input"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    MODEL_NOT_FOUND = "model_not_found"
    VERSION_NOT_FOUND = "version_not_found"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    CONFLICT = "conflict"
    GONE = "gone"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    UNSUPPORTED = "unsupported"
    DEPLOYMENT_PAUSED = "deployment_paused"
    INVALID_MODEL = "invalid_model"
    CANCELLED = "cancelled"
    OVERLOADED = "overloaded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NOT_READY = "not_ready"
    UNAVAILABLE = "unavailable"
    INSUFFICIENT_CAPACITY = "insufficient_capacity"
    MODEL_FAILED = "model_failed"
    INTERNAL = "internal"


NEVER_EXECUTED = frozenset({Code.OVERLOADED, Code.NOT_READY})
"""Codes which say that the request did not run, so that sending it again elsewhere is safe whatever it does."""


class ServingError(Exception):
    """A refusal or failure with its code.

    `message` names what was wrong in the caller's terms: never a path or a traceback. `retry_after_ms` is 0 where there is none.
    `request_id` is the caller's id for the request, "" where there is none.
    """

    def __init__(self, code: Code, message: str, *, retry_after_ms: int = 0, request_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.request_id = request_id

    def __repr__(self) -> str:
        return f"ServingError({self.code.value}: {self.message})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.code, self.message, self.retry_after_ms, self.request_id)


def _rebuild(code: Code, message: str, retry_after_ms: int, request_id: str) -> ServingError:
    return ServingError(code, message, retry_after_ms=retry_after_ms, request_id=request_id)
