"""Webhooks, and the log of what was sent to them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.errors import ChangedMeanwhile
from gateway.storage import audit
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from idl.codes import Code, ServingError

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
_COLUMNS = "id, user_id, url, secret, events, description, enabled, failures, revision, created_at, updated_at"
_DELIVERY = "id, webhook_id, task_id, event, payload, state, attempts, next_at, last_status, last_error, created_at, finished_at"
_SWEEP = 500
MOST_OF_WEBHOOK, MOST_OF_USER = 4, 8
"""Notices that are sent at once."""
# webhooks with something pending, found by steps in the index, however much that is
_HOOKS = """with recursive hooks (id) as (
    select min(webhook_id) from deliveries where state = 'pending'
    union all
    select (select min(d.webhook_id) from deliveries d where d.state = 'pending' and d.webhook_id > hooks.id) from hooks where hooks.id is not null
)
select w.id, w.user_id, w.enabled = 1 and w.deleted_at is null and u.deleted_at is null and u.disabled_at is null as open,
    (select min(d.next_at) from deliveries d where d.webhook_id = w.id and d.state = 'pending') as due
from hooks join webhooks w on w.id = hooks.id join users u on u.id = w.user_id"""


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
    user_id: int

    def __repr__(self) -> str:
        return f"Due(id={self.delivery.id!r})"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending a notice for the `number`th time. `state` pending: it is sent again at `next_at`; `is_unwanted`: the receiver wants no
    more of them."""

    delivery_id: str
    webhook_id: str
    number: int
    state: str
    next_at: float
    status: int | None
    error: str
    is_unwanted: bool = False


