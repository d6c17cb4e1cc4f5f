"""What administrators do, what nobody else may, and the lines that tell of it."""

import io
import os
import threading
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from gateway.context import Services
from gateway.operations import avatars, quotas
from gateway.storage.audit import GATEWAY
from gateway.types import Role
from idl.codes import Code, ServingError
from tests.gateway.accounts import Headers, audited, code_in_outbox, person, register, signed_in, status
from tests.gateway.conftest import PASSWORD, SetClock
from tests.gateway.model_host import Served


@pytest.fixture
def root(services: Services) -> Headers:
    return person(services, "root", Role.ADMINISTRATOR)


def change(client: FlaskClient, root: Headers, name: str, **body: Any) -> tuple[int, str]:
    return status(client.patch(f"/v1/admin/users/{name}", json=body, headers=root))


def test_accounts_are_listed_and_found(client: FlaskClient, services: Services, root: Headers) -> None:
    person(services, "ann", email="ann@example.org")
    person(services, "bob", Role.OPERATOR)

    def names(query: str = "") -> list[str]:
        return [user["username"] for user in client.get(f"/v1/admin/users{query}", headers=root).get_json()["items"]]

    assert names() == ["root", "ann", "bob"]
    assert names("?search=EXAMPLE") == ["ann"] and names("?search=%25") == [] and names("?role=operator") == ["bob"]
    change(client, root, "ann", disabled=True)
    assert client.delete("/v1/admin/users/bob", headers=root).status_code == 204
    assert names("?state=active") == ["root"] and names("?state=disabled") == ["ann"] and names("?state=deleted") == ["bob"]
    first = client.get("/v1/admin/users?limit=1", headers=root)
    assert first.get_json()["next"] and names(first.headers["Link"].partition("?")[2].partition(">")[0].join(("?", ""))) == ["ann"]
    for wrong in ("?state=x", "?role=king", "?cursor=WyJhIl0", "?cursor=WzFlNDAwXQ"):
        assert client.get(f"/v1/admin/users{wrong}", headers=root).status_code == 400, wrong


def test_roles_count_at_once(client: FlaskClient, services: Services, root: Headers) -> None:
    ann = person(services, "ann")
    assert client.get("/v1/admin/hosts", headers=ann).status_code == 403
    assert change(client, root, "ann", role="operator") == (200, "")
    assert client.get("/v1/admin/hosts", headers=ann).status_code == 200
    assert client.get("/v1/admin/users", headers=ann).status_code == 403
    assert change(client, root, "ann", role="administrator")[0] == 200
    assert client.get("/v1/admin/users", headers=ann).status_code == 200
    assert change(client, root, "nobody", role="user") == (404, "not_found")
    assert change(client, root, "ann", role="king") == (400, "invalid_input")


def test_the_last_administrator_stays_one(client: FlaskClient, services: Services, root: Headers) -> None:
    other = person(services, "other", Role.ADMINISTRATOR)
    assert change(client, root, "other", disabled=True)[0] == 200
    assert client.get("/v1/me", headers=other).status_code == 401
    for body in ({"role": "user"}, {"disabled": True}):
        assert change(client, root, "root", **body) == (409, "conflict"), "one who is disabled does not count"
    assert client.delete("/v1/admin/users/root", headers=root).status_code == 409
    assert change(client, root, "other", disabled=False)[0] == 200
    assert change(client, root, "root", role="user")[0] == 200


