"""One-time invitations. Only their SHA-256 is kept."""

from datetime import datetime

from gateway.clock import to_text
from gateway.storage import audit
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from gateway.types import Role


class Signups:
    def __init__(self, database: Database) -> None:
        self._database = database

    def replace(self, token_hash: str, role: Role, now: datetime, expires_at: datetime) -> None:
        """Adds an invitation; the unused ones for the same role are void from now on."""
        with self._database.write() as db:
            db.execute("delete from signups where role = ? and used_by is null", [role.value])
            db.execute(
                "insert into signups (token_hash, role, created_at, expires_at) values (?, ?, ?, ?)",
                [token_hash, role.value, to_text(now), to_text(expires_at)],
            )

    def void(self, role: Role) -> None:
        """The unused ones for a role are good for nothing from now on."""
        with self._database.write() as db:
            db.execute("delete from signups where role = ? and used_by is null", [role.value])

    def add(self, token_hash: str, role: Role, now: datetime, expires_at: datetime, doer: Doer) -> None:
        """Adds an invitation beside the others; those that have expired unused are taken away."""
        with self._database.write() as db:
            db.execute("delete from signups where used_by is null and expires_at <= ?", [to_text(now)])
            db.execute(
                "insert into signups (token_hash, role, created_at, expires_at) values (?, ?, ?, ?)",
                [token_hash, role.value, to_text(now), to_text(expires_at)],
            )
            audit.write(db, doer, "invitation.create", role.value, now)
