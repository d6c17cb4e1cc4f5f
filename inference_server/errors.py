"""Constructors for the refusals and failures that the server raises; `ServingError` is the contract's."""

from idl.codes import Code, ServingError

RETRY_LOADING_MS = 500
"""What a caller is told to wait while a model loads or drains."""


def invalid_input(message: str) -> ServingError:
    return ServingError(Code.INVALID_INPUT, message)


def model_not_found(name: str) -> ServingError:
    return ServingError(Code.MODEL_NOT_FOUND, f"model {name!r} is not in the repository")


def version_not_found(name: str, version: str) -> ServingError:
    return ServingError(Code.VERSION_NOT_FOUND, f"model {name!r} has no version {version!r}")


def not_ready(message: str) -> ServingError:
    return ServingError(Code.NOT_READY, message, retry_after_ms=RETRY_LOADING_MS)


def invalid_model(name: str, reason: str) -> ServingError:
    return ServingError(Code.INVALID_MODEL, f"model {name!r}: {reason}")


def of_version(error: ServingError, name: str, version: int) -> ServingError:
    """`error`, where it says "model 'm': why", as "model 'm' version 4: why"."""
    reason = error.message.removeprefix(f"model {name!r}: ")
    if reason == error.message:
        return error
    said = f"model {name!r} version {version}: {reason}"
    return ServingError(error.code, said, retry_after_ms=error.retry_after_ms, request_id=error.request_id)


def model_failed(message: str) -> ServingError:
    return ServingError(Code.MODEL_FAILED, message)


def too_large(message: str) -> ServingError:
    return ServingError(Code.TOO_LARGE, message)


def overloaded(message: str, retry_after_ms: int) -> ServingError:
    return ServingError(Code.OVERLOADED, message, retry_after_ms=retry_after_ms)


def insufficient_capacity(message: str) -> ServingError:
    return ServingError(Code.INSUFFICIENT_CAPACITY, message)


def deadline_exceeded(message: str) -> ServingError:
    return ServingError(Code.DEADLINE_EXCEEDED, message)


def unsupported(message: str) -> ServingError:
    return ServingError(Code.UNSUPPORTED, message)
