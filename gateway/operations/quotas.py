"""How much of the platform one user may take."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlite_utils import Database as SqliteDatabase

from gateway.settings import Settings
from gateway.storage import Storage, quotas
from gateway.storage.quotas import KINDS
from idl.codes import Code, ServingError

_WORDS = {
    "models": "models",
    "bytes": "bytes of models",
    "deployments": "deployments",
    "instances": "instances",
    "tasks": "unfinished tasks",
}


@dataclass(frozen=True, slots=True)
class Share:
    """`limit` 0: none."""

    used: int
    limit: int


def defaults(settings: Settings) -> Mapping[str, int]:
    """What a user may have about whom nothing else is said."""
    return {kind: int(getattr(settings, f"quota_{kind}")) for kind in KINDS}


def require(storage: Storage, user_id: int, kind: str, more: int, db: SqliteDatabase | None = None) -> None:
    """Raises insufficient_capacity where the user would have more than is allowed. `kind` is one of KINDS.

    With `db`, the transaction that adds it, nobody can come in between; without, several requests at once may go over by what they add.
    """
    limit = storage.quotas.limit(user_id, kind) if db is None else storage.quotas.limit_in(db, user_id, kind)
    if not limit:
        return
    used = storage.quotas.used(user_id, kind) if db is None else quotas.used(db, user_id, kind)
    if used + more > limit:
        raise ServingError(Code.INSUFFICIENT_CAPACITY, f"your quota of {limit} {_WORDS[kind]} does not allow {more} more: you have {used}")


def require_room(storage: Storage, user_id: int, more: int) -> None:
    """Raises insufficient_capacity where what lies on the disk of the user's models would be more than twice the quota of bytes: what was
    deleted can be restored for a while, and uploads that are open take room as well."""
    limit = storage.quotas.limit(user_id, "bytes")
    if limit and storage.quotas.kept(user_id) + more > 2 * limit:
        raise ServingError(
            Code.INSUFFICIENT_CAPACITY,
            f"with what was deleted and can be restored, and what is uploaded, there would be more than twice the {limit} bytes of models that are"
            " allowed for each user",
        )


def shares(storage: Storage, user_id: int) -> Mapping[str, Share]:
    """What the user has and may have, by kind."""
    return {kind: Share(storage.quotas.used(user_id, kind), storage.quotas.limit(user_id, kind)) for kind in KINDS}
