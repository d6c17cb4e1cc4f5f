"""The account and teams: what their forms do, what is wrong beside its field, and what is nobody else's."""

import io
import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from gateway.context import Services
from gateway.operations.browsers import SESSION
from gateway.pages import paging
from gateway.types import Role
from tests.gateway.accounts import audited, code_in_outbox
from tests.gateway.conftest import PASSWORD, SetClock
from tests.pages.test_frame import register, sign_in, token

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
HOSTILE = "<script>alert(1)</script>"


class Person:
    """Somebody with a browser."""

    def __init__(self, app: Flask, services: Services, name: str, role: Role = Role.USER) -> None:
        user = services.storage.users.by_name(name)
        if user is None:
            register(services, name)
            user = services.storage.users.by_name(name)
        assert user is not None
        if role is not Role.USER:
            with services.storage.database.write() as db:
                db.execute("update users set role = ? where id = ?", [role.value, user.id])
        self.id, self.client = user.id, app.test_client()
        sign_in(self.client, name)

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(path, headers=headers)

    def post(self, path: str, **fields: Any) -> TestResponse:
        return self.client.post(path, data={"form_token": token(self.client.get("/ui")), **fields})

    def part(self, path: str, **fields: Any) -> TestResponse:
        """As htmx posts."""
        data = {"form_token": token(self.client.get("/ui")), **fields}
        return self.client.post(path, data=data, headers={"HX-Request": "true"})

    @property
    def is_in(self) -> bool:
        return self.client.get("/ui").status_code == 200


@pytest.fixture
def ann(app: Flask, services: Services) -> Person:
    return Person(app, services, "ann")


@pytest.fixture
def bob(app: Flask, services: Services) -> Person:
    return Person(app, services, "bob")


PAGES = ("", "/email", "/password", "/sessions", "/keys", "/webhooks", "/delete")


def test_every_page_is_for_those_who_are_signed_in(client: FlaskClient, ann: Person) -> None:
    for page in (*(f"/ui/account{part}" for part in PAGES), "/ui/teams"):
        assert client.get(page).status_code == 303, page
        answer = ann.get(page)
        assert answer.status_code == 200 and 'aria-current="page"' in answer.text, page
        assert ann.client.post(page, data={}).status_code in (403, 405), "no change without the form's token"


def test_a_new_password(ann: Person, app: Flask, services: Services) -> None:
    other = Person(app, services, "ann")
    wrong = ann.post("/ui/account/password", current_password="x", password="another horse", again="another horse")
    assert wrong.status_code == 403 and 'id="error-current_password">it is wrong' in wrong.text and "another horse" not in wrong.text
    differs = ann.post("/ui/account/password", current_password=PASSWORD, password="another horse", again="another hose")
    assert differs.status_code == 400 and 'id="error-again"' in differs.text
    short = ann.post("/ui/account/password", current_password=PASSWORD, password="abc", again="abc")
    assert 'id="error-password">must have 8' in short.text
    done = ann.post("/ui/account/password", current_password=PASSWORD, password="another horse", again="another horse")
    assert done.status_code == 303 and "is changed" in ann.get(done.headers["Location"]).text
    assert ann.is_in and not other.is_in


