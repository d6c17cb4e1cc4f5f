"""`/register` of the form API."""

from dataclasses import replace
from typing import Any

from flask.testing import FlaskClient

from gateway import build_services, create_app
from gateway.settings import Settings
from tests.gateway.accounts import signed_in
from tests.gateway.conftest import PASSWORD, SetClock, unreachable_models


def ask(client: FlaskClient, **fields: Any) -> tuple[int, str]:
    answer = client.post("/register", data=fields)
    return answer.status_code, answer.get_json()["status"]


def test_an_account_that_is_active_at_once(client: FlaskClient) -> None:
    assert client.post("/register", data={"user": "ann", "password": PASSWORD}).get_json() == {"status": "success"}
    assert client.post("/login", data={"user": "ann", "password": PASSWORD}).get_json() == {"status": "success"}
    assert client.get("/v1/me", headers=signed_in(client)).get_json()["email"] is None
    assert ask(client, user="ANN", password=PASSWORD) == (200, "duplication")
    assert ask(client, user="admin", password=PASSWORD) == (200, "duplication"), "the first administrator's name"
    assert ask(client, uesr="bob", password=PASSWORD) == (200, "success"), "as the original document had it"


def test_what_cannot_be_an_account(client: FlaskClient) -> None:
    for fields in (
        {},
        {"user": "ann"},
        {"password": PASSWORD},
        {"user": "", "password": PASSWORD},
        {"user": "a b", "password": PASSWORD},
        {"user": "ann", "password": "short"},
        {"user": "ann", "password": "x" * 1025},
        {"user": "ann", "password": PASSWORD, "email": "none"},
    ):
        assert ask(client, **fields) == (400, "invalid parameter"), fields


def test_settings_count_here_as_well(settings: Settings, time_of_day: SetClock) -> None:
    def answers(changes: dict[str, Any], *asked: dict[str, str]) -> list[tuple[int, str]]:
        services = build_services(replace(settings, **changes), unreachable_models(settings), now=time_of_day)
        try:
            client = create_app(services.settings, services=services).test_client()
            return [ask(client, **({"password": PASSWORD} | fields)) for fields in asked]
        finally:
            services.close()

    assert answers({"email_address": "required"}, {"user": "a"}, {"user": "a", "email": "a@example.org"}) == [
        (400, "invalid parameter"),
        (200, "success"),
    ]
    assert answers({"registration": "closed"}, {"user": "b"}) == [(200, "unavailable")]
    assert answers({"registrations": 1}, {"user": "c"}, {"user": "d"}) == [(200, "too many attempts")] * 2, "one was used up above"
