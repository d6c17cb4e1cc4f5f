"""What the server counts. Executors count on their boards, the server itself only what never reached one; Prometheus reads both when it
is asked to.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from idl import board as boards
from idl.board import BUCKETS_S, KINDS, Board
from idl.codes import Code
from idl.messages import BatchStatistics, Duration, ModelStatistics, ResponseStatistics
from inference_server.gpus import Gpus

_BOUNDS = (*map(str, BUCKETS_S), "+Inf")


class Tally:
    """Sums of boards: of the living ones at a moment, or of those that are gone."""

    __slots__ = ("answers", "batches", "cache", "cancelled", "cancelled_ns", "errors", "executions", "kinds", "last_inference_ms")

    def __init__(self) -> None:
        self.kinds = {kind: [0] * (len(BUCKETS_S) + 3) for kind in KINDS}
        self.errors: dict[str, int] = {}
        self.batches: dict[int, list[int]] = {}
        self.answers: list[list[int]] = []
        """By the answer's place within its request, as `Board.answers` has them."""
        self.cache = [0, 0, 0, 0]
        """Answers out of the response cache, ns of these, looks that found nothing, ns of those."""
        self.executions = self.cancelled = self.cancelled_ns = self.last_inference_ms = 0

    def add_board(self, board: Board) -> None:
        for kind, sums in self.kinds.items():
            for index, value in enumerate(board.kind(kind)):
                sums[index] += value
        for code, count in board.errors():
            self.errors[code] = self.errors.get(code, 0) + count
        for rows, *sums in board.batches():
            kept = self.batches.setdefault(rows, [0, 0, 0, 0])
            self.batches[rows] = [left + right for left, right in zip(kept, sums, strict=True)]
        for index, counts in enumerate(board.answers()):
            if index == len(self.answers):
                self.answers.append(counts)
            else:
                self.answers[index] = [left + right for left, right in zip(self.answers[index], counts, strict=True)]
        cells = board.cells
        self.cache = [sum(pair) for pair in zip(self.cache, cells[boards.CACHE : boards.CACHE + 4], strict=True)]
        self.executions += cells[boards.EXECUTIONS]
        self.cancelled += cells[boards.CANCELLED]
        self.cancelled_ns += cells[boards.CANCELLED_NS]
        self.last_inference_ms = max(self.last_inference_ms, cells[boards.LAST_INFERENCE])

    def fail(self, code: str, ns: int, times: int = 1) -> None:
        self.errors[code] = self.errors.get(code, 0) + times
        sums = self.kinds["fail"]
        sums[0] += times
        sums[1] += ns
        sums[-1] += times

    def copy(self) -> "Tally":
        made = Tally()
        made.kinds = {kind: list(sums) for kind, sums in self.kinds.items()}
        made.errors = dict(self.errors)
        made.cache = list(self.cache)
        made.answers = [list(counts) for counts in self.answers]
        made.batches = {rows: list(sums) for rows, sums in self.batches.items()}
        for name in ("executions", "cancelled", "cancelled_ns", "last_inference_ms"):
            setattr(made, name, getattr(self, name))
        return made

    def raise_to(self, least: "Tally") -> None:
        """No count stays below that of `least`."""
        for kind, sums in self.kinds.items():
            self.kinds[kind] = list(map(max, sums, least.kinds[kind]))
        for code, count in least.errors.items():
            self.errors[code] = max(self.errors.get(code, 0), count)
        for rows, floor in least.batches.items():
            self.batches[rows] = list(map(max, self.batches.get(rows, floor), floor))
        self.executions = max(self.executions, least.executions)
        self.cache = list(map(max, self.cache, least.cache))

    def duration(self, kind: str) -> Duration:
        return Duration(self.kinds[kind][0], self.kinds[kind][1])

    def cumulative(self, kind: str) -> list[tuple[str, float]]:
        """Prometheus buckets: (upper bound in seconds, how many at or under it)."""
        total, made = 0, []
        for bound, count in zip(_BOUNDS, self.kinds[kind][2:], strict=True):
            total += count
            made.append((bound, float(total)))
        return made


