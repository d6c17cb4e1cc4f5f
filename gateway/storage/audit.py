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
    """Who does something, from where, in which request. `user_id` None: the gateway itself."""

    user_id: int | None
    name: str
    address: str = ""
    request_id: str = ""


class Audit:
    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, doer: Doer, action: str, subject: str, now: datetime, detail: Mapping[str, Any] | None = None) -> None:
        """One line of its own; `action` is a verb and a noun, such as `model.delete`. No secrets in `detail`."""
        with self._database.write() as db:
            write(db, doer, action, subject, now, detail)


def write(db: SqliteDatabase, doer: Doer, action: str, subject: str, now: datetime, detail: Mapping[str, Any] | None = None) -> None:
    """The same inside the transaction that makes the change."""
    db.execute(
        "insert into audit (at, actor_id, actor, action, subject, detail, address, request_id) values (?, ?, ?, ?, ?, ?, ?, ?)",
        [to_text(now), doer.user_id, doer.name, action, subject, json.dumps(detail or {}), doer.address, doer.request_id],
    )
