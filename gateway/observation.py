"""What is noted of every request: its place in the metrics, its line in the log."""

import logging
import time

from gateway.metrics import Metrics
from idl.traces import MOST_TEXT, SERVER, Trace, Tracer

_log = logging.getLogger("gateway.requests")


def begin(metrics: Metrics) -> float:
    """A request has arrived; `end` must follow with what this returns."""
    metrics.begin()
    return time.perf_counter()


def end(metrics: Metrics, started: float, request_id: str, endpoint: str, method: str, path: str, status: int) -> None:
    """It was answered. `endpoint` is its route's template."""
    seconds = time.perf_counter() - started
    metrics.end(endpoint, method, status, seconds)
    if _log.isEnabledFor(logging.DEBUG):
        # the path only: a query string may hold a password
        facts = {"request_id": request_id, "method": method, "path": path, "status": status}
        _log.debug("request", extra={**facts, "ms": round(seconds * 1000, 3)})


def tell(
    tracer: Tracer, trace: Trace, started: float, request_id: str, endpoint: str, method: str, path: str, status: int, error: str
) -> None:
    """The span of a request; `error`: a code of the contract, "" for none. The rest as in `end`."""
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "http.route": endpoint,
        "url.path": path[:MOST_TEXT],
        "http.response.status_code": status,
        "outboard.request_id": request_id,
    }
    model, version = (path.split("/") + [""] * 6)[3:6:2] if path.startswith(("/v1/models/", "/v2/models/")) else ("", "")
    attributes |= {key: text[:MOST_TEXT] for key, text in (("outboard.model", model), ("outboard.version", version)) if text}
    if not error and status >= 500:
        error = str(status)
    tracer.tell(trace, f"{method} {endpoint}", SERVER, int((time.perf_counter() - started) * 1e9), attributes, error)
