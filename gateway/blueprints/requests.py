"""What happens around every request that Flask answers: its id, its place in the metrics, its line in the log."""

from flask import Flask, g, request
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from gateway import observation
from gateway.context import REQUEST_ID_HEADER, request_id, services

UNMATCHED = "unmatched"
"""The endpoint's label for requests that no route takes."""


def watch(app: Flask) -> None:
    """Puts the three functions below around every request of `app`."""
    app.before_request(_begin)
    app.after_request(_answer)
    app.teardown_request(_end)


def _begin() -> ResponseReturnValue | None:
    g.status = 500
    g.started = observation.begin(services().metrics)
    return None


def _answer(response: Response) -> Response:
    g.status = response.status_code
    response.headers[REQUEST_ID_HEADER] = request_id()
    return response


def _end(_error: BaseException | None) -> None:
    if "started" not in g:
        return
    endpoint = request.url_rule.rule if request.url_rule else UNMATCHED
    owned = services()
    observation.end(owned.metrics, g.started, request_id(), endpoint, request.method, request.path, g.status)
    if owned.tracer is not None and "trace" in g:
        code = g.get("error_code", "")
        observation.tell(owned.tracer, g.trace, g.started, request_id(), endpoint, request.method, request.path, g.status, code)
