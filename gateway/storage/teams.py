"""Teams and their members."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.errors import ChangedMeanwhile
from gateway.storage import audit
from gateway.storage.audit import GATEWAY, Doer
from gateway.storage.database import Database
from gateway.storage.marks import Mark
from idl.codes import Code, ServingError

OWNER, EDITOR, VIEWER = "owner", "editor", "viewer"
MOST = 100
"""Teams that one may have made and not deleted."""
_COLUMNS = "id, name, revision, created_at, updated_at"
_SHARED = ("models", "deployments")
"""Tables whose rows may belong to a team."""


@dataclass(frozen=True, slots=True)
class TeamRecord:
    """A team that was not deleted."""

    id: int
    name: str
    revision: int
    created_at: str
    updated_at: str


@dataclass(frozen=True, slots=True)
class MemberRecord:
    user_id: int
    name: str
    role: str
    added_at: str


class Teams:
    """`sharing` is changed with every change of who belongs to what."""

    def __init__(self, database: Database, sharing: Mark) -> None:
        self._database = database
        self._sharing = sharing

    def create(self, name: str, owner_id: int, now: datetime, *, doer: Doer = GATEWAY) -> TeamRecord:
        """A team with its first owner. Raises already_exists, conflict where that one has made as many as one may have made.

        Those that one belongs to do not count: whoever makes a team puts into it whom they like.
        """
        with self._database.write() as db:
            count = db.execute("select count(*) as n from teams where made_by = ? and deleted_at is null", [owner_id]).fetchone()["n"]
            if count >= MOST:
                raise ServingError(Code.CONFLICT, f"you have made {MOST} teams that are still there: delete one first")
            _refuse_taken(db, name, 0)
            row = db.execute(
                f"insert into teams (name, made_by, created_at, updated_at) values (?, ?, ?, ?) returning {_COLUMNS}",
                [name, owner_id, to_text(now), to_text(now)],
            ).fetchone()
            db.execute("insert into team_members values (?, ?, 'owner', ?)", [row["id"], owner_id, to_text(now)])
            audit.write(db, doer, "team.create", name, now)
        self._sharing.change()
        return _record(row)

    def by_name(self, name: str) -> TeamRecord | None:
        with self._database.read() as db:
            row = db.execute(f"select {_COLUMNS} from teams where name = ? and deleted_at is null", [name]).fetchone()
        return None if row is None else _record(row)

    def by_id(self, team_id: int) -> TeamRecord | None:
        with self._database.read() as db:
            row = db.execute(f"select {_COLUMNS} from teams where id = ? and deleted_at is null", [team_id]).fetchone()
        return None if row is None else _record(row)

    def page(self, user_id: int | None, after: int, count: int) -> list[TeamRecord]:
        """Those of a member, of everybody where `user_id` is None, in the order of their making, after that id."""
        columns = ", ".join(f"t.{column}" for column in _COLUMNS.split(", "))
        source, mine = "teams t", list[Any]()
        if user_id is not None:  # from the memberships, however many teams there are
            source, mine = "(select team_id from team_members where user_id = ?) m cross join teams t on t.id = m.team_id", [user_id]
        with self._database.read() as db:
            rows = db.execute(
                f"select {columns} from {source} where t.deleted_at is null and t.id > ? order by t.id limit ?", [*mine, after, count]
            ).fetchall()
        return [_record(row) for row in rows]

    def role(self, team_id: int, user_id: int) -> str:
        """The user's role in a team; "" for none."""
        with self._database.read() as db:
            row = db.execute(
                "select m.role from team_members m join teams t on t.id = m.team_id"
                " where m.team_id = ? and m.user_id = ? and t.deleted_at is null",
                [team_id, user_id],
            ).fetchone()
        return "" if row is None else str(row["role"])

    def roles_of(self, user_id: int) -> dict[int, str]:
        """Team -> the user's role there."""
        with self._database.read() as db:
            rows = db.execute(
                "select m.team_id, m.role from team_members m join teams t on t.id = m.team_id where m.user_id = ? and t.deleted_at is null",
                [user_id],
            ).fetchall()
        return {row["team_id"]: row["role"] for row in rows}

    def members(self, team_id: int, after: int, count: int) -> list[MemberRecord]:
        """In the order of their accounts, after that id; those whose accounts are deleted are left out."""
        with self._database.read() as db:
            rows = db.execute(
                "select m.user_id, u.name, m.role, m.added_at from team_members m join users u on u.id = m.user_id"
                " where m.team_id = ? and u.deleted_at is null and m.user_id > ? order by m.user_id limit ?",
                [team_id, after, count],
            ).fetchall()
        return [MemberRecord(**dict(row)) for row in rows]

    def rename(self, team_id: int, name: str, now: datetime, revision: int | None, doer: Doer) -> TeamRecord:
        """Raises already_exists, not_found, ChangedMeanwhile for another revision."""
        with self._database.write() as db:
            row = _there(db, team_id)
            if revision is not None and revision != row["revision"]:
                raise ChangedMeanwhile
            _refuse_taken(db, name, team_id)
            changed = db.execute(
                f"update teams set name = ?, updated_at = ?, revision = revision + 1 where id = ? returning {_COLUMNS}",
                [name, to_text(now), team_id],
            ).fetchone()
            audit.write(db, doer, "team.rename", row["name"], now, {"name": name})
        return _record(changed)

    def set_member(self, team_id: int, user_id: int, role: str, now: datetime, doer: Doer) -> bool:
        """Adds a member, or changes a role; whether it was added. Raises conflict where no owner would be left, not_found."""
        with self._database.write() as db:
            team = _there(db, team_id)
            user = db.execute("select name from users where id = ? and deleted_at is null", [user_id]).fetchone()
            if user is None:
                raise ServingError(Code.NOT_FOUND, "there is no such account")
            before = _role(db, team_id, user_id)
            if before == OWNER != role:
                _keep_an_owner(db, team, user_id)
            db.execute(
                "insert into team_members values (?, ?, ?, ?) on conflict (team_id, user_id) do update set role = excluded.role",
                [team_id, user_id, role, to_text(now)],
            )
            audit.write(db, doer, "team.member", team["name"], now, {"user": user["name"], "role": role, "before": before})
        self._sharing.change()
        return before is None

    def remove_member(self, team_id: int, user_id: int, now: datetime, doer: Doer) -> bool:
        """Takes somebody out, and what is theirs out of the team's sight. False where they are no member; raises conflict, not_found."""
        with self._database.write() as db:
            team = _there(db, team_id)
            role = _role(db, team_id, user_id)
            if role is None:
                return False
            if role == OWNER:
                _keep_an_owner(db, team, user_id)
            _remove(db, team, user_id, now, doer)
        self._sharing.change()
        return True

    def delete(self, team_id: int, now: datetime, doer: Doer) -> None:
        """The team's name stays taken; what was shared with it is its owners' alone again, unless it is public. Raises not_found."""
        with self._database.write() as db:
            _delete(db, _there(db, team_id), now, doer)
        self._sharing.change()


