"""API keys: made once, taken everywhere, within their scopes, and refused at once when they end."""

import itertools
from datetime import timedelta

import pytest
from flask.testing import FlaskClient

from gateway.context import Services
from gateway.operations.tokens import REMEMBER_S
from gateway.settings import Settings
from gateway.types import Role, Scope
from idl.codes import Code, ServingError
from tests.gateway.accounts import Headers, audited, bearer, key, person, status
from tests.gateway.conftest import SetClock
from tests.gateway.model_host import Served


@pytest.fixture
def ann(services: Services) -> Headers:
    return person(services, "ann")


def ask(client: FlaskClient, headers: Headers, **body: object) -> tuple[int, str]:
    return status(client.post("/v1/api-keys", json={"name": "x", "scopes": ["read"], **body}, headers=headers))


def test_a_key_is_shown_once_and_kept_as_a_hash(client: FlaskClient, ann: Headers, settings: Settings) -> None:
    made = client.post("/v1/api-keys", json={"name": "my program", "scopes": ["call", "read"]}, headers=ann)
    assert made.status_code == 201 and made.headers["Cache-Control"] == "no-store"
    body = made.get_json()
    secret = body.pop("key")
    assert secret.startswith(f"obk_{body['id']}_")
    assert body == {
        "id": body["id"],
        "name": "my program",
        "scopes": ["call", "read"],
        "created_at": "2026-11-21T04:05:06.000000Z",
        "expires_at": None,
        "last_used_at": None,
    }
    assert client.get(made.headers["Location"], headers=ann).get_json() == body
    assert client.get("/v1/api-keys", headers=ann).get_json() == {"items": [body], "next": None}
    kept = b"".join(path.read_bytes() for path in settings.state_dir.glob("outboard.db*"))
    assert secret.encode() not in kept and secret[-43:].encode() not in kept
    assert client.get("/v1/me", headers=bearer(secret)).get_json()["username"] == "ann"


def test_keys_that_we_did_not_make_are_refused(client: FlaskClient, ann: Headers) -> None:
    good = key(client, ann, Scope.READ)["Authorization"].removeprefix("Bearer ")
    bad = [
        "obk_",
        "obk_x_y",
        good[:-1],
        good + "x",
        good[:-1] + ("x" if good[-1] != "x" else "y"),
        "obk_" + "0" * 16 + good[20:],
        good.upper(),
    ]
    assert [client.get("/v1/me", headers=bearer(each)).status_code for each in bad] == [401] * len(bad)
    assert client.get("/v1/me", headers=bearer(good)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"scopes": []},
        {"scopes": ["everything"]},
        {"scopes": "read"},
        {"expires_in_days": 0},
        {"expires_in_days": 4000},
        {"expires_at": "2026-11-21T04:05:06Z"},
        {"expires_at": "2027-01-01T00:00:00"},
        {"expires_at": "9999-12-31T23:59:59-23:00"},
        {"expires_at": "soon and soon"},
        {"expires_at": "2027-01-01T00:00:00Z", "expires_in_days": 1},
        {"other": 1},
    ],
)
def test_what_no_key_can_be(client: FlaskClient, ann: Headers, body: dict[str, object]) -> None:
    assert ask(client, ann, **body) == (400, "invalid_input")


def test_a_key_ends_when_it_was_to_end(client: FlaskClient, ann: Headers, time_of_day: SetClock) -> None:
    until = (time_of_day() + timedelta(days=1)).isoformat()
    for more in ({"expires_in_days": 1}, {"expires_at": until}):
        headers = key(client, ann, Scope.READ, **more)
        time_of_day.advance(86_399)
        assert client.get("/v1/me", headers=headers).status_code == 200, "remembered from here on"
        time_of_day.advance(1)
        refused = client.get("/v1/me", headers=headers)
        assert refused.status_code == 401 and "expired" in refused.get_json()["detail"]
        time_of_day.advance(-86_400)


def test_scopes_at_every_described_door(client: FlaskClient, services: Services) -> None:
    """Of each scope one route; a key with the other three is refused there."""
    doors = {
        Scope.READ: ("GET", "/v1/me", None),
        Scope.WRITE: ("POST", "/v1/teams", {"name": "crew"}),
        Scope.ADMIN: ("GET", "/v1/admin/users", None),
    }
    admin = person(services, "root", Role.ADMINISTRATOR)
    for scope, (method, path, body) in doors.items():
        others = key(client, admin, *(set(Scope) - {scope}))
        refused = client.open(path, method=method, json=body, headers=others)
        assert refused.status_code == 403, scope
        own = [scope, Scope.READ] if scope is Scope.ADMIN else [scope]
        assert client.open(path, method=method, json=body, headers=key(client, admin, *own)).status_code in (200, 201), scope


