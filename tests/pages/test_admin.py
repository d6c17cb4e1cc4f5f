"""Administration: who may see it, what it finds, and what it does to accounts, letters and the disk."""

import re
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from gateway.context import Services
from gateway.storage.audit import Doer
from gateway.types import Role
from tests.gateway import deployed_rows
from tests.gateway.accounts import audited
from tests.gateway.conftest import PASSWORD, SetClock
from tests.gateway.owners import Place
from tests.onnx_models import times
from tests.pages.test_frame import sign_in
from tests.pages.test_people import HOSTILE, Person

ADMINISTRATORS = ("", "/now", "/users", "/users/root", "/invitations", "/models", "/deployments", "/tasks", "/audit", "/outbox", "/storage")
OPERATORS = ("/hosts", "/hosts/now")


@pytest.fixture
def root(app: Flask, services: Services) -> Person:
    return Person(app, services, "root", Role.ADMINISTRATOR)


@pytest.fixture
def ann(app: Flask, services: Services) -> Person:
    return Person(app, services, "ann")


def test_who_sees_what(client: FlaskClient, app: Flask, services: Services, root: Person, ann: Person) -> None:
    op = Person(app, services, "op", Role.OPERATOR)
    for part in (*ADMINISTRATORS, *OPERATORS):
        path = f"/ui/admin{part}"
        assert client.get(path).status_code == 303, path
        assert ann.get(path).status_code == 403, path
        assert op.get(path).status_code == (200 if part in OPERATORS else 403), path
        assert root.get(path).status_code == 200, path
    assert "/ui/admin" not in ann.get("/ui").text
    assert 'href="/ui/admin/hosts"' in op.get("/ui").text and 'href="/ui/admin/users"' not in op.get("/ui/admin/hosts").text
    for path in ("/users/ann", "/invitations", "/outbox", "/storage"):
        assert ann.post(f"/ui/admin{path}", verb="delete", role="administrator").status_code == 403


def test_users_are_found(root: Person, ann: Person, services: Services) -> None:
    services.users.register("bob", PASSWORD, "bob@example.org")
    for query, found in (
        ("", {"root", "ann", "bob"}),
        ("?search=EXAMPLE", {"bob"}),
        ("?role=administrator", {"root"}),
        ("?state=deleted", set()),
    ):
        page = root.get(f"/ui/admin/users{query}").text
        assert set(re.findall(r'href="/ui/admin/users/(\w+)"', page)) == found, query
    assert "Nobody is like that" in root.get("/ui/admin/users?state=deleted").text
    assert root.get("/ui/admin/users?role=king&state=x&after=zzz").status_code == 200
    assert root.get("/ui/admin/users/nobody").status_code == 404


def test_an_account_is_changed(root: Person, ann: Person, app: Flask, services: Services) -> None:
    def post(**fields: Any) -> int:
        return root.post("/ui/admin/users/ann", **fields).status_code

    def account() -> Any:
        return services.storage.users.by_name("ann", deleted=True)

    assert post(verb="role", role="operator") == 303 and account().role is Role.OPERATOR
    assert post(verb="sign-out") == 303 and not ann.is_in and audited(services, "user.sign_out_everywhere") == [("root", "ann")]
    again = Person(app, services, "ann")
    assert post(verb="disable") == 303 and not again.is_in and "This account is disabled" in root.get("/ui/admin/users/ann").text
    assert post(verb="enable") == 303 and account().disabled_at is None
    assert post(verb="delete") == 303 and "This account is deleted" in root.get("/ui/admin/users/ann").text
    assert post(verb="delete") == 404 and post(verb="restore") == 303 and account().deleted_at is None
    last = root.post("/ui/admin/users/root", verb="role", role="user")
    assert last.status_code == 409 and "last administrator" in last.text


def test_quotas_are_written_as_people_write_them(root: Person, ann: Person, services: Services) -> None:
    def quota(**fields: str) -> Any:
        return root.post("/ui/admin/users/ann", verb="quota", **{f"quota_{kind}": text for kind, text in fields.items()})

    assert quota(bytes="1.5 GB", models="1,000", tasks="0").status_code == 303
    user = services.storage.users.by_name("ann")
    assert user is not None and dict(user.quota) == {"bytes": 1_500_000_000, "models": 1000, "tasks": 0}
    wrong = quota(bytes="much", models="1.5", deployments="-1", instances="9" * 30)
    assert wrong.status_code == 400 and {
        f'id="error-quota_{kind}"' in wrong.text for kind in ("bytes", "models", "deployments", "instances")
    } == {True}
    assert 'value="much"' in wrong.text
    assert quota().status_code == 303
    user = services.storage.users.by_name("ann")
    assert user is not None and not user.quota


def test_an_invitation_is_shown_once_and_its_token_is_in_no_address_of_ours(root: Person, app: Flask, services: Services) -> None:
    made = root.part("/ui/admin/invitations", role="operator")
    token = re.search(r"/ui/register#invitation=([\w-]+)", made.text)
    assert token and "<html" not in made.text
    assert "invitation=" not in root.get("/ui/admin/invitations").text
    services.users.register("new", PASSWORD, None, token[1])
    user = services.storage.users.by_name("new")
    assert user is not None and user.role is Role.OPERATOR


