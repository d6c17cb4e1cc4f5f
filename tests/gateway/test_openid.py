"""Sign-in at an OpenID provider: the whole way through a real one, and everything that must not work."""

import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask.testing import FlaskClient
from joserfc import jwk
from werkzeug.test import TestResponse

from gateway import build_services, create_app
from gateway.context import Services
from gateway.operations import openid
from gateway.settings import Settings, SettingsError
from gateway.types import Role
from tests.gateway import openid_provider
from tests.gateway.accounts import audited, bearer, code_in_outbox, register, status
from tests.gateway.conftest import SetClock, unreachable_models
from tests.gateway.openid_provider import CLIENT, SECRET, Provider

pytestmark = pytest.mark.filterwarnings("ignore:JWS algorithm")
PUBLIC = "http://localhost"
"""The test client's own address, so that it sends its cookies there."""
MAIL = "ann@example.org"


@pytest.fixture
def provider(time_of_day: SetClock) -> Iterator[Provider]:
    with openid_provider.running(f"{PUBLIC}/v1/oidc/callback") as made:
        made.at = lambda: time_of_day().timestamp()
        yield made


@pytest.fixture
def gateway(settings: Settings, provider: Provider, time_of_day: SetClock) -> Iterator[Callable[..., tuple[FlaskClient, Services]]]:
    built: list[Services] = []

    def build(**changes: Any) -> tuple[FlaskClient, Services]:
        named = {"oidc_issuer": provider.issuer, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET, "public_url": PUBLIC}
        changed = replace(settings, **(named | changes))
        built.append(build_services(changed, unreachable_models(settings), now=time_of_day))
        return create_app(changed, services=built[-1]).test_client(), built[-1]

    yield build
    for services in built:
        services.close()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def visit(url: str) -> str:
    """What the browser does at the provider: where it is sent."""
    try:
        urllib.request.build_opener(_Stay()).open(url, timeout=10)
    except urllib.error.HTTPError as answer:
        with answer:
            assert answer.code == 302, answer.read()
            return str(answer.headers["Location"])
    raise AssertionError("the provider sent the browser nowhere")


def begin(client: FlaskClient) -> str:
    """The address that comes back from the provider."""
    sent = client.get("/v1/oidc/login")
    assert sent.status_code == 302, sent.get_json()
    return visit(sent.headers["Location"])


def end(client: FlaskClient, back: str) -> TestResponse:
    parts = urlsplit(back)
    return client.get(f"{parts.path}?{parts.query}")


def sign_in(client: FlaskClient) -> TestResponse:
    return end(client, begin(client))


def whoami(client: FlaskClient, answer: TestResponse) -> dict[str, Any]:
    assert answer.status_code == 200, answer.get_json()
    return dict(client.get("/v1/me", headers=bearer(answer.get_json()["access_token"])).get_json())


def test_a_first_sign_in_makes_an_account_and_the_next_finds_it(gateway: Any, provider: Provider) -> None:
    client, services = gateway()
    provider.who |= {"email": MAIL, "email_verified": True}
    first = sign_in(client)
    assert first.headers["Cache-Control"] == "no-store" and set(first.get_json()) == {
        "access_token",
        "refresh_token",
        "expires_in",
        "token_type",
    }
    account = whoami(client, first)
    assert (account["username"], account["email"], account["role"]) == ("ann", MAIL, "user") and "email_verified_at" in account
    provider.who["preferred_username"] = "somebody-else"
    assert whoami(client, sign_in(client)) == account, "the subject decides, not the name"
    assert client.post("/v1/tokens", json={"username": "ann", "password": "x" * 20}).status_code == 401
    assert audited(services, "user.identity") == [("ann", "ann")]
    assert provider.asked.count("/.well-known/openid-configuration") == 1 and provider.asked.count("/keys") == 1


def test_what_the_browser_carries(gateway: Any) -> None:
    client, _ = gateway(public_url="https://localhost")
    sent = client.get("/v1/oidc/login")
    cookie = sent.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Lax", "Secure", "Path=/v1/oidc", "Max-Age=600"):
        assert part in cookie
    asked = parse_qs(urlsplit(sent.headers["Location"]).query)
    assert asked["code_challenge_method"] == ["S256"] and asked["scope"] == ["openid email profile"]
    browser = cookie.partition("=")[2].partition(";")[0]
    assert browser not in sent.headers["Location"]


