"""What the model hosts have counted: from their metrics where these can be read, else from the statistics verb, which knows less.

The metrics have errors by code and latencies in fixed buckets; the verb has counts and sums, so that all that succeeded since the last look
is taken to have had the mean latency, and what failed has no code.
"""

import http.client
import math
import re
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.models_rpc import Models
from gateway.storage.deployment_statistics import Counts
from idl.board import BUCKETS_S
from idl.codes import Code, ServingError
from idl.messages import Capacity, ModelStatistics

BUCKETS = len(BUCKETS_S) + 1
"""Of latencies, up to each of `BUCKETS_S` seconds, and beyond."""
UNKNOWN = "failed"
"""What failed where its code is not known."""
_TIMEOUT_S = 5.0
_MOST_BYTES = 256 << 20
_STARTED, _REQUESTS, _BUCKET = "process_start_time_seconds", "outboard_requests_total", "outboard_request_seconds_bucket"
_SUMS = {
    "outboard_request_seconds_sum": "total",
    "outboard_queue_seconds_sum": "queue",
    "outboard_compute_seconds_sum": "compute",
}
_GAUGES = {
    "outboard_model_memory_bytes": "memory",
    "outboard_queued_requests": "queued",
    "outboard_in_flight_requests": "inside",
    "outboard_model_instances": "instances",
}
_NAMES = frozenset({_REQUESTS, _BUCKET, *_SUMS, *_GAUGES})
# Prometheus' text format 0.0.4. The parser of its client takes six times as long and more, and with a page open this is read every second
_SAMPLE = re.compile(r'[a-z_]+\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\} (\S+)(?: -?\d+)?')
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(slots=True)
class Version:
    """One version on one host. `exact`: latencies stand in their buckets; else `counts.latency` is empty. `instances` 0: it does not serve."""

    counts: Counts
    exact: bool
    queued: int = 0
    inside: int = 0
    instances: int = 0


@dataclass(frozen=True, slots=True)
class HostCounters:
    """`epoch`: when the host started, in seconds since the epoch; 0 where it does not say. `versions`: (model, version) -> its counters."""

    host: str
    epoch: float
    versions: Mapping[tuple[str, str], Version]


def look(models: Models, metrics: Sequence[str], missed: Callable[[str, str], None] = lambda host, reason: None) -> list[HostCounters]:
    """Of every host that answers; `missed` is told of the others, and why. `metrics`: the address of each one's metrics, in the order of the
    hosts; none: the verb is asked."""
    found: list[HostCounters] = []
    for place, host in enumerate(models.hosts):
        try:
            if place < len(metrics) and metrics[place]:
                found.append(_of_metrics(host, _read(metrics[place])))
            else:
                client = models.on(host)
                found.append(_of_verb(host, client.model_statistics(), client.capacity()))
        except ServingError as error:  # it is counted when it is there again
            missed(host, error.message)
    return found


def _read(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            content = answer.read(_MOST_BYTES)
            # a host that dies may leave half of it: what is missing would count again from zero the next time
            if answer.length or not content.endswith(b"\n"):
                raise ValueError("cut off")
            return str(content.decode())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServingError(Code.UNAVAILABLE, "the metrics of the model host cannot be read") from error


@dataclass(slots=True)
class _Gathered:
    requests: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    buckets: dict[float, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)


def _of_metrics(host: str, text: str) -> HostCounters:
    """Raises unavailable for what are no metrics of a model host."""
    try:
        return _gathered(host, text)
    except (ValueError, KeyError, IndexError) as error:
        raise ServingError(Code.UNAVAILABLE, "what the model host says of its metrics cannot be read") from error


def _gathered(host: str, text: str) -> HostCounters:
    epoch = 0.0
    found: dict[tuple[str, str], _Gathered] = {}
    for line in text.splitlines():
        name = line[: min(place for place in (line.find("{"), line.find(" "), len(line)) if place >= 0)]
        if name == _STARTED:
            epoch = float(line.removeprefix(name))
        elif name in _NAMES and (name == _REQUESTS or not line.endswith(" 0.0")):  # most are nothing
            sample = _SAMPLE.fullmatch(line)
            if sample is None:
                raise ValueError(line[:200])
            labels = dict(_LABEL.findall(sample[1]))
            _gather(found.setdefault((_unescaped(labels["model"]), labels["version"]), _Gathered()), name, labels, float(sample[2]))
    return HostCounters(host, epoch, {key: _version(one) for key, one in found.items()})


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: {"n": "\n"}.get(found[1], found[1]), text) if "\\" in text else text