def test_the_audit_log_is_narrowed_down(root: Person, ann: Person, services: Services, time_of_day: SetClock) -> None:
    def subjects(query: str) -> list[str]:
        page = root.get(f"/ui/admin/audit?{query}")
        assert page.status_code == 200
        return re.findall(r"href=\"/ui/admin/audit\?subject=([^\"]+)\"", page.text)

    note = services.storage.audit.note
    note(Doer(None, "ann", "192.0.2.1", "r-1"), "model.delete", "ann.m", services.now(), {"why": HOSTILE, "count": 2})
    time_of_day.advance(86400)
    sign_in(root.client, "root")
    note(Doer(None, "bob"), "model.restore", "bob.m", services.now())
    assert (
        subjects("actor=bob") == ["bob.m"]
        and subjects("action=model") == ["bob.m", "ann.m"]
        and subjects("action=model.delete") == ["ann.m"]
    )
    assert subjects("subject=ann.m") == ["ann.m"] and subjects("action=model&until=2026-11-21") == ["ann.m"]
    assert subjects("action=model&since=2026-11-22") == ["bob.m"]
    # 04:05 UTC is the day before in a zone that is five hours behind
    assert subjects("action=model&since=2026-11-22&offset=-300") == [] and subjects("action=model&until=2026-11-20&offset=-300") == [
        "ann.m"
    ]
    assert subjects("actor=ann&since=someday&offset=x") and 'id="error-since"' in root.get("/ui/admin/audit?since=someday").text
    assert root.get("/ui/admin/audit?since=2026-11-22&offset=²").status_code == 200
    page = root.get("/ui/admin/audit?actor=ann").text
    assert HOSTILE not in page and "192.0.2.1" in page and "r-1" in page


def test_long_lists_have_pages(root: Person, services: Services) -> None:
    for number in range(120):
        services.storage.audit.note(Doer(None, "robot"), "model.change", f"m{number}", services.now())
    seen, where = list[str](), "/ui/admin/audit?actor=robot"
    while where:
        page = root.get(where).text
        seen += re.findall(r"\?subject=(m\d+)\"", page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        where = following[1].replace("&amp;", "&") if following else ""
    assert seen == [f"m{number}" for number in reversed(range(120))]
    assert 'rel="prev"' in page


def test_everything_whoever_owns_it(root: Person, services: Services, tmp_path: Any) -> None:
    owner = deployed_rows.user(services.storage, "owner")
    model_id, versions = deployed_rows.model(services.storage, owner, "m", times(tmp_path / "m.onnx", 2))
    deployed_rows.deployment(services.storage, owner, "d", model_id, versions[0], reason=HOSTILE, state="failed")
    for part in ("models", "deployments"):
        page = root.get(f"/ui/admin/{part}?owner=owner").text
        assert "/ui/admin/users/owner" in page and HOSTILE not in page, part
        assert "/ui/admin/users/owner" not in root.get(f"/ui/admin/{part}?owner=nobody").text, part
    assert "/ui/deployments/owner.d" in root.get("/ui/admin/deployments?state=failed").text
    assert "/ui/deployments/owner.d" not in root.get("/ui/admin/deployments?state=running").text
    assert "No task yet" in root.get("/ui/admin/tasks").text and "No task is like that" in root.get("/ui/admin/tasks?state=failed").text


def test_letters(root: Person, app: Flask, services: Services, time_of_day: SetClock) -> None:
    services.users.register("bob", PASSWORD, "bob@example.org")
    page = root.get("/ui/admin/outbox").text
    assert "bob@example.org" in page and "There is no mail server" in page and "Try now" not in page
    letter = services.storage.outbox.page("", None, 1)[0]
    services.storage.outbox.failed(letter.id, "the mail server said 550 no", services.now(), None)
    failed = root.get("/ui/admin/outbox?state=failed").text
    assert "550 no" in failed and "bob@example.org" in failed and "bob@example.org" not in root.get("/ui/admin/outbox?state=sent").text
    assert root.post("/ui/admin/outbox", letter=str(letter.id), state="failed").headers["Location"] == "/ui/admin/outbox?state=failed"
    assert services.storage.outbox.page("waiting", None, 1)[0].id == letter.id
    time_of_day.advance(11 * 60)
    late = root.post("/ui/admin/outbox", letter=str(letter.id)).headers["Location"]
    assert "problem=late" in late and "too old" in root.get(late).text
    for odd in ("x", "²", "9" * 5000):
        assert "problem=late" in root.post("/ui/admin/outbox", letter=odd).headers["Location"]


def test_cleaning_up_shows_first_what_would_go(root: Person, services: Services) -> None:
    now = services.now()
    sha256, _ = services.storage.blobs.put([b"x" * 5000], now - timedelta(days=2))
    shown = root.part("/ui/admin/storage", verb="look")
    assert "1 files would go, and 5.0 kB become free" in shown.text and "Clean up now" in shown.text and "<html" not in shown.text
    assert services.storage.blobs.read(sha256)
    done = root.post("/ui/admin/storage", verb="clean")
    assert "1 files are gone" in done.text and audited(services, "storage.clean") == [("root", "storage")]
    assert "nothing to clean up" in root.post("/ui/admin/storage", verb="look").text


def test_a_host_that_is_away(root: Person) -> None:
    page = root.get("/ui/admin/hosts").text
    assert 'data-state="away"' in page and "127.0.0.1:1" in page
    assert 'data-state="away"' in root.get("/ui/admin").text


def test_a_host_and_what_it_has(place: Place) -> None:
    boss = Person(place.ann.client.application, place.services, "hostess", Role.OPERATOR)
    page = boss.get("/ui/admin/hosts").text
    assert page.count("<meter") >= 3 and 'data-state="ready"' in page and "<html" in page
    assert "<html" not in boss.get("/ui/admin/hosts/now").text
