"""Who changed what: rows that are only ever added."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage.database import Database


@dataclass(frozen=True, slots=True)
class Doer:
    """Who does something, from where, in which request. `user_id` None: the gateway itself; with the name "" too: whoever it is done to."""

    user_id: int | None
    name: str
    address: str = ""
    request_id: str = ""


GATEWAY = Doer(None, "gateway")
"""Who does what nobody asked for."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One line. `actor`, `subject`: names as they were then."""

    id: int
    at: str
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]
    address: str
    request_id: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """ "" for any. `action`: a whole one such as `user.delete`, or what stands before its dot; times as in the lines, `until` not included."""

    actor: str = ""
    subject: str = ""
    action: str = ""
    since: str = ""
    until: str = ""


class Audit:
    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, doer: Doer, action: str, subject: str, now: datetime, detail: Mapping[str, Any] | None = None) -> None:
        """One line of its own; `action` is a verb and a noun, such as `model.delete`. No secrets in `detail`."""
        with self._database.write() as db:
            write(db, doer, action, subject, now, detail)

    def page(self, wanted: AuditFilter, before: int | None, count: int) -> list[AuditRecord]:
        """Newest first, before the line with that number."""
        conditions: list[str] = []
        values: list[Any] = []
        for condition, value in (
            ("actor = ? collate nocase", wanted.actor),
            ("subject = ? collate nocase", wanted.subject),
            ("action = ?" if "." in wanted.action else "action glob ? || '.*'", wanted.action),
            ("at >= ?", wanted.since),
            ("at < ?", wanted.until),
            ("id < ?", before),
        ):
            if value not in ("", None):
                conditions.append(condition)
                values.append(value)
        where = f"where {' and '.join(conditions)}" if conditions else ""
        columns = "id, at, actor, action, subject, detail, address, request_id"
        with self._database.read() as db:
            rows = db.execute(f"select {columns} from audit {where} order by id desc limit ?", [*values, count]).fetchall()
        return [AuditRecord(**{**dict(row), "detail": json.loads(row["detail"])}) for row in rows]


def write(db: SqliteDatabase, doer: Doer, action: str, subject: str, now: datetime, detail: Mapping[str, Any] | None = None) -> None:
    """The same inside the transaction that makes the change."""
    db.execute(
        "insert into audit (at, actor_id, actor, action, subject, detail, address, request_id) values (?, ?, ?, ?, ?, ?, ?, ?)",
        [to_text(now), doer.user_id, doer.name, action, subject, json.dumps(detail or {}), doer.address, doer.request_id],
    )
