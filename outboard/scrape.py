"""The model server's metrics as `outboard top` reads them: values now, and percentiles of what came between two looks."""

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, str]
"""Model and version."""
HISTOGRAMS = {"total": "outboard_request_seconds", "queue": "outboard_queue_seconds", "compute": "outboard_compute_seconds"}
_GAUGES = {
    "ready": "outboard_model_ready",
    "instances": "outboard_model_instances",
    "in_flight": "outboard_in_flight_requests",
    "queued": "outboard_queued_requests",
    "memory": "outboard_model_memory_bytes",
}
_MOST_BYTES = 32 << 20


@dataclass(slots=True)
class VersionLook:
    """One version at one moment. `buckets`: by histogram, upper bound in seconds -> how many at or under it."""

    requests: float = 0.0
    failures: float = 0.0
    gauges: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """All of a server at `moment` (monotonic seconds). `gpus`: (number, name) -> figure -> value."""

    moment: float
    versions: Mapping[Key, VersionLook]
    accepting: bool
    restarts: float
    gpus: Mapping[Key, Mapping[str, float]]


def fetch(address: str, timeout_s: float) -> str:
    """Raises OSError, ValueError for an address that is none."""
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address!r} is not the address of a server's metrics, such as http://127.0.0.1:8002/metrics")
    with urllib.request.urlopen(address, timeout=timeout_s) as answer:
        text: bytes = answer.read(_MOST_BYTES)
    return text.decode()


def read(text: str, moment: float) -> Look:
    """Raises ValueError for what are no metrics of a model server."""
    versions: dict[Key, VersionLook] = {}
    gpus: dict[Key, dict[str, float]] = {}
    accepting: float | None = None
    restarts = 0.0
    gauges = {name: short for short, name in _GAUGES.items()}
    histograms = {f"{name}_bucket": short for short, name in HISTOGRAMS.items()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name, labels, value = sample.name, sample.labels, sample.value
            if name == "outboard_accepting":
                accepting = value
            elif name == "outboard_executor_restarts_total":
                restarts += value
            elif name.startswith("outboard_gpu_"):
                gpus.setdefault((labels["gpu"], labels["name"]), {})[name.removeprefix("outboard_gpu_")] = value
            elif name == "outboard_requests_total" or name in gauges or name in histograms:
                look = versions.setdefault((labels["model"], labels["version"]), VersionLook())
                if name in gauges:
                    look.gauges[gauges[name]] = value
                elif name in histograms:
                    look.buckets.setdefault(histograms[name], {})[float(labels["le"])] = value
                else:
                    look.requests += value
                    look.failures += value if labels["code"] != "ok" else 0.0
    if accepting is None:
        raise ValueError("these are no metrics of an Outboard model server")
    return Look(moment, versions, bool(accepting), restarts, gpus)


def between(before: Mapping[float, float], now: Mapping[float, float]) -> dict[float, float]:
    """Cumulated counts of what came between; all of `now` where the server has begun anew."""
    grown = {bound: count - before.get(bound, 0.0) for bound, count in now.items()}
    return dict(now) if any(count < 0 for count in grown.values()) else grown


def percentile(part: float, buckets: Mapping[float, float]) -> float | None:
    """As Prometheus' histogram_quantile: evenly within a bucket, and the highest bound where it lies above; None where nothing came."""
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    wanted = part * buckets[bounds[-1]]
    low, under = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= wanted:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (wanted - under) / (count - under) if count > under else bound
        low, under = bound, count
    return low
