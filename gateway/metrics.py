"""Request counters and latencies, summed over the worker processes.

Each process counts in 64-bit cells that nobody else writes: with a folder (uWSGI) in a memory-mapped file there, without one in memory.
Whoever is asked for the metrics adds up all files. They are named after the worker's number, not its process id: a worker that replaces
a dead one goes on with its counters, so they neither fall nor leave files behind.

Why not prometheus_client's own files: counting a request there takes five times as long. It still writes the text.
"""

import bisect
import contextlib
import mmap
import os
import struct
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from idl.trace_export import SUFFIX, counted

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
"""The label for methods that are none of HTTP's, and for every endpoint once a file has no room for another row."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BOUNDS_NS = [int(bound * 1e9) for bound in _BUCKETS]

# A file: this head, then rows. A row: its labels with NUL between them, then one cell for ns in all and one for each bucket.
_HEAD = struct.Struct("=8sqq")
_NO_REQUEST = "!"
"""Begins the first label of rows that count no requests."""
COUNTED = {
    "task": ("outboard_gateway_tasks", "Tasks that have ended.", ("kind", "state")),
    "row": ("outboard_gateway_batch_rows", "Rows of batches that were answered.", ("kind", "result")),
    "delivery": ("outboard_gateway_webhook_deliveries", "Attempts to send a notice.", ("event", "result")),
}
"""What is counted besides requests: metric, description, labels."""
_FORMAT = b"outbgw\0\1"
_IN_FLIGHT, _ROWS = 1, 2
_LABEL_BYTES = 160
_CELLS = 1 + len(_BUCKETS) + 1
_ROW = _LABEL_BYTES + 8 * _CELLS
_MOST_ROWS = 2048
_SIZE = _HEAD.size + _ROW * _MOST_ROWS

Labels = tuple[str, str, str]
"""Endpoint, method, status."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What one process has counted. `rows`: labels -> ns in all, then requests by bucket."""

    in_flight: int
    rows: dict[Labels, tuple[int, ...]]


