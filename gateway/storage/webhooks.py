"""Webhooks, and the log of what was sent to them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.clock import to_text
from gateway.errors import ChangedMeanwhile
from gateway.storage.database import Database
from idl.codes import Code, ServingError

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
_COLUMNS = "id, user_id, url, secret, events, description, enabled, failures, revision, created_at, updated_at"
_DELIVERY = "id, webhook_id, task_id, event, payload, state, attempts, next_at, last_status, last_error, created_at, finished_at"
_SWEEP = 500


@dataclass(frozen=True, slots=True)
class WebhookRecord:
    """`events` empty: every one. `failures`: notices given up one after another."""

    id: str
    user_id: int
    url: str
    secret: str
    events: Sequence[str]
    description: str
    enabled: bool
    failures: int
    revision: int
    created_at: str
    updated_at: str

    def __repr__(self) -> str:
        return f"WebhookRecord(id={self.id!r})"


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A notice; `next_at` in seconds since the epoch, while it is pending."""

    id: str
    webhook_id: str
    task_id: str
    event: str
    payload: str
    state: str
    attempts: int
    next_at: float
    last_status: int | None
    last_error: str | None
    created_at: str
    finished_at: str | None


@dataclass(frozen=True, slots=True)
class Due:
    """A notice that is to be sent now, and where to."""

    delivery: DeliveryRecord
    url: str
    secret: str

    def __repr__(self) -> str:
        return f"Due(id={self.delivery.id!r})"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending a notice. `state` pending: it is sent again at `next_at`; `is_unwanted`: the receiver wants no more of them."""

    delivery_id: str
    webhook_id: str
    state: str
    next_at: float
    status: int | None
    error: str
    is_unwanted: bool = False


class Webhooks:
    """Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, hook: WebhookRecord, most: int) -> None:
        """Raises conflict where the user has `most` already."""
        with self._database.write() as db:
            row = db.execute("select count(*) as n from webhooks where user_id = ? and deleted_at is null", [hook.user_id]).fetchone()
            if row["n"] >= most:
                raise ServingError(Code.CONFLICT, f"you have {most} webhooks already")
            db.execute(
                "insert into webhooks (id, user_id, url, secret, events, description, enabled, created_at, updated_at)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    hook.id,
                    hook.user_id,
                    hook.url,
                    hook.secret,
                    json.dumps(list(hook.events)),
                    hook.description,
                    int(hook.enabled),
                    hook.created_at,
                    hook.updated_at,
                ],
            )

    def of_user(self, user_id: int, webhook_id: str) -> WebhookRecord | None:
        with self._database.read() as db:
            sql = f"select {_COLUMNS} from webhooks where id = ? and user_id = ? and deleted_at is null"
            row = db.execute(sql, [webhook_id, user_id]).fetchone()
        return None if row is None else _record(row)

    def page(self, user_id: int, after: str, limit: int) -> list[WebhookRecord]:
        with self._database.read() as db:
            sql = f"select {_COLUMNS} from webhooks where user_id = ? and deleted_at is null and id > ? order by id limit ?"
            return [_record(row) for row in db.execute(sql, [user_id, after, limit]).fetchall()]

    def change(self, webhook_id: str, user_id: int, changes: dict[str, Any], revision: int | None, now: datetime) -> WebhookRecord | None:
        """`changes`: columns (url, secret, events, description, enabled). None where it is gone. Raises ChangedMeanwhile."""
        values = {**changes, "updated_at": to_text(now)}
        if "events" in values:
            values["events"] = json.dumps(list(values["events"]))
        if values.get("enabled"):
            values["failures"] = 0
        assignments = ", ".join(f"{column} = ?" for column in values)
        with self._database.write() as db:
            where = "where id = ? and user_id = ? and deleted_at is null"
            row = db.execute(f"select revision from webhooks {where}", [webhook_id, user_id]).fetchone()
            if row is None:
                return None
            if revision is not None and row["revision"] != revision:
                raise ChangedMeanwhile
            sql = f"update webhooks set {assignments}, revision = revision + 1 {where} returning {_COLUMNS}"
            return _record(db.execute(sql, [*values.values(), webhook_id, user_id]).fetchone())

    def delete(self, webhook_id: str, user_id: int, now: datetime) -> bool:
        """What is still to be sent to it has failed."""
        with self._database.write() as db:
            gone = db.execute(
                "update webhooks set deleted_at = ?, enabled = 0, secret = '' where id = ? and user_id = ? and deleted_at is null",
                [to_text(now), webhook_id, user_id],
            )
            db.execute(
                "update deliveries set state = 'failed', finished_at = ?, last_error = 'the webhook was deleted'"
                " where webhook_id = ? and state = 'pending'",
                [to_text(now), webhook_id],
            )
            return bool(gone.rowcount > 0)

    # deliveries ----------------------------------------------------------------------------------------------------------------------

    def deliveries(self, webhook_id: str, state: str | None, before: str | None, limit: int) -> list[DeliveryRecord]:
        """The newest first."""
        conditions, values = ["webhook_id = ?"], [webhook_id]
        for condition, value in (("state = ?", state), ("id < ?", before)):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        with self._database.read() as db:
            sql = f"select {_DELIVERY} from deliveries where {' and '.join(conditions)} order by id desc limit ?"
            return [_delivery(row) for row in db.execute(sql, [*values, limit]).fetchall()]

    def again(self, webhook_id: str, delivery_id: str, now: datetime) -> DeliveryRecord | None:
        """Sends a notice once more, from the first attempt on."""
        with self._database.write() as db:
            row = db.execute(
                "update deliveries set state = 'pending', attempts = 0, next_at = ?, finished_at = null where id = ? and webhook_id = ?"
                f" returning {_DELIVERY}",
                [now.timestamp(), delivery_id, webhook_id],
            ).fetchone()
        return None if row is None else _delivery(row)

    def claim(self, now: datetime, lease_s: float, limit: int) -> list[Due]:
        """Notices that are due, which nobody else gets for `lease_s`. Of one webhook a few at a time: a slow receiver harms no other."""
        with self._database.write() as db:
            due = (
                "select id from (select id, next_at, row_number() over (partition by webhook_id order by next_at, id) as place"
                " from deliveries where state = 'pending' and next_at <= ?) where place <= ? order by next_at, id limit ?"
            )
            rows = db.execute(
                f"update deliveries set attempts = attempts + 1, next_at = ? where id in ({due}) returning {_DELIVERY}",
                [now.timestamp() + lease_s, now.timestamp(), max(1, limit // 4), limit],
            ).fetchall()
            found = []
            for row in rows:
                hook = db.execute("select url, secret from webhooks where id = ?", [row["webhook_id"]]).fetchone()
                found.append(Due(_delivery(row), hook["url"], hook["secret"]))
        return found

    def settle(self, attempts: Sequence[Attempt], now: datetime, most_failures: int) -> None:
        """Notes what came of them. A webhook that wants no more, or to which `most_failures` notices in a row could not be sent, is turned
        off, and what is pending for it has failed."""
        with self._database.write() as db:
            for each in attempts:
                finished = None if each.state == PENDING else to_text(now)
                changed = db.execute(
                    "update deliveries set state = ?, next_at = ?, last_status = ?, last_error = ?, finished_at = ?"
                    " where id = ? and state = 'pending'",
                    [each.state, each.next_at, each.status, each.error or None, finished, each.delivery_id],
                )
                if changed.rowcount == 0 or each.state == PENDING:
                    continue
                if each.state == DELIVERED:
                    db.execute("update webhooks set failures = 0 where id = ? and failures > 0", [each.webhook_id])
                    continue
                row = db.execute(
                    "update webhooks set failures = failures + 1, enabled = enabled and not ? and failures + 1 < ? where id = ? returning enabled",
                    [int(each.is_unwanted), most_failures, each.webhook_id],
                ).fetchone()
                if not row["enabled"]:
                    db.execute(
                        "update deliveries set state = 'failed', finished_at = ?, last_error = 'the webhook was turned off: its receiver fails'"
                        " where webhook_id = ? and state = 'pending'",
                        [to_text(now), each.webhook_id],
                    )

    def due_in(self, now: datetime) -> float | None:
        """Seconds until the next notice is due; None where none is pending."""
        with self._database.read() as db:
            row = db.execute("select min(next_at) as due from deliveries where state = 'pending'").fetchone()
        return None if row["due"] is None else max(0.0, row["due"] - now.timestamp())

    def forget(self, before: datetime) -> int:
        """Removes what ended before from the log; how many lines."""
        with self._database.write() as db:
            old = "select id from deliveries where finished_at < ? limit ?"
            return int(db.execute(f"delete from deliveries where id in ({old})", [to_text(before), _SWEEP]).rowcount)


def _record(row: Any) -> WebhookRecord:
    values = dict(row)
    return WebhookRecord(**{**values, "events": tuple(json.loads(values["events"])), "enabled": bool(values["enabled"])})


def _delivery(row: Any) -> DeliveryRecord:
    return DeliveryRecord(**dict(row))
