"""What deployments did: counts of ten seconds, minutes and hours, and what the hosts' counters were when they were last looked at."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.storage.database import Database

MOMENT, MINUTE, HOUR = 10, 60, 3600
KEPT_S = {MOMENT: 3600, MINUTE: 86_400, HOUR: 90 * 86_400}
"""Span of a row in seconds -> how long it is kept."""
_UNSEEN_S = 7 * 86_400
_SUMS = ("requests", "total_ns", "queue_ns", "compute_ns")


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of one version on one host, or what they grew by. `errors`: code -> count; `latency`: requests that succeeded, in the fixed
    buckets of the statistics; `requests` are all of them. Sums in ns of those that succeeded; `memory` in bytes, now."""

    requests: int = 0
    errors: Mapping[str, int] = ()  # type: ignore[assignment]
    latency: Sequence[int] = ()
    total_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """What happened in the `span` seconds from `begin` (since the epoch) on. `memory`: the most that was seen."""

    begin: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class Seen:
    """Counters as a host told them. `epoch`: when it started, which another number after a restart tells; `deployment_id` None: of none that
    is there."""

    host: str
    model: str
    version: str
    epoch: float
    deployment_id: int | None
    counts: Counts


class DeploymentStatistics:
    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, seen: Collection[Seen], now: datetime, grown: Callable[[Counts | None, Counts], Counts]) -> dict[int, Counts]:
        """Adds what is new of the counters to the rows of this moment; deployment -> what it was.

        `grown`: (what was known, None where nothing was or the host has begun anew; what is known now) -> the difference. One transaction:
        whoever looks at the same time, or is killed, nothing counts twice.
        """
        moment = now.timestamp()
        new: dict[int, Counts] = {}
        with self._database.write() as db:
            for one in seen:
                row = db.execute(
                    "select epoch, counts from deployment_counters where host = ? and model = ? and version = ?",
                    [one.host, one.model, one.version],
                ).fetchone()
                # a clock that was set has moved the epoch as well
                known = _counts(json.loads(row["counts"])) if row is not None and abs(row["epoch"] - one.epoch) < 1 else None
                more = grown(known, one.counts)
                db.execute(
                    "insert or replace into deployment_counters (host, model, version, epoch, counts, seen_at) values (?, ?, ?, ?, ?, ?)",
                    [one.host, one.model, one.version, one.epoch, json.dumps(_spelled(one.counts)), moment],
                )
                if one.deployment_id is not None:
                    new[one.deployment_id] = added(new.get(one.deployment_id, Counts()), more)
            for deployment_id, more in new.items():
                for span in KEPT_S:
                    self._add(db, deployment_id, span, int(moment) // span * span, more)
        return new

    def _add(self, db: Any, deployment_id: int, span: int, begin: int, more: Counts) -> None:
        row = db.execute(
            "select * from deployment_statistics where deployment_id = ? and span = ? and begin = ?", [deployment_id, span, begin]
        ).fetchone()
        if row is not None and not more.requests and more.memory <= row["memory"]:
            return
        made = more if row is None else added(_of_row(row), more)
        db.execute(
            "insert or replace into deployment_statistics"
            " (deployment_id, span, begin, requests, errors, latency, total_ns, queue_ns, compute_ns, memory) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                deployment_id,
                span,
                begin,
                made.requests,
                json.dumps(dict(made.errors)),
                json.dumps(list(made.latency)),
                made.total_ns,
                made.queue_ns,
                made.compute_ns,
                made.memory,
            ],
        )

    def points(self, deployment_id: int, span: int, begin: int, end: int) -> list[Point]:
        """Of those `begin` <= begin < `end`, in their order; spans in which nobody looked are not there, and what happened in them is in the
        next one."""
        with self._database.read() as db:
            rows = db.execute(
                "select * from deployment_statistics where deployment_id = ? and span = ? and begin >= ? and begin < ? order by begin",
                [deployment_id, span, begin, end],
            ).fetchall()
        return [Point(row["begin"], _of_row(row)) for row in rows]

    def since(self, deployment_ids: Collection[int], begin: int) -> dict[int, Counts]:
        """What each did in the minutes from `begin` on: requests, errors and latencies alone. Those that did nothing are left out."""
        marks = ", ".join("?" * len(deployment_ids))
        with self._database.read() as db:  # an hour of a page of deployments is a thousand rows: as few values as can be leave SQLite
            rows = db.execute(
                "select deployment_id, sum(requests) as requests, group_concat(nullif(errors, '{}')) as errors,"
                " group_concat(nullif(latency, '[]')) as latency from deployment_statistics"
                f" where deployment_id in ({marks}) and span = ? and begin >= ? and requests > 0 group by deployment_id",
                [*deployment_ids, MINUTE, begin],
            ).fetchall()
        return {row["deployment_id"]: _summed(row) for row in rows}

    def requests(self, deployment_ids: Collection[int], begin: int) -> dict[int, dict[int, int]]:
        """How often each was called, by the minutes from `begin` on; minutes without a call are left out."""
        marks = ", ".join("?" * len(deployment_ids))
        with self._database.read() as db:
            rows = db.execute(
                f"select deployment_id, begin, requests from deployment_statistics where deployment_id in ({marks}) and span = ? and begin >= ?"
                " and requests > 0",
                [*deployment_ids, MINUTE, begin],
            ).fetchall()
        made: dict[int, dict[int, int]] = {}
        for row in rows:
            made.setdefault(row["deployment_id"], {})[row["begin"]] = row["requests"]
        return made

    def forget(self, now: datetime) -> int:
        """Removes what is older than is kept; how many rows."""
        moment, count = now.timestamp(), 0
        with self._database.write() as db:
            for span, kept_s in KEPT_S.items():
                gone = db.execute("delete from deployment_statistics where span = ? and begin < ?", [span, int(moment) - kept_s])
                count += gone.rowcount
            db.execute("delete from deployment_counters where seen_at < ?", [moment - _UNSEEN_S])
        return count


def added(left: Counts, right: Counts) -> Counts:
    """Both together; the larger memory."""
    errors = dict(left.errors)
    for code, count in dict(right.errors).items():
        errors[code] = errors.get(code, 0) + count
    latency = (
        left.latency
        if not right.latency
        else right.latency
        if not left.latency
        else [a + b for a, b in zip(left.latency, right.latency, strict=True)]
    )
    sums = {name: getattr(left, name) + getattr(right, name) for name in _SUMS}
    return Counts(errors=errors, latency=latency, memory=max(left.memory, right.memory), **sums)


def _summed(row: Any) -> Counts:
    errors: dict[str, int] = {}
    for told in json.loads(f"[{row['errors'] or ''}]"):
        for code, count in told.items():
            errors[code] = errors.get(code, 0) + count
    latency = [sum(each) for each in zip(*json.loads(f"[{row['latency'] or ''}]"), strict=True)]
    return Counts(row["requests"], errors, latency)


def _spelled(counts: Counts) -> dict[str, Any]:
    return {
        **{name: getattr(counts, name) for name in _SUMS},
        "errors": dict(counts.errors),
        "latency": list(counts.latency),
        "memory": counts.memory,
    }


def _counts(said: Mapping[str, Any]) -> Counts:
    return Counts(**said)


def _of_row(row: Any) -> Counts:
    sums = {name: row[name] for name in _SUMS}
    return Counts(errors=json.loads(row["errors"]), latency=json.loads(row["latency"]), memory=row["memory"], **sums)
