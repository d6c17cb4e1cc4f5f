"""Signing in with a browser: one signed cookie for a session, and the token that every form of that browser carries.

A session of a browser is a session like any other: it ends by signing out, with the account, and with a new password. Its cookie is no access
token, nor is an access token a cookie: each is made out to its own audience.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta

import jwt

from gateway import clock
from gateway.operations.users import Users, token_hash
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.sessions import MOST_AGENT
from gateway.storage.users import UserRecord
from gateway.types import Principal
from idl.codes import Code, ServingError

SESSION = "outboard_session"
"""The cookie's name."""
ISSUER = "outboard"
AUDIENCE = "outboard-pages"
_ALGORITHM = "HS256"
_CLAIMS = ["sub", "sid", "exp", "iat"]
_MOST = 4096
SHORT = timedelta(hours=12)
"""Of a session that is not to be remembered: the browser forgets it when it is closed, the gateway then."""


@dataclass(frozen=True, slots=True, repr=False)
class Visit:
    """What a browser gets at sign-in. `max_age_s`: how long it keeps the cookie, None: until it is closed."""

    cookie: str
    max_age_s: int | None


class Browsers:
    """The verbs on sessions of browsers. Thread-safe."""

    def __init__(self, storage: Storage, users: Users, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._sessions, self._users, self._now = storage.sessions, users, now
        key = settings.secret_key or storage.secret()
        self._key = hmac.digest(key.encode() if isinstance(key, str) else key, b"browsers", "sha256")
        self._long = timedelta(seconds=settings.refresh_token_ttl_s)

    def sign_in(self, login: str, password: str, address: str, *, remember: bool, agent: str = "") -> Visit:
        """A session for whoever knows the password; `agent`: what the browser calls itself. Raises what `Users.verify` raises."""
        return self.begin(self._users.verify(login, password, address), address, remember=remember, agent=agent)

    def begin(self, user: UserRecord, address: str, *, remember: bool, agent: str = "") -> Visit:
        """A session for whoever has shown in another way that he is `user`."""
        number, now = secrets.token_hex(16), self._now()
        ends = now + (self._long if remember else min(SHORT, self._long))
        # the refresh token of this session is given to nobody
        self._sessions.begin(number, user.id, token_hash(secrets.token_urlsafe(32)), now, ends, address, agent[:MOST_AGENT])
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user.id),
            "sid": number,
            "iat": int(now.timestamp()),
            "exp": int(ends.timestamp()),
        }
        return Visit(jwt.encode(claims, self._key, _ALGORITHM), int((ends - now).total_seconds()) if remember else None)

    def principal(self, cookie: str) -> Principal | None:
        """Who holds the cookie, with the role of this moment; None where it is not valid (any more)."""
        options = {"require": _CLAIMS, "verify_exp": False, "verify_iat": False}
        try:
            if len(cookie) > _MOST:
                return None
            claims = jwt.decode(cookie, self._key, [_ALGORITHM], options, issuer=ISSUER, audience=AUDIENCE)  # type: ignore[arg-type]
        except jwt.InvalidTokenError:
            return None
        if not isinstance(claims["exp"], int) or claims["exp"] <= self._now().timestamp():
            return None
        found = self._sessions.principal(str(claims["sid"]))
        return found if found is not None and str(found.user_id) == claims["sub"] else None

    def sign_out(self, principal: Principal) -> None:
        self._sessions.revoke(principal.session, self._now())

    def form_token(self, holder: str) -> str:
        """What the forms of one browser carry; `holder`: its session, or the random name that it has before it signs in."""
        return base64.urlsafe_b64encode(hmac.digest(self._key, b"form\0" + holder.encode(), hashlib.sha256)).decode().rstrip("=")

    def check_form(self, holder: str, token: str) -> None:
        """Raises forbidden for a request that no page of ours made."""
        if not (holder and token and hmac.compare_digest(self.form_token(holder).encode(), token.encode())):
            raise ServingError(Code.FORBIDDEN, "the page is too old, or was made for somebody else: load it again")