class Webhooks:
    """Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, hook: WebhookRecord, most: int, now: datetime, doer: Doer) -> None:
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
            audit.write(db, doer, "webhook.create", hook.id, now, {"host": urlsplit(hook.url).hostname})

    def of_user(self, user_id: int, webhook_id: str) -> WebhookRecord | None:
        with self._database.read() as db:
            sql = f"select {_COLUMNS} from webhooks where id = ? and user_id = ? and deleted_at is null"
            row = db.execute(sql, [webhook_id, user_id]).fetchone()
        return None if row is None else _record(row)

    def page(self, user_id: int, after: str, limit: int) -> list[WebhookRecord]:
        with self._database.read() as db:
            sql = f"select {_COLUMNS} from webhooks where user_id = ? and deleted_at is null and id > ? order by id limit ?"
            return [_record(row) for row in db.execute(sql, [user_id, after, limit]).fetchall()]

    def change(
        self, webhook_id: str, user_id: int, changes: dict[str, Any], revision: int | None, now: datetime, doer: Doer
    ) -> WebhookRecord | None:
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
            changed = _record(db.execute(sql, [*values.values(), webhook_id, user_id]).fetchone())
            if not changed.enabled:
                _give_up(db, webhook_id, "the webhook was turned off", now)
            detail = {"changed": sorted(changes)} | ({"host": urlsplit(changed.url).hostname} if "url" in changes else {})
            audit.write(db, doer, "webhook.change", webhook_id, now, detail)
            return changed

    def delete(self, webhook_id: str, user_id: int, now: datetime, doer: Doer) -> bool:
        """What is still to be sent to it has failed."""
        with self._database.write() as db:
            gone = db.execute(
                "update webhooks set deleted_at = ?, enabled = 0, secret = '' where id = ? and user_id = ? and deleted_at is null",
                [to_text(now), webhook_id, user_id],
            )
            if gone.rowcount > 0:
                _give_up(db, webhook_id, "the webhook was deleted", now)
                audit.write(db, doer, "webhook.delete", webhook_id, now)
            return bool(gone.rowcount > 0)

    # deliveries ----------------------------------------------------------------------------------------------------------------------

    def deliveries(self, webhook_id: str, state: str | None, before: str | None, limit: int) -> list[DeliveryRecord]:
        """The newest first."""
        conditions, values = ["webhook_id = ?"], [webhook_id]
        if state is not None and state != DELIVERED:
            conditions.append(f"state <> '{DELIVERED}'")  # the index of those few
        for condition, value in (("state = ?", state), ("id < ?", before)):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        with self._database.read() as db:
            sql = f"select {_DELIVERY} from deliveries where {' and '.join(conditions)} order by id desc limit ?"
            return [_delivery(row) for row in db.execute(sql, [*values, limit]).fetchall()]

    def of_task(self, user_id: int, task_id: str) -> list[tuple[str, DeliveryRecord]]:
        """(where to, delivery) of the notices of a task to webhooks of a user that are still there."""
        columns = ", ".join(f"d.{column}" for column in _DELIVERY.split(", "))
        with self._database.read() as db:
            rows = db.execute(
                f"select w.url, {columns} from webhooks w join deliveries d on d.webhook_id = w.id and d.task_id = ?"
                " where w.user_id = ? and w.deleted_at is null order by d.id",
                [task_id, user_id],
            ).fetchall()
        return [(row["url"], _delivery({name: row[name] for name in row.keys() if name != "url"})) for row in rows]  # noqa: SIM118

    def again(self, webhook_id: str, delivery_id: str, now: datetime) -> DeliveryRecord | None:
        """Sends a notice once more, from the first attempt on."""
        with self._database.write() as db:
            row = db.execute(
                "update deliveries set state = 'pending', attempts = 0, next_at = ?, finished_at = null where id = ? and webhook_id = ?"
                f" returning {_DELIVERY}",
                [now.timestamp(), delivery_id, webhook_id],
            ).fetchone()
        return None if row is None else _delivery(row)

    def claim(self, now: datetime, lease_s: float, limit: int, held: Sequence[tuple[int, str]] = ()) -> list[Due]:
        """At most `limit` notices that are due, which nobody else gets for `lease_s`. `held`: (user, webhook) of each that is being sent.

        Of one webhook, and of one user, only a few are under way at a time, and who has the fewest is next: slow receivers harm no other.
        """
        with self._database.read() as db:
            rows = db.execute(_HOOKS).fetchall()
            chosen = _chosen(db, [row for row in rows if row["open"] and row["due"] <= now.timestamp()], now.timestamp(), limit, held)
            closed = [row["id"] for row in rows if not row["open"]]
        if not chosen and not closed:
            return []  # the write lock is not taken for nothing
        with self._database.write() as db:
            for webhook_id in closed:
                _give_up(db, webhook_id, "the webhook was turned off, or its owner's account closed", now)
            marks = ", ".join("?" * len(chosen))
            rows = db.execute(
                f"update deliveries set attempts = attempts + 1, next_at = ? where id in ({marks}) and state = 'pending' and next_at <= ?"
                f" returning {_DELIVERY}",
                [now.timestamp() + lease_s, *chosen, now.timestamp()],
            ).fetchall()
            found = []
            for row in rows:
                hook = db.execute("select url, secret, user_id from webhooks where id = ?", [row["webhook_id"]]).fetchone()
                found.append(Due(_delivery(row), hook["url"], hook["secret"], hook["user_id"]))
        return found

    def settle(self, attempts: Sequence[Attempt], now: datetime, most_failures: int) -> None:
        """Notes what came of them. A webhook that wants no more, or to which `most_failures` notices in a row could not be sent, is turned
        off, and what is pending for it has failed."""
        with self._database.write() as db:
            for each in attempts:
                finished = None if each.state == PENDING else to_text(now)
                # one that failed while its owner has asked for another says nothing of that one
                changed = db.execute(
                    "update deliveries set state = ?1, next_at = ?2, last_status = ?3, last_error = ?4, finished_at = ?5"
                    f" where id = ?6 and state = 'pending' and (?1 = '{DELIVERED}' or attempts = ?7)",
                    [each.state, each.next_at, each.status, each.error or None, finished, each.delivery_id, each.number],
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
                    _give_up(db, each.webhook_id, "the webhook was turned off: its receiver fails", now)

    def forget(self, before: datetime) -> int:
        """Removes what ended before from the log; how many lines."""
        with self._database.write() as db:
            old = "select id from deliveries where finished_at < ? limit ?"
            return int(db.execute(f"delete from deliveries where id in ({old})", [to_text(before), _SWEEP]).rowcount)


def _chosen(db: SqliteDatabase, hooks: Sequence[Any], now: float, limit: int, held: Sequence[tuple[int, str]]) -> list[str]:
    """Ids of notices that are due: always the next one of who has the fewest under way."""
    users, webhooks = Counter(user_id for user_id, _ in held), Counter(webhook_id for _, webhook_id in held)
    waiting: dict[str, list[str]] = {}
    left = sorted(hooks, key=lambda row: row["due"])
    chosen: list[str] = []
    while len(chosen) < limit:
        left = [row for row in left if webhooks[row["id"]] < MOST_OF_WEBHOOK and users[row["user_id"]] < MOST_OF_USER]
        if not left:
            break
        row = min(left, key=lambda row: (users[row["user_id"]], webhooks[row["id"]]))
        if row["id"] not in waiting:
            sql = "select id from deliveries where webhook_id = ? and state = 'pending' and next_at <= ? order by next_at limit ?"
            waiting[row["id"]] = [found["id"] for found in db.execute(sql, [row["id"], now, MOST_OF_WEBHOOK]).fetchall()]
        if not waiting[row["id"]]:
            left.remove(row)
            continue
        chosen.append(waiting[row["id"]].pop(0))
        users[row["user_id"]] += 1
        webhooks[row["id"]] += 1
    return chosen


def _give_up(db: SqliteDatabase, webhook_id: str, reason: str, now: datetime) -> None:
    """What is pending of a webhook has failed."""
    db.execute(
        "update deliveries set state = 'failed', finished_at = ?, last_error = ? where webhook_id = ? and state = 'pending'",
        [to_text(now), reason, webhook_id],
    )


def _record(row: Any) -> WebhookRecord:
    values = dict(row)
    return WebhookRecord(**{**values, "events": tuple(json.loads(values["events"])), "enabled": bool(values["enabled"])})


def _delivery(row: Any) -> DeliveryRecord:
    return DeliveryRecord(**dict(row))
