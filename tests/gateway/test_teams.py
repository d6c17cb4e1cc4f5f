"""Teams over HTTP: who sees them, who changes them, and what becomes of what they share."""

import pytest
from flask.testing import FlaskClient

from gateway.context import Services
from gateway.operations.access import Can, Shared
from gateway.storage import teams
from gateway.types import Principal, Role
from tests.gateway.accounts import Headers, audited, person, status
from tests.gateway.conftest import SetClock

WHO = ("owner", "editor", "viewer", "stranger")


@pytest.fixture
def who(client: FlaskClient, services: Services) -> dict[str, Headers]:
    made = {name: person(services, name) for name in WHO} | {"root": person(services, "root", Role.ADMINISTRATOR)}
    assert client.post("/v1/teams", json={"name": "crew"}, headers=made["owner"]).status_code == 201
    for name in ("editor", "viewer"):
        answer = client.put(f"/v1/teams/crew/members/{name}", json={"role": name}, headers=made["owner"])
        assert answer.status_code == 201
    return made


def shared(services: Services, table: str = "models", visibility: str = "team", owner: str = "editor", name: str = "m") -> int:
    """A row of a model that is shared with the team `crew`."""
    account, team = services.storage.users.by_name(owner), services.storage.teams.by_name("crew")
    assert account is not None and team is not None
    with services.storage.database.write() as db:
        values = [account.id, name, visibility, team.id, "t", "t"]
        row = db.execute(
            "insert into models (owner_id, name, visibility, team_id, created_at, updated_at) values (?, ?, ?, ?, ?, ?) returning id",
            values,
        )
        return int(row.fetchone()["id"])


def state(services: Services, model_id: int) -> tuple[str, int | None]:
    with services.storage.database.read() as db:
        row = db.execute("select visibility, team_id from models where id = ?", [model_id]).fetchone()
    return row["visibility"], row["team_id"]


def test_a_team_and_its_members(client: FlaskClient, who: dict[str, Headers]) -> None:
    made = client.get("/v1/teams/crew", headers=who["viewer"])
    assert made.get_json()["role"] == "viewer" and made.headers["ETag"] == '"1"'
    listed = client.get("/v1/teams/crew/members", headers=who["viewer"]).get_json()["items"]
    assert [(member["username"], member["role"]) for member in listed] == [("owner", "owner"), ("editor", "editor"), ("viewer", "viewer")]
    assert [team["name"] for team in client.get("/v1/teams", headers=who["editor"]).get_json()["items"]] == ["crew"]
    assert client.get("/v1/teams", headers=who["stranger"]).get_json()["items"] == []
    assert client.get("/v1/teams?everybody=true", headers=who["stranger"]).status_code == 403
    assert len(client.get("/v1/teams?everybody=true", headers=who["root"]).get_json()["items"]) == 1


def test_a_stranger_does_not_see_it(client: FlaskClient, who: dict[str, Headers]) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"name": "other"}),
        ("DELETE", "", None),
        ("GET", "/members", None),
        ("PUT", "/members/stranger", {"role": "owner"}),
        ("DELETE", "/members/viewer", None),
        ("DELETE", "/members/stranger", None),
    ):
        there, absent = (
            client.open(f"/v1/teams/{name}{path}", method=method, json=body, headers=who["stranger"]) for name in ("crew", "crow")
        )
        assert status(there) == status(absent) == (404, "not_found"), (method, path)
        assert there.get_json()["detail"].replace("crew", "crow") == absent.get_json()["detail"]


def test_only_owners_and_administrators_change_it(client: FlaskClient, who: dict[str, Headers]) -> None:
    for name in ("viewer", "editor"):
        assert client.patch("/v1/teams/crew", json={"name": "other"}, headers=who[name]).status_code == 403
        assert client.delete("/v1/teams/crew", headers=who[name]).status_code == 403
        assert client.put(f"/v1/teams/crew/members/{name}", json={"role": "owner"}, headers=who[name]).status_code == 403
        assert client.delete("/v1/teams/crew/members/owner", headers=who[name]).status_code == 403
    etag = client.get("/v1/teams/crew", headers=who["owner"]).headers["ETag"]
    assert client.patch("/v1/teams/crew", json={"name": "Crew2"}, headers=who["owner"] | {"If-Match": etag}).get_json()["name"] == "Crew2"
    assert client.patch("/v1/teams/crew2", json={"name": "crew3"}, headers=who["owner"] | {"If-Match": etag}).status_code == 412
    assert client.put("/v1/teams/crew2/members/viewer", json={"role": "owner"}, headers=who["root"]).status_code == 200
    assert client.put("/v1/teams/crew2/members/viewer", json={"role": "king"}, headers=who["root"]).status_code == 400
    assert client.put("/v1/teams/crew2/members/nobody", json={"role": "viewer"}, headers=who["root"]).status_code == 404


def test_names_of_teams(client: FlaskClient, who: dict[str, Headers]) -> None:
    for name, expected in (("crew", 409), ("CREW", 409), ("a.b", 400), ("", 400), ("x" * 65, 400), ("second", 201)):
        assert client.post("/v1/teams", json={"name": name}, headers=who["stranger"]).status_code == expected, name
    assert client.delete("/v1/teams/crew", headers=who["owner"]).status_code == 204
    assert client.post("/v1/teams", json={"name": "crew"}, headers=who["stranger"]).status_code == 409, "nobody inherits what a name meant"