def test_two_administrators_cannot_depose_each_other_at_once(services: Services) -> None:
    users = services.storage.users
    ids = [users.create(name, None, "x", Role.ADMINISTRATOR, services.now()).id for name in ("a", "b")]
    outcomes: list[str] = []

    def depose(user_id: int) -> None:
        try:
            users.change(user_id, services.now(), role=Role.USER, disabled=None, quota=None, revision=None, doer=GATEWAY)
            outcomes.append("done")
        except ServingError as error:
            outcomes.append(error.code.value)

    threads = [threading.Thread(target=depose, args=(user_id,)) for user_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict", "done"]


def test_who_is_disabled_is_out(client: FlaskClient, services: Services, root: Headers) -> None:
    register(client)
    ann = signed_in(client)
    refresh = client.post("/v1/tokens", json={"username": "ann", "password": PASSWORD}).get_json()["refresh_token"]
    assert change(client, root, "ann", disabled=True)[0] == 200
    assert client.get("/v1/me", headers=ann).status_code == 401
    assert client.post("/v1/tokens/refresh", json={"refresh_token": refresh}).status_code == 401
    refused = client.post("/v1/tokens", json={"username": "ann", "password": PASSWORD})
    assert refused.status_code == 403 and "disabled" in refused.get_json()["detail"]
    assert client.post("/v1/tokens", json={"username": "ann", "password": "wrong wrong"}).status_code == 401
    assert client.post("/login", data={"user": "ann", "password": PASSWORD}).get_json()["status"] != "success"
    assert change(client, root, "ann", disabled=False)[0] == 200
    assert client.get("/v1/me", headers=ann).status_code == 401, "an old session does not come back"
    signed_in(client)


def test_a_deleted_account_comes_back(client: FlaskClient, services: Services, root: Headers) -> None:
    register(client, email="ann@example.org")
    ann = signed_in(client)
    client.post("/v1/users/verify", json={"email": "ann@example.org", "code": code_in_outbox(services, "ann@example.org")})
    assert client.delete("/v1/admin/users/ann", headers=root).status_code == 204
    assert client.delete("/v1/admin/users/ann", headers=root).status_code == 404
    assert client.get("/v1/me", headers=ann).status_code == 401
    back = client.post("/v1/admin/users/ann/restore", headers=root).get_json()["account"]
    assert (back["email"], back["email_verified_at"], back["deleted_at"]) == ("ann@example.org", None, None)
    assert client.post("/v1/admin/users/ann/restore", headers=root).status_code == 404
    signed_in(client)
    client.delete("/v1/admin/users/ann", headers=root)
    register(client, "heir", email="ann@example.org")
    assert client.post("/v1/admin/users/ann/restore", headers=root).get_json()["account"]["email"] is None
    assert audited(services, "user.restore") == [("root", "ann")] * 2


def test_a_change_that_meets_another_one(client: FlaskClient, services: Services, root: Headers) -> None:
    person(services, "ann")
    etag = client.get("/v1/admin/users/ann", headers=root).headers["ETag"]
    first, second = (
        client.patch("/v1/admin/users/ann", json={"role": role}, headers=root | {"If-Match": etag})
        for role in ("operator", "administrator")
    )
    assert (first.status_code, second.status_code) == (200, 412)


def test_quotas(client: FlaskClient, services: Services, root: Headers) -> None:
    ann = person(services, "ann")
    account = services.storage.users.by_name("ann")
    assert account is not None
    storage = services.storage
    assert client.get("/v1/me/quota", headers=ann).get_json()["models"] == {"used": 0, "limit": 1000}
    assert change(client, root, "ann", quota={"models": 2, "bytes": 0})[0] == 200
    detail = client.get("/v1/admin/users/ann", headers=root).get_json()
    assert detail["account"]["quota"] == {"models": 2, "bytes": 0}
    assert detail["shares"]["models"] == {"used": 0, "limit": 2} and detail["shares"]["bytes"]["limit"] is None
    quotas.require(storage, account.id, "models", 2)
    quotas.require(storage, account.id, "bytes", 1 << 60)
    with pytest.raises(ServingError, match="quota of 2 models") as caught:
        quotas.require(storage, account.id, "models", 3)
    assert caught.value.code is Code.INSUFFICIENT_CAPACITY
    with storage.database.write() as db:
        db.execute("insert into models (owner_id, name, created_at, updated_at) values (?, 'm', 't', 't')", [account.id])
        quotas.require(storage, account.id, "models", 1, db)
        with pytest.raises(ServingError):
            quotas.require(storage, account.id, "models", 2, db)
    assert change(client, root, "ann", quota={"models": None})[0] == 200
    assert client.get("/v1/admin/users/ann", headers=root).get_json()["account"]["quota"] == {"bytes": 0}
    for wrong in ({"models": -1}, {"cats": 1}, {"models": 1.5}, 3):
        assert change(client, root, "ann", quota=wrong) == (400, "invalid_input")


def test_an_invitation_makes_one_account(client: FlaskClient, services: Services, root: Headers, time_of_day: SetClock) -> None:
    made = client.post("/v1/admin/invitations", json={"role": "operator"}, headers=root)
    assert made.status_code == 201
    token = made.get_json()["signup_token"]
    register(client, "ann", signup_token=token)
    assert client.get("/v1/me", headers=signed_in(client)).get_json()["role"] == "operator"
    again = client.post("/v1/users", json={"username": "bob", "password": PASSWORD, "signup_token": token})
    assert again.status_code == 403
    late = client.post("/v1/admin/invitations", json={"role": "user"}, headers=root).get_json()["signup_token"]
    time_of_day.advance(7 * 86_400)
    assert client.post("/v1/users", json={"username": "bob", "password": PASSWORD, "signup_token": late}).status_code == 403


def test_the_audit_log(client: FlaskClient, services: Services, root: Headers, time_of_day: SetClock) -> None:
    person(services, "ann")
    time_of_day.advance(60)
    change(client, root, "ann", role="operator")
    client.patch("/v1/admin/users/ann", json={"role": "user"}, headers=root | {"X-Request-Id": "this-one"})

    def lines(query: str) -> list[dict[str, Any]]:
        answer = client.get(f"/v1/admin/audit{query}", headers=root)
        assert answer.status_code == 200, answer.get_json()
        return list(answer.get_json()["items"])

    newest = lines("")[0]
    assert (newest["actor"], newest["action"], newest["subject"]) == ("root", "user.change", "ann")
    assert newest["detail"] == {"role": "user"} and newest["request_id"] == "this-one" and newest["address"] == "127.0.0.1"
    assert [line["action"] for line in lines("?subject=ANN")] == ["user.change", "user.change", "user.create"]
    assert len(lines("?action=user")) == 4 and len(lines("?action=user.change")) == 2 and lines("?action=use") == []
    assert len(lines("?actor=root")) == 2 and len(lines("?since=2026-11-21T04:06:06Z")) == 2
    assert len(lines("?until=2026-11-21T05:06:06%2B01:00")) == 2
    first = client.get("/v1/admin/audit?limit=3", headers=root)
    rest = client.get(first.headers["Link"][1:].partition(">")[0], headers=root).get_json()["items"]
    assert len(first.get_json()["items"]) == 3 and len(rest) == 1
    for wrong in ("?since=yesterday", "?action=A", "?since=2026-11-21T04:06:06", "?cursor=W10"):
        assert client.get(f"/v1/admin/audit{wrong}", headers=root).status_code == 400, wrong


def test_a_refused_change_leaves_no_line(client: FlaskClient, services: Services, root: Headers) -> None:
    before = len(audited(services, ""))
    assert change(client, root, "root", disabled=True)[0] == 409
    change(client, root, "root", role="administrator")
    assert len(audited(services, "")) == before, "nor does one that changes nothing"


def test_the_outbox(client: FlaskClient, services: Services, root: Headers) -> None:
    register(client, email="ann@example.org")
    (letter,) = client.get("/v1/admin/outbox?state=waiting", headers=root).get_json()["items"]
    assert letter["address"] == "ann@example.org" and code_in_outbox(services, "ann@example.org") in letter["body"]
    assert client.get("/v1/admin/outbox?state=sent", headers=root).get_json()["items"] == []


def test_everything_on_the_platform(client: FlaskClient, services: Services, root: Headers) -> None:
    person(services, "ann")
    account = services.storage.users.by_name("ann")
    assert account is not None
    sha256, size = services.storage.blobs.put([b"a model"], services.now())
    with services.storage.database.write() as db:
        model = db.execute(
            "insert into models (owner_id, name, created_at, updated_at) values (?, 'm', 't', 't') returning id", [account.id]
        ).fetchone()["id"]
        db.execute(
            "insert into model_versions (model_id, number, format, sha256, size, file_name, signature, facts, measured, created_by, created_at)"
            " values (?, 1, 'onnx', ?, ?, 'm.onnx', '{}', '{}', '{}', ?, 't')",
            [model, sha256, size, account.id],
        )
        for number in range(3):
            db.execute(
                "insert into tasks (id, user_id, model, kind, state, turn, queued_at, created_at) values (?, ?, 'm', 'prediction', 'queued', 0, 't', ?)",
                [f"t{number}", account.id, f"2026-11-21T04:05:0{number}.000000Z"],
            )
    (found,) = client.get("/v1/admin/models?owner=ANN&search=M", headers=root).get_json()["items"]
    assert (found["owner"], found["name"], found["versions"], found["bytes"]) == ("ann", "m", 1, 7)
    assert client.get("/v1/admin/models?owner=bob", headers=root).get_json()["items"] == []
    assert client.get("/v1/admin/models?deleted=true", headers=root).get_json()["items"] == []
    assert client.get("/v1/admin/deployments", headers=root).get_json()["items"] == []
    seen, path = [], "/v1/admin/tasks?limit=2"
    while path:
        page = client.get(path, headers=root)
        seen += [task["id"] for task in page.get_json()["items"]]
        path = page.headers.get("Link", "")[1:].partition(">")[0]
    assert seen == ["t2", "t1", "t0"]
    totals = client.get("/v1/admin/storage", headers=root).get_json()
    assert totals == {"users": 2, "teams": 0, "models": 1, "deployments": 0, "tasks": {"queued": 3}, "files": 1, "file_bytes": 7}


def test_cleaning_up_says_first_what_it_would_do(client: FlaskClient, services: Services, root: Headers, time_of_day: SetClock) -> None:
    sha256, _ = services.storage.blobs.put([b"nobody names it"], services.now())
    left = services.storage.blobs.path(sha256).parent.parent / "part-0123"
    left.write_bytes(b"broken off")
    old = (services.now() - timedelta(hours=1)).timestamp()
    os.utime(left, (old, old))

    def clean(dry_run: bool) -> dict[str, int]:
        answer = client.post("/v1/admin/storage/clean", json={"dry_run": dry_run}, headers=root)
        assert answer.status_code == 200, answer.get_json()
        return {item["what"]: item["count"] for item in answer.get_json()["items"]}

    assert clean(False) == {"files": 0, "broken_off": 0}, "younger than a day"
    time_of_day.advance(86_401)
    root.update(person(services, "root2", Role.ADMINISTRATOR))
    assert clean(True) == {"files": 1, "broken_off": 1}
    assert left.exists() and services.storage.blobs.path(sha256).exists()
    assert clean(False) == {"files": 1, "broken_off": 1}
    assert not left.exists() and not services.storage.blobs.path(sha256).exists()
    assert client.post("/v1/admin/storage/clean", json={}, headers=root).status_code == 400, "what removes is never the default"


def test_hosts_that_are_away_are_told(client: FlaskClient, root: Headers) -> None:
    (host,) = client.get("/v1/admin/hosts", headers=root).get_json()["items"]
    assert host["reachable"] is False and host["reason"] and host["capacity"] is None


def test_hosts_and_what_is_loaded_there(served: Served) -> None:
    (host,) = served.app.test_client().get("/v1/admin/hosts", headers=served.administrator).get_json()["items"]
    assert host["reachable"] and host["capacity"]["memory_bytes"] > 0
    assert "triple" in {model["name"] for model in host["capacity"]["models"]}


# pictures of accounts ----------------------------------------------------------------------------------------------------------------


def picture(kind: str = "PNG", size: tuple[int, int] = (640, 400), **more: Any) -> bytes:
    made = io.BytesIO()
    Image.effect_noise(size, 40).convert("RGB").save(made, kind, **more)
    return made.getvalue()


def test_a_picture_is_made_small_and_clean(client: FlaskClient, services: Services) -> None:
    ann = person(services, "ann")
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    sent = picture("JPEG", exif=exif, comment=b"a secret note")
    assert client.get("/v1/me/avatar", headers=ann).status_code == 404
    assert client.put("/v1/me/avatar", data=sent, content_type="image/jpeg", headers=ann).status_code == 204
    kept = client.get("/v1/me/avatar", headers=ann)
    assert kept.content_type == "image/jpeg" and kept.headers["X-Content-Type-Options"] == "nosniff"
    opened = Image.open(io.BytesIO(kept.data))
    assert opened.size == (avatars.SIDE, avatars.SIDE) and not opened.getexif()
    assert b"where I live" not in kept.data and b"secret note" not in kept.data
    again = client.get("/v1/me/avatar", headers=ann | {"If-None-Match": kept.headers["ETag"]})
    assert again.status_code == 304
    assert client.get("/v1/users/ANN/avatar", headers=person(services, "bob")).data == kept.data
    assert client.get("/v1/users/ann/avatar").status_code == 401
    assert client.get("/v1/me", headers=ann).get_json()["avatar"] == "/v1/me/avatar"
    assert client.delete("/v1/me/avatar", headers=ann).status_code == 204
    assert client.get("/v1/me/avatar", headers=ann).status_code == 404


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", 400),
        (b"no picture", 400),
        (picture()[:500], 400),
        (b"%PDF-1.4 ...", 400),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, 400),
        (None, 413),
        (b"x" * (avatars.MOST_BYTES + 1), 413),
    ],
)
def test_what_no_picture_can_be(client: FlaskClient, services: Services, body: bytes | None, expected: int) -> None:
    ann = person(services, "ann")
    if body is None:  # a small file with many pixels
        made = io.BytesIO()
        Image.new("1", (6000, 5000)).save(made, "PNG")
        body = made.getvalue()
        assert len(body) < 10_000
    answer = client.put("/v1/me/avatar", data=body, content_type="image/png", headers=ann)
    assert answer.status_code == expected
    assert client.get("/v1/me/avatar", headers=ann).status_code == 404


