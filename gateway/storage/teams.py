"""Teams and their members."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.clock import to_text
from gateway.storage.database import Database
from gateway.storage.marks import Mark
from idl.codes import Code, ServingError

_COLUMNS = "id, name, revision, created_at, updated_at"


@dataclass(frozen=True, slots=True)
class TeamRecord:
    """A team that was not deleted."""

    id: int
    name: str
    revision: int
    created_at: str
    updated_at: str


class Teams:
    """`sharing` is changed with every change of who belongs to what."""

    def __init__(self, database: Database, sharing: Mark) -> None:
        self._database = database
        self._sharing = sharing

    def create(self, name: str, owner_id: int, now: datetime) -> TeamRecord:
        """A team with its first owner. Raises already_exists."""
        with self._database.write() as db:
            if db.execute("select 1 from teams where name = ?", [name]).fetchone():
                raise ServingError(Code.ALREADY_EXISTS, f"name: the team name {name!r} is taken")
            row = db.execute(
                f"insert into teams (name, created_at, updated_at) values (?, ?, ?) returning {_COLUMNS}",
                [name, to_text(now), to_text(now)],
            ).fetchone()
            db.execute("insert into team_members values (?, ?, 'owner', ?)", [row["id"], owner_id, to_text(now)])
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

    def roles_of(self, user_id: int) -> dict[int, str]:
        """Team -> the user's role there."""
        with self._database.read() as db:
            rows = db.execute(
                "select m.team_id, m.role from team_members m join teams t on t.id = m.team_id where m.user_id = ? and t.deleted_at is null",
                [user_id],
            ).fetchall()
        return {row["team_id"]: row["role"] for row in rows}


def _record(row: Any) -> TeamRecord:
    return TeamRecord(**dict(row))
