"""Sign-in at an OpenID provider: the authorization code flow with PKCE, state and nonce (OpenID Connect Core 1.0, section 3.1; RFC 7636).

What the provider is like comes from its discovery document; its keys are asked for again when a token names one that is not known.
"""

import base64
import hashlib
import hmac
import http.client
import json
import re
import secrets
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast
from urllib.parse import quote_plus, urlencode, urlsplit

from gateway import clock
from gateway.operations import passwords
from gateway.operations.confirmations import reason_against_email
from gateway.operations.passwords import token_hash
from gateway.operations.throttle import Rate
from gateway.operations.users import Users
from gateway.settings import Settings, is_safe_url
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.identities import Attempt, Claimed
from gateway.storage.users import UserRecord
from idl.codes import Code, ServingError

CALLBACK = "/v1/oidc/callback"
ATTEMPT_TTL = timedelta(minutes=10)
_TIMEOUT_S = 10.0
_TURN_S = 2.0
"""How long somebody waits for another one who asks the provider the same."""
_RETRY_MS = 5000
_AGAIN_S = 5.0
"""How long what went wrong there is told without asking again."""
_MOST_BYTES = 1 << 20
_KEPT_S = 3600.0
_RENEW_S = 30.0
"""How often keys may be asked for again because a token names one that is not known."""
_LEEWAY_S = 60
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"]
"""With the provider's public key only: never a secret of ours, and never none."""
_ATTEMPTS, _ATTEMPT_INTERVAL_S = 60, 2.0


@dataclass(frozen=True, slots=True, repr=False)
class Begun:
    """`url`: where the browser goes; `browser`: a secret that stays with it until it comes back."""

    url: str
    browser: str


class OpenId:
    """The verbs. Thread-safe; asks the provider nothing before the first sign-in."""

    def __init__(self, storage: Storage, users: Users, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._identities = storage.identities
        self._users = users
        self._settings = settings
        self._now = now
        self._begun = Rate(storage, "oidc", _ATTEMPTS, _ATTEMPT_INTERVAL_S)
        self._provider = Provider(settings, now)
        self._redirect_uri = settings.public_url.rstrip("/") + CALLBACK

    def begin(self, address: str) -> Begun:
        """Raises not_found where there is no provider, overloaded, and unavailable where it does not answer."""
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        self._require()
        self._begun.take(address, self._now())
        state, nonce, browser, verifier = (secrets.token_urlsafe(32) for _ in range(4))
        where = self._provider.document()["authorization_endpoint"]
        now = self._now()
        self._identities.begin(token_hash(state), token_hash(browser), Attempt(nonce, verifier), now, now + ATTEMPT_TTL)
        asked = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": self._redirect_uri,
            "scope": self._settings.oidc_scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": create_s256_code_challenge(verifier),
            "code_challenge_method": "S256",
        }
        return Begun(f"{where}{'&' if urlsplit(where).query else '?'}{urlencode(asked)}", browser)

    def end(self, state: str, code: str, browser: str, issuer: str, doer: Doer) -> UserRecord:
        """The account of whoever comes back with a code; `issuer`: the answer's `iss` (RFC 9207), "" without it.

        Raises unauthenticated for anything that does not fit what was begun, forbidden for an identity without an account, or one that may
        not sign in, unavailable where the provider does not answer.
        """
        self._require()
        attempt = self._identities.take(token_hash(state), token_hash(browser), self._now())
        if attempt is None:
            raise _refused("the sign-in was not begun in this browser, has ended, or took too long: begin again")
        document = self._provider.document()
        if issuer and not hmac.compare_digest(issuer.encode(), document["issuer"].encode()):
            raise _refused("the answer is another provider's")
        tokens = self._provider.redeem(code, attempt.verifier, self._redirect_uri)
        claims = self._provider.claims(tokens, attempt.nonce)
        user = self._identities.account(
            self._claimed(claims),
            passwords.impossible_hash(),
            self._now(),
            doer,
            link_by_email=self._settings.oidc_link_by_email == "verified",
            create=self._settings.oidc_accounts == "create",
        )
        self._users.refuse_barred(user)
        return user

    def _require(self) -> None:
        if not self._settings.oidc_issuer:
            raise ServingError(Code.NOT_FOUND, "there is no OpenID provider to sign in at")

    def _claimed(self, claims: Mapping[str, Any]) -> Claimed:
        email = claims.get("email")
        is_verified = claims.get("email_verified") is True and isinstance(email, str)
        if not is_verified or reason_against_email(email):
            email = None
        return Claimed(claims["iss"], claims["sub"], email, _name(claims))


