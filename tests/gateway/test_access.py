"""Who may do what with what somebody owns."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.operations.access import EVERYTHING, NOTHING, Access, Can, Shared
from gateway.storage import Storage
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SEE_AND_CALL = Can.READ | Can.CALL
WHO = ("anonymous", "other", "viewer", "editor", "team owner", "owner", "operator", "administrator")
MATRIX = {
    "private": (NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, EVERYTHING, Can.READ | Can.OPERATE, EVERYTHING),
    "team": (
        NOTHING,
        NOTHING,
        SEE_AND_CALL,
        SEE_AND_CALL | Can.CHANGE | Can.OPERATE,
        EVERYTHING,
        EVERYTHING,
        Can.READ | Can.OPERATE,
        EVERYTHING,
    ),
    "public": (
        SEE_AND_CALL,
        SEE_AND_CALL,
        SEE_AND_CALL,
        SEE_AND_CALL | Can.CHANGE | Can.OPERATE,
        EVERYTHING,
        EVERYTHING,
        SEE_AND_CALL | Can.OPERATE,
        EVERYTHING,
    ),
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "state")


def principals(storage: Storage) -> dict[str, Principal | None]:
    made: dict[str, Principal | None] = {"anonymous": None}
    for number, name in enumerate(WHO[1:]):
        role = Role(name) if name in ("operator", "administrator") else Role.USER
        user = storage.users.create(f"user{number}", None, "x", role, NOW)
        made[name] = Principal(user.id, user.name, role)
    return made


def team_of(storage: Storage, who: dict[str, Principal | None]) -> int:
    owner = who["team owner"]
    assert owner is not None
    team = storage.teams.create("team", owner.user_id, NOW)
    with storage.database.write() as db:
        for role in ("viewer", "editor"):
            member = who[role]
            assert member is not None
            db.execute("insert into team_members values (?, ?, ?, ?)", [team.id, member.user_id, role, "now"])
    return team.id


def test_the_rule(storage: Storage) -> None:
    who = principals(storage)
    team, owner = team_of(storage, who), who["owner"]
    assert owner is not None
    access = Access(storage)
    for visibility, expected in MATRIX.items():
        thing = Shared(owner.user_id, visibility, team)
        assert tuple(access.of(who[name], thing) for name in WHO) == expected, visibility


def test_what_must_not_be_seen_is_as_if_it_were_not_there(storage: Storage) -> None:
    who = principals(storage)
    owner, access = who["owner"], Access(storage)
    assert owner is not None
    thing = Shared(owner.user_id, "private")

    def refused(name: str, there: Shared | None, wanted: Can = Can.READ) -> tuple[Code, str]:
        with pytest.raises(ServingError) as caught:
            access.require(who[name], there, wanted, "model 'm'", Code.MODEL_NOT_FOUND)
        return caught.value.code, caught.value.message

    for name in ("anonymous", "other"):
        assert refused(name, thing) == refused(name, None)
    assert refused("other", thing)[0] is Code.MODEL_NOT_FOUND and refused("anonymous", thing)[0] is Code.UNAUTHENTICATED
    assert refused("operator", thing, Can.CALL)[0] is Code.FORBIDDEN
    assert refused("other", Shared(owner.user_id, "public"), Can.CHANGE)[0] is Code.FORBIDDEN
    assert access.require(who["owner"], thing, Can.OWN, "model 'm'") is EVERYTHING
    assert refused("administrator", None)[0] is Code.MODEL_NOT_FOUND
