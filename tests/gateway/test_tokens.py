"""Signing in, refreshing, signing out, and what keeps guessers out."""

import base64
import json
import logging

import jwt
import pytest
from flask.testing import FlaskClient

from gateway import build_services
from gateway.context import Services
from gateway.operations.tokens import AUDIENCE, ISSUER, REMEMBER_S
from gateway.settings import Settings
from idl.codes import Code, ServingError
from tests.gateway.conftest import PASSWORD, SetClock, unreachable_models

WRONG = "wrong wrong wrong"
Body = dict[str, str]


@pytest.fixture
def ann(services: Services) -> None:
    services.users.register("ann", PASSWORD, "ann@example.org")


def sign_in(client: FlaskClient, **fields: str) -> Body:
    answer = client.post("/v1/tokens", json={"password": PASSWORD, **(fields or {"username": "ann"})})
    assert answer.status_code == 200, answer.get_json()
    return dict(answer.get_json())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def status(client: FlaskClient, token: str) -> int:
    return client.get("/v1/me", headers=bearer(token)).status_code


def refresh(client: FlaskClient, token: str) -> tuple[int, Body]:
    answer = client.post("/v1/tokens/refresh", json={"refresh_token": token})
    return answer.status_code, answer.get_json()


@pytest.mark.usefixtures("ann")
def test_sign_in_by_name_or_address(client: FlaskClient) -> None:
    for fields in ({"username": "ann"}, {"username": "ANN"}, {"email": "Ann@example.org"}, {"username": "ann@example.org"}):
        tokens = sign_in(client, **fields)
        assert set(tokens) == {"access_token", "refresh_token", "expires_in", "token_type"}
        assert tokens["token_type"] == "Bearer" and tokens["expires_in"] == 900
        assert status(client, tokens["access_token"]) == 200
    answer = client.post("/v1/tokens", json={"username": "ann", "password": PASSWORD})
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"username": "ann"},
        {"password": PASSWORD},
        {"username": "\ud800", "password": PASSWORD},
        {"username": "ann", "email": "a@b", "password": PASSWORD},
    ],
)
def test_what_sign_in_needs(client: FlaskClient, body: Body) -> None:
    assert client.post("/v1/tokens", json=body).status_code == 400


@pytest.mark.usefixtures("ann")
def test_a_wrong_password_and_an_unknown_user_are_told_alike(client: FlaskClient) -> None:
    answers = [client.post("/v1/tokens", json={"username": name, "password": WRONG}) for name in ("ann", "nobody", "no@body.org")]
    assert [answer.status_code for answer in answers] == [401] * 3
    assert len({answer.get_json()["detail"] for answer in answers}) == 1


@pytest.mark.usefixtures("ann")
def test_access_tokens_expire_and_are_refreshed(client: FlaskClient, time_of_day: SetClock) -> None:
    first = sign_in(client)
    time_of_day.advance(899)
    assert status(client, first["access_token"]) == 200
    time_of_day.advance(1)
    assert status(client, first["access_token"]) == 401
    code, second = refresh(client, first["refresh_token"])
    assert code == 200 and second["refresh_token"] != first["refresh_token"]
    assert status(client, second["access_token"]) == 200


@pytest.mark.usefixtures("ann")
def test_refresh_tokens_expire_unless_they_are_used(client: FlaskClient, settings: Settings, time_of_day: SetClock) -> None:
    tokens = sign_in(client)
    for _ in range(3):
        time_of_day.advance(settings.refresh_token_ttl_s - 1)
        code, tokens = refresh(client, tokens["refresh_token"])
        assert code == 200
    time_of_day.advance(settings.refresh_token_ttl_s)
    assert refresh(client, tokens["refresh_token"])[0] == 401


@pytest.mark.usefixtures("ann")
def test_a_refresh_token_that_was_used_ends_the_session(client: FlaskClient) -> None:
    first, bystander = sign_in(client), sign_in(client)
    _, second = refresh(client, first["refresh_token"])
    code, answer = refresh(client, first["refresh_token"])
    assert code == 401 and "used before" in answer["detail"]
    assert refresh(client, second["refresh_token"])[0] == 401
    assert status(client, second["access_token"]) == 401 and status(client, first["access_token"]) == 401
    assert status(client, bystander["access_token"]) == 200, "another sign-in of the same user goes on"


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("token", ["", "x", "x" * 5000])
def test_other_refresh_tokens_are_refused(client: FlaskClient, token: str) -> None:
    assert refresh(client, token)[0] == 401