def test_without_the_scope_admin_an_administrators_key_is_a_plain_users(client: FlaskClient, services: Services) -> None:
    admin = person(services, "root", Role.ADMINISTRATOR)
    ann = person(services, "ann")
    client.post("/v1/teams", json={"name": "crew"}, headers=ann)
    plain, full = key(client, admin, Scope.READ, Scope.WRITE), key(client, admin, Scope.READ, Scope.ADMIN)
    assert client.get("/v1/teams/crew", headers=plain).status_code == 404
    assert client.get("/v1/teams/crew", headers=full).status_code == 200
    assert client.post("/v2/repository/models/x/load", headers=plain).status_code == 403
    assert client.post("/v2/repository/models/x/load", headers=full).status_code == 503, "the host is away; the role was enough"


def test_what_a_key_may_never_do(client: FlaskClient, services: Services, ann: Headers) -> None:
    whole = key(client, ann, *Scope)
    assert ask(client, whole) == (403, "forbidden")
    other = client.get("/v1/api-keys", headers=ann).get_json()["items"][0]["id"]
    assert client.delete("/v1/me", headers=whole).status_code == 403
    assert client.patch("/v1/me", json={"current_password": "x", "email": None}, headers=whole).status_code == 403
    assert client.delete("/v1/tokens", headers=whole).status_code == 403
    assert client.delete("/v1/tokens?everywhere=true", headers=whole).status_code == 403
    second = key(client, ann, *Scope)
    assert client.delete(f"/v1/api-keys/{other}", headers=second).status_code == 403
    assert client.delete(f"/v1/api-keys/{other}", headers=whole).status_code == 204, "but end itself"
    assert client.get("/v1/me", headers=whole).status_code == 401


def test_keys_are_their_owners_alone(client: FlaskClient, services: Services, ann: Headers) -> None:
    key(client, ann, Scope.READ)
    key_id = client.get("/v1/api-keys", headers=ann).get_json()["items"][0]["id"]
    for stranger in (person(services, "bob"), person(services, "root", Role.ADMINISTRATOR)):
        assert client.get("/v1/api-keys", headers=stranger).get_json()["items"] == []
        assert client.get(f"/v1/api-keys/{key_id}", headers=stranger).status_code == 404
        assert client.delete(f"/v1/api-keys/{key_id}", headers=stranger).status_code == 404
    assert client.delete(f"/v1/api-keys/{key_id}", headers=ann).status_code == 204
    assert client.delete(f"/v1/api-keys/{key_id}", headers=ann).status_code == 404
    assert audited(services, "api_key") == [("ann", key_id), ("ann", key_id)]


def test_pages_and_the_most_that_one_may_have(client: FlaskClient, services: Services, ann: Headers, time_of_day: SetClock) -> None:
    user = services.storage.users.by_name("ann")
    assert user is not None
    from gateway.storage.audit import GATEWAY

    for number in range(99):
        if number % 3 == 0:
            time_of_day.advance(1)
        services.storage.api_keys.create(
            f"{number:016x}", user.id, f"k{number}", "h", frozenset({Scope.READ}), time_of_day(), None, GATEWAY
        )
    ann = bearer(services.tokens.begin(user).access_token)
    assert ask(client, ann)[0] == 201
    assert ask(client, ann) == (409, "conflict")
    seen, path = [], "/v1/api-keys?limit=40"
    while path:
        page = client.get(path, headers=ann)
        seen += [item["id"] for item in page.get_json()["items"]]
        path = page.headers.get("Link", "")[1:].partition(">")[0]
    assert len(seen) == len(set(seen)) == 100
    for cursor in ("WzFd", "WyJhIl0", "WyJhIiwxXQ"):
        assert client.get(f"/v1/api-keys?cursor={cursor}", headers=ann).status_code == 400


def test_last_use_is_noted_by_the_minute(client: FlaskClient, ann: Headers, time_of_day: SetClock) -> None:
    headers = key(client, ann, Scope.READ)

    def last() -> str:
        return str(client.get("/v1/api-keys", headers=headers).get_json()["items"][0]["last_used_at"])

    first = last()
    assert first == "2026-11-21T04:05:06.000000Z"
    time_of_day.advance(59)
    assert last() == first
    time_of_day.advance(REMEMBER_S)
    assert last() == "2026-11-21T04:06:10.000000Z"


