"""What every page has around it: sessions of browsers, tokens of forms, headers, errors as pages."""

import gzip
import html
import re
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gateway.context import Services
from gateway.operations.browsers import SESSION
from gateway.pages import assets, templating
from gateway.storage.deployments import DELETING, FAILED, PAUSED, PAUSING, RUNNING, SLEEPING, STARTING
from gateway.storage.quotas import KINDS
from gateway.storage.task_records import TERMINAL
from gateway.types import Role
from tests.gateway.conftest import PASSWORD, SetClock


def token(page: TestResponse) -> str:
    found = re.search(r'name="form-token" content="([^"]+)"', page.text)
    assert found, page.text
    return found[1]


def register(services: Services, name: str = "ann") -> None:
    services.users.register(name, PASSWORD)


def sign_in(client: FlaskClient, name: str = "ann", where: str = "", **more: str) -> TestResponse:
    page = client.get("/ui/sign-in")
    fields = {"form_token": token(page), "login": name, "password": PASSWORD, "next": where, **more}
    return client.post("/ui/sign-in", data=fields)


def cookie(client: FlaskClient) -> str:
    found = client.get_cookie(SESSION)
    return found.value if found else ""


def test_signing_in_and_out(client: FlaskClient, services: Services) -> None:
    register(services)
    assert client.get("/ui").headers["Location"] == "/ui/sign-in?next=/ui"
    answer = sign_in(client)
    assert answer.status_code == 303 and answer.headers["Location"] == "/ui"
    said = answer.headers["Set-Cookie"]
    assert "HttpOnly" in said and "SameSite=Lax" in said and "Max-Age" not in said and "Secure" not in said
    page = client.get("/ui")
    assert page.status_code == 200 and "Welcome, ann" in page.text
    kept = cookie(client)
    found = re.search(r'<meta name="user" content="(\d+)">', page.text)
    assert found and client.get("/ui/form-token").json == {"token": token(page), "user": found[1]}
    assert client.post("/ui/sign-out", data={"form_token": token(page)}).headers["Location"] == "/"
    assert not cookie(client)
    client.set_cookie(SESSION, kept)
    assert client.get("/ui").status_code == 303, "the session has ended, whoever kept its cookie"


def test_over_https_the_cookie_is_secure_and_may_be_remembered(client: FlaskClient, services: Services) -> None:
    register(services)
    page = client.get("/ui/sign-in", base_url="https://localhost")
    fields = {"form_token": token(page), "login": "ann", "password": PASSWORD, "remember": "1"}
    answer = client.post("/ui/sign-in", data=fields, base_url="https://localhost")
    assert "Secure" in answer.headers["Set-Cookie"] and "Max-Age=" in answer.headers["Set-Cookie"]


def test_a_session_ends_by_itself_and_with_the_password(client: FlaskClient, services: Services, time_of_day: SetClock) -> None:
    register(services)
    sign_in(client)
    time_of_day.advance(11 * 3600)
    assert client.get("/ui").status_code == 200
    time_of_day.advance(2 * 3600)
    assert client.get("/ui").status_code == 303
    sign_in(client)
    principal = services.browsers.principal(cookie(client))
    assert principal is not None
    services.users.sign_out_everywhere(principal)
    assert client.get("/ui").status_code == 303


@pytest.mark.parametrize("damage", ["", "x", "a.b.c", "x" * 4030, "é"])
def test_a_cookie_that_is_none(client: FlaskClient, damage: str) -> None:
    client.set_cookie(SESSION, damage)
    assert client.get("/ui").status_code == 303
    assert client.get("/").status_code == 200


def test_a_cookie_is_no_access_token_and_an_access_token_no_cookie(client: FlaskClient, services: Services) -> None:
    register(services)
    sign_in(client)
    value = cookie(client)
    stranger = client.application.test_client()
    assert stranger.get("/v1/me", headers={"Authorization": f"Bearer {value}"}).status_code == 401
    access = services.tokens.sign_in("ann", PASSWORD, "").access_token
    stranger.set_cookie(SESSION, access)
    assert stranger.get("/ui").status_code == 303 and stranger.get("/v1/me").status_code == 401


