"""What every route of `/v1` has in common, shown on a blueprint of the test's own."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient

from gateway import create_app
from gateway.blueprints import openapi, rest
from gateway.blueprints.rest import Answer, Asked, Reply, Rest, page
from gateway.context import Services
from gateway.errors import ChangedMeanwhile, InvalidFields
from gateway.settings import Settings
from gateway.shapes import Flag, Items, Number, Object, OrNull, Text, Whole, optional, required
from gateway.types import Scope
from idl.codes import Code
from tests.gateway.conftest import PASSWORD, SetClock

BODY = Object(
    {
        "name": required(Text(1, 5, r"[a-z]+", "must have small letters")),
        "count": optional(Whole(1, 9)),
        "share": optional(OrNull(Number(0, 1))),
        "on": optional(Flag()),
        "tags": optional(Items(Text(1, 3), 2)),
        "inner": optional(Object({"x": required(Whole())})),
    },
    "Thing",
)


@pytest.fixture
def made() -> list[Any]:
    return []


@pytest.fixture
def app(settings: Settings, services: Services, made: list[Any]) -> Iterator[Flask]:
    blueprint, known = Blueprint("things", __name__), len(rest.OPERATIONS)
    routes = Rest(blueprint, "things")

    @routes.route("POST", "/v1/things", "makes one", {201: Answer("made", BODY)}, scope=Scope.WRITE, body=BODY, creates=True)
    def create_thing(asked: Asked) -> Reply:
        made.append(asked.body)
        if asked.body["name"] == "bad":
            raise ValueError("a mistake")
        return Reply({"name": asked.body["name"], "number": len(made)}, 201, {"Location": "/v1/things/1"}, revision=1)

    @routes.route("POST", "/v1/files", "takes one", {201: Answer("taken")}, scope=Scope.WRITE, raw=["text/plain"], creates=True)
    def take_file(asked: Asked) -> Reply:
        made.append(made and made[0]())
        return Reply({"number": len(made)}, 201)

    @routes.route(
        "GET", "/v1/things", "lists them", {200: Answer("a page", rest.page_of("Things", BODY))}, query=rest.PAGE, who=rest.ANYBODY
    )
    def list_things(asked: Asked) -> Reply:
        first = asked.after[0] if asked.after else 0
        return page(list(range(first + 1, 8))[: asked.limit + 1], lambda n: [n], lambda n: {"name": n}, asked.limit)

    @routes.route("PATCH", "/v1/things/<name>", "changes one", {200: Answer("changed", BODY)}, body=BODY, matches=True)
    def change_thing(asked: Asked, name: str) -> Reply:
        if asked.revision not in (None, 3):
            raise ChangedMeanwhile
        return Reply({"name": name}, revision=4)

    @routes.route("GET", "/v1/things/<name>", "reads one", {200: Answer("it", BODY)}, rate=("things", 3, 60.0))
    def read_thing(asked: Asked, name: str) -> Reply:
        return Reply({"name": name}, revision=4)

    @routes.route("DELETE", "/v1/things/<name>", "deletes one", {204: Answer("gone")}, who=rest.OPERATOR)
    def delete_thing(asked: Asked, name: str) -> Reply:
        return Reply()

    app = create_app(settings, services=services)
    app.register_blueprint(blueprint)
    yield app
    del rest.OPERATIONS[known:]


@pytest.fixture
def headers(client: FlaskClient) -> dict[str, str]:
    assert client.post("/v1/users", json={"username": "ann", "password": PASSWORD}).status_code == 201
    tokens = client.post("/v1/tokens", json={"username": "ann", "password": PASSWORD}).get_json()
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def test_every_wrong_field_is_named(client: FlaskClient, headers: dict[str, str], made: list[Any]) -> None:
    wrong = {"count": 10, "share": 2, "on": 1, "tags": ["long one", 3], "inner": {"y": 1}, "other": 1}
    answer = client.post("/v1/things", json=wrong, headers=headers)
    assert answer.status_code == 400
    assert {entry["field"]: entry["message"] for entry in answer.get_json()["errors"]} == {
        "name": "is missing",
        "count": "must be a whole number from 1 to 9",
        "share": "must be a number from 0 to 1",
        "on": "must be true or false",
        "tags[0]": "has 8 characters, it must have 1 to 3",
        "tags[1]": "must be text",
        "inner.x": "is missing",
        "inner.y": "is unknown here",
        "other": "is unknown here",
    }
    for body in (
        {"name": "Ab"},
        {"name": "a\n"},
        {"name": "\ud800"},
        {"name": None},
        {"name": "a", "count": True},
        {"name": "a", "tags": "b"},
    ):
        assert client.post("/v1/things", data=json.dumps(body), content_type="application/json", headers=headers).status_code == 400, body
    assert not made


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "1e999", "9" * 5000, "NaN"], ids=lambda text: text[:5])
def test_numbers_that_nothing_can_hold(client: FlaskClient, headers: dict[str, str], made: list[Any], number: str) -> None:
    for field in ("share", "count"):
        body = f'{{"name": "a", "{field}": {number}}}'
        answer = client.post("/v1/things", data=body, content_type="application/json", headers=headers)
        assert (answer.status_code, answer.get_json()["code"]) == (400, "invalid_input"), (field, answer.get_json())
    assert not made


@pytest.mark.parametrize("key", [["\ud800"], [2**63], [-(2**70)], [1.5], [None], [[]], {}, "a"], ids=str)
def test_cursors_that_no_database_can_hold(key: Any) -> None:
    text = base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")
    with pytest.raises(InvalidFields):
        rest.read_cursor(text)
    assert rest.read_cursor(rest.write_cursor(["2026-11-21", 2**63 - 1, "é"])) == ["2026-11-21", 2**63 - 1, "é"]


def test_who_may(client: FlaskClient, headers: dict[str, str]) -> None:
    assert client.post("/v1/things", json={"name": "a"}).status_code == 401
    assert client.get("/v1/things").status_code == 200
    assert client.get("/v1/things", headers={"Authorization": "Bearer nonsense"}).status_code == 401
    refused = client.delete("/v1/things/a", headers=headers)
    assert refused.status_code == 403 and "operator or administrator" in refused.get_json()["detail"]


def test_the_same_request_again(client: FlaskClient, headers: dict[str, str], made: list[Any]) -> None:
    keyed = {**headers, "Idempotency-Key": "one"}
    first = client.post("/v1/things", json={"name": "a"}, headers=keyed)
    again = client.post("/v1/things", json={"name": "a"}, headers=keyed)
    assert (first.status_code, first.get_json()) == (again.status_code, again.get_json()) == (201, {"name": "a", "number": 1})
    assert again.headers["Idempotent-Replayed"] == "true" and again.headers["Location"] == first.headers["Location"]
    assert again.headers["ETag"] == '"1"' and len(made) == 1
    other = client.post("/v1/things", json={"name": "b"}, headers=keyed)
    assert other.status_code == 400 and "another request" in other.get_json()["detail"] and len(made) == 1
    assert client.post("/v1/things", json={"name": "b"}, headers=headers).status_code == 201 and len(made) == 2
    assert client.post("/v1/things", json={"name": "a"}, headers={**headers, "Idempotency-Key": ""}).status_code == 400


def test_a_request_that_failed_may_come_again(client: FlaskClient, headers: dict[str, str], made: list[Any]) -> None:
    keyed = {**headers, "Idempotency-Key": "two"}
    assert client.post("/v1/things", json={"name": "bad"}, headers=keyed).status_code == 500
    assert client.post("/v1/things", json={"name": "a"}, headers=keyed).status_code == 201 and len(made) == 2


def test_a_slow_request_is_not_begun_twice(
    client: FlaskClient, headers: dict[str, str], made: list[Any], settings: Settings, time_of_day: SetClock
) -> None:
    """A large file may take in longer than its sender's patience; only beyond the longest time was its process killed."""
    keyed = {**headers, "Idempotency-Key": "large"}
    meanwhile: list[int] = []

    def ask() -> None:
        time_of_day.advance(settings.upload_timeout_s - 1)
        meanwhile.append(client.post("/v1/files", data=b"x", content_type="text/plain", headers=keyed).status_code)

    made.append(ask)
    assert client.post("/v1/files", data=b"x", content_type="text/plain", headers=keyed).status_code == 201
    assert meanwhile == [409]


