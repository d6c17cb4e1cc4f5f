"""Accounts over real HTTP: nginx and uWSGI in front, several processes behind. A row of API section 2 each: registering and its codes, signing
in, tokens, keys, teams, and what administrators do; rates that hold whichever process answers."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from gateway.storage import Storage
from outboard.__main__ import main
from tests.needs import needs
from tests.processes import Process

pytestmark = needs("nginx")
PASSWORD = "correct horse battery"
OTHER = "another long password"
TIMEOUT = 60


class Person:
    """Whoever asks; a new connection for each request, so that any process may answer."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        headers = self.headers | more.pop("headers", {})
        return requests.request(method, self.url + path, json=body, headers=headers, timeout=TIMEOUT, **more)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self(method, path, body, **more)
        assert answer.ok, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None


@pytest.fixture(scope="module")
def nobody(stack: Process) -> Person:
    return Person(stack["http"])


@pytest.fixture(scope="module")
def admin(nobody: Person) -> Person:
    return signed_in(nobody, "admin")


def signed_in(nobody: Person, name: str, password: str = PASSWORD) -> Person:
    return Person(nobody.url, nobody.ok("POST", "/v1/tokens", {"username": name, "password": password})["access_token"])


def registered(nobody: Person, name: str, **more: Any) -> Person:
    nobody.ok("POST", "/v1/users", {"username": name, "password": PASSWORD, **more})
    return signed_in(nobody, name)


def code(admin: Person, email: str) -> str:
    letters = admin.ok("GET", "/v1/admin/outbox?limit=200")["items"]
    return str(next(letter["body"][:6] for letter in letters if letter["address"] == email))


def test_an_account_from_its_first_day_to_its_last(nobody: Person, admin: Person) -> None:
    mail = "life@example.org"
    made = nobody("POST", "/v1/users", {"username": "life", "password": PASSWORD, "email": mail})
    assert made.status_code == 201 and made.headers["Location"] == "/v1/me"
    first = code(admin, mail)
    assert nobody("POST", "/v1/users/verify", {"email": mail}).status_code == 202
    second = code(admin, mail)
    if first != second:
        assert nobody("POST", "/v1/users/verify", {"email": mail, "code": first}).status_code == 400
    assert nobody("POST", "/v1/users/verify", {"email": mail, "code": second}).status_code == 204
    tokens = nobody.ok("POST", "/v1/tokens", {"email": mail, "password": PASSWORD})
    me = Person(nobody.url, tokens["access_token"])
    read = me("GET", "/v1/me")
    assert read.json()["email_verified_at"] and read.headers["ETag"]
    change = {"current_password": PASSWORD, "email": "later@example.org"}
    assert me("PATCH", "/v1/me", change, headers={"If-Match": '"999"'}).status_code == 412
    assert me("PATCH", "/v1/me", change, headers={"If-Match": read.headers["ETag"]}).json()["pending_email"] == "later@example.org"
    assert nobody("POST", "/v1/users/verify", {"email": "later@example.org", "code": code(admin, "later@example.org")}).status_code == 204
    assert me.ok("GET", "/v1/me")["email"] == "later@example.org"

    picture = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(picture, "PNG")
    assert me("PUT", "/v1/me/avatar", data=picture.getvalue(), headers={"Content-Type": "image/png"}).status_code == 204
    seen = admin("GET", "/v1/users/life/avatar")
    assert seen.headers["Content-Type"] == "image/jpeg" and Image.open(io.BytesIO(seen.content)).size == (256, 256)
    assert me("DELETE", "/v1/me/avatar").status_code == 204 and me("GET", "/v1/me/avatar").status_code == 404
    assert set(me.ok("GET", "/v1/me/quota")) == {"models", "bytes", "deployments", "instances", "tasks"}

    assert nobody("POST", "/v1/password-resets", {"email": "later@example.org"}).status_code == 202
    body = {"email": "later@example.org", "code": code(admin, "later@example.org"), "password": OTHER}
    assert nobody("POST", "/v1/password-resets", body).status_code == 204
    assert me("GET", "/v1/me").status_code == 401, "every session has ended, in every process"
    me = signed_in(nobody, "life", OTHER)
    assert me("DELETE", "/v1/me").status_code == 204 and me("GET", "/v1/me").status_code == 401
    restored = admin.ok("POST", "/v1/admin/users/life/restore")["account"]
    assert restored["email"] == "later@example.org" and restored["email_verified_at"] is None
    signed_in(nobody, "life", OTHER)