class Provider:
    """What is known of it, and the questions to it."""

    def __init__(self, settings: Settings, now: clock.Clock) -> None:
        self._settings = settings
        self._now = now
        self._lock = threading.Lock()
        self._document: tuple[float, Mapping[str, Any]] | None = None
        self._keys: tuple[float, Any] | None = None
        self._failed: tuple[float, str] | None = None
        self._places = threading.BoundedSemaphore(max(1, settings.threads // 2))

    def document(self) -> Mapping[str, Any]:
        """OpenID Connect Discovery 1.0, section 4. Raises unavailable for none that can be used."""
        known = self._document
        if known is not None and 0 <= self._now().timestamp() - known[0] < _KEPT_S:
            return known[1]
        with self._asking():
            now = self._now().timestamp()
            if self._document is None or not 0 <= now - self._document[0] < _KEPT_S:
                self._document = now, self._discovered()
            return self._document[1]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One at a time asks what the provider is like, and what went wrong is not asked again at once: where it is away, one thread waits for
        it, and not all that this process has."""
        if not self._lock.acquire(timeout=_TURN_S):
            raise _unavailable("it takes long to answer")
        try:
            if self._failed is not None and 0 <= self._now().timestamp() - self._failed[0] < _AGAIN_S:
                raise ServingError(Code.UNAVAILABLE, self._failed[1], retry_after_ms=_RETRY_MS)
            try:
                yield
            except ServingError as error:
                self._failed = self._now().timestamp(), error.message
                raise
        finally:
            self._lock.release()

    def _discovered(self) -> Mapping[str, Any]:
        issuer = self._settings.oidc_issuer
        found = self._ask(issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise _unavailable(f"it calls itself {str(found.get('issuer'))[:200]!r}, not {issuer!r}")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not isinstance(found.get(name), str) or not is_safe_url(found[name]):
                raise _unavailable(f"its {name} is no https address")
        return found

    def redeem(self, code: str, verifier: str, redirect_uri: str) -> Mapping[str, Any]:
        """The tokens for a code. Raises unauthenticated where the provider refuses it."""
        settings, document = self._settings, self.document()
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri, "code_verifier": verifier}
        headers = {}
        methods = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if settings.oidc_client_secret and "client_secret_basic" in methods:
            headers["Authorization"] = _basic(settings.oidc_client_id, settings.oidc_client_secret)
        else:
            fields["client_id"] = settings.oidc_client_id
            fields |= {"client_secret": settings.oidc_client_secret} if settings.oidc_client_secret else {}
        return self._ask(document["token_endpoint"], urlencode(fields).encode(), headers)

    def claims(self, tokens: Mapping[str, Any], nonce: str) -> Mapping[str, Any]:
        """What the ID token says, once it is the provider's, for us, for this sign-in and in time. Raises unauthenticated."""
        from authlib.oidc.core import CodeIDToken
        from joserfc import jwt
        from joserfc.errors import JoseError

        text = tokens.get("id_token")
        if not isinstance(text, str) or len(text) > _MOST_BYTES:
            raise _refused("the provider gave no ID token")
        settings = self._settings
        try:
            token = jwt.decode(text, lambda guest: self._key(guest.headers().get("kid")), algorithms=_ALGORITHMS)
            options = {
                "iss": {"essential": True, "value": self.document()["issuer"]},
                "aud": {"essential": True, "value": settings.oidc_client_id},
                "sub": {"essential": True},
                "nonce": {"essential": True, "value": nonce},
            }
            params = {"client_id": settings.oidc_client_id, "nonce": nonce, "access_token": tokens.get("access_token")}
            claims = CodeIDToken(token.claims, token.header, options, params)
            claims.validate(now=int(self._now().timestamp()), leeway=_LEEWAY_S)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise _refused(f"the provider's ID token is not right ({type(error).__name__})") from error
        if not isinstance(claims["sub"], str) or not 1 <= len(claims["sub"]) <= 255:
            raise _refused("the provider's ID token names nobody")
        return cast(Mapping[str, Any], claims)

    def _key(self, kid: str | None) -> Any:
        """The provider's key of that id. A provider may change its keys at any time: one that is not known is asked for."""
        keys = self._key_set(renew=False)
        found = _find(keys, kid)
        return found if found is not None else _find(self._key_set(renew=True), kid) or keys

    def _key_set(self, *, renew: bool) -> Any:
        from joserfc.jwk import KeySet

        address = self.document()["jwks_uri"]
        kept_s = _RENEW_S if renew else _KEPT_S
        known = self._keys
        if known is not None and 0 <= self._now().timestamp() - known[0] < kept_s:
            return known[1]
        with self._asking():
            now = self._now().timestamp()
            if self._keys is None or not 0 <= now - self._keys[0] < kept_s:
                told = self._ask(address)
                try:
                    usable = [key for key in told["keys"] if key.get("kty") != "oct" and key.get("use", "sig") == "sig"]
                    self._keys = now, KeySet.import_key_set({"keys": usable})
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise _unavailable("its keys cannot be read") from error
            return self._keys[1]

    def _ask(self, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A JSON object. Raises unavailable; unauthenticated where the provider says 400 or 401 to what a caller brought."""
        request = urllib.request.Request(url, body, {"Accept": "application/json", **(headers or {})})
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if url.startswith("https"):
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self._settings.oidc_ca or None)))
        if not self._places.acquire(blocking=False):
            raise _unavailable("as many wait for it as may")
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=_TIMEOUT_S) as answer:
                value = json.loads(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                if body is not None and error.code in (400, 401):
                    raise _refused("the provider does not take the code") from error
                raise _unavailable(f"it answered with status {error.code}") from error
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            raise _unavailable("it cannot be reached, or does not answer as it should") from error
        finally:
            self._places.release()
        if not isinstance(value, dict):
            raise _unavailable("it does not answer as it should")
        return value


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A secret goes where the settings say, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _find(keys: Any, kid: str | None) -> Any:
    """None where it is not there, and where the token names none among several."""
    if kid is None:
        return keys.keys[0] if len(keys.keys) == 1 else None
    return next((key for key in keys.keys if key.kid == kid), None)


def _basic(name: str, secret: str) -> str:
    """RFC 6749, section 2.3.1: both are form-encoded first."""
    return "Basic " + base64.b64encode(f"{quote_plus(name)}:{quote_plus(secret)}".encode()).decode()


def _name(claims: Mapping[str, Any]) -> str:
    """What a new account would be called: what the provider suggests, as far as our rule for names allows."""
    suggested = next((claims[each] for each in ("preferred_username", "nickname", "email") if isinstance(claims.get(each), str)), "")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", suggested.partition("@")[0], flags=re.ASCII).strip("-_")[:56]
    return name if name and name.lower() != "admin" else "user-" + hashlib.sha256(claims["sub"].encode()).hexdigest()[:8]


def _refused(why: str) -> ServingError:
    return ServingError(Code.UNAUTHENTICATED, why)


def _unavailable(why: str) -> ServingError:
    return ServingError(Code.UNAVAILABLE, f"the OpenID provider cannot be used: {why}", retry_after_ms=_RETRY_MS)
