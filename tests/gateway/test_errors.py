"""One list of errors, two shapes: RFC 9457 everywhere, the open protocol's under /v2."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask, abort
from flask.testing import FlaskClient

from gateway.blueprints.form_api import STATUSES as FORM
from gateway.error_texts import TEXTS
from gateway.errors import STATUS, InvalidFields, problem
from idl.codes import Code, ServingError
from inference_server.transports.grpc_status import STATUS as GRPC
from tests.gateway.conftest import ROOT


def test_every_code_has_a_status_and_texts() -> None:
    assert set(STATUS) == set(TEXTS) == set(Code)
    for text in TEXTS.values():
        english = (text.title, text.description, text.hint)
        assert all(sentence.isascii() and sentence for sentence in english)
        assert all(not sentence.isascii() for sentence in (text.title_zh, text.description_zh, text.hint_zh))


def test_every_edge_has_a_word_for_every_code() -> None:
    """HTTP, gRPC and the form API have tables; Thrift carries the code itself (tests/test_idl.py)."""
    assert set(STATUS) == set(GRPC) == set(FORM) == set(Code)
    assert all(100 <= status < 600 for status in STATUS.values()) and all(FORM.values())


def test_the_page_of_errors_is_what_the_code_says(tmp_path: Path) -> None:
    run = [sys.executable, str(ROOT / "scripts" / "generate-errors"), "--check"]
    assert subprocess.run(run, capture_output=True, text=True).stderr == ""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for code in Code:
        assert page.count(f"| `{code.value}` |") == 2 and TEXTS[code].hint in page and TEXTS[code].hint_zh in page


@pytest.mark.parametrize("code", Code)
def test_the_list_of_errors_has_it(client: FlaskClient, code: Code) -> None:
    entries = {entry["code"]: entry for entry in client.get("/v1/errors").get_json()["errors"]}
    assert len(entries) == len(Code)
    entry = entries[code.value]
    assert entry["status"] == STATUS[code]
    assert entry["title"] == {"en": TEXTS[code].title, "zh": TEXTS[code].title_zh}
    assert entry["description"] == {"en": TEXTS[code].description, "zh": TEXTS[code].description_zh}
    assert entry["hint"] == {"en": TEXTS[code].hint, "zh": TEXTS[code].hint_zh}


@pytest.mark.parametrize("code", Code)
def test_both_shapes(code: Code) -> None:
    error = ServingError(code, 'model "m": \ud800 is no text', retry_after_ms=1001)
    detailed = problem(error, "/v1/models", "r-1")
    assert detailed.status_code == STATUS[code] and detailed.content_type == "application/problem+json"
    assert detailed.headers["Retry-After"] == "2"
    assert json.loads(detailed.get_data()) == {
        "type": f"/v1/errors#{code.value}",
        "title": TEXTS[code].title,
        "status": STATUS[code],
        "detail": error.message,
        "code": code.value,
        "request_id": "r-1",
    }
    for path in ("/v2", "/v2/models/m/infer"):
        short = problem(error, path, "r-1")
        assert short.status_code == STATUS[code] and short.content_type == "application/json"
        assert json.loads(short.get_data()) == {"error": error.message}
        assert short.headers["Outboard-Code"] == code.value
    assert problem(error, "/v2x").content_type == "application/problem+json"


def test_what_passes_says_when_to_ask_again() -> None:
    for code in (Code.UNAVAILABLE, Code.NOT_READY, Code.OVERLOADED):  # as docs/http.md promises
        assert problem(ServingError(code, "gone")).headers["Retry-After"] == "1"
        assert problem(ServingError(code, "gone"), "/v2/models/m/infer").headers["Retry-After"] == "1"
    assert "Retry-After" not in problem(ServingError(Code.NOT_FOUND, "gone")).headers


def test_each_wrong_field_is_named() -> None:
    body = json.loads(problem(InvalidFields({"a": "is missing", "b": "must be text"})).get_data())
    assert body["detail"] == "a: is missing; b: must be text"
    assert body["errors"] == [{"field": "a", "message": "is missing"}, {"field": "b", "message": "must be text"}]


def test_unauthenticated_says_how(client: FlaskClient) -> None:
    answer = client.get("/v1/me")
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_wrong_method_is_told_the_right_ones(client: FlaskClient) -> None:
    answer = client.get("/v1/tokens")
    assert answer.status_code == 405 and answer.get_json()["code"] == "unsupported"
    assert answer.get_json()["detail"] == "this address does not take that method; it takes DELETE, OPTIONS, POST"
    assert set(answer.headers["Allow"].split(", ")) == {"DELETE", "OPTIONS", "POST"}
    answer = client.get("/v2/models/m/infer")
    assert answer.status_code == 405 and answer.get_json() == {"error": "this address does not take that method; it takes OPTIONS, POST"}


@pytest.fixture
def failing(app: Flask) -> FlaskClient:
    """Routes that end in whatever they are asked for."""

    def fail(status: int) -> str:
        if status == 0:
            raise RuntimeError("the secret is /etc/passwd")
        abort(status)

    for prefix in ("/v1", "/v2"):
        app.add_url_rule(f"{prefix}/fail/<int:status>", f"fail{prefix}", fail)
    return app.test_client()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_input"),
        (403, "forbidden"),
        (408, "deadline_exceeded"),
        (409, "conflict"),
        (412, "conflict"),
        (413, "too_large"),
        (415, "unsupported_media"),
        (422, "invalid_input"),
        (429, "overloaded"),
        (500, "internal"),
        (501, "unsupported"),
        (503, "unavailable"),
    ],
)
def test_what_the_framework_refuses_has_the_same_shapes(failing: FlaskClient, status: int, code: str) -> None:
    answer = failing.get(f"/v1/fail/{status}")
    assert answer.status_code == status and answer.content_type == "application/problem+json"
    assert answer.get_json()["code"] == code and answer.get_json()["status"] == status
    answer = failing.get(f"/v2/fail/{status}")
    assert answer.status_code == status and set(answer.get_json()) == {"error"}
    assert answer.headers["Outboard-Code"] == code


def test_unknown_address_and_method(client: FlaskClient) -> None:
    assert client.get("/nothing").get_json()["code"] == "not_found"
    answer = client.put("/livez")
    assert answer.status_code == 405 and "GET" in answer.headers["Allow"] and answer.get_json()["code"] == "unsupported"


def test_a_mistake_of_ours_is_logged_and_not_shown(failing: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = failing.get("/v1/fail/0?password=hunter2", headers={"X-Request-Id": "find-me"})
    assert answer.status_code == 500 and answer.get_json()["code"] == "internal"
    assert answer.get_json()["request_id"] == "find-me"
    assert not any(word in answer.get_data(as_text=True) for word in ("Traceback", "passwd", "RuntimeError"))
    (record,) = [record for record in caplog.records if record.getMessage() == "internal_error"]
    assert record.__dict__["request_id"] == "find-me" and record.exc_info
    assert "hunter2" not in str(record.__dict__)


@pytest.mark.parametrize("sent", ["a", "A.b_c-9", "x" * 64])
def test_the_callers_request_id_is_kept(client: FlaskClient, sent: str) -> None:
    assert client.get("/livez", headers={"X-Request-Id": sent}).headers["X-Request-Id"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", "a/b", "ü", '"', "a\u0661"])
def test_any_other_is_replaced(client: FlaskClient, sent: str) -> None:
    first, second = (client.get("/nothing", headers={"X-Request-Id": sent.encode().decode("latin-1")}) for _ in range(2))
    made = first.headers["X-Request-Id"]
    assert made != sent and len(made) == 32 and made != second.headers["X-Request-Id"]
    assert first.get_json()["request_id"] == made
