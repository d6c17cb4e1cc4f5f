"""Models of users: names with versions, whose files are blobs."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage import audit, model_lists
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from gateway.storage.marks import Mark
from gateway.storage.model_records import FileRecord, ModelRecord, NewVersion, VersionEntry, VersionRecord, Wanted
from idl.codes import Code, ServingError

_SELECT = """select m.id, m.owner_id, u.name as owner, m.name, m.type, m.description, m.card, m.visibility, m.team_id, t.name as team,
    m.revision, m.created_at, m.updated_at, m.deleted_at,
    (select json_group_array(tag) from (select tag from model_tags g where g.model_id = m.id order by tag)) as tags,
    (select max(v.number) from model_versions v where v.model_id = m.id and v.deleted_at is null) as latest
    from models m join users u on u.id = m.owner_id left join teams t on t.id = m.team_id"""
_VERSION = "id, model_id, number, format, sha256, size, file_name, signature, facts, measured, created_at"
IN_USE = "(version_id, serving_version_id, canary_version_id, previous_version_id)"


class Models:
    """`sharing` is changed with everything that matters to who may see or call what."""

    def __init__(self, database: Database, sharing: Mark) -> None:
        self._database = database
        self._sharing = sharing

    def of_owner(self, owner_id: int, name: str) -> ModelRecord | None:
        return self._one("m.owner_id = ? and m.name = ? and m.deleted_at is null", owner_id, name)

    def find(self, owner: str, name: str) -> ModelRecord | None:
        """By names; None also where the owner's account is gone."""
        return self._one("u.name = ? and u.deleted_at is null and m.name = ? and m.deleted_at is null", owner, name)

    def by_id(self, model_id: int) -> ModelRecord | None:
        """Also one that is deleted."""
        return self._one("m.id = ?", model_id)

    def last_deleted(self, owner_id: int, name: str) -> ModelRecord | None:
        return self._one("m.owner_id = ? and m.name = ? and m.deleted_at is not null order by m.deleted_at desc limit 1", owner_id, name)

    def listed(self, wanted: Wanted, after: Sequence[Any] | None, limit: int) -> list[ModelRecord]:
        """In the order of `wanted`, those after `after`: what it is ordered by of the last one before, and its id."""
        where, given = model_lists.conditions(wanted)
        column, direction, sign = model_lists.ORDERS[wanted.order]
        if after is not None:
            where.append(f"({column}, m.id) {sign} (?, ?)")
            given += after
        order = f"order by {column} {direction}, m.id {direction}"
        chosen = f"select m.id from models m join users u on u.id = m.owner_id where {' and '.join(where)} {order} limit ?"
        with self._database.read() as db:
            rows = db.execute(f"{_SELECT} where m.id in ({chosen}) {order}", [*given, limit]).fetchall()
        return [_record(row) for row in rows]

    def versions(self, model_id: int, after: int | None = None, limit: int = 1000) -> list[VersionRecord]:
        """Newest first, those below `after`."""
        with self._database.read() as db:
            rows = db.execute(
                f"select {_VERSION} from model_versions where model_id = ? and deleted_at is null and number < ? order by number desc limit ?",
                [model_id, 1 << 62 if after is None else after, limit],
            ).fetchall()
        return [_version(row) for row in rows]

    def history(self, model_id: int, after: int | None, limit: int, *, deleted: bool) -> list[VersionEntry]:
        """Newest first, those below `after`: what each is, who sent it and which deployments use it. `deleted`: those too that can be restored."""
        used = (
            "select json_group_array(o.name || '.' || d.name) from deployments d join users o on o.id = d.owner_id"
            f" where d.deleted_at is null and d.model_id = v.model_id and v.id in {IN_USE}"
        )
        with self._database.read() as db:
            rows = db.execute(
                f"select {_VERSION}, v.deleted_at, (select u.name from users u where u.id = v.created_by) as by, ({used}) as used"
                " from model_versions v where model_id = ? and number < ? and (deleted_at is null or ?) order by number desc limit ?",
                [model_id, 1 << 62 if after is None else after, deleted, limit],
            ).fetchall()
        return [VersionEntry(_version(row), row["by"] or "", row["deleted_at"], tuple(sorted(json.loads(row["used"])))) for row in rows]

    def version(self, model_id: int, number: int) -> VersionRecord | None:
        return self._version("model_id = ? and number = ? and deleted_at is null", model_id, number)

    def version_by_id(self, version_id: int) -> VersionRecord | None:
        """Also one that is deleted."""
        return self._version("id = ?", version_id)

    def versions_by_id(self, version_ids: Collection[int]) -> dict[int, VersionRecord]:
        """Also those that are deleted."""
        marks = ", ".join("?" * len(version_ids))
        with self._database.read() as db:
            rows = db.execute(f"select {_VERSION} from model_versions where id in ({marks})", list(version_ids)).fetchall()
        return {row["id"]: _version(row) for row in rows}

    def latest(self, model_ids: Collection[int]) -> dict[int, VersionRecord]:
        """Model -> its newest version."""
        marks = ", ".join("?" * len(model_ids))
        with self._database.read() as db:
            rows = db.execute(
                f"select {_VERSION}, max(number) from model_versions where model_id in ({marks}) and deleted_at is null group by model_id",
                list(model_ids),
            ).fetchall()
        return {row["model_id"]: _version(row) for row in rows}

    def files(self, version_id: int) -> list[FileRecord]:
        """What it has besides its own file, by name."""
        with self._database.read() as db:
            rows = db.execute(
                "select name, sha256, size, beside from version_files where version_id = ? order by name", [version_id]
            ).fetchall()
        return [FileRecord(row["name"], row["sha256"], row["size"], bool(row["beside"])) for row in rows]

    def create(
        self, owner_id: int, values: Mapping[str, Any], tags: Sequence[str], version: NewVersion, doer: Doer, now: datetime, most: int
    ) -> ModelRecord:
        """A model with its first version; `values` by column. Raises already_exists, and insufficient_capacity beyond `most` of one owner."""
        given = {"owner_id": owner_id, **values, "created_at": to_text(now), "updated_at": to_text(now)}
        with self._database.write() as db:
            _refuse_taken(db, owner_id, values["name"])
            count = db.execute("select count(*) as n from models where owner_id = ? and deleted_at is null", [owner_id]).fetchone()["n"]
            if count >= most:
                raise ServingError(Code.INSUFFICIENT_CAPACITY, f"there are {count} models, {most} are allowed for each user")
            row = db.execute(
                f"insert into models ({', '.join(given)}) values ({', '.join('?' * len(given))}) returning id", list(given.values())
            ).fetchone()
            _set_tags(db, row["id"], tags)
            _add_version(db, row["id"], version, doer, now)
            made = _within(db, row["id"])
            audit.write(db, doer, "model.create", made.full_name, now, {"format": version.format, "sha256": version.sha256})
        self._sharing.change()
        return made

    def add_version(self, model_id: int, version: NewVersion, doer: Doer, now: datetime) -> tuple[ModelRecord, int]:
        """The model, and the number of its new version. Raises model_not_found where it was deleted meanwhile."""
        with self._database.write() as db:
            _touch(db, model_id, None, now)
            number = _add_version(db, model_id, version, doer, now)
            made = _within(db, model_id)
            audit.write(db, doer, "model.version", made.full_name, now, {"version": number, "sha256": version.sha256})
        return made, number

    def change(
        self,
        model_id: int,
        values: Mapping[str, Any],
        tags: Sequence[str] | None,
        doer: Doer,
        now: datetime,
        revision: int | None = None,
        version: NewVersion | None = None,
    ) -> ModelRecord | None:
        """Sets columns and tags, and adds a version. None where it is another revision than asked. Raises already_exists for a name that
        is taken, model_not_found where it was deleted meanwhile."""
        with self._database.write() as db:
            before = _within(db, model_id)
            if "name" in values and values["name"].lower() != before.name.lower():
                _refuse_taken(db, before.owner_id, values["name"])
            if not _touch(db, model_id, revision, now):
                return None
            for column, value in values.items():
                db.execute(f"update models set {column} = ? where id = ?", [value, model_id])
            if tags is not None:
                _set_tags(db, model_id, tags)
            if version is not None:
                _add_version(db, model_id, version, doer, now)
            made = _within(db, model_id)
            detail = {key: value for key, value in values.items() if key not in ("card", "description")}
            audit.write(db, doer, "model.change", before.full_name, now, {**detail, "fields": sorted(values)})
        self._sharing.change()
        return made

    def delete(self, model_id: int, doer: Doer, now: datetime, revision: int | None = None, *, used: bool = False) -> bool:
        """False where it is another revision than asked. Raises conflict, naming them, while deployments use it, unless `used`; model_not_found
        where it was deleted already."""
        with self._database.write() as db:
            found = _within(db, model_id)
            if found.deleted_at is None and not used:
                _refuse_used(db, f"model {found.name!r}", "model_id = ?", [model_id])
            if not _touch(db, model_id, revision, now):
                return False
            db.execute("update models set deleted_at = ? where id = ?", [to_text(now), model_id])
            audit.write(db, doer, "model.delete", found.full_name, now)
        self._sharing.change()
        return True

    def restore(self, model_id: int, doer: Doer, now: datetime) -> ModelRecord:
        """Raises already_exists where its name was taken meanwhile, model_not_found where it was purged or is there."""
        with self._database.write() as db:
            found = _within(db, model_id)
            _refuse_taken(db, found.owner_id, found.name)
            row = db.execute(
                "update models set deleted_at = null, revision = revision + 1, updated_at = ? where id = ? and deleted_at is not null returning id",
                [to_text(now), model_id],
            ).fetchone()
            if row is None:
                raise _missing()
            audit.write(db, doer, "model.restore", found.full_name, now)
            made = _within(db, model_id)
        self._sharing.change()
        return made

    def delete_version(self, model_id: int, number: int, doer: Doer, now: datetime) -> None:
        """Raises conflict for the last one, and while deployments use it; version_not_found."""
        with self._database.write() as db:
            model = _within(db, model_id)
            rows = db.execute("select id, number from model_versions where model_id = ? and deleted_at is null", [model_id]).fetchall()
            found = next((row["id"] for row in rows if row["number"] == number), None)
            if found is None:
                raise ServingError(Code.VERSION_NOT_FOUND, f"model {model.name!r} has no version {number}")
            if len(rows) == 1:
                raise ServingError(Code.CONFLICT, f"version {number} is the only one of model {model.name!r}: delete the model")
            _refuse_used(db, f"version {number} of model {model.name!r}", f"model_id = ? and ? in {IN_USE}", [model_id, found])
            db.execute("update model_versions set deleted_at = ? where id = ?", [to_text(now), found])
            _touch(db, model_id, None, now)
            audit.write(db, doer, "model.version.delete", model.full_name, now, {"version": number})

    def restore_version(self, model_id: int, number: int, doer: Doer, now: datetime) -> VersionRecord:
        """Raises version_not_found for one that was purged, or is there."""
        with self._database.write() as db:
            model = _within(db, model_id)
            row = db.execute(
                "update model_versions set deleted_at = null where model_id = ? and number = ? and deleted_at is not null returning id",
                [model_id, number],
            ).fetchone()
            if row is None:
                raise ServingError(Code.VERSION_NOT_FOUND, f"model {model.name!r} has no deleted version {number}")
            _touch(db, model_id, None, now)
            audit.write(db, doer, "model.version.restore", model.full_name, now, {"version": number})
            return _version(db.execute(f"select {_VERSION} from model_versions where id = ?", [row["id"]]).fetchone())

    def purge(self, before: datetime, doer: Doer, now: datetime, *, dry_run: bool = False) -> int:
        """Forgets the models that were deleted before then, and versions likewise, with the deployments of theirs that are gone; how many
        models. Their blobs are swept afterwards. What a deployment still has on a model host stays."""
        used = "select 1 from deployments d where d.state <> 'deleted' and d.model_id"
        gone = f"deleted_at < ? and not exists ({used} = models.id)"
        with self._database.read() as db:
            found = db.execute(f"select id from models where {gone}", [to_text(before)]).fetchall()
        if dry_run:
            return len(found)
        count = 0
        for row in found:
            with self._database.write() as db:
                count += _purge(db, row["id"], f"{gone} and id = ?", to_text(before), doer, now)
        with self._database.write() as db:
            db.execute(
                "delete from model_versions where deleted_at < ? and not exists"
                f" (select 1 from deployments d where d.model_id = model_versions.model_id and model_versions.id in {IN_USE})",
                [to_text(before)],
            )
        return count

    def _one(self, where: str, *given: object) -> ModelRecord | None:
        with self._database.read() as db:
            row = db.execute(f"{_SELECT} where {where}", list(given)).fetchone()
        return None if row is None else _record(row)

    def _version(self, where: str, *given: object) -> VersionRecord | None:
        with self._database.read() as db:
            row = db.execute(f"select {_VERSION} from model_versions where {where}", list(given)).fetchone()
        return None if row is None else _version(row)