def test_an_address_is_confirmed_by_its_code(ann: Person, services: Services) -> None:
    def post(**fields: Any) -> TestResponse:
        return ann.post("/ui/account/email", **fields)

    wrong = post(verb="change", email="no", current_password=PASSWORD)
    assert wrong.status_code == 400 and 'id="error-email"' in wrong.text and 'value="no"' in wrong.text
    assert post(verb="change", email="ann@example.org", current_password=PASSWORD).status_code == 303
    page = ann.get("/ui/account/email").text
    assert "not confirmed" in page and "Confirm it" in page
    refused = post(verb="confirm", email="ann@example.org", code="000000")
    assert refused.status_code == 400 and 'id="error-code"' in refused.text
    assert post(verb="confirm", email="ann@example.org", code=code_in_outbox(services, "ann@example.org")).status_code == 303
    assert "status-green" in ann.get("/ui/account/email").text
    post(verb="change", email="new@example.org", current_password=PASSWORD)
    assert "new@example.org takes its place" in ann.get("/ui/account/email").text
    post(verb="confirm", email="new@example.org", code=code_in_outbox(services, "new@example.org"))
    user = services.storage.users.by_name("ann")
    assert user is not None and user.email == "new@example.org" and user.pending_email is None
    assert post(verb="remove", email="", current_password="wrong").status_code == 403
    post(verb="remove", email="", current_password=PASSWORD)
    assert "No address" in ann.get("/ui/account/email").text


def test_sessions_are_listed_and_ended(ann: Person, bob: Person, app: Flask, services: Services, time_of_day: SetClock) -> None:
    phone = app.test_client()
    phone.environ_base["HTTP_USER_AGENT"] = FIREFOX
    sign_in(phone, "ann")
    services.tokens.sign_in("ann", PASSWORD, "192.0.2.7")
    page = ann.get("/ui/account/sessions").text
    assert page.count('data-session="other"') == 2 and page.count('data-session="here"') == 1
    assert "Firefox on Linux" in page and "A program" in page and "192.0.2.7" in page
    ids = re.findall(r'name="session" value="([0-9a-f]+)"', page)
    assert bob.post("/ui/account/sessions", session=ids[0]).status_code == 303 and phone.get("/ui").status_code == 200, "not bob's to end"
    for each in ids:
        ann.post("/ui/account/sessions", session=each)
    assert phone.get("/ui").status_code == 303 and ann.is_in and bob.is_in
    assert audited(services, "user.sign_out_session") == [("ann", "ann")] * 2
    sign_in(phone, "ann")
    ann.post("/ui/account/sessions")
    assert phone.get("/ui").status_code == 303 and ann.is_in
    assert audited(services, "user.sign_out_everywhere") == [("ann", "ann")]


def test_a_key_is_shown_once_and_can_be_revoked(ann: Person, bob: Person, client: FlaskClient, time_of_day: SetClock) -> None:
    wrong = ann.post("/ui/account/keys", name=" ", days="30")
    assert wrong.status_code == 400 and 'id="error-name"' in wrong.text and "choose at least one" in wrong.text
    assert ann.post("/ui/account/keys", name="x", scopes="read", days="9999").status_code == 400
    made = ann.part("/ui/account/keys", name=HOSTILE, scopes=["read", "call"], days="30")
    found = re.search(r"obk_[0-9a-f]{16}_[\w-]{43}", made.text)
    assert found and made.status_code == 200 and "<html" not in made.text and HOSTILE not in made.text
    listed = ann.get("/ui/account/keys").text
    assert found[0] not in listed and HOSTILE not in listed and "&lt;script&gt;" in listed
    header = {"Authorization": f"Bearer {found[0]}"}
    assert client.get("/v1/me", headers=header).status_code == 200
    time_of_day.advance(31 * 86400)
    sign_in(ann.client)
    assert "expired" in ann.get("/ui/account/keys").text
    number = re.search(r'name="key" value="([0-9a-f]+)"', listed)
    assert number
    assert bob.client.get("/ui").status_code == 303
    sign_in(bob.client, "bob")
    bob.post("/ui/account/keys/revoke", key=number[1])
    assert number[1] in ann.get("/ui/account/keys").text, "bob revokes none of ann's"
    for _ in range(2):
        assert ann.post("/ui/account/keys/revoke", key=number[1]).status_code == 303, "twice, as a double click does"
    assert "No key yet" in ann.get("/ui/account/keys").text


def test_only_who_has_a_role_gives_its_scope(ann: Person, app: Flask, services: Services) -> None:
    assert 'value="admin"' not in ann.get("/ui/account/keys").text
    assert 'value="admin"' in Person(app, services, "root", Role.ADMINISTRATOR).get("/ui/account/keys").text


