"""Answers that are given once more to a request that comes once more."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from gateway.clock import to_text
from gateway.storage.database import Database

KEPT = timedelta(hours=24)
_SWEEP = 100


@dataclass(frozen=True, slots=True)
class Known:
    """What is there under a key. `status` 0: the first request has not ended."""

    fingerprint: str
    status: int
    headers: Mapping[str, str]
    body: str


class Idempotency:
    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, user_id: int, key: str, fingerprint: str, now: datetime, longest_s: float) -> Known | None:
        """None where the request is the first one under its key, which is taken for it; else what is there.

        `longest_s`: after that a request without an answer is taken for one whose process was killed.
        """
        with self._database.write() as db:
            old = db.execute("select user_id, key from idempotency where created_at < ? limit ?", [to_text(now - KEPT), _SWEEP]).fetchall()
            for (
                each
            ) in old:  # by the whole key: SQLite finds a list of pairs by the user alone, and may have a day's requests to look through
                db.execute("delete from idempotency where user_id = ? and key = ?", [each["user_id"], each["key"]])
            row = db.execute("select * from idempotency where user_id = ? and key = ?", [user_id, key]).fetchone()
            abandoned = to_text(now - timedelta(seconds=longest_s))
            if row is not None and (row["status"] is not None or row["created_at"] >= abandoned):
                return Known(row["fingerprint"], row["status"] or 0, json.loads(row["headers"] or "{}"), row["body"] or "")
            db.execute(
                "insert or replace into idempotency (user_id, key, fingerprint, created_at) values (?, ?, ?, ?)",
                [user_id, key, fingerprint, to_text(now)],
            )
        return None

    def end(self, user_id: int, key: str, status: int, headers: Mapping[str, str], body: str) -> None:
        with self._database.write() as db:
            db.execute(
                "update idempotency set status = ?, headers = ?, body = ? where user_id = ? and key = ?",
                [status, json.dumps(dict(headers)), body, user_id, key],
            )

    def forget(self, user_id: int, key: str) -> None:
        """Nothing came of the request: the next one under the key is the first again."""
        with self._database.write() as db:
            db.execute("delete from idempotency where user_id = ? and key = ? and status is null", [user_id, key])