class ModelStats:
    """The counts of one version of one model, kept over crashes and reloads. Thread-safe."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self._lock = threading.Lock()
        self._past = Tally()
        self._boards: set[Board] = set()
        self._restarts = 0
        self._told = Tally()
        """What was published last: no count is ever published below it."""

    def attach(self, board: Board) -> None:
        """Counts what a fresh executor will write there."""
        with self._lock:
            self._boards.add(board)

    def absorb(self, board: Board) -> int:
        """Keeps the counts of an executor that is gone; returns how many requests were inside it: they failed with it. Idempotent."""
        with self._lock:
            if board not in self._boards:
                return 0
            self._boards.discard(board)
            inside = board.cells[boards.RUNNING]
            self._past.add_board(board)
            if inside:
                self._past.fail(Code.MODEL_FAILED.value, 0, inside)
            return inside

    def failed(self, code: str, total_ns: int) -> None:
        """A request that no executor has counted."""
        with self._lock:
            self._past.fail(code, total_ns)

    def restarted(self) -> None:
        """An executor that died has a successor that takes requests."""
        with self._lock:
            self._restarts += 1

    def tally(self) -> Tally:
        """Everything up to now."""
        with self._lock:
            return self._sum()

    def _sum(self) -> Tally:
        now = self._past.copy()
        for board in self._boards:
            now.add_board(board)
        return now

    def statistics(self) -> ModelStatistics:
        now = self.tally()
        success, fail, queue, taken, compute, given = (now.duration(kind) for kind in KINDS)
        return ModelStatistics(
            self.name,
            self.version,
            now.last_inference_ms,
            success.count,
            now.executions,
            success,
            fail,
            queue,
            taken,
            compute,
            given,
            cancel=Duration(now.cancelled, now.cancelled_ns),
            cache_hit=Duration(*now.cache[:2]),
            cache_miss=Duration(*now.cache[2:]),
            batches=tuple(
                BatchStatistics(rows, Duration(count, taken_ns), Duration(count, ns), Duration(count, given_ns))
                for rows, (count, taken_ns, ns, given_ns) in sorted(now.batches.items())
            ),
            responses=tuple(_responses(str(index), counts) for index, counts in enumerate(now.answers)),
        )

    def snapshot(self) -> "Snapshot":
        """For Prometheus, to which a count that goes down is one that began anew: an executor takes a success back where its caller turns out
        to have gone, so each count is at least what it was the last time."""
        with self._lock:
            now, restarts = self._sum(), self._restarts
            now.raise_to(self._told)
            self._told = now
        histograms = {kind: (now.cumulative(kind), now.kinds[kind][1] / 1e9) for kind in KINDS}
        batches = {rows: sums[0] for rows, sums in now.batches.items()}
        return Snapshot(
            self.name,
            self.version,
            histograms,
            now.kinds["success"][0],
            now.errors,
            now.executions,
            batches,
            restarts,
            (now.cache[0], now.cache[2]),
        )


def _responses(key: str, counts: list[int]) -> ResponseStatistics:
    """What the statistics extension has: `compute_infer` is of the empty ones too, `compute_output` is not."""
    given, given_ns, given_out, failed, failed_ns, failed_out, empty, empty_ns, cancelled, cancelled_ns = counts
    return ResponseStatistics(
        key,
        Duration(given + failed + empty, given_ns + failed_ns + empty_ns),
        Duration(given + failed, given_out + failed_out),
        Duration(given, given_ns + given_out),
        Duration(failed, failed_ns + failed_out),
        Duration(empty, empty_ns),
        Duration(cancelled, cancelled_ns),
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    version: str
    histograms: dict[str, tuple[list[tuple[str, float]], float]]
    successes: int
    errors: dict[str, int]
    executions: int
    batches: dict[int, int]
    restarts: int
    cache: tuple[int, int]
    """Of the response cache: answers out of it, looks that found nothing."""


@dataclass(frozen=True, slots=True)
class VersionGauges:
    """One version now. `streams`: answers that are given one after the other, `sequences`: those with a state that is kept; None where the
    model has no such thing."""

    ready: bool
    in_flight: int
    queued: int
    memory_bytes: int
    instances: int
    streams: int | None
    sequences: int | None


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is asked of the engine at the moment of a scrape. `versions`: by (model, version)."""

    versions: Mapping[tuple[str, str], VersionGauges]
    accepting: bool