class TestRemembering:
    """A key is remembered like a token, and forgotten at once when it ends, in every process."""

    @pytest.fixture
    def secret(self, client: FlaskClient, services: Services, ann: Headers) -> str:
        made = key(client, ann, Scope.READ)["Authorization"].removeprefix("Bearer ")
        services.tokens.authenticate(made)
        return made

    def is_good(self, services: Services, secret: str) -> bool:
        try:
            return services.tokens.authenticate(secret).by_key
        except ServingError as error:
            assert error.code is Code.UNAUTHENTICATED
            return False

    def test_for_a_moment_only(self, services: Services, secret: str, time_of_day: SetClock) -> None:
        with services.storage.database.write() as db:  # as no verb does it: nobody is told
            db.execute("update api_keys set revoked_at = '2026'")
        assert services.tokens.recall(secret) is not None and self.is_good(services, secret)
        time_of_day.advance(REMEMBER_S + 1)
        assert not self.is_good(services, secret)

    def test_a_key_that_is_revoked_elsewhere(
        self, services: Services, others: Services, client: FlaskClient, ann: Headers, secret: str
    ) -> None:
        assert self.is_good(others, secret)
        assert client.delete(f"/v1/api-keys/{secret[4:20]}", headers=ann).status_code == 204
        assert not self.is_good(others, secret) and not self.is_good(services, secret)

    @pytest.mark.parametrize("verb", ["delete", "disable"])
    def test_an_account_that_ends_elsewhere(self, services: Services, others: Services, secret: str, verb: str) -> None:
        from gateway.storage.audit import GATEWAY

        account = others.storage.users.by_name("ann")
        assert account is not None
        if verb == "delete":
            others.storage.users.delete(account.id, others.now())
        else:
            others.storage.users.change(account.id, others.now(), role=None, disabled=True, quota=None, revision=None, doer=GATEWAY)
        assert not self.is_good(services, secret)

    def test_a_disk_that_takes_no_writes_keeps_nobody_out(
        self, services: Services, others: Services, secret: str, monkeypatch: pytest.MonkeyPatch, time_of_day: SetClock
    ) -> None:
        def full(key_id: str, now: object) -> None:
            raise ServingError(Code.UNAVAILABLE, "the database cannot be used")

        monkeypatch.setattr(others.storage.api_keys, "used", full)
        time_of_day.advance(3600)
        assert self.is_good(others, secret)


def test_scopes_at_the_doors_of_inference(web: FlaskClient, served: Served) -> None:
    """Hot routes, Flask and the event loop, on a model host: what a scope is for is allowed, all else is refused."""
    keys = served.app.test_client()
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    calls = {
        "/v2/models/triple/infer": body,
        "/v2/models/secret/infer": body,
        "/v2/models/triple/versions/1/infer": body,
        "/v1/models/triple/predictions": {"inputs": {"x": [[1, 2]]}},
    }
    reads = [
        "/v2/models/secret",
        "/v2/models/triple/config",
        "/v2/models/triple/stats",
        "/v2/models/triple/ready",
        "/v2/models/stats",
    ]
    for count in range(1, 3):
        for scopes in itertools.combinations((Scope.READ, Scope.CALL, Scope.WRITE), count):
            headers = key(keys, served.user, *scopes)
            for again in range(2):  # what is remembered decides alike
                for path, sent in calls.items():
                    answer = web.post(path, json=sent, headers=headers)
                    assert answer.status_code == (200 if Scope.CALL in scopes else 403), (scopes, path, again)
            for path in reads:
                assert web.get(path, headers=headers).status_code == (200 if Scope.READ in scopes else 403), (scopes, path)
            index = web.post("/v2/repository/index", headers=headers)
            assert index.status_code == (200 if Scope.READ in scopes else 403)
            assert web.post("/v2/models/triple/generate", json={}, headers=headers).status_code != 403 or Scope.CALL not in scopes
            listed = keys.get("/v1/api-keys", headers=served.user).get_json()["items"]
            for each in listed:
                keys.delete(f"/v1/api-keys/{each['id']}", headers=served.user)
            assert web.post("/v2/models/triple/infer", json=body, headers=headers).status_code == 401


def test_keys_cannot_be_made_without_end(client: FlaskClient, services: Services, ann: Headers, time_of_day: SetClock) -> None:
    """A revoked key's row stays, and so does its line in the audit log."""
    body = {"name": "k", "scopes": ["read"]}
    for _ in range(200):
        made = client.post("/v1/api-keys", json=body, headers=ann)
        assert client.delete(made.headers["Location"], headers=ann).status_code == 204
    assert client.post("/v1/api-keys", json=body, headers=ann).status_code == 429
    time_of_day.advance(10)
    assert client.post("/v1/api-keys", json=body, headers=ann).status_code == 201