@pytest.mark.usefixtures("ann")
def test_sign_out_ends_this_session_only(client: FlaskClient) -> None:
    first, second = sign_in(client), sign_in(client)
    assert client.delete("/v1/tokens", headers=bearer(first["access_token"])).status_code == 204
    assert status(client, first["access_token"]) == 401
    assert refresh(client, first["refresh_token"])[0] == 401
    assert status(client, second["access_token"]) == 200
    assert client.delete("/v1/tokens").status_code == 401


@pytest.mark.usefixtures("ann")
def test_tokens_that_we_did_not_make_are_refused(client: FlaskClient, services: Services) -> None:
    good = sign_in(client)["access_token"]
    key = services.storage.secret()
    claims = jwt.decode(good, key, ["HS256"], audience=AUDIENCE, options={"verify_exp": False, "verify_iat": False})
    assert claims["iss"] == ISSUER and claims["jti"] and claims["sid"]
    header, payload, signature = good.split(".")
    other = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "2"}).encode()).rstrip(b"=").decode()
    unsigned = jwt.encode(claims, None, algorithm="none")
    bad = {
        "no token": "x",
        "empty parts": "..",
        "no signature": unsigned,
        "stripped signature": f"{header}.{payload}.",
        "changed payload": f"{header}.{other}.{signature}",
        "another key": jwt.encode(claims, "k" * 32, "HS256"),
        "another algorithm": jwt.encode(claims, key * 2, "HS512"),
        "another audience": jwt.encode(claims | {"aud": "x"}, key, "HS256"),
        "another issuer": jwt.encode(claims | {"iss": "x"}, key, "HS256"),
        "another user": jwt.encode(claims | {"sub": "2"}, key, "HS256"),
        "another session": jwt.encode(claims | {"sid": "x"}, key, "HS256"),
        "no expiry": jwt.encode({name: value for name, value in claims.items() if name != "exp"}, key, "HS256"),
        "text as expiry": jwt.encode(claims | {"exp": "x"}, key, "HS256"),
        "too long": good + "x" * 5000,
    }
    assert {name: status(client, token) for name, token in bad.items()} == dict.fromkeys(bad, 401)
    assert status(client, good) == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "x", "bearer\tx"])
def test_other_authorization_headers_are_refused(client: FlaskClient, header: str) -> None:
    assert client.get("/v1/me", headers={"Authorization": header}).status_code == 401


@pytest.mark.usefixtures("ann")
def test_failures_are_throttled_per_user_and_address_and_forgiven_with_time(client: FlaskClient, time_of_day: SetClock) -> None:
    def attempt(password: str, address: str = "10.0.0.1", name: str = "ann") -> int:
        answer = client.post("/v1/tokens", json={"username": name, "password": password}, environ_base={"REMOTE_ADDR": address})
        if answer.status_code == 429:
            assert answer.get_json()["code"] == "overloaded" and answer.get_json()["detail"] == "too many attempts"
            assert 1 <= int(answer.headers["Retry-After"]) <= 31
        return answer.status_code

    assert [attempt(WRONG) for _ in range(6)] == [401] * 5 + [429]
    assert attempt(PASSWORD) == 429, "the right password, too: else it could be guessed"
    assert attempt(PASSWORD, address="10.0.0.2") == 200, "from elsewhere the owner is not locked out"
    assert attempt(WRONG, name="nobody") == 401, "another name is counted for itself"
    time_of_day.advance(30)
    assert [attempt(WRONG), attempt(WRONG)] == [401, 429]
    time_of_day.advance(30)
    assert attempt(PASSWORD) == 200
    assert [attempt(WRONG) for _ in range(6)] == [401] * 5 + [429], "a success forgives"


