"""What is noted of every request: its place in the metrics, its line in the log."""

import logging
import time

from gateway.metrics import Metrics

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
