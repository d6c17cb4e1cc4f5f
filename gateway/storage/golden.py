"""Pinned requests of deployments, and the answers that they had."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.clock import to_text
from gateway.storage import audit
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from idl.codes import Code, ServingError

_COLUMNS = "id, deployment_id, name, request_sha256, content_type, answer_sha256, created_at"


@dataclass(frozen=True, slots=True)
class GoldenRecord:
    """`request_sha256`, `answer_sha256`: blobs; `content_type`: as the request came."""

    id: int
    deployment_id: int
    name: str
    request_sha256: str
    content_type: str
    answer_sha256: str
    created_at: str


class Golden:
    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, deployment_id: int) -> list[GoldenRecord]:
        """By name."""
        with self._database.read() as db:
            rows = db.execute(f"select {_COLUMNS} from golden where deployment_id = ? order by name", [deployment_id]).fetchall()
        return [_record(row) for row in rows]

    def pin(
        self, deployment_id: int, name: str, request: str, content_type: str, answer: str, doer: Doer, now: datetime, most: int
    ) -> GoldenRecord:
        """Both are blobs that are there. Raises already_exists, and insufficient_capacity beyond `most` of a deployment."""
        with self._database.write() as db:
            rows = db.execute("select name from golden where deployment_id = ?", [deployment_id]).fetchall()
            if name in [row["name"] for row in rows]:
                raise ServingError(Code.ALREADY_EXISTS, f"name: there is a golden request {name!r}; delete it first")
            if len(rows) >= most:
                raise ServingError(Code.INSUFFICIENT_CAPACITY, f"there are {len(rows)} golden requests, {most} are allowed")
            row = db.execute(
                "insert into golden (deployment_id, name, request_sha256, content_type, answer_sha256, created_by, created_at)"
                f" values (?, ?, ?, ?, ?, ?, ?) returning {_COLUMNS}",
                [deployment_id, name, request, content_type, answer, doer.user_id, to_text(now)],
            ).fetchone()
            audit.write(db, doer, "golden.pin", name, now, {"deployment": deployment_id})
        return _record(row)

    def remove(self, deployment_id: int, name: str, doer: Doer, now: datetime) -> bool:
        """False where there is none of that name."""
        with self._database.write() as db:
            row = db.execute("delete from golden where deployment_id = ? and name = ? returning id", [deployment_id, name]).fetchone()
            if row is not None:
                audit.write(db, doer, "golden.remove", name, now, {"deployment": deployment_id})
        return row is not None


def _record(row: Any) -> GoldenRecord:
    return GoldenRecord(**dict(row))
