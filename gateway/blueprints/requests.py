"""What happens around every request: its id, its place in the metrics, its line in the log."""

import logging
import time

from flask import Flask, g, request
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from gateway.context import REQUEST_ID_HEADER, request_id, services

_log = logging.getLogger("gateway.requests")
UNMATCHED = "unmatched"
"""The endpoint's label for requests that no route takes."""


def watch(app: Flask) -> None:
    """Puts the three functions below around every request of `app`."""
    app.before_request(_begin)
    app.after_request(_answer)
    app.teardown_request(_end)


def _begin() -> ResponseReturnValue | None:
    g.started = time.perf_counter()
    g.status = 500
    services().metrics.begin()
    return None


def _answer(response: Response) -> Response:
    g.status = response.status_code
    response.headers[REQUEST_ID_HEADER] = request_id()
    return response


def _end(_error: BaseException | None) -> None:
    if "started" not in g:
        return
    seconds = time.perf_counter() - g.started
    endpoint = request.url_rule.rule if request.url_rule else UNMATCHED
    services().metrics.end(endpoint, request.method, g.status, seconds)
    if _log.isEnabledFor(logging.DEBUG):
        facts = {"request_id": request_id(), "method": request.method, "path": request.path, "status": g.status}
        # the path only: a query string may hold a password
        _log.debug("request", extra={**facts, "ms": round(seconds * 1000, 3)})