def _refuse_taken(db: SqliteDatabase, owner_id: int, name: str) -> None:
    """The write lock is held."""
    if db.execute("select 1 from models where owner_id = ? and name = ? and deleted_at is null", [owner_id, name]).fetchone():
        raise ServingError(Code.ALREADY_EXISTS, f"name: there is a model {name!r}")


def _refuse_used(db: SqliteDatabase, what: str, where: str, given: Sequence[Any]) -> None:
    rows = db.execute(
        "select u.name || '.' || d.name as name from deployments d join users u on u.id = d.owner_id"
        f" where d.deleted_at is null and {where} order by 1 limit 11",
        given,
    ).fetchall()
    if rows:
        names = ", ".join(row["name"] for row in rows[:10]) + (", ..." if len(rows) > 10 else "")
        raise ServingError(Code.CONFLICT, f"{what} is used by {names}: delete or change that first")


def _touch(db: SqliteDatabase, model_id: int, revision: int | None, now: datetime) -> bool:
    """Counts a change. False where it is another revision than asked. Raises model_not_found."""
    row = db.execute("select revision from models where id = ? and deleted_at is null", [model_id]).fetchone()
    if row is None:
        raise _missing()
    if revision not in (None, row["revision"]):
        return False
    db.execute("update models set revision = revision + 1, updated_at = ? where id = ?", [to_text(now), model_id])
    return True


