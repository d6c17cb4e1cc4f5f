"""What is done to one account inside somebody's transaction: its columns, address, password, sessions, codes, and the line that says so."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage import audit
from gateway.storage.audit import Doer
from idl.codes import Code, ServingError

PURPOSES = ("verify", "address", "reset")
"""Of codes."""


def confirm_email(db: SqliteDatabase, user_id: int, address: str, now: datetime, doer: Doer) -> bool:
    """The address that the account has, or waits to have, is its own; False where it is neither any more.

    Raises already_exists where somebody else has it by now.
    """
    row = db.execute("select email, pending_email from users where id = ? and deleted_at is null", [user_id]).fetchone()
    if row is not None and is_mailbox(row["email"], address):
        put(db, user_id, now, email_verified_at=to_text(now))
    elif row is not None and is_mailbox(row["pending_email"], address):
        refuse_taken(db, None, address, user_id)
        put(db, user_id, now, email=row["pending_email"], pending_email=None, email_verified_at=to_text(now))
    else:
        return False
    note(db, doer, "user.email_confirmed", user_id, now)
    return True


def reset_password(db: SqliteDatabase, user_id: int, address: str, password_hash: str, now: datetime, doer: Doer) -> bool:
    """A new password for whoever got the code, which shows that the address is theirs; False where the account has another. Ends every session.

    Where nothing had shown that before, somebody else may have made the account under that address: its keys and identities end as well.
    Another address that waits is forgotten: whoever asked for it may have had the old password.
    """
    row = db.execute("select * from users where id = ? and email = ? and deleted_at is null", [user_id, address]).fetchone()
    if row is None:
        return False
    forget_codes(db, row, PURPOSES)
    if row["email_verified_at"] is None:
        db.execute("update api_keys set revoked_at = ? where user_id = ? and revoked_at is null", [to_text(now), user_id])
        db.execute("delete from identities where user_id = ?", [user_id])
    confirmed_at = row["email_verified_at"] or to_text(now)
    put(db, user_id, now, password_hash=password_hash, email_verified_at=confirmed_at, pending_email=None)
    end_sessions(db, user_id, now, "")
    note(db, doer, "user.password_reset", user_id, now)
    return True


def is_mailbox(email: str | None, other: str) -> bool:
    """Whether both are one address: as the database compares them, whatever the case of ASCII letters."""
    return email is not None and email.encode().lower() == other.encode().lower()


def refuse_taken(db: SqliteDatabase, name: str | None, email: str | None, user_id: int) -> None:
    """The write lock is held: what is free now stays free until the transaction ends."""
    if name is not None and db.execute("select 1 from users where name = ?", [name]).fetchone():
        raise ServingError(Code.ALREADY_EXISTS, f"username: {name!r} is taken")
    taken = "select 1 from users where email = ? and deleted_at is null and id != ?"
    if email is not None and db.execute(taken, [email, user_id]).fetchone():
        raise ServingError(Code.ALREADY_EXISTS, "email: an account with this address exists")


def change_email(db: SqliteDatabase, row: Any, email: str | None, now: datetime, doer: Doer) -> None:
    """As `change_own` says. The same address in another spelling is the same address; what waited is taken back by it."""
    user_id = row["id"]
    if (email, None) == (row["email"], row["pending_email"]):
        return
    if email is not None and is_mailbox(row["email"], email):
        forget_codes(db, row, ("address",))
        put(db, user_id, now, email=email, pending_email=None)
        note(db, doer, "user.email", user_id, now)
        return
    refuse_taken(db, None, email, user_id)
    forget_codes(db, row, PURPOSES if email is None or row["email_verified_at"] is None else ("address",))
    if email is not None and row["email_verified_at"] is not None:
        put(db, user_id, now, pending_email=email)
        note(db, doer, "user.email_asked", user_id, now)
    else:
        put(db, user_id, now, email=email, email_verified_at=None, pending_email=None)
        note(db, doer, "user.email", user_id, now)


def forget_codes(db: SqliteDatabase, row: Any, purposes: Sequence[str]) -> None:
    """Those of the account's addresses, before these change."""
    marks = ", ".join("?" * len(purposes))
    db.execute(
        f"delete from codes where address in (?, ?) and purpose in ({marks}) and user_id = ?",
        [row["email"], row["pending_email"], *purposes, row["id"]],
    )


def put(db: SqliteDatabase, user_id: int, now: datetime, **values: str | None) -> None:
    columns = ", ".join(f"{column} = ?" for column in values)
    db.execute(
        f"update users set {columns}, updated_at = ?, revision = revision + 1 where id = ? and deleted_at is null",
        [*values.values(), to_text(now), user_id],
    )


def end_sessions(db: SqliteDatabase, user_id: int, now: datetime, keep: str) -> None:
    db.execute("update sessions set revoked_at = ? where user_id = ? and revoked_at is null and id != ?", [to_text(now), user_id, keep])


def note(db: SqliteDatabase, doer: Doer, action: str, user_id: int, now: datetime, detail: Mapping[str, Any] | None = None) -> None:
    """`doer` without an id and a name: the account itself."""
    name = db.execute("select name from users where id = ?", [user_id]).fetchone()["name"]
    who = doer if doer.name else Doer(user_id, name, doer.address, doer.request_id)
    audit.write(db, who, action, name, now, detail)
