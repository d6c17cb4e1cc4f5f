"""Accounts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.errors import ChangedMeanwhile
from gateway.storage import account_rows, audit, teams
from gateway.storage.audit import GATEWAY, Doer
from gateway.storage.database import Database
from gateway.storage.marks import Mark
from gateway.types import Role
from idl.codes import Code, ServingError

_COLUMNS = (
    "id, name, email, password_hash, role, created_at, updated_at, email_verified_at, pending_email, avatar_sha256, disabled_at, quota,"
    " revision, deleted_at"
)
KEPT = "\0"
"""In the place of an address: it stays as it is."""
_OTHER_ADMINISTRATOR = "select 1 from users where role = 'administrator' and deleted_at is null and disabled_at is null and id != ?"


@dataclass(frozen=True, slots=True)
class UserRecord:
    """An account; times are UTC, ISO 8601. `deleted_at` None unless deleted ones were asked for as well."""

    id: int
    name: str
    email: str | None
    password_hash: str
    role: Role
    created_at: str
    updated_at: str
    email_verified_at: str | None
    pending_email: str | None
    avatar_sha256: str | None
    disabled_at: str | None
    quota: Mapping[str, int]
    revision: int
    deleted_at: str | None

    def __repr__(self) -> str:
        return f"UserRecord(id={self.id}, name={self.name!r}, role={self.role.value})"


@dataclass(frozen=True, slots=True)
class UserFilter:
    """What a list of accounts is narrowed to. `state`: active, disabled, deleted, or "" for the active and disabled ones."""

    search: str = ""
    role: str = ""
    state: str = ""


class Users:
    """The accounts of the database."""

    def __init__(self, database: Database, principals: Mark, sharing: Mark) -> None:
        """`principals` is changed with every change of an account that has sessions, `sharing` when one comes or goes."""
        self._database = database
        self._principals = principals
        self._sharing = sharing

    def create(
        self,
        name: str,
        email: str | None,
        password_hash: str,
        role: Role,
        now: datetime,
        *,
        signup_hash: str = "",
        verified: bool = False,
        doer: Doer = GATEWAY,
    ) -> UserRecord:
        """Raises already_exists for a name or address that is taken, forbidden for a sign-up token that is not valid (any more).

        `signup_hash`: the invitation that gives the role instead of `role`; it is used up in the same transaction. `verified`: the address
        is known to be the account's. A doer without an id and a name is the new account itself.
        """
        with self._database.write() as db:
            if signup_hash:
                role = _invited_role(db, signup_hash, now)
            return create(db, name, email, password_hash, role, now, signup_hash=signup_hash, verified=verified, doer=doer)

    def by_id(self, user_id: int, *, deleted: bool = False) -> UserRecord | None:
        return self._one("id = ?", user_id, deleted)

    def by_name(self, name: str, *, deleted: bool = False) -> UserRecord | None:
        return self._one("name = ?", name, deleted)

    def by_email(self, email: str) -> UserRecord | None:
        return self._one("email = ?", email, False)

    def _one(self, condition: str, value: object, deleted: bool) -> UserRecord | None:
        alive = "" if deleted else "and deleted_at is null"
        with self._database.read() as db:
            row = db.execute(f"select {_COLUMNS} from users where {condition} {alive}", [value]).fetchone()
        return None if row is None else _record(row)

    def page(self, wanted: UserFilter, after: int, count: int) -> list[UserRecord]:
        """At most `count` accounts, in the order of their making, after the one with the id `after`."""
        states = {
            "active": "deleted_at is null and disabled_at is null",
            "disabled": "deleted_at is null and disabled_at is not null",
            "deleted": "deleted_at is not null",
            "": "deleted_at is null",
        }
        conditions = ["id > ?", states[wanted.state]]
        found: list[Any] = [after]
        if wanted.search:
            conditions.append("(instr(lower(name), ?) or instr(lower(coalesce(email, '')), ?))")
            found += [wanted.search.lower()] * 2
        if wanted.role:
            conditions.append("role = ?")
            found.append(wanted.role)
        with self._database.read() as db:
            rows = db.execute(
                f"select {_COLUMNS} from users where {' and '.join(conditions)} order by id limit ?", [*found, count]
            ).fetchall()
        return [_record(row) for row in rows]

    def has_administrator(self) -> bool:
        with self._database.read() as db:
            return db.execute("select 1 from users where role = 'administrator' and deleted_at is null").fetchone() is not None

    def change_own(
        self,
        user_id: int,
        now: datetime,
        *,
        email: str | None = KEPT,
        password_hash: str = "",
        keep_session: str = "",
        revision: int | None = None,
        doer: Doer = GATEWAY,
    ) -> UserRecord:
        """What somebody changes of their own account, all of it or nothing; the account as it is then. `password_hash` "": it stays.

        An address takes the place of one that nothing has confirmed at once; beside one that was confirmed it waits, as the pending one, for
        its code. None takes it away. A new password ends every session except `keep_session`, and what waits: whoever asked for it may
        have had the old password. Raises not_found, already_exists for an address that is taken, ChangedMeanwhile for another revision.
        """
        with self._database.write() as db:
            row = db.execute("select * from users where id = ? and deleted_at is null", [user_id]).fetchone()
            if row is None:
                raise ServingError(Code.NOT_FOUND, "there is no such account")
            if revision is not None and revision != row["revision"]:
                raise ChangedMeanwhile
            if password_hash:
                account_rows.forget_codes(db, row, ("address", "reset"))
                account_rows.put(db, user_id, now, password_hash=password_hash, pending_email=None)
                account_rows.end_sessions(db, user_id, now, keep_session)
                account_rows.note(db, doer, "user.password", user_id, now)
            if email != KEPT:
                account_rows.change_email(db, row, email, now, doer)
            changed = read(db, user_id)
        if password_hash:
            self._principals.change()
        assert changed is not None
        return changed

    def rehash(self, user_id: int, old_hash: str, new_hash: str) -> None:
        """The same password under today's parameters, unless it was changed meanwhile."""
        with self._database.write() as db:
            db.execute("update users set password_hash = ? where id = ? and password_hash = ?", [new_hash, user_id, old_hash])

    def end_sessions(self, user_id: int, now: datetime, *, keep: str = "", doer: Doer = GATEWAY) -> None:
        """Every one of the user's but `keep`."""
        with self._database.write() as db:
            account_rows.end_sessions(db, user_id, now, keep)
            account_rows.note(db, doer, "user.sign_out_everywhere", user_id, now)
        self._principals.change()

    def set_avatar(self, user_id: int, sha256: str | None, now: datetime, *, doer: Doer = GATEWAY) -> None:
        with self._database.write() as db:
            account_rows.put(db, user_id, now, avatar_sha256=sha256)
            account_rows.note(db, doer, "user.avatar", user_id, now)

    def change(
        self,
        user_id: int,
        now: datetime,
        *,
        role: Role | None,
        disabled: bool | None,
        quota: Mapping[str, int] | None,
        revision: int | None,
        doer: Doer,
    ) -> None:
        """What an administrator changes; None leaves a thing as it is. Ends the sessions of whoever is disabled.

        Raises not_found, conflict where no administrator would be left, ChangedMeanwhile for another revision.
        """
        with self._database.write() as db:
            row = db.execute("select * from users where id = ? and deleted_at is null", [user_id]).fetchone()
            if row is None:
                raise ServingError(Code.NOT_FOUND, "there is no such account")
            if revision is not None and revision != row["revision"]:
                raise ChangedMeanwhile
            changes: dict[str, Any] = {}
            if role is not None and role != row["role"]:
                changes["role"] = role.value
            if disabled is not None and disabled != (row["disabled_at"] is not None):
                changes["disabled_at"] = to_text(now) if disabled else None
            if quota is not None and dict(quota) != json.loads(row["quota"]):
                changes["quota"] = json.dumps(dict(quota), sort_keys=True)
            if "role" in changes or changes.get("disabled_at"):
                _keep_an_administrator(db, row, "changed so")
            if not changes:
                return
            account_rows.put(db, user_id, now, **changes)
            if changes.get("disabled_at"):
                account_rows.end_sessions(db, user_id, now, "")
            account_rows.note(db, doer, "user.change", user_id, now, changes)
        self._principals.change()
        self._sharing.change()

    def delete(self, user_id: int, now: datetime, *, leave_teams: bool = False, doer: Doer = GATEWAY) -> None:
        """Marks the account as deleted and ends its sessions. Raises conflict for the last administrator, and with `leave_teams` for the last
        owner of a team that has other members; without, memberships stay for a restore."""
        with self._database.write() as db:
            row = db.execute("select * from users where id = ? and deleted_at is null", [user_id]).fetchone()
            if row is None:
                return
            _keep_an_administrator(db, row, "deleted")
            who = doer if doer.name else Doer(user_id, row["name"], doer.address, doer.request_id)
            if leave_teams:
                teams.leave_all(db, user_id, now, who)
            audit.write(db, who, "user.delete", row["name"], now)
            account_rows.forget_codes(db, row, account_rows.PURPOSES)
            account_rows.put(db, user_id, now, deleted_at=to_text(now), pending_email=None)
            account_rows.end_sessions(db, user_id, now, "")
        self._principals.change()
        self._sharing.change()

    def restore(self, user_id: int, now: datetime, *, doer: Doer) -> None:
        """Takes a deletion back; the address comes back without being confirmed, or not where somebody else has it now."""
        with self._database.write() as db:
            row = db.execute("select email from users where id = ? and deleted_at is not null", [user_id]).fetchone()
            if row is None:
                raise ServingError(Code.NOT_FOUND, "there is no such deleted account")
            taken = db.execute("select 1 from users where email = ? and deleted_at is null", [row["email"]]).fetchone()
            email = None if taken else row["email"]
            db.execute(
                "update users set deleted_at = null, email = ?, email_verified_at = null, updated_at = ?, revision = revision + 1 where id = ?",
                [email, to_text(now), user_id],
            )
            account_rows.note(db, doer, "user.restore", user_id, now, {"email_lost": True} if taken else {})
        self._principals.change()
        self._sharing.change()