def _missing() -> ServingError:
    return ServingError(Code.MODEL_NOT_FOUND, "the model is not there any more")


def _set_tags(db: SqliteDatabase, model_id: int, tags: Sequence[str]) -> None:
    db.execute("delete from model_tags where model_id = ?", [model_id])
    for tag in tags:
        db.execute("insert or ignore into model_tags (model_id, tag) values (?, ?)", [model_id, tag])


def _add_version(db: SqliteDatabase, model_id: int, version: NewVersion, doer: Doer, now: datetime) -> int:
    number = db.execute("update models set versions = versions + 1 where id = ? returning versions", [model_id]).fetchone()["versions"]
    row = db.execute(
        "insert into model_versions (model_id, number, format, sha256, size, file_name, signature, facts, measured, created_by, created_at)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) returning id",
        [
            *(model_id, number, version.format, version.sha256, version.size, version.file_name),
            *(json.dumps(value) for value in (version.signature, version.facts, version.measured)),
            *(doer.user_id, to_text(now)),
        ],
    ).fetchone()
    for file in version.files:
        db.execute("insert into version_files values (?, ?, ?, ?, ?)", [row["id"], file.name, file.sha256, file.size, int(file.beside)])
    return int(number)


def _purge(db: SqliteDatabase, model_id: int, gone: str, before: str, doer: Doer, now: datetime) -> int:
    if db.execute(f"select 1 from models where {gone}", [before, model_id]).fetchone() is None:
        return 0  # restored, or used, meanwhile
    name = _within(db, model_id).full_name
    db.execute("update tasks set deployment_id = null where deployment_id in (select id from deployments where model_id = ?)", [model_id])
    db.execute("delete from deployments where model_id = ?", [model_id])
    db.execute("delete from models where id = ?", [model_id])
    audit.write(db, doer, "model.purge", name, now)
    return 1


def _within(db: SqliteDatabase, model_id: int) -> ModelRecord:
    row = db.execute(f"{_SELECT} where m.id = ?", [model_id]).fetchone()
    if row is None:
        raise _missing()
    return _record(row)


def _record(row: Any) -> ModelRecord:
    values = dict(row)
    return ModelRecord(**{**values, "tags": tuple(json.loads(values["tags"]))})


def _version(row: Any) -> VersionRecord:
    values = {key: row[key] for key in _VERSION.split(", ")}
    return VersionRecord(**values | {key: json.loads(values[key]) for key in ("signature", "facts", "measured")})