def test_tokens_and_their_end(nobody: Person) -> None:
    registered(nobody, "tokens")
    tokens = nobody.ok("POST", "/v1/tokens", {"username": "TOKENS", "password": PASSWORD})
    here = Person(nobody.url, tokens["access_token"])
    there = signed_in(nobody, "tokens")
    fresh = nobody.ok("POST", "/v1/tokens/refresh", {"refresh_token": tokens["refresh_token"]})
    assert Person(nobody.url, fresh["access_token"])("GET", "/v1/me").status_code == 200
    with ThreadPoolExecutor(4) as pool:  # somebody has a copy: whichever process sees it
        again = list(
            pool.map(lambda _: nobody("POST", "/v1/tokens/refresh", {"refresh_token": tokens["refresh_token"]}).status_code, range(4))
        )
    assert again == [401] * 4
    assert [here("GET", "/v1/me").status_code for _ in range(8)] == [401] * 8
    assert there("GET", "/v1/me").status_code == 200
    third = signed_in(nobody, "tokens")
    assert there("DELETE", "/v1/tokens?everywhere=true").status_code == 204
    assert [person("GET", "/v1/me").status_code for person in (there, third) for _ in range(4)] == [401] * 8


def test_keys_and_their_scopes(nobody: Person) -> None:
    ann = registered(nobody, "keys")
    made = ann.ok("POST", "/v1/api-keys", {"name": "shop", "scopes": ["call"], "expires_in_days": 1})
    key = Person(nobody.url, made["key"])
    tensors = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    assert key.ok("POST", "/v2/models/triple/infer", tensors)["outputs"][0]["data"] == [3, 6]
    assert key("GET", "/v1/me").status_code == key("POST", "/v1/teams", {"name": "never"}).status_code == 403
    assert [one["id"] for one in ann.ok("GET", "/v1/api-keys")["items"]] == [made["id"]]
    assert ann.ok("GET", f"/v1/api-keys/{made['id']}")["scopes"] == ["call"]
    assert ann("DELETE", f"/v1/api-keys/{made['id']}").status_code == 204
    refused = [key("POST", "/v2/models/triple/infer", tensors).status_code for _ in range(8)]
    assert refused == [401] * 8, "in every process and event loop"


def test_a_team_and_its_members(nobody: Person) -> None:
    owner, member = registered(nobody, "captain"), registered(nobody, "sailor")
    keyed = {"Idempotency-Key": "one team"}
    assert [owner("POST", "/v1/teams", {"name": "ship"}, headers=keyed).status_code for _ in range(2)] == [201, 201]
    assert owner("PUT", "/v1/teams/ship/members/sailor", {"role": "viewer"}).status_code == 201
    assert owner("PUT", "/v1/teams/ship/members/sailor", {"role": "editor"}).status_code == 200
    assert member.ok("GET", "/v1/teams/ship")["role"] == "editor"
    assert {one["username"]: one["role"] for one in member.ok("GET", "/v1/teams/ship/members")["items"]} == {
        "captain": "owner",
        "sailor": "editor",
    }
    etag = owner("GET", "/v1/teams/ship").headers["ETag"]
    assert owner("PATCH", "/v1/teams/ship", {"name": "boat"}, headers={"If-Match": etag}).status_code == 200
    assert [team["name"] for team in member.ok("GET", "/v1/teams")["items"]] == ["boat"]
    assert member("DELETE", "/v1/teams/boat/members/sailor").status_code == 204 and member("GET", "/v1/teams/boat").status_code == 404
    assert owner("DELETE", "/v1/teams/boat").status_code == 204