def test_webhooks(ann: Person, bob: Person, services: Services) -> None:
    def post(path: str = "", **fields: Any) -> TestResponse:
        return ann.post(f"/ui/account/webhooks{path}", **fields)

    wrong = post(url="ftp://example.com", events="task.failed", description="d")
    assert wrong.status_code == 400 and 'id="error-url"' in wrong.text and 'value="ftp://example.com"' in wrong.text
    local = post(url="http://127.0.0.1/x", events="task.failed")
    assert "must lead to the public internet" in local.text
    made = post(url="https://example.com/hook", events=["task.failed", "task.expired"], description=HOSTILE)
    assert "whsec_" in made.text and HOSTILE not in made.text
    mine = services.storage.webhooks.page(ann.id, "", 10)[0]
    assert set(mine.events) == {"task.failed", "task.expired"} and "whsec_" not in ann.get("/ui/account/webhooks").text
    where = f"/{mine.id}"
    for path in (where, f"{where}/log"):
        assert bob.get(f"/ui/account/webhooks{path}").status_code == 404
    assert bob.post(f"/ui/account/webhooks{where}", verb="secret").status_code == 404
    page = ann.get(f"/ui/account/webhooks{where}")
    assert page.status_code == 200 and "whsec_" not in page.text and "Nothing was sent yet" in page.text
    assert ann.get(f"/ui/account/webhooks{where}/log?state=%FF").status_code == 200
    assert ann.client.get(f"/ui/account/webhooks{where}", environ_overrides={"QUERY_STRING": "state=\xff"}).status_code == 200
    renewed = post(where, verb="secret").text
    assert "whsec_" in renewed and mine.secret not in renewed
    post(where, verb="off")
    assert not services.storage.webhooks.page(ann.id, "", 10)[0].enabled
    post(where, verb="on")
    assert post(where, verb="change", url="", events="task.failed").status_code == 400
    post(where, verb="change", url="https://example.com/2", description="", events=["task.failed"])
    changed = services.storage.webhooks.page(ann.id, "", 10)[0]
    assert changed.enabled and changed.url == "https://example.com/2" and list(changed.events) == ["task.failed"]
    for _ in range(2):
        assert post(where, verb="delete").status_code == 303
    assert "No webhook yet" in ann.get("/ui/account/webhooks").text


def picture(size: tuple[int, int] = (600, 300)) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, "teal").save(made, "PNG")
    return made.getvalue()


def test_a_picture_is_in_the_head(ann: Person, bob: Person) -> None:
    assert "/ui/avatars/" not in ann.get("/ui").text and ann.get("/ui/avatars/ann").status_code == 404
    headers = {"X-Form-Token": token(ann.get("/ui")), "Content-Type": "image/png"}
    assert ann.client.put("/v1/me/avatar", data=picture(), headers=headers).status_code == 204
    where = re.search(r'src="(/ui/avatars/ann\?v=\w+)"', ann.get("/ui").text)
    assert where
    answer = bob.get(where[1])
    assert answer.status_code == 200 and answer.mimetype == "image/jpeg" and "immutable" in answer.headers["Cache-Control"]
    assert "immutable" not in bob.get("/ui/avatars/ann?v=other").headers["Cache-Control"]
    ann.post("/ui/account/picture")
    assert "/ui/avatars/" not in ann.get("/ui").text


def test_deleting_the_account_asks_for_name_and_password(ann: Person, app: Flask, services: Services) -> None:
    for fields, wrong in (
        ({"name": "bob", "current_password": PASSWORD}, "name"),
        ({"name": "ann", "current_password": "x"}, "current_password"),
    ):
        answer = ann.post("/ui/account/delete", **fields)
        assert answer.status_code in (400, 403) and f'id="error-{wrong}"' in answer.text and ann.is_in
    gone = ann.post("/ui/account/delete", name="ann", current_password=PASSWORD)
    assert gone.status_code == 303 and not ann.is_in and not (ann.client.get_cookie(SESSION))
    assert services.storage.users.by_name("ann") is None
    only = Person(app, services, "root", Role.ADMINISTRATOR)
    kept = only.post("/ui/account/delete", name="root", current_password=PASSWORD)
    assert kept.status_code == 409 and "last administrator" in kept.text