def test_scripts_of_pages_use_the_interface_with_the_cookie_and_their_forms_token(client: FlaskClient, services: Services) -> None:
    register(services)
    sign_in(client)
    assert client.get("/v1/me").json["username"] == "ann"  # type: ignore[index]
    body = {"name": "k", "scopes": ["read"]}
    refused = client.post("/v1/api-keys", json=body)
    assert refused.status_code == 403 and "load it again" in refused.json["detail"]  # type: ignore[index]
    header = {"X-Form-Token": token(client.get("/ui"))}
    assert client.post("/v1/api-keys", json=body, headers=header).status_code == 201
    assert client.post("/v1/api-keys", json=body, headers={"X-Form-Token": "x"}).status_code == 403


def test_a_form_of_another_site_changes_nothing(client: FlaskClient, services: Services) -> None:
    register(services)
    other = client.application.test_client()
    strange = token(other.get("/ui/sign-in"))
    for given in ("", "x", strange):
        fields = {"form_token": given, "login": "ann", "password": PASSWORD}
        answer = client.post("/ui/sign-in", data=fields)
        assert answer.status_code == 403 and not cookie(client), given
    sign_in(client)
    assert client.post("/ui/sign-out", data={"form_token": strange}).status_code == 403
    assert client.get("/ui").status_code == 200


@pytest.mark.parametrize(
    "where", ["https://evil.example/", "//evil.example/ui", "/ui\\@evil", "/v1/me", "javascript:alert(1)", "/ui\r\nX: y", ""]
)
def test_after_signing_in_nobody_is_sent_elsewhere(client: FlaskClient, services: Services, where: str) -> None:
    register(services)
    assert sign_in(client, where=where).headers["Location"] == "/ui"


def test_after_signing_in_one_is_where_one_wanted_to_be(client: FlaskClient, services: Services) -> None:
    register(services)
    asked = client.get("/ui/components?x=1&y=2").headers["Location"]
    hidden = re.search(r'id="sign-in".*?name="next" value="([^"]+)"', client.get(asked).text, re.DOTALL)
    assert hidden and html.unescape(hidden[1]) == "/ui/components?x=1&y=2"
    assert sign_in(client, where=html.unescape(hidden[1])).headers["Location"] == "/ui/components?x=1&y=2"


def test_what_is_wrong_stands_beside_its_field(client: FlaskClient, services: Services) -> None:
    register(services)
    wrong = sign_in(client, password="wrong wrong")
    assert wrong.status_code == 401 and "the username or the password is wrong" in wrong.text
    assert 'value="ann"' in wrong.text and "wrong wrong" not in wrong.text
    page = client.get("/ui/register")
    fields = {"form_token": token(page), "username": "ann", "password": PASSWORD, "again": PASSWORD}
    taken = client.post("/ui/register", data=fields)
    assert taken.status_code == 409 and re.search(r'id="error-username">&#39;ann&#39; is taken', taken.text)
    short = client.post("/ui/register", data=fields | {"username": "bob", "password": "abc", "again": "abc", "email": "no"})
    assert short.status_code == 400 and 'id="error-password"' in short.text and 'id="error-email"' in short.text
    assert 'aria-invalid="true"' in short.text and 'value="bob"' in short.text
    other = client.post("/ui/register", data=fields | {"username": "bob", "again": "another password"})
    assert 'id="error-again">is not the same password' in other.text


def test_pages_for_administrators(client: FlaskClient, services: Services, app: Flask) -> None:
    register(services)
    sign_in(client)
    refused = client.get("/ui/components")
    assert refused.status_code == 403 and "this page is for administrators" in refused.text and refused.mimetype == "text/html"
    services.users.first_administrator(PASSWORD)
    boss = app.test_client()
    sign_in(boss, "admin")
    principal = services.browsers.principal(cookie(boss))
    assert principal is not None and principal.role is Role.ADMINISTRATOR
    assert boss.get("/ui/components").status_code == 200


def test_errors_are_pages_with_the_requests_id(client: FlaskClient) -> None:
    missing = client.get("/ui/nowhere", headers={"X-Request-Id": "abc-1"})
    assert missing.status_code == 404 and "Not found" in missing.text and "abc-1" in missing.text
    piece = client.get("/ui/nowhere", headers={"HX-Request": "true"})
    assert piece.status_code == 404 and "<html" not in piece.text and "Not found" in piece.text
    assert "没有内容" in client.get("/ui/nowhere", headers={"Accept-Language": "zh"}).text
    ended = client.get("/ui/home/now", headers={"HX-Request": "true", "HX-Current-URL": "http://localhost/ui"})
    assert ended.status_code == 401 and "not signed in any more" in ended.text and "<html" not in ended.text


