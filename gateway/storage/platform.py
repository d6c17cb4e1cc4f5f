"""What there is on the whole platform, for its administrators: read only, whoever owns it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.storage.database import Database
from gateway.storage.task_records import SUCCEEDED

_MODELS = """select m.id, u.name as owner, m.name, m.type, m.visibility, m.created_at, m.updated_at, m.deleted_at,
    (select count(*) from model_versions v where v.model_id = m.id and v.deleted_at is null) as versions,
    (select coalesce(sum(size), 0) from model_versions v where v.model_id = m.id and v.deleted_at is null) as bytes,
    (select count(*) from deployments d where d.model_id = m.id and d.deleted_at is null) as deployments
    from models m join users u on u.id = m.owner_id"""
_DEPLOYMENTS = """select d.id, u.name as owner, d.name, o.name as model_owner, m.name as model, v.number as version, d.desired_state,
    d.state, d.reason, d.instances, d.cpus, d.memory, d.visibility, d.created_at, d.updated_at, d.last_call_at
    from deployments d join users u on u.id = d.owner_id join models m on m.id = d.model_id join users o on o.id = m.owner_id
    join model_versions v on v.id = d.version_id"""
_TASKS = """select t.id, u.name as owner, t.kind, t.model, t.version, t.state, t.attempts, t.progress, t.error_code, t.error_message,
    t.created_at, t.started_at, t.finished_at from tasks t join users u on u.id = t.user_id"""


@dataclass(frozen=True, slots=True)
class Totals:
    """`counts`: table -> rows that are not deleted; `tasks`: state -> tasks; bytes on the disk under their SHA-256."""

    counts: Mapping[str, int]
    tasks: Mapping[str, int]
    blobs: int
    blob_bytes: int


class Platform:
    def __init__(self, database: Database) -> None:
        self._database = database

    def models(self, owner: str, search: str, after: int, count: int, *, deleted: bool = False) -> list[Mapping[str, Any]]:
        """In the order of their making, after that id; "" for every owner and name."""
        wanted = {
            "m.id > ?": after,
            "m.owner_id = (select id from users where name = ?)": owner,
            "instr(lower(m.name), lower(?))": search,
        }
        state = "m.deleted_at is not null" if deleted else "m.deleted_at is null"
        return self._rows(f"{_MODELS} where {state}", wanted, "m.id", count)

    def deployments(self, owner: str, state: str, after: int, count: int) -> list[Mapping[str, Any]]:
        """The same of deployments; `state` "" for all."""
        wanted = {"d.id > ?": after, "d.owner_id = (select id from users where name = ?)": owner, "d.state = ?": state}
        return self._rows(f"{_DEPLOYMENTS} where d.deleted_at is null", wanted, "d.id", count)

    def tasks(self, owner: str, state: str, before: str, count: int) -> list[Mapping[str, Any]]:
        """Newest first, before the one with that id, which grow with time; "" for the first."""
        wanted = {"t.id < ?": before, "t.user_id = (select id from users where name = ?)": owner, "t.state = ?": state}
        return self._rows(f"{_TASKS} where true", wanted, "t.id desc", count)

    def totals(self) -> Totals:
        with self._database.read() as db:
            counts = {
                table: db.execute(f"select count(*) from {table} where deleted_at is null").fetchone()[0]
                for table in ("users", "teams", "models", "deployments")
            }
            # most have succeeded, and no index tells those apart: they are what is left of all
            others = db.execute(f"select state, count(*) as n from tasks where state <> '{SUCCEEDED}' group by state").fetchall()
            tasks = {row["state"]: row["n"] for row in others}
            done = db.execute("select count(*) from tasks").fetchone()[0] - sum(tasks.values())
            tasks |= {SUCCEEDED: done} if done else {}
            blobs = db.execute("select count(*) as n, coalesce(sum(size), 0) as bytes from blobs").fetchone()
        return Totals(counts, tasks, blobs["n"], blobs["bytes"])

    def _rows(self, statement: str, wanted: Mapping[str, Any], order: str, count: int) -> list[Mapping[str, Any]]:
        """`wanted`: condition -> its value; "" for one that is not asked, so that the rest finds its index."""
        asked = {condition: value for condition, value in wanted.items() if value != ""}
        where = "".join(f" and {condition}" for condition in asked)
        with self._database.read() as db:
            rows = db.execute(f"{statement}{where} order by {order} limit ?", [*asked.values(), count]).fetchall()
        return [dict(row) for row in rows]
