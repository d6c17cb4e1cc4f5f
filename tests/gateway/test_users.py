"""Accounts over HTTP: registering, one's own account, the first administrator."""

import sqlite3
from dataclasses import replace

import argon2
import pytest
from flask.testing import FlaskClient

from gateway import build_services
from gateway.context import Services
from gateway.operations import passwords
from gateway.settings import Settings, SettingsError
from gateway.types import Role
from idl.codes import Code, ServingError
from tests.gateway.conftest import PASSWORD, SetClock, unreachable_models

NEW_PASSWORD = "another long password"


def register(client: FlaskClient, name: str = "ann", **fields: object) -> None:
    answer = client.post("/v1/users", json={"username": name, "password": PASSWORD, **fields})
    assert answer.status_code == 201, answer.get_json()


def signed_in(client: FlaskClient, name: str = "ann", password: str = PASSWORD) -> dict[str, str]:
    answer = client.post("/v1/tokens", json={"username": name, "password": password})
    assert answer.status_code == 200, answer.get_json()
    return {"Authorization": f"Bearer {answer.get_json()['access_token']}"}


def wrong_fields(client: FlaskClient, body: object) -> dict[str, str]:
    answer = client.post("/v1/users", json=body)
    assert answer.status_code == 400 and answer.get_json()["code"] == "invalid_input", answer.get_json()
    return {error["field"]: error["message"] for error in answer.get_json()["errors"]}


def test_register_and_read(client: FlaskClient) -> None:
    answer = client.post("/v1/users", json={"username": "Ann_1-x", "password": PASSWORD, "email": "Ann@example.org"})
    assert answer.status_code == 201 and answer.headers["Location"] == "/v1/me"
    expected = {"username": "Ann_1-x", "email": "Ann@example.org", "role": "user"}
    times = {"created_at": "2026-11-21T04:05:06.000000Z", "updated_at": "2026-11-21T04:05:06.000000Z"}
    assert answer.get_json() == expected | times
    assert client.get("/v1/me", headers=signed_in(client, "Ann_1-x")).get_json() == expected | times


def test_registration_can_be_closed(services: Services) -> None:
    settings = replace(services.settings, registration="closed")
    closed = build_services(settings, unreachable_models(settings))
    try:
        with pytest.raises(ServingError) as refused:
            closed.users.register("ann", PASSWORD)
        assert refused.value.code is Code.FORBIDDEN and "closed" in refused.value.message
        token = closed.users.first_administrator("")
        assert closed.users.register("admin", PASSWORD, signup_token=token).role is Role.ADMINISTRATOR
    finally:
        closed.close()


@pytest.mark.parametrize("name", ["", " ", "-a", "_a", "a b", "a.b", "a/b", "ä", "a" * 65, "a\n", "a\x00", "\u0661"])
def test_names_that_are_refused(client: FlaskClient, name: str) -> None:
    assert set(wrong_fields(client, {"username": name, "password": PASSWORD})) == {"username"}


@pytest.mark.parametrize(
    "email",
    [
        *("", "a", "a@", "@b", "a@b@c", "a b@c", "a@b\n", "a\x00@b", "a" * 65 + "@b", "a@" + "b" * 253, "a\u200b@b"),
        *('"a"@b', "a,b@c", "a<b@c", "a@b>", "(a@b", "a@[::1]", "a@b;c", ":[@b", "a@b.", "a@-b"),
    ],
)
def test_addresses_that_are_refused(client: FlaskClient, email: str) -> None:
    assert set(wrong_fields(client, {"username": "ann", "password": PASSWORD, "email": email})) == {"email"}


@pytest.mark.parametrize("password", ["", "1234567", "x" * 1025, "\ud800" * 8])
def test_passwords_that_are_refused(client: FlaskClient, password: str) -> None:
    assert set(wrong_fields(client, {"username": "ann", "password": password})) == {"password"}


@pytest.mark.parametrize("password", ["12345678", "密码很长很长很长", "x" * 1024, " spaces count ", "nul\0inside", "\U0001f511" * 8])
def test_passwords_that_are_taken_as_they_stand(client: FlaskClient, password: str) -> None:
    register(client, password=password)
    signed_in(client, password=password)
    assert client.post("/v1/tokens", json={"username": "ann", "password": password + "x"}).status_code == 401


