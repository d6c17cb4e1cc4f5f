"""Codes that show that an address is somebody's, of which only a keyed digest is kept, and the letters that carry them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage import outbox
from gateway.storage.database import Database
from gateway.storage.outbox import Letter

VERIFY, RESET, ADDRESS = "verify", "reset", "address"
"""What a code is for: the address of an account, a new password, another address of an account."""
_SWEEP = 100


@dataclass(frozen=True, slots=True)
class CodeRecord:
    """One that may still be tried. `user_id` None: of an address that no account has."""

    id: int
    user_id: int | None
    purpose: str
    code_hash: str


class Codes:
    def __init__(self, database: Database) -> None:
        self._database = database

    def issue(
        self,
        purpose: str,
        user_id: int | None,
        letter: Letter,
        code_hash: str,
        now: datetime,
        expires_at: datetime,
        tries: int,
    ) -> None:
        """A code in the place of those for the same purpose, and its letter. With `user_id` None all of it is done, and no letter is left:
        whoever measures sees no difference."""
        with self._database.write() as db:
            old = "select id from codes where expires_at <= ? limit ?"
            db.execute(f"delete from codes where id in ({old})", [to_text(now), _SWEEP])
            db.execute("delete from codes where address = ? and purpose = ? and user_id is ?", [letter.address, purpose, user_id])
            db.execute(
                "insert into codes (user_id, purpose, address, code_hash, tries_left, created_at, expires_at) values (?, ?, ?, ?, ?, ?, ?)",
                [user_id, purpose, letter.address, code_hash, tries, to_text(now), to_text(expires_at)],
            )
            number = outbox.add(db, letter, now, expires_at)
            db.execute("delete from outbox where id = ? and ?", [number, user_id is None])

    def redeem(
        self,
        purposes: Sequence[str],
        address: str,
        fits: Callable[[CodeRecord], bool],
        apply: Callable[[SqliteDatabase, CodeRecord], bool],
        now: datetime,
    ) -> bool:
        """Tries a code on all that were sent to the address; the one that `fits` is used up and `apply` called, in one transaction.

        Each has one try less, whatever comes of it, unless `apply` raises. True where one fits and `apply` had a use for it.
        """
        marks = ", ".join("?" * len(purposes))
        with self._database.write() as db:
            rows = db.execute(
                f"update codes set tries_left = tries_left - 1 where address = ? and purpose in ({marks}) and tries_left > 0"
                " and expires_at > ? returning id, user_id, purpose, code_hash",
                [address, *purposes, to_text(now)],
            ).fetchall()
            right = [record for record in (CodeRecord(**dict(row)) for row in rows) if fits(record)]
            if not right:
                return False
            db.execute("delete from codes where id = ?", [right[0].id])
            return apply(db, right[0])