def test_it_ends_in_the_browser_where_it_began_and_once(gateway: Any, provider: Provider, time_of_day: SetClock) -> None:
    client, services = gateway()
    back = begin(client)
    stranger = create_app(services.settings, services=services).test_client()
    assert status(end(stranger, back)) == (401, "unauthenticated"), "somebody else's sign-in forced on a browser"
    assert end(client, back.replace("state=", "state=x")).status_code == 401
    assert "/token" not in provider.asked, "the code goes nowhere before that is known"
    whoami(client, end(client, back))
    assert end(client, back).status_code == 401, "once"
    late = begin(client)
    time_of_day.advance(600)
    assert end(client, late).status_code == 401
    assert client.get("/v1/oidc/callback").status_code == 401
    refused = client.get("/v1/oidc/callback?error=access_denied&state=x")
    assert refused.status_code == 401 and "access_denied" in refused.get_json()["detail"]


def test_the_answer_of_another_provider(gateway: Any, provider: Provider) -> None:
    client, _ = gateway()
    back = begin(client).replace("iss=", "iss=http%3A%2F%2Fevil.example&old=")
    assert end(client, back).status_code == 401


def changed(**claims: Any) -> Any:
    return lambda found, headers, key: (found | claims, headers, key)


SPOILT: dict[str, Any] = {
    "another issuer": changed(iss="https://evil.example"),
    "another audience": changed(aud="another-client"),
    "several audiences, made for another": changed(aud=[CLIENT, "other"], azp="other"),
    "another sign-in's nonce": changed(nonce="another"),
    "no nonce": lambda claims, headers, key: ({name: value for name, value in claims.items() if name != "nonce"}, headers, key),
    "no subject": lambda claims, headers, key: ({name: value for name, value in claims.items() if name != "sub"}, headers, key),
    "an empty subject": changed(sub=""),
    "a subject that is no text": changed(sub=7),
    "expired": lambda claims, headers, key: (claims | {"exp": claims["iat"] - 61}, headers, key),
    "no expiry": lambda claims, headers, key: ({name: value for name, value in claims.items() if name != "exp"}, headers, key),
    "another access token": changed(at_hash="AAAAAAAAAAAAAAAAAAAAAA"),
    "another key under the same id": lambda claims, headers, key: (claims, headers, jwk.RSAKey.generate_key(2048, {"kid": key.kid})),
    "the public key as a secret": lambda claims, headers, key: (
        claims,
        headers | {"alg": "HS256"},
        key.as_pem(private=False),
    ),
    "no signature": lambda claims, headers, key: (claims, {"alg": "none"}, jwk.OctKey.import_key("x" * 32)),
}


@pytest.mark.parametrize("what", SPOILT)
def test_id_tokens_that_are_not_right(gateway: Any, provider: Provider, what: str) -> None:
    client, services = gateway()
    provider.spoil = SPOILT[what]
    assert status(sign_in(client)) == (401, "unauthenticated")
    assert services.storage.users.by_name("ann") is None
    provider.spoil = None
    whoami(client, sign_in(client))


def test_keys_change_at_any_time(gateway: Any, provider: Provider, time_of_day: SetClock) -> None:
    client, _ = gateway()
    whoami(client, sign_in(client))
    time_of_day.advance(60)
    provider.rotate("EC", keep=True)
    whoami(client, sign_in(client))
    time_of_day.advance(60)
    provider.rotate()
    whoami(client, sign_in(client))
    asked = provider.asked.count("/keys")
    provider.spoil = lambda claims, headers, key: (claims, headers | {"kid": "nobody's"}, key)
    for _ in range(5):
        assert sign_in(client).status_code == 401
    assert provider.asked.count("/keys") == asked, "an unknown key's name does not make us ask again and again"


def test_a_client_secret_in_the_body_and_none_at_all(gateway: Any, provider: Provider) -> None:
    provider.auth_methods = ["client_secret_post"]
    whoami(*_with(gateway()))
    provider.auth_methods, provider.secret = ["none"], ""
    whoami(*_with(gateway(oidc_client_secret="")))


def _with(made: tuple[FlaskClient, Services]) -> tuple[FlaskClient, TestResponse]:
    return made[0], sign_in(made[0])


def test_a_wrong_client_secret_is_told(gateway: Any) -> None:
    client, _ = gateway(oidc_client_secret="wrong")
    assert sign_in(client).status_code == 401


@pytest.mark.parametrize("verified", [True, False, "true", None])
def test_an_address_alone_links_nothing(gateway: Any, provider: Provider, verified: Any) -> None:
    """By default never; with the setting only where both sides have verified it."""
    client, services = gateway()
    register(client, "owner", email=MAIL)
    client.post("/v1/users/verify", json={"email": MAIL, "code": code_in_outbox(services, MAIL)})
    provider.who |= {"email": MAIL} | ({} if verified is None else {"email_verified": verified})
    account = whoami(client, sign_in(client))
    assert account["username"] == "ann" and account["email"] is None
    provider.who["sub"] = "another"
    linking, _ = gateway(oidc_link_by_email="verified")
    assert whoami(linking, sign_in(linking))["username"] == ("owner" if verified is True else "ann-2")


