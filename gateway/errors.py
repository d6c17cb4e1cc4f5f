"""THE table from error codes to HTTP, and the two shapes that an error has on the wire.

RFC 9457 (problem details) everywhere, except under `/v2`, where the Open Inference Protocol wants `{"error": "..."}`. Nothing here
needs Flask: whatever answers a request in this package makes its errors here.
"""

import json
import logging
import math
from collections.abc import Mapping

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from gateway.error_texts import TEXTS
from idl.codes import Code, ServingError

_log = logging.getLogger(__name__)

STATUS: Mapping[Code, int] = {
    Code.INVALID_INPUT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.FORBIDDEN: 403,
    Code.MODEL_NOT_FOUND: 404,
    Code.VERSION_NOT_FOUND: 404,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.CONFLICT: 409,
    Code.GONE: 410,
    Code.TOO_LARGE: 413,
    Code.UNSUPPORTED_MEDIA: 415,
    Code.UNSUPPORTED: 501,
    Code.DEPLOYMENT_PAUSED: 409,
    Code.INVALID_MODEL: 422,
    Code.CANCELLED: 499,
    Code.OVERLOADED: 429,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_READY: 503,
    Code.UNAVAILABLE: 503,
    Code.INSUFFICIENT_CAPACITY: 507,
    Code.MODEL_FAILED: 500,
    Code.INTERNAL: 500,
}

_FROM_HTTP: Mapping[int, Code] = {
    401: Code.UNAUTHENTICATED,
    403: Code.FORBIDDEN,
    404: Code.NOT_FOUND,
    405: Code.UNSUPPORTED,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.CONFLICT,
    410: Code.GONE,
    412: Code.CONFLICT,
    413: Code.TOO_LARGE,
    414: Code.TOO_LARGE,
    415: Code.UNSUPPORTED_MEDIA,
    429: Code.OVERLOADED,
    431: Code.TOO_LARGE,
    501: Code.UNSUPPORTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
"""What the web framework refuses by itself; any other 4xx is invalid_input, any other 5xx internal."""


NOTHING_HERE = "there is nothing at this address"
_PASSING = (429, 503)
"""What goes by: these answers always say after how many seconds to ask again."""


class InvalidFields(ServingError):
    """invalid_input that says for each field what is wrong with it."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(Code.INVALID_INPUT, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        self.reasons = dict(reasons)

    def __reduce__(self) -> tuple[object, ...]:
        return InvalidFields, (self.reasons,)


class ChangedMeanwhile(ServingError):
    """conflict, as HTTP's 412: what If-Match names is not what is there (RFC 9110, section 13.1.1)."""

    def __init__(self) -> None:
        super().__init__(Code.CONFLICT, "it was changed meanwhile: read it again (If-Match does not name its ETag)")

    def __reduce__(self) -> tuple[object, ...]:
        return ChangedMeanwhile, ()


def problem(error: ServingError, path: str = "", request_id: str = "", *, status: int = 0) -> Response:
    """The answer to a request for `path` that ended in `error`; `status` where it is not the one of the table."""
    status = status or (412 if isinstance(error, ChangedMeanwhile) else STATUS[error.code])
    headers = {"Cache-Control": "no-store"}
    if error.retry_after_ms > 0 or status in _PASSING:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_ms / 1000)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="outboard"'
    if path == "/v2" or path.startswith("/v2/"):
        headers["Outboard-Code"] = error.code.value
        return Response(json.dumps({"error": error.message}), status, headers, content_type="application/json")
    body: dict[str, object] = {
        "type": f"/v1/errors#{error.code.value}",
        "title": TEXTS[error.code].title,
        "status": status,
        "detail": error.message,
        "code": error.code.value,
        "request_id": request_id or error.request_id,
    }
    if isinstance(error, InvalidFields):
        body["errors"] = [{"field": name, "message": reason} for name, reason in error.reasons.items()]
    return Response(json.dumps(body), status, headers, content_type="application/problem+json")


def internal(error: Exception, method: str, path: str, request_id: str) -> Response:
    """The answer to what nobody expected: its log line has the traceback, the answer has the line's id."""
    _log.error("internal_error", exc_info=error, extra={"request_id": request_id, "method": method, "path": path})
    message = f"the server made a mistake; its log names it {request_id}"
    return problem(ServingError(Code.INTERNAL, message), path, request_id)


def http_problem(error: HTTPException, path: str, request_id: str) -> Response:
    """The same for what the web framework refused: its status and headers stay, such as `Allow` beside a 405."""
    status = error.code or 500
    code = _FROM_HTTP.get(status, Code.INVALID_INPUT if status < 500 else Code.INTERNAL)
    answer = problem(ServingError(code, _message(error, status)), path, request_id, status=status)
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            answer.headers[name] = value
    return answer


def _message(error: HTTPException, status: int) -> str:
    if status == 404:
        return NOTHING_HERE
    if status == 405 and (allowed := getattr(error, "valid_methods", None)):
        return f"this address does not take that method; it takes {', '.join(sorted(allowed))}"
    return str(error.description or error.name)
