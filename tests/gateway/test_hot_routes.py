"""The middleware in front of Flask: the same routes as Flask's, and a decline for whatever is unusual."""

import json

import pytest
from flask import Flask
from flask.testing import FlaskClient

from gateway import hot_routes
from gateway.context import EXTENSION, Services
from gateway.hot_routes import HotRoutes, Target
from tests.gateway.conftest import PASSWORD
from tests.gateway.model_host import Served
from tests.gateway.test_metrics import parse, value

ENDPOINTS = (hot_routes.INFER, hot_routes.INFER_VERSION, hot_routes.PREDICTIONS)
X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}


def test_its_routes_are_flasks(app: Flask) -> None:
    rules = {rule.rule for rule in app.url_map.iter_rules() if rule.methods and "POST" in rule.methods}
    assert rules.issuperset(ENDPOINTS)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v2/models/m/infer", Target(hot_routes.INFER, "m", "")),
        ("/v2/models/a.b-c_1/versions/3/infer", Target(hot_routes.INFER_VERSION, "a.b-c_1", "3")),
        ("/v2/models/m/versions/canary/infer", Target(hot_routes.INFER_VERSION, "m", "canary")),
        ("/v2/models/versions/versions/1/infer", Target(hot_routes.INFER_VERSION, "versions", "1")),
        ("/v1/models/m/predictions", Target(hot_routes.PREDICTIONS, "m", "")),
        *((path, None) for path in ("/v2/models//infer", "/v2/models/m/infer/", "/v2/models/m m/infer", "/v2/models/\u00e9/infer", "/v2")),
        *((path, None) for path in ("/v2/models/m/versions//infer", "/v2/models/m/infer\n", "/v1/models/m", "//v2/models/m/infer")),
    ],
)
def test_addresses(path: str, target: Target | None) -> None:
    assert hot_routes.target(path) == target


@pytest.fixture
def counted(served: Served) -> tuple[FlaskClient, list[str]]:
    """A client, and the addresses of the requests that Flask got."""
    app, seen = Flask("counted"), []
    app.extensions[EXTENSION] = served.services

    def flask_app(environ, start_response):  # type: ignore[no-untyped-def]
        seen.append(environ["PATH_INFO"])
        return served.plain.wsgi_app(environ, start_response)

    app.wsgi_app = HotRoutes(flask_app, served.services)  # type: ignore[method-assign]
    return app.test_client(), seen


def test_what_it_answers_itself(counted: tuple[FlaskClient, list[str]], served: Served) -> None:
    client, seen = counted
    assert client.post("/v2/models/triple/infer", json={"inputs": [X]}).status_code == 200
    assert client.post("/v2/models/versions/versions/1/infer", json={"inputs": [X]}).status_code == 200
    assert client.post("/v1/models/triple/predictions", json={"inputs": {"x": [[1, 2]]}}).json["outputs"]["y"] == [[3, 6]]  # type: ignore[index]
    assert client.post("/v2/models/nobody/infer", json={"inputs": [X]}).status_code == 404
    assert client.post("/v2/models/triple/infer", data="x").status_code == 400
    assert client.post("/v2/models/secret/infer", json={"inputs": [X]}, headers=served.user).status_code == 200
    assert seen == []


def test_what_it_leaves_to_flask(counted: tuple[FlaskClient, list[str]]) -> None:
    client, seen = counted
    body = json.dumps({"inputs": {"x": [[1, 2]]}})
    predictions = "/v1/models/triple/predictions"
    assert client.post(f"{predictions}?version=1", data=body, content_type="application/json").status_code == 200
    assert client.post(predictions, data=body, content_type="application/json; charset=utf-8").status_code == 200
    assert client.post(predictions, data={"x": "[[1, 2]]"}).status_code == 200
    assert client.get("/v2/models/triple/infer").status_code == 405
    assert client.post("/v2/models/triple/infer").status_code == 400
    assert client.post("/v2/models/tri%20ple/infer", json={}).status_code == 404
    assert len(seen) == 6


def test_a_mistake_of_ours_is_logged_and_not_shown(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    services.users.register("ann", PASSWORD)
    token = services.tokens.sign_in("ann", PASSWORD, "").access_token
    app = Flask("app")
    app.wsgi_app = HotRoutes(app.wsgi_app, services)  # type: ignore[method-assign]
    services.storage.database.close()  # under somebody who uses it
    headers = {"X-Request-Id": "mine", "Authorization": f"Bearer {token}"}
    answer = app.test_client().post("/v2/models/m/infer", json={"inputs": []}, headers=headers)
    assert (answer.status_code, answer.headers["Outboard-Code"], answer.headers["X-Request-Id"]) == (500, "internal", "mine")
    assert answer.json == {"error": "the server made a mistake; its log names it mine"}
    (record,) = [record for record in caplog.records if record.getMessage() == "internal_error"]
    assert record.exc_info and record.__dict__["request_id"] == "mine"
    samples = parse(services.metrics.render().decode())
    assert value(samples, "requests_total", endpoint=hot_routes.INFER, method="POST", status="500") == 1
    assert value(samples, "requests_in_flight") == 0