def test_pages(client: FlaskClient) -> None:
    first = client.get("/v1/things?limit=3")
    assert [entry["name"] for entry in first.get_json()["items"]] == [1, 2, 3]
    assert first.headers["Link"].endswith('>; rel="next"')
    second = client.get(first.headers["Link"][1:].partition(">")[0])
    assert [entry["name"] for entry in second.get_json()["items"]] == [4, 5, 6]
    third = client.get("/v1/things", query_string={"limit": 3, "cursor": second.get_json()["next"]})
    assert [entry["name"] for entry in third.get_json()["items"]] == [7]
    assert third.get_json()["next"] is None and "Link" not in third.headers
    for wrong in ("limit=0", "limit=x", "limit=1&limit=2", "cursor=%21", "cursor=e30", "colour=red"):
        assert client.get(f"/v1/things?{wrong}").status_code == 400, wrong


def test_revisions(client: FlaskClient, services: Services, headers: dict[str, str]) -> None:
    def change(etag: str | None) -> int:
        return client.patch("/v1/things/a", json={"name": "a"}, headers=headers | ({"If-Match": etag} if etag else {})).status_code

    assert [change(etag) for etag in (None, '"3"', "*", '"2"', "3", "W/3", '"3", "4"')] == [200, 200, 200, 412, 400, 400, 400]
    assert [change(etag) for etag in ('W/"3"', 'W/"2"')] == [200, 412], "nginx makes it a weak one where it compresses the answer"
    answer = client.get("/v1/things/a", headers=headers)
    assert answer.headers["ETag"] == '"4"'
    unchanged = client.get("/v1/things/a", headers={**headers, "If-None-Match": '"4"'})
    assert unchanged.status_code == 304 and unchanged.data == b""
    for tags, status in (('W/"4"', 304), ('"3", W/"4"', 304), ('"3"', 200)):
        services.storage.attempts.forgive("rate things user 1")
        assert client.get("/v1/things/a", headers={**headers, "If-None-Match": tags}).status_code == status, tags


def test_a_rate(client: FlaskClient, headers: dict[str, str]) -> None:
    answers = [client.get("/v1/things/a", headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[3].headers["Retry-After"] == "60" and answers[3].get_json()["code"] == Code.OVERLOADED.value


def test_the_document_has_the_routes(app: Flask) -> None:
    made = openapi.document()
    create = made["paths"]["/v1/things"]["post"]
    assert create["operationId"] == "create_thing" and set(create["responses"]) >= {"201", "400", "401", "403", "409", "413", "415", "429"}
    assert create["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Thing"}
    assert made["components"]["schemas"]["Thing"]["required"] == ["name"]
    assert [parameter["name"] for parameter in made["paths"]["/v1/things/{name}"]["patch"]["parameters"]] == ["name", "If-Match"]
    assert "412" in made["paths"]["/v1/things/{name}"]["patch"]["responses"]
