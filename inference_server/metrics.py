"""What the server counts. Plain integers under one lock a model version; Prometheus reads them only when it is asked to."""

import bisect
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from idl.messages import Duration, ModelStatistics

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counter:
    """Histogram and sums of one kind of duration, in nanoseconds."""

    __slots__ = ("buckets", "count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0
        self.buckets = [0] * (len(BUCKETS_S) + 1)

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns
        self.buckets[bisect.bisect_left(BUCKETS_S, ns / 1e9)] += 1

    def duration(self) -> Duration:
        return Duration(self.count, self.ns)

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus buckets: (upper bound in seconds, how many at or under it)."""
        total, made = 0, []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.buckets, strict=True):
            total += count
            made.append((bound, float(total)))
        return made


class ModelStats:
    """The counts of one version of one model, kept over reloads. Thread-safe."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self._lock = threading.Lock()
        self._last_inference_ms = 0
        self._kinds = {kind: Counter() for kind in ("success", "fail", "queue", "input", "compute", "output")}
        self._errors: dict[str, int] = {}

    def succeeded(self, total_ns: int, queue_ns: int, input_ns: int, compute_ns: int, output_ns: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            self._last_inference_ms = now_ms
            kinds = self._kinds
            kinds["success"].add(total_ns)
            kinds["queue"].add(queue_ns)
            kinds["input"].add(input_ns)
            kinds["compute"].add(compute_ns)
            kinds["output"].add(output_ns)

    def failed(self, code: str, total_ns: int) -> None:
        with self._lock:
            self._kinds["fail"].add(total_ns)
            self._errors[code] = self._errors.get(code, 0) + 1

    def statistics(self) -> ModelStatistics:
        with self._lock:
            kinds = {name: kind.duration() for name, kind in self._kinds.items()}
            last = self._last_inference_ms
        done = kinds["success"].count
        times = (kinds["queue"], kinds["input"], kinds["compute"], kinds["output"])
        return ModelStatistics(self.name, self.version, last, done, done, kinds["success"], kinds["fail"], *times)

    def snapshot(self) -> "Snapshot":
        with self._lock:
            histograms = {kind: (counter.cumulative(), counter.ns / 1e9) for kind, counter in self._kinds.items()}
            return Snapshot(self.name, self.version, histograms, self._kinds["success"].count, dict(self._errors))


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    version: str
    histograms: dict[str, tuple[list[tuple[str, float]], float]]
    successes: int
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is asked of the engine at the moment of a scrape."""

    ready: dict[tuple[str, str], bool]
    in_flight: dict[tuple[str, str], int]
    memory_bytes: dict[tuple[str, str], int]
    accepting: bool


class Metrics:
    """Every model's counts, and the server's own; a Prometheus collector. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], ModelStats] = {}
        self._loads: dict[tuple[str, str], int] = {}
        self._deaths: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self.gauges: Callable[[], Gauges] = lambda: Gauges({}, {}, {}, False)

    def model(self, name: str, version: str) -> ModelStats:
        with self._lock:
            key = (name, version)
            if key not in self._models:
                self._models[key] = ModelStats(name, version)
            return self._models[key]

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
        yield from self._gauges()

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

    def _gauges(self) -> Iterator[Metric]:
        now = self.gauges()
        for name, text, values in (
            ("outboard_model_ready", "1 where the version serves", {key: float(ready) for key, ready in now.ready.items()}),
            ("outboard_in_flight_requests", "Requests inside the server", now.in_flight),
            ("outboard_model_memory_bytes", "Private resident memory of the version's process", now.memory_bytes),
        ):
            family = GaugeMetricFamily(name, text, labels=("model", "version"))
            for key, value in values.items():
                family.add_metric(key, value)
            yield family
        yield GaugeMetricFamily("outboard_accepting", "1 while inference requests are taken, 0 while draining", value=float(now.accepting))