def _gather(one: _Gathered, name: str, labels: Mapping[str, str], value: float) -> None:
    if name in _GAUGES:
        one.gauges[_GAUGES[name]] = value
    elif name == _REQUESTS:
        one.requests += int(value)
        if labels["code"] != "ok" and value:
            one.errors[labels["code"]] = int(value)
    elif name in _SUMS:
        one.sums[_SUMS[name]] = value
    else:
        one.buckets[float(labels["le"])] = int(value)


def _version(one: _Gathered) -> Version:
    below, latency = 0, []
    for bound in (*BUCKETS_S, math.inf):
        total = one.buckets.get(bound, below)
        latency.append(total - below)
        below = total
    ns = {name: round(one.sums.get(name, 0.0) * 1e9) for name in ("total", "queue", "compute")}
    gauges = {name: int(one.gauges.get(name, 0)) for name in ("memory", "queued", "inside", "instances")}
    counts = Counts(one.requests, one.errors, latency, ns["total"], ns["queue"], ns["compute"], gauges["memory"])
    return Version(counts, True, gauges["queued"], gauges["inside"], gauges["instances"])


def _of_verb(host: str, statistics: Sequence[ModelStatistics], capacity: Capacity) -> HostCounters:
    found = {}
    loaded = {(model.name, model.version): model for model in capacity.models}
    for one in statistics:
        errors = {UNKNOWN: one.fail.count} if one.fail.count else {}
        memory = sum(used.byte_size for used in one.memory)
        requests = one.success.count + one.fail.count
        counts = Counts(requests, errors, (), one.success.ns, one.queue.ns, one.compute_infer.ns, memory)
        now = loaded.get((one.name, one.version))
        found[one.name, one.version] = Version(counts, False, 0, now.in_flight if now else 0, now.instances if now else 0)
    return HostCounters(host, 0.0, found)


def grown(known: Counts | None, now: Counts) -> Counts:
    """What `now` has more than was known. A counter that went back has begun anew."""
    if known is None or now.requests < known.requests:
        known = Counts()
    errors = {code: more for code, count in dict(now.errors).items() if (more := count - dict(known.errors).get(code, 0)) > 0}
    sums = {name: max(0, getattr(now, name) - getattr(known, name)) for name in ("requests", "total_ns", "queue_ns", "compute_ns")}
    before = known.latency or [0] * len(now.latency)
    latency = [max(0, count - old) for count, old in zip(now.latency, before, strict=False)]
    if not latency:
        latency = [0] * BUCKETS
        succeeded = sums["requests"] - sum(errors.values())
        if succeeded > 0:
            latency[bisect_left(BUCKETS_S, sums["total_ns"] / succeeded / 1e9)] = succeeded
    return Counts(errors=errors, latency=latency, memory=now.memory, **sums)


def percentile(latency: Sequence[int], share: float) -> float | None:
    """Milliseconds that `share` of the requests took at most, read off the buckets in proportion; None without a request."""
    total = sum(latency)
    if not total:
        return None
    wanted, below = share * total, 0
    for place, count in enumerate(latency):
        if below + count >= wanted and count:
            low = BUCKETS_S[place - 1] if place else 0.0
            high = BUCKETS_S[place] if place < len(BUCKETS_S) else low
            return (low + (high - low) * (wanted - below) / count) * 1000
        below += count
    return BUCKETS_S[-1] * 1000