def test_accents_may_be_spelled_either_way(client: FlaskClient) -> None:
    register(client, password="caf\u00e9 caf\u00e9")
    signed_in(client, password="cafe\u0301 cafe\u0301")


def test_every_wrong_field_is_named_at_once(client: FlaskClient) -> None:
    assert set(wrong_fields(client, {"username": "", "password": "x", "email": "y"})) == {"username", "password", "email"}
    assert wrong_fields(client, {"role": "administrator", "username": 1}) == {
        "password": "is missing",
        "username": "must be text",
        "role": "is unknown here",
    }


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", None, 415),
        (b"username=ann&password=12345678", "application/x-www-form-urlencoded", 415),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"a": "\xff"}', "application/json", 400),
        (b'{"username": "a", "username": "b"}', "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b'{"a":' * 10_000, "application/json", 400),
        (b" " * (64 * 1024 + 1), "application/json", 413),
    ],
)
def test_bodies_that_are_refused(client: FlaskClient, body: bytes, kind: str | None, status: int) -> None:
    answer = client.post("/v1/users", data=body, content_type=kind)
    assert answer.status_code == status, answer.get_json()


def test_a_compressed_body_is_refused(client: FlaskClient) -> None:
    answer = client.post("/v1/users", data=b"x", content_type="application/json", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_names_and_addresses_are_unique_whatever_their_case(client: FlaskClient) -> None:
    register(client, "ann", email="ann@example.org")
    for fields in ({"username": "ANN"}, {"username": "bob", "email": "Ann@Example.org"}, {"username": "Admin"}):
        answer = client.post("/v1/users", json={"password": PASSWORD, **fields})
        assert answer.status_code == 409 and answer.get_json()["code"] == "already_exists"
    register(client, "bob", email=None)
    register(client, "carol")


def test_change_of_address_and_password(client: FlaskClient, time_of_day: SetClock) -> None:
    register(client)
    this, other = signed_in(client), signed_in(client)
    time_of_day.advance(60)
    body = {"current_password": PASSWORD, "email": "ann@example.org", "password": NEW_PASSWORD}
    answer = client.patch("/v1/me", json=body, headers=this)
    assert answer.status_code == 200
    assert answer.get_json()["email"] == "ann@example.org" and answer.get_json()["updated_at"] == "2026-11-21T04:06:06.000000Z"
    assert client.get("/v1/me", headers=this).status_code == 200
    assert client.get("/v1/me", headers=other).status_code == 401, "other sessions end with the old password"
    assert client.post("/v1/tokens", json={"username": "ann", "password": PASSWORD}).status_code == 401
    signed_in(client, password=NEW_PASSWORD)
    assert client.patch("/v1/me", json={"current_password": NEW_PASSWORD, "email": None}, headers=this).get_json()["email"] is None


def test_a_change_needs_the_current_password(client: FlaskClient) -> None:
    register(client)
    register(client, "bob", email="bob@example.org")
    caller = signed_in(client)
    cases = [
        ({"current_password": "wrong wrong", "password": NEW_PASSWORD}, 403),
        ({"password": NEW_PASSWORD}, 400),
        ({"current_password": PASSWORD}, 400),
        ({"current_password": PASSWORD, "password": "short"}, 400),
        ({"current_password": PASSWORD, "password": None}, 400),
        ({"current_password": PASSWORD, "role": "administrator"}, 400),
        ({"current_password": PASSWORD, "email": "BOB@example.org"}, 409),
    ]
    for body, status in cases:
        assert client.patch("/v1/me", json=body, headers=caller).status_code == status, body
    signed_in(client)


def test_a_deleted_account_is_gone_and_its_name_stays_taken(client: FlaskClient) -> None:
    register(client, email="ann@example.org")
    caller = signed_in(client)
    assert client.delete("/v1/me", headers=caller).status_code == 204
    assert client.get("/v1/me", headers=caller).status_code == 401
    assert client.post("/v1/tokens", json={"username": "ann", "password": PASSWORD}).status_code == 401
    assert client.post("/v1/users", json={"username": "ann", "password": PASSWORD}).status_code == 409
    register(client, "ann2", email="ann@example.org")


def test_the_first_administrator_from_the_setting(client: FlaskClient, services: Services) -> None:
    assert services.users.first_administrator(PASSWORD) == ""
    caller = signed_in(client, "admin")
    assert client.get("/v1/me", headers=caller).get_json()["role"] == "administrator"
    assert services.users.first_administrator(NEW_PASSWORD) == "", "a changed setting changes no account"
    signed_in(client, "admin")
    assert client.delete("/v1/me", headers=caller).status_code == 409, "the last administrator stays"


def test_a_first_password_that_no_account_can_have_is_refused(services: Services) -> None:
    with pytest.raises(SettingsError, match="8 to 1024"):
        services.users.first_administrator("short")


def test_the_first_administrator_from_a_sign_up_token(client: FlaskClient, services: Services) -> None:
    old, token = services.users.first_administrator(""), services.users.first_administrator("")
    assert client.post("/v1/users", json={"username": "eve", "password": PASSWORD, "signup_token": old}).status_code == 403
    register(client, "admin", signup_token=token)
    assert client.get("/v1/me", headers=signed_in(client, "admin")).get_json()["role"] == "administrator"
    assert client.post("/v1/users", json={"username": "eve", "password": PASSWORD, "signup_token": token}).status_code == 403
    assert services.users.first_administrator("") == ""


def test_a_first_administrators_link_ends_where_a_password_makes_one(client: FlaskClient, services: Services) -> None:
    """The link of a start without the password: it lies in somebody's terminal for a day."""
    token = services.users.first_administrator("")
    assert services.users.first_administrator(PASSWORD) == ""
    answer = client.post("/v1/users", json={"username": "mallory", "password": PASSWORD, "signup_token": token})
    assert (answer.status_code, answer.get_json()["code"]) == (403, "forbidden")


def test_a_sign_up_token_survives_a_refused_registration_but_not_a_day(
    client: FlaskClient, services: Services, time_of_day: SetClock
) -> None:
    register(client, "taken")
    token = services.users.first_administrator("")
    body = {"username": "taken", "password": PASSWORD, "signup_token": token}
    assert client.post("/v1/users", json=body).status_code == 409
    time_of_day.advance(24 * 3600)
    assert client.post("/v1/users", json=body | {"username": "late"}).status_code == 403


@pytest.mark.usefixtures("real_passwords")
def test_passwords_are_kept_as_argon2id_and_brought_up_to_date(client: FlaskClient, services: Services, settings: Settings) -> None:
    register(client)
    with sqlite3.connect(settings.state_dir / "outboard.db") as db:
        (kept,) = db.execute("select password_hash from users").fetchone()
        assert kept.startswith("$argon2id$v=19$m=32768,t=2,p=1$") and not passwords.is_outdated(kept)
        weaker = argon2.PasswordHasher(1, 8, 1).hash(PASSWORD)
        db.execute("update users set password_hash = ?", [weaker])
    db.close()
    signed_in(client)
    user = services.storage.users.by_name("ann")
    assert user is not None and user.password_hash != weaker and not passwords.is_outdated(user.password_hash)
    signed_in(client)


@pytest.mark.usefixtures("real_passwords")
def test_the_hash_that_nothing_fits_costs_what_a_real_one_does() -> None:
    made = passwords.impossible_hash()
    assert not passwords.is_outdated(made)
    assert not passwords.verify(made, PASSWORD)


def test_roles_take_effect_at_once(settings: Settings, time_of_day: SetClock) -> None:
    services = build_services(replace(settings, access_token_ttl_s=60), unreachable_models(settings), now=time_of_day)
    try:
        services.users.register("ann", PASSWORD)
        token = services.tokens.sign_in("ann", PASSWORD, "").access_token
        assert services.tokens.authenticate(token).role is Role.USER
        with services.storage.database.write() as db:
            db.execute("update users set role = 'operator'")
        services.storage.principals.change()  # as every statement of the storage that changes an account does
        assert services.tokens.authenticate(token).may_operate
    finally:
        services.close()
