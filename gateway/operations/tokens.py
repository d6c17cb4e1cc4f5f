"""Signing in and out: short-lived access tokens (JWT) and refresh tokens that change with every use; and API keys, which stand for a user
wherever an access token does."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import jwt

from gateway import clock
from gateway.operations import access, api_keys
from gateway.operations.users import Users, token_hash
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.sessions import Rotation
from gateway.storage.users import UserRecord
from gateway.types import Principal
from idl.codes import Code, ServingError

ISSUER = "outboard"
AUDIENCE = "outboard-gateway"
_ALGORITHM = "HS256"
_CLAIMS = ["sub", "sid", "exp", "iat", "jti"]
_MAX_TOKEN = 4096
REMEMBER_S = 5.0
"""How long a token that was checked is not checked again, unless an account or a session changes: that is seen at once, in every process."""
_MOST_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, repr=False)
class Issued:
    """What a caller gets at sign-in; `expires_in` is the access token's life in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int


class _Checked(NamedTuple):
    """A token or key that was good: when that was found and until when it is valid, both in seconds of the wall clock."""

    mark: int
    at: float
    expires: float
    principal: Principal


class Tokens:
    """The verbs on tokens. Thread-safe."""

    def __init__(self, storage: Storage, users: Users, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._sessions = storage.sessions
        self._keys = storage.api_keys
        self._users = users
        self._key = settings.secret_key or storage.secret()
        self._access_ttl = timedelta(seconds=settings.access_token_ttl_s)
        self._refresh_ttl = timedelta(seconds=settings.refresh_token_ttl_s)
        self._now = now
        self._mark = storage.principals
        self._checked: dict[bytes, _Checked] = {}
        self._key_of_keys = secrets.token_bytes(32)

    def sign_in(self, login: str, password: str, address: str) -> Issued:
        """A new session for whoever knows the password. Raises what `Users.verify` raises."""
        return self.begin(self._users.verify(login, password, address), address)

    def begin(self, user: UserRecord, address: str = "") -> Issued:
        """A new session for an account whose owner has shown that it is theirs in some way."""
        principal = Principal(user.id, user.name, user.role, secrets.token_hex(16))
        refresh_token, now = secrets.token_urlsafe(32), self._now()
        self._sessions.begin(principal.session, user.id, token_hash(refresh_token), now, now + self._refresh_ttl, address)
        return self._issued(principal, refresh_token)

    def refresh(self, refresh_token: str) -> Issued:
        """The next pair of tokens. Raises unauthenticated; a refresh token that was used before also ends its session."""
        successor, now = secrets.token_urlsafe(32), self._now()
        rotated = self._sessions.rotate(token_hash(refresh_token), token_hash(successor), now, now + self._refresh_ttl)
        if rotated.outcome is Rotation.REUSED:
            raise ServingError(Code.UNAUTHENTICATED, "the refresh token was used before: the session is ended, sign in again")
        if rotated.principal is None:
            raise ServingError(Code.UNAUTHENTICATED, "the refresh token is not valid, or has expired: sign in again")
        return self._issued(rotated.principal, successor)

    def sign_out(self, principal: Principal) -> None:
        """Ends the session: its refresh token and every access token of it are refused from now on. Raises forbidden for an API key."""
        access.require_session(principal, "there is no sign-in to end")
        self._sessions.revoke(principal.session, self._now())

    def authenticate(self, access_token: str) -> Principal:
        """Who holds the token, with the role of this moment. Raises unauthenticated."""
        known = self.recall(access_token)
        return known[0] if known is not None else self.check(access_token)

    def recall(self, access_token: str) -> tuple[Principal, bool] | None:
        """Who holds a token that was checked a moment ago, and whether less than half of that moment is over; asks nobody."""
        known = self._checked.get(self._key_of(access_token))
        if known is None or known.mark != self._mark.read():
            return None
        now = self._now().timestamp()
        if not 0 <= (age := now - known.at) < REMEMBER_S or now >= known.expires:
            return None
        return known.principal, age < REMEMBER_S / 2

    def check(self, access_token: str) -> Principal:
        """As `authenticate`, whatever is remembered."""
        mark, now = self._mark.read(), self._now().timestamp()
        if access_token.startswith(api_keys.PREFIX):
            expires, principal = api_keys.check(self._keys, access_token, self._now())
        else:
            claims, principal = self._check(access_token, now)
            expires = claims["exp"]
        if mark is not None:
            if len(self._checked) >= _MOST_REMEMBERED:
                self._checked = {}
            self._checked[self._key_of(access_token)] = _Checked(mark, now, expires, principal)
        return principal

    def _key_of(self, access_token: str) -> bytes:
        # not the token itself: what a look-up compares, and how long it takes, must tell nothing about tokens
        return hashlib.blake2b(access_token.encode(), digest_size=16, key=self._key_of_keys).digest()

    def _check(self, access_token: str, now: float) -> tuple[dict[str, Any], Principal]:
        claims = self._claims(access_token)
        if claims["exp"] <= now:
            raise ServingError(Code.UNAUTHENTICATED, "the access token has expired: refresh it")
        principal = self._sessions.principal(str(claims["sid"]))
        if principal is None or str(principal.user_id) != claims["sub"]:
            raise ServingError(Code.UNAUTHENTICATED, "the session has ended: sign in again")
        return claims, principal

    def _claims(self, access_token: str) -> dict[str, Any]:
        # the expiry is checked by the caller against this object's clock
        options: Any = {"require": _CLAIMS, "verify_exp": False, "verify_iat": False}
        try:
            if len(access_token) > _MAX_TOKEN:
                raise jwt.InvalidTokenError
            claims = jwt.decode(access_token, self._key, [_ALGORITHM], options, issuer=ISSUER, audience=AUDIENCE)
            if not isinstance(claims["exp"], int):
                raise jwt.InvalidTokenError
        except jwt.InvalidTokenError:
            raise ServingError(Code.UNAUTHENTICATED, "the access token is not valid") from None
        return claims

    def _issued(self, principal: Principal, refresh_token: str) -> Issued:
        now = self._now()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(principal.user_id),
            "sid": principal.session,
            "iat": int(now.timestamp()),
            "exp": int((now + self._access_ttl).timestamp()),
            "jti": secrets.token_hex(8),
        }
        return Issued(jwt.encode(claims, self._key, _ALGORITHM), refresh_token, int(self._access_ttl.total_seconds()))
