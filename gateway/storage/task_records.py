"""Tasks as rows, and what every change of one writes besides: its event, and the notices for those who want to be told."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text

QUEUED, RUNNING, PAUSED = "queued", "running", "paused"
SUCCEEDED, FAILED, CANCELLED, EXPIRED = "succeeded", "failed", "cancelled", "expired"
TERMINAL = (SUCCEEDED, FAILED, CANCELLED, EXPIRED)
STATES = (QUEUED, RUNNING, PAUSED, *TERMINAL)
PREDICTION, BATCH = "prediction", "batch"
INPUT, RESULT = "input", "result"

COLUMNS = (
    "id, user_id, deployment_id, model, version, kind, state, input_sha256, content_type, options, retry_of, attempts, waits, fence, asked,"
    " progress, result_sha256, result_type, error_code, error_message, created_at, queued_at, started_at, finished_at, expires_at"
)


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task. `model` is what the model host calls it; times are UTC, ISO 8601; `progress` from 0 to 1."""

    id: str
    user_id: int
    deployment_id: int | None
    model: str
    version: str
    kind: str
    state: str
    input_sha256: str | None
    content_type: str
    options: Mapping[str, Any]
    retry_of: str | None
    attempts: int
    waits: int
    fence: int
    asked: str
    progress: float
    result_sha256: str | None
    result_type: str
    error_code: str | None
    error_message: str | None
    created_at: str
    queued_at: str
    started_at: str | None
    finished_at: str | None
    expires_at: str | None

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """A change of a task; `id` grows."""

    id: int
    at: str
    state: str
    progress: float


Notice = Callable[[TaskRecord], tuple[str, str]]
"""(event, payload) of a task that has ended: what those are sent who want to be told."""


def record(row: Any) -> TaskRecord:
    values = dict(row)
    return TaskRecord(**{**values, "options": json.loads(values["options"])})


def records(rows: Sequence[Any]) -> list[TaskRecord]:
    return [record(row) for row in rows]


def note(db: SqliteDatabase, task_id: str, now: datetime, state: str, progress: float) -> None:
    """The event of a change."""
    db.execute("insert into task_events (task_id, at, state, progress) values (?, ?, ?, ?)", [task_id, to_text(now), state, progress])


def ended(db: SqliteDatabase, tasks: Sequence[TaskRecord], now: datetime, notice: Notice) -> None:
    """Their events and notices, in the transaction that has ended them."""
    hooks: dict[int, list[tuple[str, list[str]]]] = {}
    for task in tasks:
        note(db, task.id, now, task.state, task.progress)
        if task.user_id not in hooks:
            rows = db.execute(
                "select w.id, w.events from webhooks w join users u on u.id = w.user_id"
                " where w.user_id = ? and w.enabled = 1 and w.deleted_at is null and u.deleted_at is null and u.disabled_at is null",
                [task.user_id],
            ).fetchall()
            hooks[task.user_id] = [(row["id"], json.loads(row["events"])) for row in rows]
        if not hooks[task.user_id]:
            continue
        event, payload = notice(task)
        for webhook_id, events in hooks[task.user_id]:
            if not events or event in events:
                db.execute(
                    "insert or ignore into deliveries (id, webhook_id, task_id, event, payload, state, next_at, created_at)"
                    " values (?, ?, ?, ?, ?, 'pending', ?, ?)",
                    [new_delivery_id(now), webhook_id, task.id, event, payload, now.timestamp(), to_text(now)],
                )


def new_task_id(now: datetime) -> str:
    """Ids grow with time, to the microsecond, and cannot be guessed: 72 bits of them are random."""
    return f"{int(now.timestamp() * 1e6):014x}{secrets.token_hex(9)}"


def first_task_id(at: datetime) -> str:
    """Ids of tasks that were submitted at `at` or later are not below this one, the others are."""
    return f"{int(at.timestamp() * 1e6):014x}"


def new_delivery_id(now: datetime) -> str:
    return f"msg_{new_task_id(now)}"
