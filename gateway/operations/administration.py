"""What administrators do: accounts of others, invitations, and the disk."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from gateway import clock
from gateway.operations.confirmations import MAIL_JOB
from gateway.operations.passwords import token_hash
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.users import UserFilter, UserRecord
from gateway.types import Role
from idl.codes import Code, ServingError

INVITATION_TTL = timedelta(days=7)
UNNAMED_FOR = timedelta(hours=24)
"""How old a file has to be before it is taken away because nothing names it."""
BROKEN_OFF_FOR = timedelta(hours=24)
"""The same of what a writer that was killed has left."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a clean-up took away, or would: `bytes` where that is known."""

    what: str
    count: int
    bytes: int | None


class Administration:
    """The verbs of administrators; whoever calls has seen to it that one asks."""

    def __init__(self, storage: Storage, now: clock.Clock = clock.now, ring: Callable[[str], None] = lambda job: None) -> None:
        """`ring` wakes a job of the task worker."""
        self._storage = storage
        self._ring = ring
        self._users = storage.users
        self._now = now

    def users(self, wanted: UserFilter, after: int, count: int) -> list[UserRecord]:
        return self._users.page(wanted, after, count)

    def user(self, name: str) -> UserRecord:
        """A deleted one as well. Raises not_found."""
        user = self._users.by_name(name, deleted=True)
        if user is None:
            raise ServingError(Code.NOT_FOUND, f"there is no user {name[:80]!r}")
        return user

    def change(
        self,
        name: str,
        role: Role | None,
        disabled: bool | None,
        quota: Mapping[str, int | None] | None,
        revision: int | None,
        doer: Doer,
    ) -> UserRecord:
        """None leaves a thing as it is; in `quota` None takes a kind back to what the settings say, a kind that is not there stays.

        Raises not_found, conflict where no administrator would be left, ChangedMeanwhile.
        """
        user = self.user(name)
        merged = None
        if quota is not None:
            merged = {kind: amount for kind, amount in (dict(user.quota) | dict(quota)).items() if amount is not None}
        self._users.change(user.id, self._now(), role=role, disabled=disabled, quota=merged, revision=revision, doer=doer)
        return self.user(name)

    def delete(self, name: str, doer: Doer) -> None:
        """Raises not_found, conflict for the last administrator."""
        user = self.user(name)
        if user.deleted_at is not None:
            raise ServingError(Code.NOT_FOUND, f"user {name!r} is deleted already")
        self._users.delete(user.id, self._now(), doer=doer)

    def restore(self, name: str, doer: Doer) -> UserRecord:
        """Raises not_found for one that is not deleted."""
        self._users.restore(self.user(name).id, self._now(), doer=doer)
        return self.user(name)

    def sign_out(self, name: str, doer: Doer) -> None:
        """Ends every session of somebody's; their API keys go on. Raises not_found."""
        self._users.end_sessions(self.user(name).id, self._now(), doer=doer)

    def invite(self, role: Role, doer: Doer) -> tuple[str, str]:
        """A one-time token that makes an account with the role, and when it ends."""
        token, now = secrets.token_urlsafe(32), self._now()
        self._storage.signups.add(token_hash(token), role, now, now + INVITATION_TTL, doer)
        return token, clock.to_text(now + INVITATION_TTL)

    def send_again(self, letter: int) -> None:
        """A letter that waits, or has failed, is tried at once. Raises conflict where it would be of no use any more."""
        if not self._storage.outbox.again(letter, self._now()):
            raise ServingError(Code.CONFLICT, "the letter was sent, or is too old to be of use: have another one made")
        self._ring(MAIL_JOB)

    def clean(self, *, dry_run: bool, doer: Doer) -> list[Cleaned]:
        """Takes away what nothing names, or with `dry_run` says what that would be."""
        now, blobs = self._now(), self._storage.blobs
        count, size = blobs.sweep(now - UNNAMED_FOR, dry_run=dry_run)
        cleaned = [Cleaned("files", count, size)]
        cleaned.append(Cleaned("broken_off", blobs.sweep_partial(now - BROKEN_OFF_FOR, dry_run=dry_run), None))
        if not dry_run:
            self._storage.audit.note(doer, "storage.clean", "storage", now, {each.what: each.count for each in cleaned})
        return cleaned