def test_what_a_name_holds_is_text(client: FlaskClient) -> None:
    answer = client.get("/ui/verify?email=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script>alert" not in answer.text and "&lt;script&gt;" in answer.text
    assert "<b>" not in client.get("/ui/%3Cb%3E").text


def test_headers(client: FlaskClient) -> None:
    for where in ("/", "/ui/sign-in", "/ui/nowhere"):
        headers = client.get(where).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self'" in policy
        assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


def test_language_and_colours_are_kept(client: FlaskClient) -> None:
    page = client.get("/ui/sign-in")
    assert 'lang="en"' in page.text
    fields = {"form_token": token(page), "language": "zh", "theme": "dark", "next": "/ui/sign-in"}
    assert client.post("/ui/choices", data=fields).headers["Location"] == "/ui/sign-in"
    page = client.get("/ui/sign-in")
    assert 'lang="zh-CN"' in page.text and 'data-bs-theme="dark"' in page.text and "登录" in page.text
    client.post("/ui/choices", data={"form_token": token(page), "language": "xx", "theme": "loud"})
    assert 'data-bs-theme="dark"' in client.get("/").text


def test_files_are_kept_for_good_and_those_of_others_have_their_licence(client: FlaskClient) -> None:
    page = client.get("/").text
    addresses = set(re.findall(r'(?:href|src)="(/ui/static/[^"#]+)', page))
    assert len(addresses) >= 6
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200 and "immutable" in answer.headers["Cache-Control"], address
    assert client.get("/ui/static/pages.js?v=old").headers["Cache-Control"] == "no-cache"
    for wrong in ("/ui/static/../settings.py", "/ui/static/%2e%2e/settings.py", "/ui/static/nothing.js"):
        assert client.get(wrong).status_code == 404
    licences = {path.stem for path in (assets.FOLDER / "vendor" / "licences").iterdir()}
    assert licences == {"tabler", "tabler-icons", "htmx", "uplot"}


def test_every_icon_that_a_page_names_is_there(client: FlaskClient) -> None:
    sprite = (assets.FOLDER / "vendor" / "icons.svg").read_text(encoding="utf-8")
    there = set(re.findall(r'<symbol id="([^"]+)"', sprite))
    folder = assets.FOLDER.parent
    named = set((folder / "pages" / "icons.txt").read_text().split())
    for path in (folder / "templates").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"icon\([\"']([a-z0-9-]+)", text)) | set(re.findall(r"picture=[\"']([a-z0-9-]+)", text))
    assert named <= there, "run scripts/vendor"


def test_a_first_visit_weighs_less_than_300_kb(client: FlaskClient) -> None:
    page = client.get("/").text
    names = set(re.findall(r'/ui/static/([^"?#]+)', page)) | {"lib.js"}
    weight = len(gzip.compress(page.encode(), 1)) + sum(len(gzip.compress((assets.FOLDER / name).read_bytes(), 1)) for name in names)
    assert weight < 300_000, weight


def test_every_state_and_every_quota_has_a_name(client: FlaskClient, services: Services) -> None:
    register(services)
    sign_in(client)
    page = client.get("/ui", headers={"Accept-Language": "zh"}).text
    assert not [kind for kind in KINDS if f">{kind}<" in page]
    states = {RUNNING, PAUSED, STARTING, PAUSING, SLEEPING, FAILED, DELETING, *TERMINAL, "queued"}
    assert states <= set(templating.STATES)


def test_every_piece_is_on_the_page_of_pieces() -> None:
    folder = Path(assets.FOLDER).parent / "templates"
    made = set(re.findall(r"{% macro (\w+)\(", (folder / "components.html").read_text(encoding="utf-8")))
    shown = set(re.findall(r"\bc\.(\w+)\(", (folder / "components_page" / "page.html").read_text(encoding="utf-8")))
    assert made - shown == {"token"}, "what is not to be seen"