def leave_all(db: SqliteDatabase, user_id: int, now: datetime, doer: Doer) -> None:
    """Before an account ends: teams without another member are deleted. Raises conflict where others would be left without an owner."""
    rows = db.execute(
        "select t.id, t.name, t.revision, m.role from teams t join team_members m on m.team_id = t.id"
        " where m.user_id = ? and t.deleted_at is null",
        [user_id],
    ).fetchall()
    for team in rows:
        others = db.execute(
            "select 1 from team_members m join users u on u.id = m.user_id where m.team_id = ? and m.user_id != ? and u.deleted_at is null",
            [team["id"], user_id],
        ).fetchone()
        if others is None:
            _delete(db, team, now, doer)
            continue
        if team["role"] == OWNER:
            _keep_an_owner(db, team, user_id)
        _remove(db, team, user_id, now, doer)


def _there(db: SqliteDatabase, team_id: int) -> Any:
    row = db.execute(f"select {_COLUMNS} from teams where id = ? and deleted_at is null", [team_id]).fetchone()
    if row is None:
        raise ServingError(Code.NOT_FOUND, "there is no such team")
    return row


def _role(db: SqliteDatabase, team_id: int, user_id: int) -> str | None:
    row = db.execute("select role from team_members where team_id = ? and user_id = ?", [team_id, user_id]).fetchone()
    return None if row is None else str(row["role"])


def _keep_an_owner(db: SqliteDatabase, team: Any, user_id: int) -> None:
    another = db.execute(
        "select 1 from team_members m join users u on u.id = m.user_id"
        " where m.team_id = ? and m.role = 'owner' and m.user_id != ? and u.deleted_at is null",
        [team["id"], user_id],
    ).fetchone()
    if another is None:
        raise ServingError(Code.CONFLICT, f"team {team['name']!r} would be left without an owner: make another one first")


def _remove(db: SqliteDatabase, team: Any, user_id: int, now: datetime, doer: Doer) -> None:
    _unshare(db, team["id"], now, user_id)
    db.execute("delete from team_members where team_id = ? and user_id = ?", [team["id"], user_id])
    name = db.execute("select name from users where id = ?", [user_id]).fetchone()["name"]
    audit.write(db, doer, "team.leave", team["name"], now, {"user": name})


def _delete(db: SqliteDatabase, team: Any, now: datetime, doer: Doer) -> None:
    _unshare(db, team["id"], now)
    db.execute("update teams set deleted_at = ?, updated_at = ?, revision = revision + 1 where id = ?", [to_text(now)] * 2 + [team["id"]])
    db.execute("delete from team_members where team_id = ?", [team["id"]])
    audit.write(db, doer, "team.delete", team["name"], now)


def _unshare(db: SqliteDatabase, team_id: int, now: datetime, owner_id: int | None = None) -> None:
    """Of all owners, or of one."""
    for table in _SHARED:
        db.execute(
            f"update {table} set team_id = null, updated_at = ?, revision = revision + 1,"
            " visibility = case visibility when 'team' then 'private' else visibility end"
            " where team_id = ? and (? is null or owner_id = ?)",
            [to_text(now), team_id, owner_id, owner_id],
        )


def _refuse_taken(db: SqliteDatabase, name: str, team_id: int) -> None:
    if db.execute("select 1 from teams where name = ? and id != ?", [name, team_id]).fetchone():
        raise ServingError(Code.ALREADY_EXISTS, f"name: the team name {name!r} is taken")


def _record(row: Any) -> TeamRecord:
    return TeamRecord(**dict(row))
