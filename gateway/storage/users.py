"""Accounts."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage.database import Database
from gateway.storage.marks import Mark
from gateway.types import Role
from idl.codes import Code, ServingError

_COLUMNS = "id, name, email, password_hash, role, created_at, updated_at"


@dataclass(frozen=True, slots=True)
class UserRecord:
    """An account that was not deleted; times are UTC, ISO 8601."""

    id: int
    name: str
    email: str | None
    password_hash: str
    role: Role
    created_at: str
    updated_at: str

    def __repr__(self) -> str:
        return f"UserRecord(id={self.id}, name={self.name!r}, role={self.role.value})"


class Users:
    """The accounts of the database."""

    def __init__(self, database: Database, principals: Mark) -> None:
        """`principals` is changed with every change of an account that has sessions."""
        self._database = database
        self._principals = principals

    def create(self, name: str, email: str | None, password_hash: str, role: Role, now: datetime, *, signup_hash: str = "") -> UserRecord:
        """Raises already_exists for a name or address that is taken, forbidden for a sign-up token that is not valid (any more).

        `signup_hash`: the invitation that gives the role instead of `role`; it is used up in the same transaction.
        """
        with self._database.write() as db:
            if signup_hash:
                role = _invited_role(db, signup_hash, now)
            _refuse_taken(db, name, email, 0)
            row = db.execute(
                "insert into users (name, email, password_hash, role, created_at, updated_at) values (?, ?, ?, ?, ?, ?)"
                f" returning {_COLUMNS}",
                [name, email, password_hash, role.value, to_text(now), to_text(now)],
            ).fetchone()
            if signup_hash:
                db.execute("update signups set used_by = ? where token_hash = ?", [row["id"], signup_hash])
            return _record(row)

    def by_id(self, user_id: int) -> UserRecord | None:
        return self._one("id = ?", user_id)

    def by_name(self, name: str) -> UserRecord | None:
        return self._one("name = ?", name)

    def by_email(self, email: str) -> UserRecord | None:
        return self._one("email = ?", email)

    def _one(self, condition: str, value: object) -> UserRecord | None:
        with self._database.read() as db:
            row = db.execute(f"select {_COLUMNS} from users where {condition} and deleted_at is null", [value]).fetchone()
        return None if row is None else _record(row)

    def has_administrator(self) -> bool:
        with self._database.read() as db:
            return db.execute("select 1 from users where role = 'administrator' and deleted_at is null").fetchone() is not None

    def set_email(self, user_id: int, email: str | None, now: datetime) -> None:
        """Raises already_exists for an address that is taken."""
        with self._database.write() as db:
            _refuse_taken(db, None, email, user_id)
            _set(db, user_id, "email", email, now)

    def set_password(self, user_id: int, password_hash: str, now: datetime, *, keep_session: str) -> None:
        """Also ends every session of the user except `keep_session`."""
        with self._database.write() as db:
            _set(db, user_id, "password_hash", password_hash, now)
            db.execute(
                "update sessions set revoked_at = ? where user_id = ? and revoked_at is null and id != ?",
                [to_text(now), user_id, keep_session],
            )
        self._principals.change()

    def rehash(self, user_id: int, old_hash: str, new_hash: str) -> None:
        """The same password under today's parameters, unless it was changed meanwhile."""
        with self._database.write() as db:
            db.execute("update users set password_hash = ? where id = ? and password_hash = ?", [new_hash, user_id, old_hash])

    def delete(self, user_id: int, now: datetime) -> None:
        """Marks the account as deleted and ends its sessions. Raises conflict for the last administrator."""
        with self._database.write() as db:
            others = "select 1 from users where role = 'administrator' and deleted_at is null and id != ?"
            row = db.execute("select role from users where id = ? and deleted_at is null", [user_id]).fetchone()
            if row is None:
                return
            if row["role"] == Role.ADMINISTRATOR and db.execute(others, [user_id]).fetchone() is None:
                raise ServingError(Code.CONFLICT, "the last administrator cannot be deleted: make another one first")
            _set(db, user_id, "deleted_at", to_text(now), now)
            db.execute("update sessions set revoked_at = ? where user_id = ? and revoked_at is null", [to_text(now), user_id])
        self._principals.change()


def _set(db: SqliteDatabase, user_id: int, column: str, value: str | None, now: datetime) -> None:
    db.execute(f"update users set {column} = ?, updated_at = ? where id = ? and deleted_at is null", [value, to_text(now), user_id])


def _refuse_taken(db: SqliteDatabase, name: str | None, email: str | None, user_id: int) -> None:
    """The write lock is held: what is free now stays free until the transaction ends."""
    if name is not None and db.execute("select 1 from users where name = ?", [name]).fetchone():
        raise ServingError(Code.ALREADY_EXISTS, f"username: {name!r} is taken")
    taken = "select 1 from users where email = ? and deleted_at is null and id != ?"
    if email is not None and db.execute(taken, [email, user_id]).fetchone():
        raise ServingError(Code.ALREADY_EXISTS, "email: an account with this address exists")


def _invited_role(db: SqliteDatabase, signup_hash: str, now: datetime) -> Role:
    row = db.execute("select role, expires_at, used_by from signups where token_hash = ?", [signup_hash]).fetchone()
    if row is None or row["used_by"] is not None or row["expires_at"] <= to_text(now):
        raise ServingError(Code.FORBIDDEN, "signup_token: it is not valid, was used already, or has expired")
    return Role(row["role"])


def _record(row: Any) -> UserRecord:
    values = dict(row)
    return UserRecord(**{**values, "role": Role(values["role"])})
