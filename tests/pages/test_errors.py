"""Errors as pages: in words for people, with the way back, the time to wait, and never in place of what a program expects."""

import re
from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from gateway.context import Services
from gateway.operations.browsers import SESSION
from gateway.pages.failures import FAILURES
from gateway.pages.frame import Pages
from idl.codes import Code, ServingError
from tests.pages.test_frame import register, sign_in, token


@pytest.fixture
def failing(app: Flask) -> Iterator[FlaskClient]:
    """Pages that end in every error."""
    pages = Pages("failing")

    @pages.page("/ui/failing/<code>", "GET", "POST", who="anyone")
    def fail(code: str) -> str:
        if code == "mistake":
            raise RuntimeError("a secret of the server")
        raise ServingError(Code(code), "it is <b>so</b>", retry_after_ms=7000 if code in ("overloaded", "unavailable") else 0)

    app.register_blueprint(pages.blueprint)
    yield app.test_client()


@pytest.mark.parametrize("code", list(Code))
def test_every_error_says_what_it_means_and_the_way_back(failing: FlaskClient, code: Code) -> None:
    if code is Code.UNAUTHENTICATED:
        return
    for language in ("en", "zh"):
        page = failing.get(f"/ui/failing/{code.value}", headers={"Accept-Language": language, "X-Request-Id": "abc-1"})
        assert page.mimetype == "text/html" and "it is &lt;b&gt;so" in page.text and ">abc-1<" in page.text
        assert "data-back" in page.text and re.search(r"<h1[^>]*>[^<]{3,}</h1>", page.text)


def test_the_time_to_wait_is_counted_down(failing: FlaskClient) -> None:
    busy = failing.get("/ui/failing/overloaded?x=1")
    assert busy.status_code == 429 and busy.headers["Retry-After"] == "7"
    assert 'data-count="7"' in busy.text and 'href="/ui/failing/overloaded?x=1"' in busy.text and "data-by-itself" not in busy.text
    away = failing.get("/ui/failing/unavailable")
    assert away.status_code == 503 and 'data-count="7"' in away.text and "data-by-itself" in away.text
    sent = failing.post("/ui/failing/overloaded", data={"form_token": token(busy)})
    assert sent.status_code == 429 and 'id="again"' not in sent.text, "what was sent is not sent again by a link"


def test_a_mistake_of_the_server_stays_its_own(failing: FlaskClient) -> None:
    page = failing.get("/ui/failing/mistake")
    assert page.status_code == 500 and "a secret" not in page.text and "wrong on our side" in page.text


def test_a_form_that_is_sent_after_the_session_has_ended(client: FlaskClient, services: Services) -> None:
    register(services)
    sign_in(client)
    sent = {"form_token": token(client.get("/ui")), "password": "x"}
    client.delete_cookie(SESSION)
    ended = client.post("/ui/account/password", data=sent)
    assert (
        ended.status_code == 401 and "<html" in ended.text and "what you typed is still there" in ended.text and "data-back" in ended.text
    )


def test_an_address_where_nothing_is(client: FlaskClient) -> None:
    seen = client.get("/nowhere", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert seen.status_code == 404 and seen.mimetype == "text/html" and "There is nothing here" in seen.text
    assert "default-src 'none'" in seen.headers["Content-Security-Policy"]
    for path, accept in (("/nowhere", "*/*"), ("/v1/nowhere", "text/html"), ("/v2/nowhere", "text/html")):
        told = client.get(path, headers={"Accept": accept})
        assert told.status_code == 404 and "json" in str(told.mimetype), (path, accept)


def test_every_code_that_is_named_exists() -> None:
    assert set(FAILURES) <= set(Code) and Code.UNAUTHENTICATED not in FAILURES