def test_what_operators_do_to_a_host_is_noted(client: FlaskClient, services: Services, root: Headers) -> None:
    """Before the host is asked, which is away here: the line is there whatever comes of it."""
    ann = person(services, "ann", Role.OPERATOR)
    user = person(services, "bob")
    said = [
        ("/v2/repository/models/m/load", {"parameters": {"config": "{}"}}, "host.load", "m", {"parameters": ["config"]}),
        ("/v2/repository/models/m/unload", None, "host.unload", "m", {}),
        ("/v2/systemsharedmemory/region/r/register", {"key": "/k", "byte_size": 8}, "host.region", "r", {"key": "/k", "byte_size": 8}),
        ("/v2/systemsharedmemory/region/r/unregister", None, "host.region_removed", "r", {}),
        ("/v2/systemsharedmemory/unregister", None, "host.region_removed", "every region", {}),
        ("/v2/trace/setting", {"trace_rate": 5}, "host.trace", "every model", {"trace_rate": ["5"]}),
        ("/v2/models/m/trace/setting", {"trace_count": None}, "host.trace", "m", {"trace_count": []}),
        ("/v2/logging", {"log_verbose_level": 1}, "host.log", "every model", {"log_verbose_level": "1"}),
    ]
    for path, body, *_ in said:
        assert client.post(path, json=body, headers=user).status_code == 403
        assert client.post(path, json=body, headers=ann).status_code == 503
    for path in ("/v2/trace/setting", "/v2/logging"):
        assert client.get(path, headers=ann).status_code == 503, "looking is no change"
    lines = client.get("/v1/admin/audit?action=host", headers=root).get_json()["items"]
    assert [(line["actor"], line["action"], line["subject"], line["detail"]) for line in reversed(lines)] == [
        ("ann", action, subject, detail) for _, _, action, subject, detail in said
    ]