class Metrics:
    """What the gateway counts. `endpoint` is always a route's template, so that labels stay few. Thread-safe."""

    def __init__(self, directory: Path | None = None, worker: int = 0) -> None:
        """Counts as worker number `worker` of `directory`; what a dead predecessor of that number had in flight is forgotten."""
        self._directory = directory
        self.spans_path = None if directory is None else directory / f"worker-{worker}{SUFFIX}"
        self._path = None if directory is None else directory / f"worker-{worker}.cells"
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        self._map = _mapped(self._path)
        self._cells = memoryview(self._map).cast("q")
        self._at: dict[Labels, int] = {}
        for number in range(self._cells[_ROWS]):
            self._at[_labels(self._map, number)] = _first_cell(number)
        self._cells[_IN_FLIGHT] = 0

    def begin(self) -> None:
        """A request has arrived; `end` must follow."""
        with self._lock:
            self._cells[_IN_FLIGHT] += 1

    def end(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """A request was answered (`status`) after `seconds`."""
        ns = int(seconds * 1e9)
        labels = (endpoint, method if method in _METHODS else OTHER, str(status))
        with self._lock:
            cells = self._cells
            at = self._at.get(labels) or self._add(labels)
            cells[at] += ns
            cells[at + 1 + bisect.bisect_left(_BOUNDS_NS, ns)] += 1
            cells[_IN_FLIGHT] -= 1

    def withdraw(self) -> None:
        """A request that `begin` counted is answered elsewhere; then no `end` follows."""
        with self._lock:
            self._cells[_IN_FLIGHT] -= 1

    def count(self, what: str, kind: str, result: str, number: int = 1) -> None:
        """So many more of something that is no request: a key of COUNTED, its kind, and what became of it.

        A gateway that starts takes all counters away, also those of a worker apart from it: they begin anew together, for a sum of which
        only a part falls is none that Prometheus could take for a restart.
        """
        labels = (_NO_REQUEST + what, kind, result)
        with self._lock:
            if self._path is not None and not self._path.exists():
                with contextlib.suppress(OSError):  # it is just making the folder: what is counted now is lost with the rest
                    self._open()
            at = self._at.get(labels) or self._add(labels)
            self._cells[at + 1] += number

    def _add(self, labels: Labels) -> int:
        """The first cell of a new row. The caller holds the lock."""
        number = self._cells[_ROWS]
        name = "\0".join(labels).encode()
        if number >= _MOST_ROWS - 1 or len(name) > _LABEL_BYTES:
            labels = (OTHER, OTHER, OTHER)
            if labels in self._at:
                return self._at[labels]
            name = "\0".join(labels).encode()
        begin = _HEAD.size + _ROW * number
        self._map[begin : begin + len(name)] = name
        self._cells[_ROWS] = number + 1  # last: a row that is half written does not count
        self._at[labels] = _first_cell(number)
        return self._at[labels]

    def render(self) -> bytes:
        """Everything, in Prometheus's text format."""
        registry = CollectorRegistry()
        registry.register(_Total(self._read_all(), counted(self._directory) if self._directory is not None else (0, 0)))
        return generate_latest(registry)

    def _read_all(self) -> Iterator[Counted]:
        if self._directory is None:
            yield _read(bytes(self._map))
            return
        for path in sorted(self._directory.glob("worker-*.cells")):
            with path.open("rb") as file:
                yield _read(file.read())


class _Total(Collector):
    """The sum of what processes counted, as prometheus_client writes it."""

    def __init__(self, counted: Iterable[Counted], spans: tuple[int, int]) -> None:
        self._spans = spans
        self._in_flight = 0
        self._requests: dict[Labels, int] = defaultdict(int)
        self._times: dict[tuple[str, str], list[int]] = {}
        self._others: dict[Labels, int] = defaultdict(int)
        for each in counted:
            self._in_flight += each.in_flight
            for (endpoint, method, status), cells in each.rows.items():
                if endpoint.startswith(_NO_REQUEST):
                    self._others[endpoint[1:], method, status] += sum(cells[1:])
                    continue
                self._requests[endpoint, method, status] += sum(cells[1:])
                before = self._times.get((endpoint, method), [0] * _CELLS)
                self._times[endpoint, method] = [one + other for one, other in zip(before, cells, strict=True)]

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("outboard_gateway_requests", "Requests answered.", labels=["endpoint", "method", "status"])
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        seconds = HistogramMetricFamily(
            "outboard_gateway_request_seconds", "Time from the request's arrival at a worker to its answer.", labels=["endpoint", "method"]
        )
        for pair, (ns, *counts) in self._times.items():
            seconds.add_metric(pair, _cumulated(counts), ns / 1e9)
        yield seconds
        for what, (name, text, names) in COUNTED.items():
            others = CounterMetricFamily(name, text, labels=names)
            for (counted_as, *values), count in self._others.items():
                if counted_as == what:
                    others.add_metric(values, count)
            yield others
        spans = CounterMetricFamily("outboard_gateway_trace_spans", "Spans of traces by what became of them.", labels=["result"])
        for result, count in zip(("exported", "dropped"), self._spans, strict=True):
            spans.add_metric([result], count)
        yield spans
        yield GaugeMetricFamily("outboard_gateway_requests_in_flight", "Requests that workers are answering now.", self._in_flight)


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    bounds = [*map(floatToGoString, _BUCKETS), "+Inf"]
    return [(bound, sum(counts[: index + 1])) for index, bound in enumerate(bounds)]


def _mapped(path: Path | None) -> mmap.mmap:
    """The cells' memory; what a file of another layout held is dropped."""
    if path is None:
        made = mmap.mmap(-1, _SIZE)
    else:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            made = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
    if made[: len(_FORMAT)] != _FORMAT:
        made[:] = bytes(_SIZE)
        made[: _HEAD.size] = _HEAD.pack(_FORMAT, 0, 0)
    return made


def _first_cell(number: int) -> int:
    return (_HEAD.size + _ROW * number + _LABEL_BYTES) // 8


def _labels(data: mmap.mmap | bytes, number: int) -> Labels:
    begin = _HEAD.size + _ROW * number
    endpoint, method, status = data[begin : begin + _LABEL_BYTES].rstrip(b"\0").decode().split("\0")
    return endpoint, method, status


def _read(data: bytes) -> Counted:
    """Of a file that another process may be writing: every cell is whole, because it is aligned."""
    if len(data) < _SIZE or data[: len(_FORMAT)] != _FORMAT:
        return Counted(0, {})  # its worker is just making it
    _, in_flight, rows = _HEAD.unpack_from(data)
    cells = memoryview(data).cast("q")
    return Counted(in_flight, {_labels(data, number): tuple(cells[(at := _first_cell(number)) : at + _CELLS]) for number in range(rows)})
