"""An OpenID provider on loopback: discovery, authorization with PKCE, tokens, keys that change. It checks what a real one checks."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from joserfc import jwk, jwt
from werkzeug.wrappers import Request, Response

from tests.http_servers import serving

CLIENT, SECRET = "outboard", "a secret: with%odd characters"


@dataclass
class Provider:
    """`who`: the claims of whoever is signed in there. `spoil` changes a token's claims, headers or key before it is signed."""

    issuer: str = ""
    redirect_uri: str = ""
    who: dict[str, Any] = field(default_factory=lambda: {"sub": "ann-at-provider", "preferred_username": "ann"})
    spoil: Any = None
    secret: str = SECRET
    auth_methods: list[str] = field(default_factory=lambda: ["client_secret_basic"])
    keys: list[Any] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    document_changes: dict[str, Any] = field(default_factory=dict)
    at: Any = time.time

    def rotate(self, kind: str = "RSA", *, keep: bool = False) -> None:
        """A new key signs from now on; the old ones are forgotten unless `keep`."""
        parameters = {"kid": secrets.token_hex(4), "use": "sig"}
        made = jwk.RSAKey.generate_key(2048, parameters) if kind == "RSA" else jwk.ECKey.generate_key("P-256", parameters)
        self.keys = [made, *(self.keys if keep else [])]

    def __call__(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        self.asked.append(request.path)
        answers = {
            "/.well-known/openid-configuration": self._discovery,
            "/authorize": self._authorize,
            "/token": self._token,
            "/keys": self._keys,
        }
        return answers[request.path](request)(environ, start_response)

    def _discovery(self, request: Request) -> Response:
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
            "token_endpoint_auth_methods_supported": self.auth_methods,
            "code_challenge_methods_supported": ["S256"],
        }
        return _json(document | self.document_changes)

    def _keys(self, request: Request) -> Response:
        return _json({"keys": [key.as_dict(private=False) for key in self.keys]})

    def _authorize(self, request: Request) -> Response:
        given = request.args.to_dict()
        right = (
            given.get("response_type") == "code"
            and given.get("client_id") == CLIENT
            and given.get("redirect_uri") == self.redirect_uri
            and "openid" in given.get("scope", "").split()
            and given.get("code_challenge_method") == "S256"
            and len(given.get("code_challenge", "")) == 43
            and len(given.get("state", "")) >= 16
            and len(given.get("nonce", "")) >= 16
        )
        if not right:
            return Response("bad request", 400)
        code = secrets.token_urlsafe(16)
        self.codes[code] = given
        back = {"code": code, "state": given["state"], "iss": self.issuer, "session_state": "what nobody asked for"}
        return Response(status=302, headers={"Location": f"{self.redirect_uri}?{urlencode(back)}"})

    def _token(self, request: Request) -> Response:
        form = request.form.to_dict()
        if not self._is_client(request, form):
            return _json({"error": "invalid_client"}, 401)
        asked = self.codes.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest()).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge or form.get("redirect_uri") != asked["redirect_uri"]:
            return _json({"error": "invalid_grant"}, 400)
        access_token, now = secrets.token_urlsafe(16), int(self.at())
        half = hashlib.sha256(access_token.encode()).digest()[:16]
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            "at_hash": base64.urlsafe_b64encode(half).rstrip(b"=").decode(),
        } | self.who
        key = self.keys[0]
        headers = {"alg": "ES256" if key.key_type == "EC" else "RS256", "kid": key.kid}
        if self.spoil is not None:
            claims, headers, key = self.spoil(claims, headers, key)
        if isinstance(key, bytes):  # no library signs with a public key as if it were a secret
            id_token = _with_hmac(headers, claims, key)
        else:
            id_token = jwt.encode(headers, claims, key, algorithms=["RS256", "ES256", "none"])
        return _json({"access_token": access_token, "token_type": "Bearer", "expires_in": 300, "id_token": id_token})

    def _is_client(self, request: Request, form: dict[str, str]) -> bool:
        if "client_secret_basic" in self.auth_methods:
            given = request.authorization
            from urllib.parse import unquote_plus

            return given is not None and (unquote_plus(given.username or ""), unquote_plus(given.password or "")) == (CLIENT, self.secret)
        return form.get("client_id") == CLIENT and form.get("client_secret", "") == self.secret


def _with_hmac(headers: Any, claims: Any, key: bytes) -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = f"{part(json.dumps(headers).encode())}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.digest(key, signed.encode(), 'sha256'))}"


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")


@contextmanager
def running(redirect_uri: str) -> Iterator[Provider]:
    """A provider that knows one client."""
    provider = Provider(redirect_uri=redirect_uri)
    provider.rotate()
    with serving(provider) as address:
        provider.issuer = f"http://{address}"
        yield provider