def test_teams(ann: Person, bob: Person, app: Flask, services: Services) -> None:
    assert "No team yet" in ann.get("/ui/teams").text
    bad = ann.post("/ui/teams", name="no good")
    assert bad.status_code == 400 and 'id="error-name"' in bad.text and 'value="no good"' in bad.text
    assert ann.post("/ui/teams", name="crew").headers["Location"] == "/ui/teams/crew"
    assert bob.get("/ui/teams/crew").status_code == 404 and "crew" not in bob.get("/ui/teams").text

    def post(**fields: Any) -> TestResponse:
        return ann.post("/ui/teams/crew", **fields)

    unknown = post(verb="add", username="nobody", role="viewer")
    assert unknown.status_code == 404 and 'id="error-username"' in unknown.text and 'value="nobody"' in unknown.text
    assert post(verb="add", username="bob", role="viewer").status_code == 303
    page = bob.get("/ui/teams/crew").text
    assert "Viewer" in page and "Add somebody" not in page and "Leave" in page
    assert bob.post("/ui/teams/crew", verb="role", username="bob", role="owner").status_code == 403
    post(verb="role", username="bob", role="editor")
    team = services.storage.teams.by_name("crew")
    assert team is not None and services.storage.teams.role(team.id, bob.id) == "editor"
    last = post(verb="leave")
    assert last.status_code == 409 and "owner" in last.text
    for _ in range(2):
        assert post(verb="remove", username="bob").status_code == 303
    assert post(verb="rename", name="band").headers["Location"] == "/ui/teams/band"
    root = Person(app, services, "root", Role.ADMINISTRATOR)
    assert "band" not in root.get("/ui/teams").text and "band" in root.get("/ui/teams?everybody=1").text
    assert "as an administrator" in root.get("/ui/teams/band").text
    assert "band" not in bob.get("/ui/teams?everybody=1").text
    assert ann.post("/ui/teams/band", verb="delete").headers["Location"] == "/ui/teams?done=deleted"
    assert services.storage.teams.by_name("band") is None


def test_a_sign_up_token_is_typed(client: FlaskClient, services: Services) -> None:
    page = client.get("/ui/register?invitation=abc")
    assert 'value="abc"' not in page.text, "a secret has no place in an address"
    fields = {"form_token": token(page), "username": "new", "password": PASSWORD, "again": PASSWORD, "invitation": "wrong"}
    refused = client.post("/ui/register", data=fields)
    assert refused.status_code == 403 and 'id="error-invitation"' in refused.text and "<details" in refused.text and " open" in refused.text


def test_pages_of_a_list_lead_there_and_back(app: Flask) -> None:
    rows = list(range(10, 20))
    with app.test_request_context("/ui/x?search=a%26b"):
        first = paging.paged(rows[:4], lambda row: row, 3)
    assert first.items == [10, 11, 12] and not first.before and first.after == "/ui/x?search=a%26b&after=12"
    with app.test_request_context(first.after):
        assert paging.number() == 12
        second = paging.paged(rows[3:7], lambda row: row, 3)
    assert second.before == "/ui/x?search=a%26b" and second.after.endswith("after=12,15")
    with app.test_request_context(second.after):
        last = paging.paged(rows[6:], lambda row: row, 10)
    assert last.before == first.after and not last.after
    for odd in ("x", "%00", "1" * 30, "-1", ",,"):
        with app.test_request_context(f"/ui/x?after={odd}"):
            assert paging.number() == 0
