"""What is kept of deployments, and who may call one by which name."""

from pathlib import Path

import pytest

from gateway.operations import deployments
from gateway.operations.access import Access
from gateway.storage import Storage
from gateway.types import Principal, Role
from idl.codes import Code, ServingError
from tests.gateway.deployed_rows import DOER, NOW, deployment, model, script, user
from tests.onnx_models import times


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "state")


@pytest.fixture
def ann(storage: Storage) -> Principal:
    return user(storage, "ann")


@pytest.fixture
def files(storage: Storage, ann: Principal, tmp_path: Path) -> tuple[int, list[int]]:
    return model(storage, ann, "m", times(tmp_path / "1.onnx", 2), times(tmp_path / "2.onnx", 3))


def test_a_name_is_taken_until_it_is_on_its_way_out(storage: Storage, ann: Principal, files: tuple[int, list[int]]) -> None:
    mark = storage.sharing.read()
    first = deployment(storage, ann, "d", files[0], files[1][0])
    assert storage.sharing.read() != mark
    assert (first.rpc_name, first.model, first.version, first.serving_version, first.revision) == ("ann.d", "m", 1, None, 1)
    with pytest.raises(ServingError) as caught:
        deployment(storage, ann, "D", files[0], files[1][0])
    assert caught.value.code is Code.ALREADY_EXISTS
    assert storage.deployments.change(first.id, {"desired_state": "deleted", "state": "deleting"}, DOER, NOW) is not None
    assert storage.deployments.change(first.id, {"desired_state": "running"}, DOER, NOW) is None
    second = deployment(storage, ann, "d", files[0], files[1][1])
    assert [(row.id, row.state) for row in storage.deployments.alive()] == [(first.id, "deleting"), (second.id, "starting")]
    found = storage.deployments.of_owner(ann.user_id, "d")
    assert found is not None and found.id == second.id
    with storage.database.read() as db:
        actions = [row["action"] for row in db.execute("select action from audit where action like 'deployment.%' order by id").fetchall()]
    assert actions == ["deployment.create", "deployment.change", "deployment.create"]


def test_what_changed_meanwhile_is_not_overwritten(storage: Storage, ann: Principal, files: tuple[int, list[int]]) -> None:
    seen = deployment(storage, ann, "d", files[0], files[1][0])
    assert storage.deployments.change(seen.id, {"version_id": files[1][1]}, DOER, NOW, revision=7) is None
    changed = storage.deployments.change(seen.id, {"version_id": files[1][1]}, DOER, NOW, revision=1)
    assert changed is not None and (changed.version, changed.revision, changed.generation) == (2, 2, 2)
    assert not storage.deployments.settle(seen, {"state": "running"}, NOW)
    assert storage.deployments.settle(changed, {"state": "running", "observed_generation": 2}, NOW)
    assert not storage.deployments.lull(seen, NOW) and storage.deployments.lull(changed, NOW)
    asleep = storage.deployments.by_id(seen.id)
    assert asleep is not None and not asleep.wants_to_run and asleep.revision == 2
    assert storage.deployments.wake(seen.id, NOW) and not storage.deployments.wake(seen.id, NOW)
    woken = storage.deployments.by_id(seen.id)
    assert woken is not None and woken.wants_to_run and woken.state == "starting" and woken.generation == 4
    assert not storage.deployments.scale(woken, 3, NOW), "its owner has left nothing to us"


def test_who_may_call_it_by_which_name(storage: Storage, ann: Principal, files: tuple[int, list[int]]) -> None:
    bob, access = user(storage, "bob"), Access(storage)
    source = script(storage, ann, "s", "def postprocess(outputs): return outputs", "postprocess")
    made = deployment(storage, ann, "d", files[0], files[1][0], script_version_id=source)
    mine = deployments.resolve(storage, access, ann, "d")
    assert (mine.rpc_name, mine.model, mine.version, mine.script_name, mine.functions) == (
        "ann.d",
        "m",
        1,
        "ann.d.script",
        ("postprocess",),
    )
    assert deployments.resolve(storage, access, ann, "ANN.d").id == made.id

    def refused(who: Principal | None, name: str) -> Code:
        with pytest.raises(ServingError) as caught:
            deployments.resolve(storage, access, who, name)
        return caught.value.code

    assert refused(bob, "ann.d") is refused(bob, "d") is refused(bob, "ann.d.script") is Code.NOT_FOUND
    assert refused(None, "ann.d") is refused(None, "d") is refused(None, "nobody.d") is Code.UNAUTHENTICATED
    assert refused(user(storage, "op", Role.OPERATOR), "ann.d") is Code.FORBIDDEN
    storage.deployments.change(made.id, {"visibility": "public"}, DOER, NOW)
    assert deployments.resolve(storage, access, bob, "ann.d").id == deployments.resolve(storage, access, None, "ann.d").id == made.id
    storage.deployments.change(made.id, {"desired_state": "deleted", "state": "deleting"}, DOER, NOW)
    assert refused(ann, "d") is Code.NOT_FOUND


def test_lists(storage: Storage, ann: Principal, files: tuple[int, list[int]]) -> None:
    bob = user(storage, "bob")
    team = storage.teams.create("team", ann.user_id, NOW)
    for name, visibility in (("private", "private"), ("public", "public"), ("team", "team")):
        deployment(storage, ann, name, files[0], files[1][0], visibility=visibility, team_id=team.id)
    deployment(storage, bob, "bobs", files[0], files[1][0])

    def listed(who: Principal, **asked: object) -> list[str]:
        given = {"shared": False, "everything": False, "model_id": None, "state": "", "after": 0, "limit": 50} | asked
        teams = storage.teams.roles_of(who.user_id)
        return [found.name for found in storage.deployments.listed(who.user_id, teams, **given)]  # type: ignore[arg-type]

    assert listed(ann) == ["private", "public", "team"] and listed(bob) == ["bobs"]
    assert listed(bob, shared=True) == ["public", "bobs"] and listed(bob, everything=True) == ["private", "public", "team", "bobs"]
    assert listed(ann, limit=2) == ["private", "public"] and listed(ann, after=2) == ["team"]
    assert listed(ann, state="running") == [] and listed(ann, state="starting", model_id=files[0]) == ["private", "public", "team"]