def test_what_administrators_do(nobody: Person, admin: Person) -> None:
    ann = registered(nobody, "governed", email="governed@example.org")
    assert ann("GET", "/v1/admin/users").status_code == 403 and nobody("GET", "/v1/admin/users").status_code == 401
    assert [one["username"] for one in admin.ok("GET", "/v1/admin/users?search=govern")["items"]] == ["governed"]
    detail = admin("GET", "/v1/admin/users/governed")
    changed = admin("PATCH", "/v1/admin/users/governed", {"quota": {"models": 1}}, headers={"If-Match": detail.headers["ETag"]})
    assert changed.json()["shares"]["models"] == {"used": 0, "limit": 1}
    assert admin("PATCH", "/v1/admin/users/governed", {"disabled": True}).status_code == 200
    assert [ann("GET", "/v1/me").status_code for _ in range(6)] == [401] * 6
    assert admin("PATCH", "/v1/admin/users/governed", {"disabled": False, "role": "operator"}).status_code == 200
    ann = signed_in(nobody, "governed")
    (host,) = ann.ok("GET", "/v1/admin/hosts")["items"]
    assert host["reachable"] and "triple" in [model["name"] for model in host["capacity"]["models"]]
    assert admin("DELETE", "/v1/admin/users/governed").status_code == 204
    assert admin.ok("POST", "/v1/admin/users/governed/restore")["account"]["role"] == "operator"
    token = admin.ok("POST", "/v1/admin/invitations", {"role": "operator"})["signup_token"]
    invited = nobody.ok("POST", "/v1/users", {"username": "invited", "password": PASSWORD, "signup_token": token})
    assert invited["role"] == "operator"
    assert nobody("POST", "/v1/users", {"username": "second", "password": PASSWORD, "signup_token": token}).status_code == 403
    lines = admin.ok("GET", "/v1/admin/audit?subject=governed&action=user")["items"]
    assert [line["action"] for line in lines] == ["user.restore", "user.delete", "user.change", "user.change", "user.change", "user.create"]
    assert {line["actor"] for line in lines} == {"admin", "governed"} and all(line["address"] for line in lines)
    for path in ("models", "deployments", "tasks"):
        assert "items" in admin.ok("GET", f"/v1/admin/{path}")
    assert admin.ok("GET", "/v1/admin/storage")["users"] > 1
    dry = admin.ok("POST", "/v1/admin/storage/clean", {"dry_run": True})
    assert dry["dry_run"] and {each["what"] for each in dry["items"]} >= {"files", "broken_off"}


def test_an_answer_that_nginx_compresses_can_be_changed_by_its_tag(nobody: Person, admin: Person) -> None:
    """nginx makes its tag a weak one; `requests` and browsers ask for compression unasked."""
    name, address = "a" * 64, f"{'b' * 64}@{'c' * 180}.org"
    ann = registered(nobody, name, email=address)
    assert nobody("POST", "/v1/users/verify", {"email": address, "code": code(admin, address)}).status_code == 204
    assert ann("PATCH", "/v1/me", {"current_password": PASSWORD, "email": f"{'d' * 64}@{'e' * 180}.org"}).status_code == 200
    many = dict.fromkeys(("models", "bytes", "deployments", "instances", "tasks"), 1 << 50)
    assert admin("PATCH", f"/v1/admin/users/{name}", {"quota": many}).status_code == 200
    read = admin("GET", f"/v1/admin/users/{name}")
    tag = read.headers["ETag"]
    assert read.headers["Content-Encoding"] == "gzip" and tag.startswith('W/"'), f"{len(read.content)} bytes"
    assert admin("GET", f"/v1/admin/users/{name}", headers={"If-None-Match": tag}).status_code == 304
    assert admin("PATCH", f"/v1/admin/users/{name}", {"quota": {"models": 2}}, headers={"If-Match": tag}).status_code == 200
    assert admin("PATCH", f"/v1/admin/users/{name}", {"quota": {"models": 3}}, headers={"If-Match": tag}).status_code == 412


def test_failures_are_counted_over_all_processes(nobody: Person) -> None:
    registered(nobody, "guessed")

    def guess(_: int) -> int:
        return nobody("POST", "/v1/tokens", {"username": "guessed", "password": "wrong wrong"}).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(guess, range(16)))
    assert sorted(answers) == [401] * 5 + [429] * 11
    refused = nobody("POST", "/v1/tokens", {"username": "guessed", "password": PASSWORD})
    assert refused.status_code == 429 and 0 < int(refused.headers["Retry-After"]) <= 30


def test_codes_are_counted_over_all_processes(nobody: Person) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: nobody("POST", "/v1/password-resets", {"email": "crowd@example.org"}).status_code, range(12)))
    assert sorted(answers) == [202] * 3 + [429] * 9


def test_a_backup_while_it_runs(stack: Process, nobody: Person, admin: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registered(nobody, "backed")
    assert main(["backup", str(tmp_path / "b.tar"), "--data", str(stack.log.parent)]) == 0
    assert main(["restore", str(tmp_path / "b.tar"), "--data", str(stack.log.parent)]) == 1
    assert "runs on" in capsys.readouterr().err
    assert main(["restore", str(tmp_path / "b.tar"), "--data", str(tmp_path / "elsewhere")]) == 0
    storage = Storage(tmp_path / "elsewhere" / "gateway")
    try:
        assert storage.users.by_name("backed") is not None and storage.users.has_administrator()
    finally:
        storage.close()
    assert admin.ok("GET", "/v1/admin/users?search=backed")["items"]
