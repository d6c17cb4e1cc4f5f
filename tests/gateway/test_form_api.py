"""What all routes of the form API have in common."""

import io
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway.blueprints import form_api
from gateway.blueprints.form_api import ALWAYS, ROUTES, STATUSES, status_of
from gateway.context import Services
from gateway.errors import InvalidFields
from gateway.operations import names, passwords
from idl.codes import Code, ServingError
from tests.gateway.conftest import PASSWORD, SetClock


@pytest.fixture
def ann(services: Services) -> dict[str, str]:
    services.users.register("ann", PASSWORD)
    return {"user": "ann", "password": PASSWORD}


def test_every_code_has_a_status_that_each_route_documents() -> None:
    assert set(STATUSES) == set(Code)
    for route in ROUTES:
        for code in Code:
            status = status_of(ServingError(code, "x"), route.statuses)
            assert status in ALWAYS or status in route.statuses, (route.path, code, status)
        assert status_of(InvalidFields({"a": "b"}), route.statuses) == "invalid parameter"


def test_the_statuses_of_signing_in(client: FlaskClient, ann: dict[str, str]) -> None:
    def login(**fields: Any) -> tuple[int, Any]:
        answer = client.post("/login", data=fields)
        return answer.status_code, answer.get_json()

    assert login(**ann) == (200, {"status": "success"})
    assert login(uesr="ann", password=PASSWORD) == (200, {"status": "success"})
    assert login(**ann, colour="blue")[1] == {"status": "success"}, "what is not known is not looked at"
    assert login(user="ann", password="wrong one")[1]["status"] == "invalid password"
    assert login(user="bob", password=PASSWORD) == (200, {"status": "user not found"})
    assert login(user="", password="")[1] == {"status": "user not found"}
    assert login(user="ann") == (400, {"status": "invalid parameter", "message": "password: is missing"})
    status, body = login(user="ann", password=(io.BytesIO(b"x"), "file.txt"))
    assert (status, body["status"]) == (400, "invalid parameter"), "a file is no text"
    assert login(user="ann\0", password="x")[0] == 400
    assert client.post("/login", json=ann).status_code == 400, "JSON is no form"
    assert client.post("/login?user=ann&password=" + PASSWORD).status_code == 400, "the query string is for GET and DELETE"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="user"\r\n\r\nann'),
        ("multipart/form-data; boundary=b", b"no parts at all"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="user"\r\n\r\n\xff\xfe\r\n--b--\r\n'),
        ("application/x-www-form-urlencoded", b"user=%ff"),
        ("application/x-www-form-urlencoded", b"&" * 2000),
    ],
)
def test_bodies_that_are_no_form(client: FlaskClient, content_type: str, body: bytes) -> None:
    answer = client.post("/login", data=body, content_type=content_type)
    assert answer.status_code == 400 and answer.get_json()["status"] == "invalid parameter"
    assert answer.get_json()["message"]


def test_failed_passwords_are_throttled_and_right_ones_are_not(client: FlaskClient, ann: dict[str, str]) -> None:
    statuses = [client.post("/login", data={"user": "ann", "password": f"wrong {n}"}).get_json()["status"] for n in range(7)]
    assert statuses == ["invalid password"] * 5 + ["too many attempts"] * 2
    assert client.post("/login", data=ann).get_json()["status"] == "too many attempts"


def test_a_right_password_is_looked_at_once_until_something_changes(
    client: FlaskClient, ann: dict[str, str], services: Services, time_of_day: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    verify = passwords.verify
    monkeypatch.setattr(passwords, "verify", lambda known, given: looked.append(given) or verify(known, given))  # type: ignore[func-returns-value]
    for _ in range(3):
        assert client.post("/login", data=ann).get_json() == {"status": "success"}
    assert len(looked) == 1
    assert client.post("/login", data={**ann, "password": PASSWORD + "x"}).get_json()["status"] == "invalid password"
    time_of_day.advance(61)
    assert client.post("/login", data=ann).get_json() == {"status": "success"}
    assert len(looked) == 3
    user = services.storage.users.by_name("ann")
    assert user is not None
    services.storage.users.change_own(user.id, time_of_day(), password_hash=passwords.hash_password("another password"))
    assert client.post("/login", data=ann).get_json()["status"] == "invalid password"
    services.storage.users.delete(user.id, time_of_day())
    assert client.post("/login", data={"user": "ann", "password": "another password"}).get_json()["status"] == "user not found"


def test_an_unexpected_failure_is_an_internal_error_with_an_id(
    client: FlaskClient, ann: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(form_api, "_sign_in", broken)
    answer = client.post("/login", data=ann)
    assert answer.status_code == 200 and answer.get_json()["status"] == "internal error"
    assert "secret" not in answer.get_json()["message"] and answer.headers["X-Request-Id"] in answer.get_json()["message"]


def test_names() -> None:
    assert names.reason_against("a-B_9") == "" and names.reason_against("a" * 64) == ""
    for wrong in ("", "-a", "_a", "a" * 65, "a.b", "a b", "ä", "a\n", "٣"):
        assert names.reason_against(wrong)
    with pytest.raises(InvalidFields, match="newname"):
        names.refuse("newname", "../x")
    assert names.addressed("m") == names.Addressed("", "m") and str(names.addressed("ann.m")) == "ann.m"
    assert names.addressed("ann.m.x") == names.Addressed("ann", "m.x")