@pytest.mark.usefixtures("ann")
def test_successes_are_never_throttled(client: FlaskClient) -> None:
    for _ in range(8):
        sign_in(client)


def test_one_address_cannot_try_many_users(services: Services, time_of_day: SetClock) -> None:
    from gateway.operations.throttle import Throttle

    throttle = Throttle(services.storage, services.settings)
    for number in range(50):
        throttle.take(f"user{number}", "10.0.0.1", time_of_day())
    with pytest.raises(ServingError, match="too many attempts"):
        throttle.take("user50", "10.0.0.1", time_of_day())
    throttle.take("user50", "10.0.0.2", time_of_day())
    time_of_day.advance(3)
    throttle.take("user51", "10.0.0.1", time_of_day())


def test_many_addresses_cannot_try_one_user(services: Services, time_of_day: SetClock) -> None:
    from gateway.operations.throttle import Throttle

    throttle = Throttle(services.storage, services.settings)
    throttle.take("ann", "10.9.9.9", time_of_day())
    throttle.succeeded("ann", "10.9.9.9", time_of_day())
    for number in range(100):
        throttle.take("ann", f"10.0.{number}.1", time_of_day())
    with pytest.raises(ServingError, match="too many attempts"):
        throttle.take("ANN", "10.1.0.1", time_of_day())
    throttle.take("bob", "10.1.0.1", time_of_day())
    for _ in range(5):  # the owner, from where she has signed in before; and there no more than anywhere
        throttle.take("ann", "10.9.9.9", time_of_day())
    with pytest.raises(ServingError):
        throttle.take("ann", "10.9.9.9", time_of_day())
    time_of_day.advance(1.5)
    throttle.take("ann", "10.1.0.1", time_of_day())
    with pytest.raises(ServingError):
        throttle.take("ann", "10.1.0.2", time_of_day())
    time_of_day.advance(31 * 86_400)
    for number in range(100):
        throttle.take("ann", f"10.0.{number}.1", time_of_day())
    with pytest.raises(ServingError):
        throttle.take("ann", "10.9.9.9", time_of_day())


def test_successes_from_anywhere_are_never_throttled(services: Services, time_of_day: SetClock) -> None:
    from gateway.operations.throttle import Throttle

    throttle = Throttle(services.storage, services.settings)
    for number in range(150):
        throttle.take("ann", f"10.0.{number}.1", time_of_day())
        throttle.succeeded("ann", f"10.0.{number}.1", time_of_day())


def test_one_ipv6_customer_is_one_address(services: Services, time_of_day: SetClock) -> None:
    from gateway.operations.throttle import Throttle

    throttle = Throttle(services.storage, services.settings)
    for number in range(5):
        throttle.take("ann", f"2001:db8:0:1::{number}", time_of_day())
    with pytest.raises(ServingError):
        throttle.take("ann", "2001:db8:0:1:ffff::1", time_of_day())
    throttle.take("ann", "2001:db8:0:2::1", time_of_day())
    for _ in range(5):
        throttle.take("ann", "::ffff:10.0.0.9", time_of_day())
    with pytest.raises(ServingError):
        throttle.take("ann", "10.0.0.9", time_of_day())