class Metrics:
    """Every model's counts, and the server's own; a Prometheus collector. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], ModelStats] = {}
        self._loads: dict[tuple[str, str], int] = {}
        self._deaths: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self.gauges: Callable[[], Gauges] = lambda: Gauges({}, False)
        self.spans: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Spans of traces: (exported, dropped)."""
        self.others: list[Callable[[], Iterable[Metric]]] = [Gpus().collect]
        """What other parts count: each gives its families at a scrape."""

    def model(self, name: str, version: str) -> ModelStats:
        with self._lock:
            key = (name, version)
            if key not in self._models:
                self._models[key] = ModelStats(name, version)
            return self._models[key]

    def forget(self, name: str, version: str = "") -> None:
        """What is counted of a model that is gone for ever, or of one version of it, is told no more."""
        with self._lock:
            for key in [key for key in self._models if key[0] == name and version in ("", key[1])]:
                del self._models[key]
            if not version:
                self._deaths.pop(name, None)
                for load in [load for load in self._loads if load[0] == name]:
                    del self._loads[load]

    def models(self) -> tuple[ModelStats, ...]:
        with self._lock:
            return tuple(self._models.values())

    def loaded(self, name: str, result: str) -> None:
        """`result`: ok or failed."""
        with self._lock:
            self._loads[name, result] = self._loads.get((name, result), 0) + 1

    def died(self, name: str) -> None:
        with self._lock:
            self._deaths[name] = self._deaths.get(name, 0) + 1

    def refused(self, code: str) -> None:
        """A request that reached no model: an unknown name, say."""
        with self._lock:
            self._refused[code] = self._refused.get(code, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """prometheus_client's collector interface."""
        snapshots = [stats.snapshot() for stats in self.models()]
        yield from self._requests(snapshots)
        for kind, name, text in (
            ("success", "outboard_request_seconds", "Whole time of successful requests inside the server"),
            ("queue", "outboard_queue_seconds", "Time that successful requests waited for their model"),
            ("compute", "outboard_compute_seconds", "Time that the model ran for successful requests"),
        ):
            family = HistogramMetricFamily(name, text, labels=("model", "version"))
            for snapshot in snapshots:
                buckets, total = snapshot.histograms[kind]
                family.add_metric((snapshot.name, snapshot.version), buckets, total)
            yield family
        yield from _runs(snapshots)
        yield from _of_versions(self.gauges())
        yield _spans(*self.spans())
        for other in self.others:
            yield from other()

    def _requests(self, snapshots: Iterable[Snapshot]) -> Iterator[Metric]:
        family = CounterMetricFamily("outboard_requests", "Inference requests by outcome", labels=("model", "version", "code"))
        for snapshot in snapshots:
            family.add_metric((snapshot.name, snapshot.version, "ok"), snapshot.successes)
            for code, count in snapshot.errors.items():
                family.add_metric((snapshot.name, snapshot.version, code), count)
        with self._lock:
            refused, loads, deaths = dict(self._refused), dict(self._loads), dict(self._deaths)
        yield family
        family = CounterMetricFamily("outboard_refused_requests", "Requests that reached no model, by error code", labels=("code",))
        for code, count in refused.items():
            family.add_metric((code,), count)
        yield family
        family = CounterMetricFamily("outboard_model_loads", "Loads and reloads by result", labels=("model", "result"))
        for key, count in loads.items():
            family.add_metric(key, count)
        yield family
        family = CounterMetricFamily("outboard_executor_deaths", "Executor processes that ended unasked", labels=("model",))
        for name, count in deaths.items():
            family.add_metric((name,), count)
        yield family


def _spans(exported: int, dropped: int) -> Metric:
    family = CounterMetricFamily("outboard_trace_spans", "Spans of traces by what became of them", labels=("result",))
    family.add_metric(("exported",), exported)
    family.add_metric(("dropped",), dropped)
    return family


def _of_versions(now: Gauges) -> Iterator[Metric]:
    for name, text, of in _GAUGES:
        family = GaugeMetricFamily(name, text, labels=("model", "version"))
        for key, gauges in now.versions.items():
            if (value := of(gauges)) is not None:
                family.add_metric(key, float(value))
        yield family
    yield GaugeMetricFamily("outboard_accepting", "1 while inference requests are taken, 0 while draining", value=float(now.accepting))


_GAUGES: tuple[tuple[str, str, Callable[[VersionGauges], float | None]], ...] = (
    ("outboard_model_ready", "1 where the version serves", lambda version: version.ready),
    ("outboard_in_flight_requests", "Requests inside the server", lambda version: version.in_flight),
    ("outboard_queued_requests", "Requests that wait for their model", lambda version: version.queued),
    ("outboard_model_memory_bytes", "Private resident memory of the version's processes", lambda version: version.memory_bytes),
    ("outboard_model_instances", "Processes of the version that take requests", lambda version: version.instances),
    ("outboard_streams", "Streams of answers under way, of models that give several", lambda version: version.streams),
    ("outboard_sequences", "Sequences whose state is kept, of models that have one", lambda version: version.sequences),
)


def _runs(snapshots: Iterable[Snapshot]) -> Iterator[Metric]:
    runs = CounterMetricFamily("outboard_executions", "Runs of the model; one may answer several requests", labels=("model", "version"))
    restarts = CounterMetricFamily("outboard_executor_restarts", "Executor processes started after a death", labels=("model", "version"))
    batches = CounterMetricFamily("outboard_batches", "Runs by rows in the batch", labels=("model", "version", "rows"))
    looks = CounterMetricFamily("outboard_cache_lookups", "Looks into the response cache by result", labels=("model", "version", "result"))
    for snapshot in snapshots:
        for result, count in zip(("hit", "miss"), snapshot.cache, strict=True):
            if any(snapshot.cache):
                looks.add_metric((snapshot.name, snapshot.version, result), count)
        runs.add_metric((snapshot.name, snapshot.version), snapshot.executions)
        restarts.add_metric((snapshot.name, snapshot.version), snapshot.restarts)
        for rows, count in snapshot.batches.items():
            batches.add_metric((snapshot.name, snapshot.version, str(rows)), count)
    yield runs
    yield restarts
    yield looks
    yield batches
