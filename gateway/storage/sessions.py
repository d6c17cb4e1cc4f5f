"""Sign-ins and their refresh tokens, of which only the SHA-256 is kept."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage import account_rows
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from gateway.storage.marks import Mark
from gateway.types import Principal, Role

MOST = 10_000
"""Sign-ins of one user that are remembered, ended ones included, until they expire."""
MOST_TOKENS = 1_000
"""Refresh tokens of one sign-in that are remembered: one that was used long before is as unknown as any other."""
_SWEEP = 100
"""Most expired sessions that one new sign-in clears away: no request pays for a long backlog."""
MOST_AGENT = 300
"""Characters of what a browser calls itself that are kept."""


class Rotation(Enum):
    """What became of a refresh token that was shown."""

    DONE = "done"
    INVALID = "invalid"
    REUSED = "reused"


@dataclass(frozen=True, slots=True)
class Rotated:
    """`principal` is there where the rotation was done."""

    outcome: Rotation
    principal: Principal | None = None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A sign-in that has not ended. `agent`: what the browser calls itself, "" for a program's; `address` "": not known."""

    id: str
    created_at: str
    expires_at: str
    address: str
    agent: str


class Sessions:
    """`principals` is changed with every change of what `principal` answers."""

    def __init__(self, database: Database, principals: Mark) -> None:
        self._database = database
        self._principals = principals

    def begin(
        self, session_id: str, user_id: int, token_hash: str, now: datetime, expires_at: datetime, address: str = "", agent: str = ""
    ) -> None:
        """A sign-in, with its first refresh token. Beyond MOST of one user the oldest one ends."""
        with self._database.write() as db:
            _forget_expired(db, now)
            oldest = "select rowid from sessions where user_id = ? order by rowid desc limit 1 offset ?"
            ended = db.execute(
                f"delete from sessions where user_id = ? and rowid <= ({oldest}) returning id", [user_id, user_id, MOST - 1]
            ).fetchall()
            db.execute(
                "insert into sessions (id, user_id, created_at, expires_at, address, agent) values (?, ?, ?, ?, ?, ?)",
                [session_id, user_id, to_text(now), to_text(expires_at), address, agent],
            )
            _add_token(db, session_id, token_hash, now, expires_at)
        if ended:
            self._principals.change()

    def rotate(self, old_hash: str, new_hash: str, now: datetime, expires_at: datetime) -> Rotated:
        """Replaces a refresh token by the next one. A token that was replaced before ends the session: somebody holds a copy."""
        rotated = self._rotate(old_hash, new_hash, now, expires_at)
        if rotated.outcome is Rotation.REUSED:
            self._principals.change()
        return rotated

    def _rotate(self, old_hash: str, new_hash: str, now: datetime, expires_at: datetime) -> Rotated:
        with self._database.write() as db:
            row = db.execute(
                "select t.id, t.session_id, t.expires_at, t.replaced_by, s.revoked_at, u.id as user_id, u.name, u.role,"
                " coalesce(u.deleted_at, u.disabled_at) as ended_at"
                " from refresh_tokens t join sessions s on s.id = t.session_id join users u on u.id = s.user_id where t.token_hash = ?",
                [old_hash],
            ).fetchone()
            if row is None or row["revoked_at"] is not None or row["ended_at"] is not None or row["expires_at"] <= to_text(now):
                return Rotated(Rotation.INVALID)
            if row["replaced_by"] is not None:
                _revoke(db, row["session_id"], now)
                return Rotated(Rotation.REUSED)
            db.execute("delete from refresh_tokens where session_id = ? and expires_at <= ?", [row["session_id"], to_text(now)])
            successor = _add_token(db, row["session_id"], new_hash, now, expires_at)
            db.execute("update refresh_tokens set replaced_by = ? where id = ?", [successor, row["id"]])
            oldest = "select id from refresh_tokens where session_id = ? order by id desc limit 1 offset ?"
            db.execute(f"delete from refresh_tokens where session_id = ? and id < ({oldest})", [row["session_id"]] * 2 + [MOST_TOKENS - 1])
            db.execute("update sessions set expires_at = ? where id = ?", [to_text(expires_at), row["session_id"]])
            return Rotated(Rotation.DONE, _principal(row))

    def revoke(self, session_id: str, now: datetime) -> None:
        with self._database.write() as db:
            _revoke(db, session_id, now)
        self._principals.change()

    def revoke_of(self, user_id: int, session_id: str, now: datetime, doer: Doer) -> bool:
        """Ends one of the user's; False where there is no such one, or it has ended."""
        with self._database.write() as db:
            row = db.execute(
                "select created_at, address, agent from sessions where id = ? and user_id = ? and revoked_at is null", [session_id, user_id]
            ).fetchone()
            if row is not None:
                _revoke(db, session_id, now)
                account_rows.note(db, doer, "user.sign_out_session", user_id, now, dict(row))
        if row is not None:
            self._principals.change()
        return row is not None

    def page(self, user_id: int, now: datetime, count: int) -> list[SessionRecord]:
        """The user's that have not ended, newest first."""
        with self._database.read() as db:
            rows = db.execute(
                "select id, created_at, expires_at, address, agent from sessions where user_id = ? and revoked_at is null and expires_at > ?"
                " order by rowid desc limit ?",
                [user_id, to_text(now), count],
            ).fetchall()
        return [SessionRecord(**dict(row)) for row in rows]

    def principal(self, session_id: str) -> Principal | None:
        """Who is behind a session, with the role of this moment; None where it was revoked, or its user deleted or disabled."""
        with self._database.read() as db:
            row = db.execute(
                "select s.id as session_id, u.id as user_id, u.name, u.role from sessions s join users u on u.id = s.user_id"
                " where s.id = ? and s.revoked_at is null and u.deleted_at is null and u.disabled_at is null",
                [session_id],
            ).fetchone()
        return None if row is None else _principal(row)


def _add_token(db: SqliteDatabase, session_id: str, token_hash: str, now: datetime, expires_at: datetime) -> int:
    row = db.execute(
        "insert into refresh_tokens (session_id, token_hash, created_at, expires_at) values (?, ?, ?, ?) returning id",
        [session_id, token_hash, to_text(now), to_text(expires_at)],
    ).fetchone()
    return int(row["id"])


def _revoke(db: SqliteDatabase, session_id: str, now: datetime) -> None:
    db.execute("update sessions set revoked_at = ? where id = ? and revoked_at is null", [to_text(now), session_id])


def _forget_expired(db: SqliteDatabase, now: datetime) -> None:
    old = "select id from sessions where expires_at <= ? limit ?"
    db.execute(f"delete from sessions where id in ({old})", [to_text(now), _SWEEP])


def _principal(row: Any) -> Principal:
    return Principal(row["user_id"], row["name"], Role(row["role"]), row["session_id"])
