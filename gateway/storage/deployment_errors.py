"""The last calls of each deployment that failed, with their requests' ids: so many of each, and no more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gateway.clock import to_text
from gateway.storage.database import Database

KEPT = 100
"""Of each deployment."""
KEPT_FOR = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class CallError:
    """`request_id`: of the request, or the task. `way`: how it was called, /v1, /v2, form or task. `code`: of the contract."""

    at: str
    request_id: str
    way: str
    code: str
    message: str


class DeploymentErrors:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, errors: Mapping[int, Sequence[CallError]]) -> None:
        """By deployment, oldest first; what is too many goes. Those of a deployment that is gone are dropped."""
        with self._database.write() as db:
            for deployment_id, given in errors.items():
                if db.execute("select 1 from deployments where id = ? and state <> 'deleted'", [deployment_id]).fetchone() is None:
                    continue
                for one in given:
                    db.execute(
                        "insert into deployment_errors (deployment_id, at, request_id, way, code, message) values (?, ?, ?, ?, ?, ?)",
                        [deployment_id, one.at, one.request_id, one.way, one.code, one.message],
                    )
                db.execute(
                    "delete from deployment_errors where deployment_id = ? and id <="
                    " (select id from deployment_errors where deployment_id = ? order by id desc limit 1 offset ?)",
                    [deployment_id, deployment_id, KEPT],
                )

    def last(self, deployment_id: int, limit: int) -> list[CallError]:
        """Newest first."""
        with self._database.read() as db:
            rows = db.execute(
                "select at, request_id, way, code, message from deployment_errors where deployment_id = ? order by id desc limit ?",
                [deployment_id, limit],
            ).fetchall()
        return [CallError(**dict(row)) for row in rows]

    def forget(self, now: datetime) -> int:
        """Removes what is older than is kept; how many rows."""
        with self._database.write() as db:
            return int(db.execute("delete from deployment_errors where at < ?", [to_text(now - KEPT_FOR)]).rowcount)
