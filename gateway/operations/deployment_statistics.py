"""What deployments do, over time: collected from the hosts' counters, and told in milliseconds."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway import clock
from gateway.models_rpc import Models
from gateway.operations import host_counters
from gateway.operations.host_counters import Version
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.deployment_statistics import HOUR, MINUTE, MOMENT, Counts, Point, Seen, added
from gateway.storage.deployments import DELETING, DeploymentRecord

SPANS = {"10s": MOMENT, "minute": MINUTE, "hour": HOUR}
_FRESH_NS = 400_000_000
"""With a page that asks every 1.5 s a call is seen within 2 s."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Look:
    """What one look brought of a deployment: what is new, and how it stands now, over all hosts and versions."""

    new: Counts = field(default_factory=Counts)
    queued: int = 0
    inside: int = 0


class Collector:
    """Thread-safe; any process may collect, and nothing is counted twice."""

    def __init__(self, storage: Storage, models: Models, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._storage = storage
        self._models = models
        self._metrics = [part.strip() for part in settings.model_host_metrics.split(",")] if settings.model_host_metrics else []
        self._now = now
        self._lock = threading.Lock()
        self._missed: dict[str, str] = {}
        """Hosts that did not say what they have counted, the last time."""

    def collect(self, records: Sequence[DeploymentRecord] | None = None) -> dict[int, Look]:
        """By deployment. `records`: those that are there, None: as they are now."""
        records = self._storage.deployments.alive() if records is None else records
        by_name = {record.rpc_name: record.id for record in records if record.state != DELETING}
        looks: dict[int, Look] = {}
        seen: list[Seen] = []
        missed: dict[str, str] = {}
        for host in host_counters.look(self._models, self._metrics, missed.__setitem__):
            for (model, version), told in host.versions.items():
                if (deployment_id := by_name.get(model)) is not None:
                    seen.append(Seen(host.host, model, version, host.epoch, deployment_id, told.counts))
                    _stand(looks.setdefault(deployment_id, Look()), told)
        for address, reason in missed.items():
            if address not in self._missed:
                _log.warning("counters_unread", extra={"host": address, "reason": reason})
        self._missed = missed
        for deployment_id, new in self._storage.deployment_statistics.take(seen, self._now(), host_counters.grown).items():
            looks[deployment_id].new = new
        return looks

    def freshen(self) -> None:
        """The same, for somebody who is about to read: not again within 0.4 s, whichever process has looked."""
        looked = self._storage.statistics_looked
        with self._lock:
            now = time.monotonic_ns()
            if 0 <= now - (looked.read() or 0) < _FRESH_NS:
                return
            looked.put(now)  # before the look: others need not begin one meanwhile
            self.collect()


def _stand(look: Look, told: Version) -> None:
    look.queued += told.queued
    look.inside += told.inside


def points(storage: Storage, record: DeploymentRecord, span: str, begin: int, end: int) -> list[Point]:
    """Of each minute or hour from `begin` to before `end`, in seconds since the epoch."""
    return storage.deployment_statistics.points(record.id, SPANS[span], begin, end)


def total(points: Sequence[Point]) -> Counts:
    """All of them together."""
    made = Counts()
    for point in points:
        made = added(made, point.counts)
    return made


def told(counts: Counts) -> Mapping[str, Any]:
    """In words of an answer: milliseconds, None where nothing succeeded; bytes."""
    succeeded = sum(counts.latency)
    return {
        "requests": counts.requests,
        "errors": dict(counts.errors),
        "latency_ms": {
            "mean": _mean(counts.total_ns, succeeded),
            "p50": _rounded(host_counters.percentile(counts.latency, 0.50)),
            "p95": _rounded(host_counters.percentile(counts.latency, 0.95)),
            "p99": _rounded(host_counters.percentile(counts.latency, 0.99)),
        },
        "queue_ms": _mean(counts.queue_ns, succeeded),
        "compute_ms": _mean(counts.compute_ns, succeeded),
        "memory": counts.memory,
    }


def _mean(ns: int, count: int) -> float | None:
    return _rounded(ns / count / 1e6) if count else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