# inside somebody's transaction -------------------------------------------------------------------------------------------------------


def create(
    db: SqliteDatabase,
    name: str,
    email: str | None,
    password_hash: str,
    role: Role,
    now: datetime,
    *,
    signup_hash: str = "",
    verified: bool = False,
    doer: Doer = GATEWAY,
) -> UserRecord:
    """As `Users.create`, with the role that it has been given."""
    account_rows.refuse_taken(db, name, email, 0)
    row = db.execute(
        "insert into users (name, email, email_verified_at, password_hash, role, created_at, updated_at) values (?, ?, ?, ?, ?, ?, ?)"
        f" returning {_COLUMNS}",
        [name, email, to_text(now) if verified else None, password_hash, role.value, to_text(now), to_text(now)],
    ).fetchone()
    if signup_hash:
        db.execute("update signups set used_by = ? where token_hash = ?", [row["id"], signup_hash])
    who = doer if doer.name else Doer(row["id"], name, doer.address, doer.request_id)
    audit.write(db, who, "user.create", name, now, {"role": role.value})
    return _record(row)


def read(db: SqliteDatabase, user_id: int) -> UserRecord | None:
    """A deleted one as well."""
    row = db.execute(f"select {_COLUMNS} from users where id = ?", [user_id]).fetchone()
    return None if row is None else _record(row)


def _keep_an_administrator(db: SqliteDatabase, row: Any, what: str) -> None:
    is_one = row["role"] == Role.ADMINISTRATOR and row["disabled_at"] is None
    if is_one and db.execute(_OTHER_ADMINISTRATOR, [row["id"]]).fetchone() is None:
        raise ServingError(Code.CONFLICT, f"the last administrator cannot be {what}: make another one first")


def _invited_role(db: SqliteDatabase, signup_hash: str, now: datetime) -> Role:
    row = db.execute("select role, expires_at, used_by from signups where token_hash = ?", [signup_hash]).fetchone()
    if row is None or row["used_by"] is not None or row["expires_at"] <= to_text(now):
        raise ServingError(Code.FORBIDDEN, "signup_token: it is not valid, was used already, or has expired")
    return Role(row["role"])


def _record(row: Any) -> UserRecord:
    values = dict(row)
    return UserRecord(**{**values, "role": Role(values["role"]), "quota": json.loads(values["quota"])})
