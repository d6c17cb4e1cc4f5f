"""API keys, of which only the SHA-256 is kept."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from gateway.clock import to_text
from gateway.storage import audit
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from gateway.storage.marks import Mark
from gateway.types import Principal, Role, Scope
from idl.codes import Code, ServingError

MOST = 100
"""Of one user."""
_COLUMNS = "id, user_id, name, scopes, created_at, expires_at, last_used_at"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key that was not revoked. `last_used_at` is right to the minute."""

    id: str
    user_id: int
    name: str
    scopes: frozenset[Scope]
    created_at: str
    expires_at: str | None
    last_used_at: str | None


class Holder(NamedTuple):
    """Who a key stands for, and what has to be looked at besides."""

    principal: Principal
    secret_hash: str
    expires_at: str | None
    last_used_at: str | None


class ApiKeys:
    """`principals` is changed when a key ends."""

    def __init__(self, database: Database, principals: Mark) -> None:
        self._database = database
        self._principals = principals

    def create(
        self,
        key_id: str,
        user_id: int,
        name: str,
        secret_hash: str,
        scopes: frozenset[Scope],
        now: datetime,
        expires_at: datetime | None,
        doer: Doer,
    ) -> KeyRecord:
        """Raises conflict where the user has as many as one may have."""
        with self._database.write() as db:
            count = db.execute("select count(*) as n from api_keys where user_id = ? and revoked_at is null", [user_id]).fetchone()["n"]
            if count >= MOST:
                raise ServingError(Code.CONFLICT, f"there are {MOST} API keys already: revoke one first")
            listed = sorted(scopes)
            row = db.execute(
                "insert into api_keys (id, user_id, name, secret_hash, scopes, created_at, expires_at) values (?, ?, ?, ?, ?, ?, ?)"
                f" returning {_COLUMNS}",
                [key_id, user_id, name, secret_hash, json.dumps(listed), to_text(now), to_text(expires_at) if expires_at else None],
            ).fetchone()
            audit.write(db, doer, "api_key.create", key_id, now, {"name": name, "scopes": listed})
        return _record(row)

    def page(self, user_id: int, after: tuple[str, str] | None, count: int) -> list[KeyRecord]:
        """The user's, oldest first, after the one with that (`created_at`, `id`)."""
        since, key_id = after or ("", "")
        with self._database.read() as db:
            rows = db.execute(
                f"select {_COLUMNS} from api_keys where user_id = ? and revoked_at is null and (created_at, id) > (?, ?)"
                " order by created_at, id limit ?",
                [user_id, since, key_id, count],
            ).fetchall()
        return [_record(row) for row in rows]

    def read(self, user_id: int, key_id: str) -> KeyRecord | None:
        with self._database.read() as db:
            row = db.execute(
                f"select {_COLUMNS} from api_keys where id = ? and user_id = ? and revoked_at is null", [key_id, user_id]
            ).fetchone()
        return None if row is None else _record(row)

    def revoke(self, user_id: int, key_id: str, now: datetime, doer: Doer) -> bool:
        """False where the user has no such key."""
        with self._database.write() as db:
            row = db.execute(
                "update api_keys set revoked_at = ? where id = ? and user_id = ? and revoked_at is null returning id",
                [to_text(now), key_id, user_id],
            ).fetchone()
            if row is not None:
                audit.write(db, doer, "api_key.revoke", key_id, now)
        self._principals.change()
        return row is not None

    def holder(self, key_id: str) -> Holder | None:
        """Who a key stands for, with the role of this moment, whatever its secret; None for one that ended, or whose user cannot sign in.

        Without the scope admin a key is a plain user's, whatever the role of its owner.
        """
        with self._database.read() as db:
            row = db.execute(
                "select k.id, k.secret_hash, k.scopes, k.expires_at, k.last_used_at, u.id as user_id, u.name, u.role"
                " from api_keys k join users u on u.id = k.user_id"
                " where k.id = ? and k.revoked_at is null and u.deleted_at is null and u.disabled_at is null",
                [key_id],
            ).fetchone()
        if row is None:
            return None
        scopes = _scopes(row["scopes"])
        role = Role(row["role"]) if Scope.ADMIN in scopes else Role.USER
        principal = Principal(row["user_id"], row["name"], role, row["id"], scopes, by_key=True)
        return Holder(principal, row["secret_hash"], row["expires_at"], row["last_used_at"])

    def used(self, key_id: str, now: datetime) -> None:
        with self._database.write() as db:
            db.execute("update api_keys set last_used_at = ? where id = ?", [to_text(now), key_id])


def _record(row: Any) -> KeyRecord:
    values = dict(row)
    return KeyRecord(**{**values, "scopes": _scopes(values["scopes"])})


def _scopes(text: str) -> frozenset[Scope]:
    return frozenset(map(Scope, json.loads(text)))
