"""The reconciler over a real model host: what is wanted comes to be, also when either side is killed half-way."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.operations import golden, kept_bodies, prediction_bodies
from gateway.storage.audit import Doer
from gateway.storage.deployments import DeploymentRecord
from gateway.types import Principal, Role
from idl.codes import Code, ServingError
from inference_client import Client
from tests.gateway.deployed_host import Deployed, asked, deployed, own_host, users_host  # noqa: F401
from tests.gateway.deployed_rows import DOER, NOW, deployment, model, script, user
from tests.needs import boxed
from tests.onnx_models import times

SCRIPT = """
def preprocess(inputs):
    return {"x": inputs["rows"] + 1}


def postprocess(outputs):
    return {"largest": float(outputs["y"].max())}
"""


@pytest.fixture
def made(deployed: Deployed, tmp_path: Path) -> DeploymentRecord:  # noqa: F811
    return doubling(deployed, tmp_path)


def doubling(deployed: Deployed, tmp_path: Path) -> DeploymentRecord:  # noqa: F811
    """`ann.d` of a model with three versions, which multiply by 2, by 2.0001 and by 5."""
    ann = user(deployed.storage, "ann")
    files = [times(tmp_path / f"{factor}.onnx", factor) for factor in (2, 2.0001, 5)]
    model_id, versions = model(deployed.storage, ann, "m", *files, declared='description = "doubles"\ninstances = 3\npublic = true\n')
    return deployment(deployed.storage, ann, "d", model_id, versions[0])


def want(deployed: Deployed, record: DeploymentRecord, **changes: Any) -> DeploymentRecord:  # noqa: F811
    changed = deployed.storage.deployments.change(record.id, changes, DOER, NOW)
    assert changed is not None
    return changed


def version_ids(deployed: Deployed, record: DeploymentRecord) -> list[int]:  # noqa: F811
    return [version.id for version in reversed(deployed.storage.models.versions(record.model_id))]


def test_the_life_of_one(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    deployed.turn()
    running = deployed.record(made.id)
    assert (running.state, running.reason, running.serving_version, running.observed_generation) == ("running", "", 1, 1)
    assert deployed.ready("ann.d") == {"1": "READY"} and deployed.asked("ann.d") == 4
    config = deployed.client.model_config("ann.d")
    said = json.loads(config["parameters"]["outboard"]["string_value"])
    assert (said["public"], said["description"], config["instance_group"][0]["count"]) == (False, "doubles", 1)
    one, _, five = version_ids(deployed, made)
    want(deployed, made, version_id=five, instances=2)
    deployed.turn()
    changed = deployed.record(made.id)
    assert (changed.state, changed.serving_version, changed.previous_version) == ("running", 3, 1) and deployed.asked("ann.d") == 10
    assert {model.instances for model in deployed.client.capacity().models if model.name == "ann.d"} == {2}
    assert deployed.ready("ann.d") == {"1": "UNAVAILABLE", "3": "READY"}, "the one before stays at hand"
    want(deployed, made, desired_state="paused", state="pausing")
    deployed.turn()
    assert deployed.record(made.id).state == "paused" and "READY" not in deployed.ready("ann.d").values()
    want(deployed, made, desired_state="running", state="starting", version_id=one)
    deployed.turn()
    assert deployed.record(made.id).state == "running" and deployed.asked("ann.d") == 4
    want(deployed, made, desired_state="deleted", state="deleting")
    deployed.turn()
    gone = deployed.record(made.id)
    assert (
        gone.state == "deleted" and gone.deleted_at and deployed.ready("ann.d") == {} and not list((deployed.folder / "users").glob("ann*"))
    )
    deployed.turn()
    assert deployed.storage.deployments.alive() == []


def test_a_name_is_used_again_at_once(deployed: Deployed, made: DeploymentRecord, tmp_path: Path) -> None:  # noqa: F811
    deployed.turn()
    want(deployed, made, desired_state="deleted", state="deleting")
    owner = Principal(made.owner_id, "ann", Role.USER)
    other, versions = model(deployed.storage, owner, "n", times(tmp_path / "7.onnx", 7))
    again = deployment(deployed.storage, owner, "d", other, versions[0])
    deployed.turn()
    assert (deployed.record(made.id).state, deployed.record(again.id).state) == ("deleted", "running") and deployed.asked("ann.d") == 14


def test_a_host_that_was_killed(own_host: Deployed, tmp_path: Path) -> None:  # noqa: F811
    made = doubling(own_host, tmp_path)
    again(own_host, made)


def again(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    want(deployed, made, instances=2)
    deployed.turn()
    deployed.host.process.kill()
    deployed.host.process.wait()
    deployed.turn()
    assert deployed.record(made.id).state == "running", "the host's absence is no failure of the deployment"
    later = want(deployed, made, version_id=version_ids(deployed, made)[2])
    deployed.turn()
    waiting = deployed.record(made.id)
    assert waiting.state == "running" and waiting.reason and waiting.retry_at > 0 and waiting.generation == later.generation
    deployed.restart()
    deployed.storage.deployments.settle(waiting, {"retry_at": 0.0}, NOW)
    deployed.turn()
    after = deployed.record(made.id)
    assert (after.state, after.reason, after.serving_version) == ("running", "", 3) and deployed.asked("ann.d") == 10
    assert {model.instances for model in deployed.client.capacity().models} >= {2}
    # and one that has lost what it had
    deployed.host.process.kill()
    deployed.host.process.wait()
    for folder in (deployed.folder / "users").iterdir():
        folder.rename(deployed.folder / f"lost-{folder.name}")
    deployed.restart()
    assert deployed.ready("ann.d") == {}
    deployed.turn()
    deployed.storage.deployments.settle(deployed.record(made.id), {"retry_at": 0.0}, NOW)
    deployed.turn()
    assert deployed.record(made.id).state == "running" and deployed.asked("ann.d") == 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_was_killed(deployed: Deployed, made: DeploymentRecord, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """After each verb that changes the host: the next worker begins anew and comes to the same end."""
    verbs = ("put_file", "load_model", "set_labels", "set_instances", "remove_model", "unload_model")
    one, _, five = version_ids(deployed, made)
    for number, wanted in enumerate(
        (
            {"instances": 2},
            {"version_id": five},
            {"canary_version_id": one, "canary_percent": 30},
            {"version_id": one, "canary_version_id": None, "canary_percent": 0},
            {"desired_state": "paused", "state": "pausing"},
            {"desired_state": "running", "state": "starting", "version_id": five},
        )
    ):
        want(deployed, made, **wanted)
        for dies_after in range(1, 40):
            left = [dies_after]

            def dying(original: Any, left: list[int] = left) -> Any:
                def call(*given: Any, **named: Any) -> Any:
                    made = original(*given, **named)
                    left[0] -= 1
                    if left[0] == 0:
                        raise SystemExit  # nothing after this is done, and nothing is written
                    return made

                return call

            with monkeypatch.context() as patch:
                for verb in verbs:
                    patch.setattr(Client, verb, dying(getattr(Client, verb)))
                deployed.begin_anew()
                deployed.reconciler.step()
                assert deployed.reconciler.wait(60)
            if left[0] > 0:
                break
        deployed.begin_anew()
        deployed.turn()
        record = deployed.record(made.id)
        expected = "paused" if number == 4 else "running"
        assert (record.state, record.observed_generation) == (expected, record.generation), (number, record)
        versions = {version for version, state in deployed.ready("ann.d").items() if state == "READY"}
        assert versions == [{"1"}, {"3"}, {"3", "1"}, {"1"}, set(), {"3"}][number], number
    assert deployed.asked("ann.d") == 10


def test_no_request_fails_while_versions_change(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    deployed.turn()
    stop, failures, counts = threading.Event(), [], {4.0: 0, 10.0: 0}

    def ask() -> None:
        with Client(f"thrift+unix://{deployed.folder / 'thrift.sock'}") as client:
            while not stop.is_set():
                try:
                    counts[asked(client, "ann.d")] += 1
                except (ServingError, KeyError) as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        one, _, five = version_ids(deployed, made)
        for version in (five, one, five):
            before = sum(counts.values())
            want(deployed, made, version_id=version)
            deployed.turn()
            while sum(counts.values()) < before + 50 and not failures:
                pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures and min(counts.values()) > 0


def pin(deployed: Deployed, record: DeploymentRecord, name: str, answer: Any) -> None:  # noqa: F811
    body = prediction_bodies.from_json(b'{"inputs": {"x": [[1000, 1]]}}')
    request, _ = deployed.storage.blobs.put([kept_bodies.encode(body)], NOW)
    pinned, _ = deployed.storage.blobs.put([json.dumps({"y": answer}).encode()], NOW)
    deployed.storage.golden.pin(record.id, name, request, "application/json", pinned, Doer(record.owner_id, "ann"), NOW, 10)


def test_golden_requests_refuse_a_version(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    deployed.turn()
    pin(deployed, made, "thousand", [[2000, 2]])
    _, near, five = version_ids(deployed, made)
    want(deployed, made, version_id=five)
    deployed.turn()
    record = deployed.record(made.id)
    assert (record.state, record.version, record.serving_version, record.reason) == ("running", 1, 1, "")
    assert record.notice == (
        "version 3 was refused: golden request 'thousand': output 'y' differs by 1.5 at element 0 (5000, and was 2000) (tolerance 0.001)"
    )
    assert deployed.ready("ann.d") == {"1": "READY"} and deployed.asked("ann.d") == 4
    want(deployed, made, version_id=near)
    deployed.turn()
    record = deployed.record(made.id)
    assert (record.version, record.serving_version, record.previous_version, record.notice) == (2, 2, 1, "")
    assert deployed.ready("ann.d") == {"1": "UNAVAILABLE", "2": "READY"}
    # a canary as well, and one that is loaded while nothing runs
    want(deployed, made, canary_version_id=five, canary_percent=10)
    deployed.turn()
    record = deployed.record(made.id)
    assert (
        record.canary_version is None
        and record.notice.startswith("version 3 was refused")
        and deployed.asked("ann.d") == pytest.approx(4, abs=0.01)
    )
    want(deployed, made, desired_state="paused", state="pausing")
    deployed.turn()
    want(deployed, made, desired_state="running", state="starting", version_id=five)
    deployed.turn()
    record = deployed.record(made.id)
    assert (record.state, record.version, record.serving_version) == ("running", 2, 2) and "differs by 1.5" in record.notice
    # what served before is gone back to at once
    want(deployed, made, golden_tolerance=1e-9)
    deployed.turn()
    want(deployed, made, version_id=five, check_golden=0)
    deployed.turn()
    assert deployed.record(made.id).serving_version == 3


def test_a_canary_gets_its_share(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    deployed.turn()
    five = version_ids(deployed, made)[2]
    want(deployed, made, canary_version_id=five, canary_percent=25)
    deployed.turn()
    record = deployed.record(made.id)
    assert (record.state, record.serving_version, record.canary_version) == ("running", 1, 3)
    answers = [deployed.asked("ann.d") for _ in range(600)]
    assert 90 <= answers.count(10.0) <= 215 and answers.count(10.0) + answers.count(4.0) == 600
    deployed.turn()
    assert deployed.record(made.id).updated_at == record.updated_at, "there is nothing to do"
    want(deployed, made, version_id=five, canary_version_id=None, canary_percent=0)
    deployed.turn()
    assert [deployed.asked("ann.d") for _ in range(20)] == [10.0] * 20
    assert deployed.record(made.id).previous_version == 1 and deployed.ready("ann.d") == {"1": "UNAVAILABLE", "3": "READY"}


def test_a_failure_says_why_and_is_tried_again(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    record = want(deployed, made, memory=1 << 50)
    deployed.turn()
    failed = deployed.record(made.id)
    assert failed.state == "failed" and "memory" in failed.reason and failed.failures == 1
    assert failed.retry_at == pytest.approx(deployed.services.now().timestamp() + 1, abs=2) and failed.generation == record.generation
    want(deployed, made, memory=None)
    deployed.turn()
    assert deployed.record(made.id).state == "running"
    want(deployed, made, memory=1 << 50, version_id=version_ids(deployed, made)[2])
    deployed.turn()
    back = deployed.record(made.id)
    assert back.state == "running" and back.version == 1 and "version 3 was refused" in back.notice and deployed.asked("ann.d") == 4
    assert "memory" in back.reason and back.failures == 1, "as it was is how it goes on"


@boxed
def test_sleep_and_a_script(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    source = script(deployed.storage, Principal(made.owner_id, "ann", Role.USER), "s", SCRIPT, "preprocess", "postprocess")
    want(deployed, made, script_version_id=source)
    deployed.turn()
    assert deployed.record(made.id).state == "running" and deployed.ready("ann.d.script") == {str(source): "READY"}
    assert deployed.storage.deployments.lull(deployed.record(made.id), NOW)
    deployed.turn()
    asleep = deployed.record(made.id)
    assert (asleep.state, asleep.desired_state) == ("sleeping", "running") and set(deployed.ready("ann.d").values()) == {"UNAVAILABLE"}
    assert set(deployed.ready("ann.d.script").values()) == {"UNAVAILABLE"}
    assert deployed.storage.deployments.wake(made.id, NOW)
    deployed.turn()
    assert deployed.record(made.id).state == "running" and deployed.asked("ann.d") == 4
    want(deployed, made, script_version_id=None)
    deployed.turn()
    assert deployed.ready("ann.d.script") == {}


def test_an_operators_model_keeps_its_name(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    times(deployed.folder / "models" / "ann.d" / "1" / "model.onnx", 9)
    deployed.client.load_model("ann.d")
    deployed.turn()
    failed = deployed.record(made.id)
    assert failed.state == "failed" and "operator" in failed.reason and deployed.asked("ann.d") == 18
    want(deployed, made, desired_state="deleted", state="deleting")
    deployed.turn()
    assert deployed.record(made.id).state == "deleted" and deployed.asked("ann.d") == 18
    deployed.client.unload_model("ann.d")
    shutil.rmtree(deployed.folder / "models" / "ann.d")


def test_the_account_of_its_owner(deployed: Deployed, made: DeploymentRecord) -> None:  # noqa: F811
    deployed.turn()
    with deployed.storage.database.write() as db:
        db.execute("update users set disabled_at = 'now' where name = 'ann'")
    deployed.turn()
    assert (deployed.record(made.id).state, deployed.record(made.id).desired_state) == ("paused", "running")
    with pytest.raises(ServingError) as caught:
        deployed.asked("ann.d")
    assert caught.value.code is Code.NOT_READY
    with deployed.storage.database.write() as db:
        db.execute("update users set disabled_at = null where name = 'ann'")
    deployed.turn()
    assert deployed.record(made.id).state == "running" and deployed.asked("ann.d") == 4


def test_differences() -> None:
    def apart(old: Any, new: Any) -> str:
        return golden.difference({"y": old}, {"y": new, "z": 1}, 0.01)

    assert not apart([1, 2.0], [1.005, 2]) and not apart([1e9], [1e9 + 1]) and not apart(["NaN", "Infinity"], ["NaN", "Infinity"])
    assert not apart(["a"], ["a"]) and not apart([], []) and not apart(5, 5)
    assert apart([1, 2], [1, 2.5]) == "output 'y' differs by 0.25 at element 1 (2.5, and was 2)"
    assert "differs by inf" in apart([1.0], ["NaN"]) and "differs by inf" in apart(["Infinity"], ["-Infinity"])
    assert apart([[1]], [1]) == "output 'y' has shape [1], and had [1, 1]"
    assert apart(["cat"], ["dog"]) == "output 'y' differs at element 0 ('dog', and was 'cat')"
    assert golden.difference({"q": 1}, {"y": 1}, 1) == "there is no output 'q' any more"
