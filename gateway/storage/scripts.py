"""Scripts of users: names with versions, whose sources are blobs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage import audit
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from idl.codes import Code, ServingError

_SELECT = """select s.id, s.owner_id, u.name as owner, s.name, s.description, s.revision, s.created_at, s.updated_at,
    (select max(number) from script_versions v where v.script_id = s.id) as latest from scripts s join users u on u.id = s.owner_id"""
_VERSION = "id, script_id, number, sha256, functions, created_at"


@dataclass(frozen=True, slots=True)
class ScriptRecord:
    """`latest`: the newest version's number."""

    id: int
    owner_id: int
    owner: str
    name: str
    description: str
    revision: int
    created_at: str
    updated_at: str
    latest: int


@dataclass(frozen=True, slots=True)
class ScriptVersionRecord:
    """`functions`: preprocess, postprocess or both."""

    id: int
    script_id: int
    number: int
    sha256: str
    functions: tuple[str, ...]
    created_at: str


class Scripts:
    def __init__(self, database: Database) -> None:
        self._database = database

    def of_owner(self, owner_id: int, name: str) -> ScriptRecord | None:
        with self._database.read() as db:
            row = db.execute(f"{_SELECT} where s.owner_id = ? and s.name = ? and s.deleted_at is null", [owner_id, name]).fetchone()
        return None if row is None else _record(row)

    def listed(self, owner_id: int, after: int, limit: int) -> list[ScriptRecord]:
        """By id, those after `after`."""
        with self._database.read() as db:
            rows = db.execute(
                f"{_SELECT} where s.owner_id = ? and s.deleted_at is null and s.id > ? order by s.id limit ?", [owner_id, after, limit]
            ).fetchall()
        return [_record(row) for row in rows]

    def versions(self, script_id: int, below: int, limit: int) -> list[ScriptVersionRecord]:
        """Newest first, those below `below`."""
        with self._database.read() as db:
            rows = db.execute(
                f"select {_VERSION} from script_versions where script_id = ? and number < ? order by number desc limit ?",
                [script_id, below, limit],
            ).fetchall()
        return [_version(row) for row in rows]

    def version(self, script_id: int, number: int) -> ScriptVersionRecord | None:
        with self._database.read() as db:
            row = db.execute(f"select {_VERSION} from script_versions where script_id = ? and number = ?", [script_id, number]).fetchone()
        return None if row is None else _version(row)

    def put(
        self,
        owner_id: int,
        name: str,
        description: str | None,
        sha256: str,
        functions: Sequence[str],
        doer: Doer,
        now: datetime,
        *,
        new: bool,
    ) -> tuple[ScriptRecord, ScriptVersionRecord]:
        """A new version of a script, or its first one; the same source again is the version that it was last. `new`: raises already_exists
        where there is a script of that name. `description` None: as it was."""
        with self._database.write() as db:
            row = db.execute("select id from scripts where owner_id = ? and name = ? and deleted_at is null", [owner_id, name]).fetchone()
            if row is not None and new:
                raise ServingError(Code.ALREADY_EXISTS, f"name: there is a script {name!r}")
            moment = to_text(now)
            if row is None:
                row = db.execute(
                    "insert into scripts (owner_id, name, description, created_at, updated_at) values (?, ?, ?, ?, ?) returning id",
                    [owner_id, name, description or "", moment, moment],
                ).fetchone()
            else:
                db.execute(
                    "update scripts set description = coalesce(?, description), revision = revision + 1, updated_at = ? where id = ?",
                    [description, moment, row["id"]],
                )
            version = _add(db, row["id"], sha256, functions, doer, moment)
            audit.write(db, doer, "script.put", name, now, {"version": version.number, "sha256": sha256})
            made = _record(db.execute(f"{_SELECT} where s.id = ?", [row["id"]]).fetchone())
        return made, version

    def describe(self, script_id: int, description: str, doer: Doer, now: datetime, revision: int | None) -> bool:
        """False where it is gone, or another revision than asked."""
        asked = "" if revision is None else "and revision = ?"
        with self._database.write() as db:
            row = db.execute(
                f"update scripts set description = ?, revision = revision + 1, updated_at = ? where id = ? and deleted_at is null {asked}"
                " returning name",
                [description, to_text(now), script_id, *([] if revision is None else [revision])],
            ).fetchone()
            if row is not None:
                audit.write(db, doer, "script.change", row["name"], now)
        return row is not None

    def delete(self, script_id: int, doer: Doer, now: datetime) -> None:
        """Raises conflict, naming one, while deployments use it."""
        with self._database.write() as db:
            used = db.execute(
                "select d.name from deployments d join script_versions v on v.id = d.script_version_id"
                " where v.script_id = ? and d.state <> 'deleted' limit 1",
                [script_id],
            ).fetchone()
            if used is not None:
                raise ServingError(Code.CONFLICT, f"deployment {used['name']!r} uses the script")
            row = db.execute(
                "update scripts set deleted_at = ? where id = ? and deleted_at is null returning name", [to_text(now), script_id]
            ).fetchone()
            if row is not None:
                audit.write(db, doer, "script.delete", row["name"], now)


def _add(db: SqliteDatabase, script_id: int, sha256: str, functions: Sequence[str], doer: Doer, moment: str) -> ScriptVersionRecord:
    last = db.execute(f"select {_VERSION} from script_versions where script_id = ? order by number desc limit 1", [script_id]).fetchone()
    if last is not None and last["sha256"] == sha256:
        return _version(last)
    row = db.execute(
        f"insert into script_versions (script_id, number, sha256, functions, created_by, created_at) values (?, ?, ?, ?, ?, ?) returning {_VERSION}",
        [script_id, last["number"] + 1 if last is not None else 1, sha256, json.dumps(list(functions)), doer.user_id, moment],
    ).fetchone()
    return _version(row)


def _record(row: Any) -> ScriptRecord:
    return ScriptRecord(**dict(row))


def _version(row: Any) -> ScriptVersionRecord:
    return ScriptVersionRecord(**{**dict(row), "functions": tuple(json.loads(row["functions"]))})
