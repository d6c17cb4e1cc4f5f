"""Request counters and latencies, summed over the worker processes.

With a folder (uWSGI) every worker writes memory-mapped files there and whoever is asked for the metrics adds them up. The files are
named after the worker's number, not its process id: a worker that replaces a dead one goes on with its counters, so they neither
fall nor leave files behind. Without a folder (one process) they live in memory.
"""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for the folder."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """What the gateway counts. `endpoint` is always a route's template, so that labels stay few."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "outboard_gateway_requests", "Requests answered.", ["endpoint", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "outboard_gateway_request_seconds",
            "Time from the request's arrival at a worker to its answer.",
            ["endpoint", "method"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "outboard_gateway_requests_in_flight",
            "Requests that workers are answering now.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def begin(self) -> None:
        """A request has arrived; `end` must follow."""
        self._in_flight.inc()

    def end(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """A request was answered (`status`) after `seconds`."""
        method = method if method in _METHODS else "other"
        self._in_flight.dec()
        self._requests.labels(endpoint, method, str(status)).inc()
        self._seconds.labels(endpoint, method).observe(seconds)

    def render(self) -> bytes:
        """Everything, in Prometheus's text format."""
        if self._directory is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._directory))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def for_worker(directory: Path, worker: int) -> Metrics:
    """The metrics of worker number `worker` (from 1). What its dead predecessor had in flight is forgotten."""
    os.environ[_DIRECTORY_VARIABLE] = str(directory)
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]
    mark_process_dead(worker, str(directory))  # type: ignore[no-untyped-call]
    return Metrics(directory)