def test_what_becomes_of_webhooks_is_noted_without_their_secrets(client: FlaskClient, services: Services, root: Headers) -> None:
    ann = person(services, "ann")
    made = client.post("/v1/webhooks", json={"url": "https://hooks.example.org/?token=hidden"}, headers=ann).get_json()
    path = f"/v1/webhooks/{made['id']}"
    assert client.patch(path, json={"enabled": False}, headers=ann).status_code == 200
    assert client.patch(path, json={"url": "https://other.example.org/"}, headers=ann).status_code == 200
    assert client.post(f"{path}/secret", headers=ann).status_code == 200
    assert client.delete(path, headers=ann).status_code == 204
    answer = client.get("/v1/admin/audit?action=webhook", headers=root)
    assert [(line["action"], line["detail"]) for line in reversed(answer.get_json()["items"])] == [
        ("webhook.create", {"host": "hooks.example.org"}),
        ("webhook.change", {"changed": ["enabled"]}),
        ("webhook.change", {"changed": ["url"], "host": "other.example.org"}),
        ("webhook.change", {"changed": ["secret"]}),
        ("webhook.delete", {}),
    ]
    assert "hidden" not in answer.text and made["secret"] not in answer.text
    assert {line["subject"] for line in answer.get_json()["items"]} == {made["id"]}


def test_pictures_cannot_be_sent_without_end(client: FlaskClient, services: Services) -> None:
    """Each is a file of its own until it is swept, and a line in the audit log."""
    ann = person(services, "ann")
    answers = [client.put("/v1/me/avatar", data=b"no picture", content_type="image/png", headers=ann).status_code for _ in range(31)]
    assert answers == [400] * 30 + [429]
