"""API keys: made by somebody who is signed in, shown once, and taken wherever an access token is."""

import hmac
import math
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from gateway import clock
from gateway.errors import InvalidFields
from gateway.operations.access import require_session
from gateway.operations.passwords import token_hash
from gateway.storage import Storage
from gateway.storage.api_keys import ApiKeys as Store
from gateway.storage.api_keys import KeyRecord
from gateway.storage.audit import Doer
from gateway.types import Principal, Scope
from idl.codes import Code, ServingError

PREFIX = "obk_"
"""What no access token begins with; also for programs that look for secrets in places where none should be."""
_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})", re.ASCII)
_NOTED_EVERY = timedelta(minutes=1)
LONGEST = timedelta(days=3650)


@dataclass(frozen=True, slots=True, repr=False)
class Made:
    """`secret` is the whole key, which is nowhere kept."""

    record: KeyRecord
    secret: str


class ApiKeys:
    """The verbs on keys. Thread-safe."""

    def __init__(self, storage: Storage, now: clock.Clock = clock.now) -> None:
        self._keys = storage.api_keys
        self._now = now

    def create(self, caller: Principal, name: str, scopes: frozenset[Scope], expires_at: datetime | None, doer: Doer) -> Made:
        """Raises forbidden for a caller who came by a key, invalid_input for an end that is past or beyond ten years, conflict for too many."""
        require_session(caller, "an API key cannot make another one")
        now = self._now()
        if expires_at is not None and not now < expires_at <= now + LONGEST:
            raise InvalidFields({"expires_at": f"must be after now, and within {LONGEST.days} days"})
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        record = self._keys.create(key_id, caller.user_id, name, token_hash(secret), scopes, now, expires_at, doer)
        return Made(record, f"{PREFIX}{key_id}_{secret}")

    def page(self, caller: Principal, after: tuple[str, str] | None, count: int) -> list[KeyRecord]:
        return self._keys.page(caller.user_id, after, count)

    def read(self, caller: Principal, key_id: str) -> KeyRecord:
        """Raises not_found."""
        record = self._keys.read(caller.user_id, key_id)
        if record is None:
            raise _missing()
        return record

    def revoke(self, caller: Principal, key_id: str, doer: Doer) -> None:
        """It is refused from now on, in every process. A key may end itself, and no other. Raises not_found."""
        if not (caller.by_key and caller.session == key_id):
            require_session(caller, "an API key can revoke itself only")
        if not self._keys.revoke(caller.user_id, key_id, self._now(), doer):
            raise _missing()


def check(keys: Store, key: str, now: datetime) -> tuple[float, Principal]:
    """Until when the key is good, in seconds since the epoch, and who it stands for. Raises unauthenticated."""
    found = _KEY.fullmatch(key)
    holder = keys.holder(found[1]) if found else None
    if found is None or holder is None or not hmac.compare_digest(holder.secret_hash, token_hash(found[2])):
        raise ServingError(Code.UNAUTHENTICATED, "the API key is not valid (any more)")
    expires_at = clock.from_text(holder.expires_at) if holder.expires_at else None
    if expires_at is not None and expires_at <= now:
        raise ServingError(Code.UNAUTHENTICATED, "the API key has expired")
    if holder.last_used_at is None or clock.from_text(holder.last_used_at) <= now - _NOTED_EVERY:
        with suppress(ServingError):  # a disk that takes no writes keeps nobody out
            keys.used(found[1], now)
    return expires_at.timestamp() if expires_at else math.inf, holder.principal


def _missing() -> ServingError:
    return ServingError(Code.NOT_FOUND, "there is no such API key")
