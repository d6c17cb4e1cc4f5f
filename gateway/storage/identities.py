"""Identities at OpenID providers, and sign-ins there that have begun."""

import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage import audit, users
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from gateway.storage.users import UserRecord
from gateway.types import Role
from idl.codes import Code, ServingError

_SWEEP = 100
_MOST_NAMES = 50


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a sign-in that has begun must come back with."""

    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """Who a provider says that somebody is. `email` None: none that the provider has verified; `name`: what a new account would be called."""

    issuer: str
    subject: str
    email: str | None
    name: str


class Identities:
    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, state_hash: str, browser_hash: str, attempt: Attempt, now: datetime, expires_at: datetime) -> None:
        with self._database.write() as db:
            old = "select state_hash from oidc_attempts where expires_at <= ? limit ?"
            db.execute(f"delete from oidc_attempts where state_hash in ({old})", [to_text(now), _SWEEP])
            db.execute(
                "insert into oidc_attempts values (?, ?, ?, ?, ?)",
                [state_hash, browser_hash, attempt.nonce, attempt.verifier, to_text(expires_at)],
            )

    def take(self, state_hash: str, browser_hash: str, now: datetime) -> Attempt | None:
        """What was begun under the state in this browser, once."""
        with self._database.write() as db:
            row = db.execute(
                "delete from oidc_attempts where state_hash = ? and browser_hash = ? and expires_at > ? returning nonce, verifier",
                [state_hash, browser_hash, to_text(now)],
            ).fetchone()
        return None if row is None else Attempt(row["nonce"], row["verifier"])

    def account(
        self, claimed: Claimed, impossible_hash: str, now: datetime, doer: Doer, *, link_by_email: bool, create: bool
    ) -> UserRecord:
        """The account that the identity stands for.

        Where none does: with `link_by_email` the one whose own address is the verified one of the provider, if it was confirmed here as
        well; else with `create` a new one. Raises forbidden where neither is, and for an account that is disabled or deleted.
        """
        with self._database.write() as db:
            row = db.execute(
                "select user_id from identities where issuer = ? and subject = ?", [claimed.issuer, claimed.subject]
            ).fetchone()
            known = None if row is None else users.read(db, row["user_id"])
            if known is None:
                known = _same_address(db, claimed.email) if link_by_email and claimed.email else None
                if known is None and not create:
                    raise ServingError(Code.FORBIDDEN, "no account here belongs to this identity, and none is made for it")
                known = known or _create(db, claimed, impossible_hash, now, doer)
                self_made = Doer(known.id, known.name, doer.address, doer.request_id)
                db.execute("insert into identities values (?, ?, ?, ?)", [claimed.issuer, claimed.subject, known.id, to_text(now)])
                audit.write(db, self_made, "user.identity", known.name, now, {"issuer": claimed.issuer})
            if known.deleted_at or known.disabled_at:
                raise ServingError(Code.FORBIDDEN, "the account is disabled or deleted: ask an administrator")
        return known


def _same_address(db: SqliteDatabase, email: str) -> UserRecord | None:
    row = db.execute("select id from users where email = ? and email_verified_at is not null and deleted_at is null", [email]).fetchone()
    return None if row is None else users.read(db, row["id"])


def _create(db: SqliteDatabase, claimed: Claimed, impossible_hash: str, now: datetime, doer: Doer) -> UserRecord:
    """Under the name that the provider suggests, or that with a number, or with letters where all of these are taken; without the address
    where somebody has it."""
    for number in range(1, _MOST_NAMES + 1):
        name = claimed.name if number == 1 else f"{claimed.name[:54]}-{number if number < _MOST_NAMES else secrets.token_hex(4)}"
        if db.execute("select 1 from users where name = ?", [name]).fetchone() is None:
            break
    taken = db.execute("select 1 from users where email = ? and deleted_at is null", [claimed.email]).fetchone()
    email = None if taken else claimed.email
    return users.create(db, name, email, impossible_hash, Role.USER, now, verified=email is not None, doer=doer)