@pytest.mark.usefixtures("ann")
def test_no_secret_is_logged_or_kept_in_clear(client: FlaskClient, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        tokens = sign_in(client)
        _, second = refresh(client, tokens["refresh_token"])
        client.post("/v1/tokens", json={"username": "ann", "password": WRONG})
        client.get("/v1/me?password=" + PASSWORD.replace(" ", "+"), headers=bearer(second["access_token"]))
    secrets = [
        PASSWORD,
        WRONG,
        PASSWORD.replace(" ", "+"),
        *(each[name] for each in (tokens, second) for name in ("access_token", "refresh_token")),
    ]
    logged = "\n".join(str(record.__dict__) for record in caplog.records)
    kept = b"".join(path.read_bytes() for path in settings.state_dir.glob("outboard.db*"))
    assert len(caplog.records) >= 4
    for secret in secrets:
        assert secret not in logged and secret.encode() not in kept


class TestRemembering:
    """A token that was checked is not checked again for a moment; what ends it is seen at once all the same."""

    @pytest.fixture
    def token(self, services: Services, ann: None) -> str:
        issued = services.tokens.sign_in("ann", PASSWORD, "10.0.0.1").access_token
        services.tokens.authenticate(issued)
        return issued

    def is_good(self, services: Services, token: str) -> bool:
        try:
            return services.tokens.authenticate(token).name == "ann"
        except ServingError as error:
            assert error.code is Code.UNAUTHENTICATED
            return False

    def test_for_a_moment_only(self, services: Services, token: str, time_of_day: SetClock) -> None:
        with services.storage.database.write() as db:  # as no verb does it: nobody is told
            db.execute("update sessions set revoked_at = '2026'")
        assert self.is_good(services, token)
        assert services.tokens.recall(token) is not None
        time_of_day.advance(-1)
        assert not self.is_good(services, token), "a clock that was set back ends it, too"
        time_of_day.advance(REMEMBER_S + 1)
        assert not self.is_good(services, token)

    def test_half_the_moment_is_told_apart(self, services: Services, token: str, time_of_day: SetClock) -> None:
        assert services.tokens.recall(token) == (services.tokens.authenticate(token), True)
        time_of_day.advance(REMEMBER_S / 2)
        assert services.tokens.recall(token) == (services.tokens.authenticate(token), False)
        time_of_day.advance(REMEMBER_S / 2)
        assert services.tokens.recall(token) is None
        assert services.tokens.recall("nobody's") is None

    def test_not_beyond_its_expiry(self, services: Services, settings: Settings, token: str, time_of_day: SetClock) -> None:
        time_of_day.advance(settings.access_token_ttl_s - 1)
        assert self.is_good(services, token)
        time_of_day.advance(1)
        assert not self.is_good(services, token)

    def test_a_sign_out_elsewhere(self, services: Services, others: Services, token: str) -> None:
        others.tokens.sign_out(others.tokens.authenticate(token))
        assert not self.is_good(services, token) and not self.is_good(others, token)

    def test_a_stolen_refresh_token_elsewhere(self, services: Services, others: Services, ann: None) -> None:
        first = services.tokens.sign_in("ann", PASSWORD, "10.0.0.1")
        second = services.tokens.refresh(first.refresh_token)
        assert self.is_good(services, second.access_token)
        with pytest.raises(ServingError):
            others.tokens.refresh(first.refresh_token)
        assert not self.is_good(services, second.access_token)

    def test_a_changed_password_elsewhere(self, services: Services, others: Services, token: str) -> None:
        account = others.storage.users.by_name("ann")
        assert account is not None
        others.storage.users.change_own(account.id, others.users._now(), password_hash="another hash")
        assert not self.is_good(services, token)

    def test_a_deleted_account_elsewhere(self, services: Services, others: Services, token: str) -> None:
        account = others.storage.users.by_name("ann")
        assert account is not None
        others.storage.users.delete(account.id, others.users._now())
        assert not self.is_good(services, token)

    def test_only_where_changes_can_be_seen(self, settings: Settings, time_of_day: SetClock, caplog: pytest.LogCaptureFixture) -> None:
        settings.state_dir.mkdir(parents=True)
        (settings.state_dir / "principals").mkdir()  # a folder where the file should be
        services = build_services(settings, unreachable_models(settings), now=time_of_day)
        try:
            services.users.register("ann", PASSWORD)
            issued = services.tokens.sign_in("ann", PASSWORD, "")
            assert self.is_good(services, issued.access_token) and services.tokens.recall(issued.access_token) is None
            services.tokens.sign_out(services.tokens.authenticate(issued.access_token))
            assert not self.is_good(services, issued.access_token)
            assert [record.getMessage() for record in caplog.records].count("mark_unusable") == 1
        finally:
            services.close()

    def test_not_without_bound(self, services: Services, token: str) -> None:
        issued = [services.tokens._issued(services.tokens.authenticate(token), "x").access_token for _ in range(20)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gateway.operations.tokens._MOST_REMEMBERED", 8)
            for each in issued:
                assert self.is_good(services, each)
                assert len(services.tokens._checked) <= 8