def test_an_address_that_was_not_confirmed_here_links_nothing(gateway: Any, provider: Provider) -> None:
    client, _ = gateway(oidc_link_by_email="verified")
    register(client, "squatter", email=MAIL)
    provider.who |= {"email": MAIL, "email_verified": True}
    assert whoami(client, sign_in(client))["username"] == "ann"


def test_accounts_can_be_for_those_only_who_have_one(gateway: Any, provider: Provider) -> None:
    client, services = gateway(oidc_accounts="linked")
    assert status(sign_in(client)) == (403, "forbidden")
    assert services.storage.users.by_name("ann") is None


@pytest.mark.parametrize("column", ["disabled_at", "deleted_at"])
def test_an_account_that_was_closed_stays_closed(gateway: Any, column: str) -> None:
    client, services = gateway()
    whoami(client, sign_in(client))
    with services.storage.database.write() as db:
        db.execute(f"update users set {column} = 't' where name = 'ann'")
    assert status(sign_in(client)) == (403, "forbidden")


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"preferred_username": "Jörg Müller"}, "J-rg-M-ller"),
        ({"preferred_username": "admin"}, "user-"),
        ({"preferred_username": "..//"}, "user-"),
        ({"preferred_username": "x" * 300}, "x" * 56),
        ({"email": "bob@example.org"}, "bob"),
        ({"preferred_username": 7}, "user-"),
    ],
)
def test_names_of_new_accounts(gateway: Any, provider: Provider, claims: Any, name: str) -> None:
    client, _ = gateway()
    provider.who = {"sub": "somebody", **claims}
    assert whoami(client, sign_in(client))["username"].startswith(name)
    provider.who["sub"] = "another"
    assert whoami(client, sign_in(client))["username"].startswith(name[:50])


def test_names_that_somebody_else_has_taken_keep_nobody_out(gateway: Any, provider: Provider) -> None:
    client, services = gateway()
    for number in range(1, 60):
        services.storage.users.create("ann" if number == 1 else f"ann-{number}", None, "x", Role.USER, services.now())
    assert whoami(client, sign_in(client))["username"].startswith("ann-")


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://evil.example/token"},
        {"jwks_uri": None},
        {"authorization_endpoint": "file:///etc/passwd"},
    ],
)
def test_a_provider_that_describes_itself_wrongly(gateway: Any, provider: Provider, changes: dict[str, Any]) -> None:
    client, _ = gateway()
    provider.document_changes = changes
    answer = client.get("/v1/oidc/login")
    assert status(answer) == (503, "unavailable") and "Retry-After" in answer.headers


def test_a_provider_that_is_away_and_none_at_all(gateway: Any, client: FlaskClient) -> None:
    away, _ = gateway(oidc_issuer="http://127.0.0.1:1")
    assert status(away.get("/v1/oidc/login")) == (503, "unavailable")
    assert status(client.get("/v1/oidc/login")) == (404, "not_found") == status(client.get("/v1/oidc/callback?state=x&code=y"))


def test_a_provider_that_says_nothing_holds_one_thread(gateway: Any, monkeypatch: pytest.MonkeyPatch, time_of_day: SetClock) -> None:
    """Whoever sends many to sign in there must not hold every thread of the gateway."""
    monkeypatch.setattr(openid, "_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        silent.settimeout(0.2)
        client, _ = gateway(oidc_issuer=f"http://127.0.0.1:{silent.getsockname()[1]}")

        def asked() -> int:
            count = 0
            with contextlib.suppress(TimeoutError):
                while True:
                    silent.accept()[0].close()
                    count += 1
            return count

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: status(client.application.test_client().get("/v1/oidc/login")), range(8)))
        assert answers == [(503, "unavailable")] * 8 and asked() == 1
        assert status(client.get("/v1/oidc/login")) == (503, "unavailable") and asked() == 0, "told again without asking"
        time_of_day.advance(5)
        assert status(client.get("/v1/oidc/login")) == (503, "unavailable") and asked() == 1


def test_sign_ins_are_begun_within_measure(gateway: Any) -> None:
    client, _ = gateway()
    answers = [client.get("/v1/oidc/login").status_code for _ in range(61)]
    assert answers == [302] * 60 + [429]


@pytest.mark.parametrize(
    "changes",
    [
        {"oidc_issuer": "https://a.example"},
        {"oidc_issuer": "https://a.example", "oidc_client_id": "x"},
        {"oidc_issuer": "http://a.example", "oidc_client_id": "x", "public_url": PUBLIC},
    ],
)
def test_settings_that_do_not_fit_together(settings: Settings, changes: Any) -> None:
    with pytest.raises(SettingsError, match="OIDC_ISSUER"):
        replace(settings, **changes)
