"""Codes: an address that is confirmed, one that takes another's place, and a password that was forgotten."""

import logging
import sqlite3
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway import build_services, create_app
from gateway.context import Services
from gateway.operations import passwords
from gateway.settings import Settings
from gateway.types import Scope
from tests.gateway import accounts
from tests.gateway.accounts import audited, code_in_outbox, register, signed_in, status
from tests.gateway.conftest import PASSWORD, SetClock, unreachable_models

NEW_PASSWORD = "another long password"
MAIL = "ann@example.org"


def verify(client: FlaskClient, code: str, email: str = MAIL) -> tuple[int, str]:
    return status(client.post("/v1/users/verify", json={"email": email, "code": code}))


def reset(client: FlaskClient, code: str, email: str = MAIL, password: str = NEW_PASSWORD) -> tuple[int, str]:
    return status(client.post("/v1/password-resets", json={"email": email, "code": code, "password": password}))


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06d}"


def test_an_address_is_confirmed_once(client: FlaskClient, services: Services, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        register(client, email=MAIL)
    code = code_in_outbox(services, MAIL)
    assert [record.__dict__["code"] for record in caplog.records if record.getMessage() == "code_not_mailed"] == [code]
    me = signed_in(client)
    assert "email_verified_at" not in client.get("/v1/me", headers=me).get_json()
    assert verify(client, wrong(code)) == (400, "invalid_input")
    assert verify(client, code, "Ann@Example.ORG")[0] == 204, "whatever the case of the address"
    assert client.get("/v1/me", headers=me).get_json()["email_verified_at"] == "2026-11-21T04:05:06.000000Z"
    assert verify(client, code) == (400, "invalid_input"), "a code works once"
    assert audited(services, "user.email_confirmed") == [("ann", "ann")]


def test_a_code_is_good_for_ten_minutes_and_five_tries(client: FlaskClient, services: Services, time_of_day: SetClock) -> None:
    register(client, email=MAIL)
    first = code_in_outbox(services, MAIL)
    for _ in range(5):
        assert verify(client, wrong(first))[0] == 400
    assert verify(client, first)[0] == 400, "five tries are over"
    assert client.post("/v1/users/verify", json={"email": MAIL}).status_code == 202
    second = code_in_outbox(services, MAIL)
    time_of_day.advance(600)
    assert verify(client, second)[0] == 400, "ten minutes are over"
    assert client.post("/v1/users/verify", json={"email": MAIL}).status_code == 202
    time_of_day.advance(599)
    assert verify(client, code_in_outbox(services, MAIL))[0] == 204


def test_a_newer_code_takes_the_older_ones_place(client: FlaskClient, services: Services) -> None:
    register(client, email=MAIL)
    first = code_in_outbox(services, MAIL)
    client.post("/v1/users/verify", json={"email": MAIL})
    second = code_in_outbox(services, MAIL)
    assert (verify(client, first)[0], verify(client, second)[0]) == ((400, 204) if first != second else (204, 400))


def test_codes_are_no_use_to_whoever_reads_the_database(client: FlaskClient, services: Services, settings: Settings) -> None:
    register(client, email=MAIL)
    code = code_in_outbox(services, MAIL)
    with sqlite3.connect(settings.state_dir / "outboard.db") as db:
        kept = str(db.execute("select * from codes").fetchall())
    db.close()
    assert code not in kept and passwords.token_hash(code) not in kept


def test_who_asks_for_a_code_learns_nothing(client: FlaskClient, services: Services) -> None:
    register(client, email=MAIL)
    verify(client, code_in_outbox(services, MAIL))
    letters = len(services.storage.outbox.page("", None, 100))
    for path in ("/v1/users/verify", "/v1/password-resets"):
        known, unknown = (client.post(path, json={"email": email}) for email in (MAIL, "nobody@example.org"))
        assert known.status_code == unknown.status_code == 202
        assert known.data == unknown.data and set(known.headers.keys()) == set(unknown.headers.keys())
    assert len(services.storage.outbox.page("", None, 100)) == letters + 1, "one reset; a confirmed address needs no code"
    assert verify(client, "123456", "nobody@example.org") == verify(client, "123456") == (400, "invalid_input")
    assert reset(client, "123456", "nobody@example.org")[0] == 400
    with services.storage.database.read() as db:
        tries = {row["tries_left"] for row in db.execute("select tries_left from codes where address = 'nobody@example.org'")}
    assert tries == {4}, "a code that nobody has is tried like any other"


def test_asking_does_the_same_statements_for_a_known_and_an_unknown_address(client: FlaskClient, services: Services) -> None:
    """What takes time is the same: the statements, and the writes to the disk."""
    register(client, email=MAIL)
    traces = []
    for email in (MAIL, "nobody@example.org"):
        seen: list[str] = []
        with services.storage.database.read() as db:
            db.conn.set_trace_callback(seen.append)
        assert client.post("/v1/password-resets", json={"email": email}).status_code == 202
        with services.storage.database.read() as db:
            db.conn.set_trace_callback(None)
        traces.append([statement.split(" ")[0:3] for statement in seen])
    assert traces[0] == traces[1] and len(traces[0]) > 10


def test_a_wrong_reset_costs_what_a_right_one_does(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = passwords.hash_password

    def counted(password: str) -> str:
        made.append(password)
        return real(password)

    monkeypatch.setattr(passwords, "hash_password", counted)
    assert reset(client, "123456", "nobody@example.org")[0] == 400
    assert made == [NEW_PASSWORD]


def test_a_forgotten_password(client: FlaskClient, services: Services) -> None:
    register(client, email=MAIL)
    verify(client, code_in_outbox(services, MAIL))
    before = signed_in(client)
    key = accounts.key(client, before, Scope.READ)
    assert client.post("/v1/password-resets", json={"email": MAIL}).status_code == 202
    code = code_in_outbox(services, MAIL)
    assert verify(client, code)[0] == 400, "a code is for one thing"
    assert reset(client, wrong(code))[0] == 400
    assert reset(client, code, password="short") == (400, "invalid_input")
    assert reset(client, code)[0] == 204
    assert client.get("/v1/me", headers=before).status_code == 401, "every session has ended"
    assert client.get("/v1/me", headers=key).status_code == 200, "the address was the account's before: keys go on"
    assert client.post("/v1/tokens", json={"username": "ann", "password": PASSWORD}).status_code == 401
    signed_in(client, password=NEW_PASSWORD)
    assert reset(client, code)[0] == 400
    assert audited(services, "user.password_reset") == [("ann", "ann")]
    for body in ({"email": MAIL, "code": "1"}, {"email": MAIL, "password": NEW_PASSWORD}, {"email": "x"}, {}):
        assert client.post("/v1/password-resets", json=body).status_code == 400


def test_a_reset_throws_out_whoever_made_the_account_under_a_strangers_address(client: FlaskClient, services: Services) -> None:
    register(client, "squatter", email=MAIL)
    key = accounts.key(client, signed_in(client, "squatter"), Scope.READ)
    client.post("/v1/password-resets", json={"email": MAIL})
    assert reset(client, code_in_outbox(services, MAIL))[0] == 204
    assert client.get("/v1/me", headers=key).status_code == 401
    assert "email_verified_at" in client.get("/v1/me", headers=signed_in(client, "squatter", NEW_PASSWORD)).get_json()


def test_a_confirmed_address_stays_until_the_next_one_is(client: FlaskClient, services: Services) -> None:
    register(client, email=MAIL)
    verify(client, code_in_outbox(services, MAIL))
    me = signed_in(client)
    changed = client.patch("/v1/me", json={"current_password": PASSWORD, "email": "new@example.org"}, headers=me).get_json()
    assert (changed["email"], changed["pending_email"]) == (MAIL, "new@example.org")
    assert client.post("/v1/tokens", json={"email": "new@example.org", "password": PASSWORD}).status_code == 401
    assert verify(client, code_in_outbox(services, "new@example.org"), "new@example.org")[0] == 204
    changed = client.get("/v1/me", headers=me).get_json()
    assert changed["email"] == "new@example.org" and "pending_email" not in changed and "email_verified_at" in changed


def test_an_address_that_somebody_else_got_meanwhile(client: FlaskClient, services: Services) -> None:
    register(client, email=MAIL)
    verify(client, code_in_outbox(services, MAIL))
    client.patch("/v1/me", json={"current_password": PASSWORD, "email": "new@example.org"}, headers=signed_in(client))
    mine = code_in_outbox(services, "new@example.org")
    register(client, "bob", email="new@example.org")
    assert verify(client, mine, "new@example.org") == (409, "already_exists")
    assert verify(client, code_in_outbox(services, "new@example.org"), "new@example.org")[0] == 204


def test_codes_are_asked_for_within_measure(client: FlaskClient, services: Services, time_of_day: SetClock) -> None:
    def ask(email: str, address: str = "10.0.0.1") -> int:
        answer = client.post("/v1/password-resets", json={"email": email}, environ_base={"REMOTE_ADDR": address})
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) > 0
        return answer.status_code

    assert [ask(MAIL) for _ in range(4)] == [202] * 3 + [429], "also for an address that no account has"
    assert ask(MAIL, "10.0.0.2") == 429, "a mailbox is protected from the whole world"
    assert ask(MAIL.upper(), "10.0.0.2") == 429
    assert ask("bob@example.org") == 202
    time_of_day.advance(300)
    assert [ask(MAIL), ask(MAIL)] == [202, 429]
    assert [ask(f"user{number}@example.org", "10.0.0.3") for number in range(31)] == [202] * 30 + [429]
    assert ask("carol@example.org", "10.0.0.4") == 202


def test_tries_are_limited_over_all_codes(client: FlaskClient) -> None:
    answers = [verify(client, "123456", f"user{number}@example.org")[0] for number in range(51)]
    assert answers == [400] * 50 + [429]


def test_registrations_are_limited(settings: Settings, time_of_day: SetClock) -> None:
    services = build_services(replace(settings, registrations=2), unreachable_models(settings), now=time_of_day)
    try:
        client = create_app(settings, services=services).test_client()

        def ask(name: str, address: str = "10.0.0.1") -> int:
            body = {"username": name, "password": PASSWORD}
            return client.post("/v1/users", json=body, environ_base={"REMOTE_ADDR": address}).status_code

        assert [ask(name) for name in ("a", "a", "-", "b", "c")] == [201, 409, 400, 201, 429]
        assert ask("c", "10.0.0.2") == 201
        time_of_day.advance(10)
        assert ask("d") == 201
    finally:
        services.close()


@pytest.mark.parametrize(
    ("changed", "body", "expected"),
    [
        ({"email_address": "required"}, {}, 400),
        ({"email_address": "required"}, {"email": MAIL}, 201),
        ({"unverified_sign_in": "refused"}, {}, 201),
    ],
)
def test_an_address_can_be_required(settings: Settings, time_of_day: SetClock, changed: dict[str, Any], body: Any, expected: int) -> None:
    services = build_services(replace(settings, **changed), unreachable_models(settings), now=time_of_day)
    try:
        client = create_app(settings, services=services).test_client()
        assert client.post("/v1/users", json={"username": "ann", "password": PASSWORD} | body).status_code == expected
        if expected == 201:
            me = signed_in(client)
            removed = client.patch("/v1/me", json={"current_password": PASSWORD, "email": None}, headers=me).status_code
            assert removed == (400 if "email_address" in changed else 200)
    finally:
        services.close()


def test_a_sign_in_can_wait_for_the_address(settings: Settings, time_of_day: SetClock) -> None:
    services = build_services(replace(settings, unverified_sign_in="refused"), unreachable_models(settings), now=time_of_day)
    try:
        client = create_app(settings, services=services).test_client()
        register(client, email=MAIL)
        refused = client.post("/v1/tokens", json={"username": "ann", "password": PASSWORD})
        assert refused.status_code == 403 and "confirmed first" in refused.get_json()["detail"]
        assert client.post("/v1/tokens", json={"username": "ann", "password": "wrong wrong"}).status_code == 401, "told to the owner only"
        assert verify(client, code_in_outbox(services, MAIL))[0] == 204
        signed_in(client)
    finally:
        services.close()


def test_sign_out_everywhere(client: FlaskClient, services: Services) -> None:
    register(client)
    here, there = signed_in(client), signed_in(client)
    key = accounts.key(client, here, Scope.READ)
    assert client.delete("/v1/tokens?everywhere=true", headers=here).status_code == 204
    assert [client.get("/v1/me", headers=headers).status_code for headers in (here, there, key)] == [401, 401, 200]
    assert audited(services, "user.sign_out_everywhere") == [("ann", "ann")]


def test_a_change_that_meets_another_one(client: FlaskClient) -> None:
    register(client)
    me = signed_in(client)
    etag = client.get("/v1/me", headers=me).headers["ETag"]
    body = {"current_password": PASSWORD, "email": MAIL}
    assert client.patch("/v1/me", json=body, headers=me | {"If-Match": etag}).status_code == 200
    assert client.patch("/v1/me", json=body | {"email": "b@example.org"}, headers=me | {"If-Match": etag}).status_code == 412
    assert client.get("/v1/me", headers=me).get_json()["email"] == MAIL


def confirmed(client: FlaskClient, services: Services) -> accounts.Headers:
    """ann with an address that her code has confirmed, signed in."""
    register(client, email=MAIL)
    assert verify(client, code_in_outbox(services, MAIL))[0] == 204
    return signed_in(client)


@pytest.mark.parametrize("how", ["reset", "change"])
def test_a_new_password_takes_back_an_address_that_waits(client: FlaskClient, services: Services, how: str) -> None:
    """Whoever had the old password may have asked for that address: its code would give them the account again."""
    thief = confirmed(client, services)
    body = {"current_password": PASSWORD, "email": "thief@example.org"}
    assert client.patch("/v1/me", json=body, headers=thief).get_json()["pending_email"] == "thief@example.org"
    code = code_in_outbox(services, "thief@example.org")
    if how == "reset":
        client.post("/v1/password-resets", json={"email": MAIL})
        assert reset(client, code_in_outbox(services, MAIL))[0] == 204
    else:
        body = {"current_password": PASSWORD, "password": NEW_PASSWORD}
        assert client.patch("/v1/me", json=body, headers=signed_in(client)).status_code == 200
    assert verify(client, code, "thief@example.org") == (400, "invalid_input")
    me = client.get("/v1/me", headers=signed_in(client, password=NEW_PASSWORD)).get_json()
    assert me["email"] == MAIL and "pending_email" not in me


def test_a_code_is_of_no_use_once_the_account_has_another_address(client: FlaskClient, services: Services) -> None:
    register(client, email=MAIL)
    old = code_in_outbox(services, MAIL)
    client.post("/v1/password-resets", json={"email": MAIL})
    old_reset = code_in_outbox(services, MAIL)
    body = {"current_password": PASSWORD, "email": "new@example.org"}
    assert client.patch("/v1/me", json=body, headers=signed_in(client)).status_code == 200
    assert verify(client, old) == (400, "invalid_input") and reset(client, old_reset) == (400, "invalid_input")
    signed_in(client)
    assert audited(services, "user.email_confirmed") == [] and audited(services, "user.password_reset") == []


def test_the_same_address_in_another_spelling(client: FlaskClient, services: Services) -> None:
    me = confirmed(client, services)

    def change(email: str) -> Any:
        return client.patch("/v1/me", json={"current_password": PASSWORD, "email": email}, headers=me).get_json()

    spelled = change(MAIL.upper())
    assert spelled["email"] == MAIL.upper() and "email_verified_at" in spelled and "pending_email" not in spelled
    assert change("new@example.org")["pending_email"] == "new@example.org"
    taken_back = change(MAIL)
    assert taken_back["email"] == MAIL and "pending_email" not in taken_back
    assert verify(client, code_in_outbox(services, "new@example.org"), "new@example.org")[0] == 400


def test_two_changes_of_one_revision(client: FlaskClient, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were looked at before either was written."""
    register(client)
    me = signed_in(client)
    etag = client.get("/v1/me", headers=me).headers["ETag"]
    user = services.storage.users.by_name("ann")
    assert user is not None
    hash_password = passwords.hash_password

    def meanwhile(password: str) -> str:
        services.storage.users.change_own(user.id, services.now(), email="other@example.org")
        return hash_password(password)

    monkeypatch.setattr(passwords, "hash_password", meanwhile)
    body = {"current_password": PASSWORD, "email": MAIL, "password": NEW_PASSWORD}
    assert client.patch("/v1/me", json=body, headers=me | {"If-Match": etag}).status_code == 412
    assert client.get("/v1/me", headers=me).get_json()["email"] == "other@example.org"
    signed_in(client)
