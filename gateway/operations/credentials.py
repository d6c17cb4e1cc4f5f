"""Name and password with every call, as the form API has it: checked once, then remembered for a while.

argon2 costs about 110 ms of a core by design. A pair that was right is kept as a keyed digest, and forgotten when any account or session
changes (in every process of the gateway) or after REMEMBER_S.
"""

import hashlib
import secrets
from typing import NamedTuple

from gateway import clock
from gateway.operations.users import Users
from gateway.storage import Storage
from gateway.types import Principal

REMEMBER_S = 60.0
_MOST_REMEMBERED = 4096


class _Known(NamedTuple):
    mark: int
    at: float
    principal: Principal


class Credentials:
    """Thread-safe."""

    def __init__(self, storage: Storage, users: Users, now: clock.Clock = clock.now) -> None:
        self._users = users
        self._accounts = storage.users
        self._mark = storage.principals
        self._now = now
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, _Known] = {}

    def check(self, login: str, password: str, address: str) -> Principal:
        """Who that is. Raises what `Users.verify` raises: unauthenticated, and overloaded after too many failures."""
        digest = hashlib.blake2b(
            f"{len(login)} {login.lower()} {password}".encode(errors="surrogatepass"), digest_size=32, key=self._key
        ).digest()
        mark, now = self._mark.read(), self._now().timestamp()
        known = self._known.get(digest)
        if known is not None and known.mark == mark and 0 <= now - known.at < REMEMBER_S:
            return known.principal
        user = self._users.verify(login, password, address)
        principal = Principal(user.id, user.name, user.role)
        if mark is not None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known = {}
            self._known[digest] = _Known(mark, now, principal)
        return principal

    def exists(self, login: str) -> bool:
        """Whether there is such an account: the form API tells it, the others do not."""
        return (self._accounts.by_email(login) if "@" in login else self._accounts.by_name(login)) is not None