def test_the_last_owner_stays(client: FlaskClient, who: dict[str, Headers]) -> None:
    owner = who["owner"]
    assert status(client.delete("/v1/teams/crew/members/owner", headers=owner)) == (409, "conflict")
    assert status(client.put("/v1/teams/crew/members/owner", json={"role": "viewer"}, headers=owner)) == (409, "conflict")
    assert status(client.delete("/v1/me", headers=owner)) == (409, "conflict")
    assert client.get("/v1/me", headers=owner).status_code == 200
    assert client.put("/v1/teams/crew/members/editor", json={"role": "owner"}, headers=owner).status_code == 200
    assert client.delete("/v1/me", headers=owner).status_code == 204
    assert status(client.delete("/v1/teams/crew/members/editor", headers=who["editor"])) == (409, "conflict"), "a deleted owner is none"
    assert client.delete("/v1/teams/crew/members/viewer", headers=who["viewer"]).status_code == 204
    assert client.delete("/v1/me", headers=who["editor"]).status_code == 204, "alone in it: the team goes as well"
    assert client.get("/v1/teams/crew", headers=who["root"]).status_code == 404


def test_a_team_that_is_deleted_shares_nothing(client: FlaskClient, services: Services, who: dict[str, Headers]) -> None:
    team, public = shared(services), shared(services, visibility="public", name="p")
    mark = services.storage.sharing.read()
    assert client.delete("/v1/teams/crew", headers=who["owner"]).status_code == 204
    assert state(services, team) == ("private", None) and state(services, public) == ("public", None)
    assert services.storage.sharing.read() != mark
    for name in WHO:
        assert client.get("/v1/teams/crew", headers=who[name]).status_code == 404
    assert audited(services, "team.delete") == [("owner", "crew")]


def test_who_leaves_takes_what_is_theirs_along(client: FlaskClient, services: Services, who: dict[str, Headers]) -> None:
    mine, other = shared(services, owner="editor"), shared(services, owner="owner")
    viewer = services.storage.users.by_name("viewer")
    editor = services.storage.users.by_name("editor")
    team = services.storage.teams.by_name("crew")
    assert viewer is not None and editor is not None and team is not None
    seen = Shared(editor.id, "team", team.id)
    assert Can.CALL in services.access.of(Principal(viewer.id, "viewer", Role.USER), seen)
    assert client.delete("/v1/teams/crew/members/editor", headers=who["editor"]).status_code == 204
    assert state(services, mine) == ("private", None) and state(services, other) == ("team", team.id)
    assert client.delete("/v1/teams/crew/members/viewer", headers=who["owner"]).status_code == 204
    assert services.access.of(Principal(viewer.id, "viewer", Role.USER), seen) == Can(0)
    assert audited(services, "team.leave") == [("editor", "crew"), ("owner", "crew")]


def test_the_same_request_again_makes_one_team(client: FlaskClient, who: dict[str, Headers]) -> None:
    keyed = who["stranger"] | {"Idempotency-Key": "k"}
    first, again = (client.post("/v1/teams", json={"name": "second"}, headers=keyed) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201) and first.get_json() == again.get_json()


def test_who_is_put_into_many_teams_can_make_their_own(
    client: FlaskClient, services: Services, who: dict[str, Headers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teams, "MOST", 2)
    for name, role in (("spam1", "viewer"), ("spam2", "owner")):
        assert client.post("/v1/teams", json={"name": name}, headers=who["stranger"]).status_code == 201
        assert client.put(f"/v1/teams/{name}/members/viewer", json={"role": role}, headers=who["stranger"]).status_code == 201
    assert client.delete("/v1/teams/spam2/members/stranger", headers=who["stranger"]).status_code == 204
    assert status(client.post("/v1/teams", json={"name": "third"}, headers=who["stranger"])) == (409, "conflict"), (
        "leaving one is not deleting it"
    )
    assert client.post("/v1/teams", json={"name": "mine"}, headers=who["viewer"]).status_code == 201
    assert [team["name"] for team in client.get("/v1/teams", headers=who["viewer"]).get_json()["items"]] == [
        "crew",
        "spam1",
        "spam2",
        "mine",
    ]
    assert client.delete("/v1/teams/spam1", headers=who["stranger"]).status_code == 204
    assert client.post("/v1/teams", json={"name": "third"}, headers=who["stranger"]).status_code == 201


def test_names_cannot_be_taken_without_end(client: FlaskClient, who: dict[str, Headers], time_of_day: SetClock) -> None:
    """A team's name stays taken when it is deleted."""
    answers = []
    for number in range(31):
        answers.append(client.post("/v1/teams", json={"name": f"t{number}"}, headers=who["stranger"]).status_code)
        client.delete(f"/v1/teams/t{number}", headers=who["stranger"])
    assert answers == [201] * 30 + [429]
    assert client.post("/v1/teams", json={"name": "t"}, headers=who["viewer"]).status_code == 201
    time_of_day.advance(60)
    assert client.post("/v1/teams", json={"name": "t30"}, headers=who["stranger"]).status_code == 201
