"""Tasks and batches of deployments: those that run, sleep, are paused, have a script, or are gone when their turn comes."""

# ruff: noqa: F401, F811 - fixtures are imported, and then are arguments
import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.operations import batch_answers
from gateway.operations.tasks import Target
from gateway.worker import deploying
from gateway.worker.task_runner import TaskRunner
from tests.gateway.deployed_host import Deployed, deployed, users_host, within
from tests.gateway.deployed_stage import Person, Stage, staged
from tests.gateway.test_deployment_faces import SCRIPT, scripted

BODY = {"inputs": {"x": [[2, 1]]}}


@pytest.fixture
def stage(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """With a worker that runs tasks as well."""
    parts = deploying.parts
    monkeypatch.setattr(deploying, "parts", lambda services, number: [TaskRunner(services, number), *parts(services, number)])
    yield from staged(deployed, tmp_path, hot=True)


def call(who: Person, prefer: str, body: Any = BODY, name: str = "d", **more: Any) -> Any:
    return who("POST", f"/v1/deployments/{name}/predictions", body, headers={"Prefer": prefer}, **more)


def submitted(who: Person, body: Any = BODY, name: str = "d") -> str:
    answer = call(who, "respond-async", body, name)
    assert answer.status_code == 202 and answer.headers["Location"] == f"/v1/tasks/{answer.get_json()['id']}", answer.get_json()
    return str(answer.get_json()["id"])


def ended(who: Person, task_id: str) -> dict[str, Any]:
    def seen() -> Any:
        found = who("GET", f"/v1/tasks/{task_id}?wait=5").get_json()
        return found if found["state"] not in ("queued", "running", "paused") else None

    return dict(within(30, seen))


def result(who: Person, task_id: str) -> Any:
    task = ended(who, task_id)
    assert task["state"] == "succeeded", task
    return who("GET", task["result_url"]).get_json()


def batch(who: Person, rows: str, kind: str = "csv", **fields: str) -> str:
    form = {"deployment": "d", **fields, "file": (io.BytesIO(rows.encode()), f"rows.{kind}")}
    answer = who("POST", "/v1/batches", data=form)
    assert answer.status_code == 202, answer.get_json()
    return str(answer.get_json()["id"])


def finished(who: Person, batch_id: str) -> dict[str, Any]:
    """A batch at its end."""
    ended(who, batch_id)
    return dict(who("GET", f"/v1/batches/{batch_id}").get_json())


def test_calls_that_do_not_wait(stage: Stage) -> None:
    ann, bob = stage.ann, stage.bob
    stage.deploy()
    task_id = submitted(ann)
    told = result(ann, task_id)
    assert (told["id"], told["model"], told["deployment"], told["outputs"]) == (task_id, "m", "ann.d", {"y": [[4, 2]]})
    assert ann("GET", f"/v1/tasks/{task_id}").get_json()["deployment"] == "ann.d"
    waited = call(ann, "wait=20")
    assert waited.status_code == 200 and waited.headers["Preference-Applied"] == "wait=20"
    assert waited.get_json()["outputs"] == {"y": [[4, 2]]} and waited.get_json()["deployment"] == "ann.d"
    form = call(ann, "wait=20", None, data={"x": "[[3, 1]]"})
    assert form.get_json()["outputs"] == {"y": [[6, 2]]}
    version = ann("POST", "/v1/deployments/d/predictions?version=1", BODY, headers={"Prefer": "wait=20"})
    assert version.status_code == 200 and version.get_json()["version"] == "1"
    refused = call(ann, "wait=20", {"inputs": {"z": [1]}})
    assert refused.status_code == 400 and "'z'" in refused.get_json()["detail"]
    assert {each["id"] for each in ann("GET", "/v1/tasks?deployment=d").get_json()["items"]} >= {task_id}
    for name in ("ann.d", "ann.nothing"):
        assert call(bob, "respond-async", name=name).status_code == 404
        assert call(stage.nobody, "respond-async", name=name).status_code == 401
        assert bob("GET", f"/v1/tasks?deployment={name}").status_code == 404
    ann("PATCH", "/v1/deployments/d", {"visibility": "public"})
    assert result(bob, submitted(bob, name="ann.d"))["outputs"] == {"y": [[4, 2]]}
    assert call(stage.nobody, "respond-async", name="ann.d").status_code == 401
    ann("PATCH", "/v1/deployments/d", {"visibility": "private"})


def test_what_others_have_is_not_told_by_batches_and_tasks(stage: Stage) -> None:
    """Neither by the status nor by the words: whatever is asked of a private one, it is as if it were not there."""
    stage.deploy()
    for version in ("", "1", "99"):
        told = []
        for name in ("ann.d", "ann.x"):
            fields = {"model": name, **({"version": version} if version else {})}
            sent = stage.bob("POST", "/v1/batches", data={**fields, "file": (io.BytesIO(b"a,b\n1,2"), "a.csv")})
            query = f"?version={version}" if version else ""
            later = stage.bob("POST", f"/v1/models/{name}/predictions{query}", BODY, headers={"Prefer": "respond-async"})
            told.append(
                [(each.status_code, each.get_json()["code"], each.get_json()["detail"].replace(name, "N")) for each in (sent, later)]
            )
        assert told[0] == told[1], version


def test_paused_when_its_turn_comes(stage: Stage) -> None:
    ann = stage.ann
    stage.deploy()
    ann("PATCH", "/v1/deployments/d", {"desired_state": "paused"})
    assert (call(ann, "respond-async").status_code, call(ann, "wait=5").get_json()["code"]) == (409, "deployment_paused")
    ann("PATCH", "/v1/deployments/d", {"desired_state": "running"})
    stage.until("d")
    ids = [submitted(ann, {"inputs": {"x": [[number, 1]]}}) for number in range(20)]
    ann("PATCH", "/v1/deployments/d", {"desired_state": "paused"})
    late = stage.over.storage.tasks
    stage.until("d", "paused")
    waiting = [each for each in ids if (late.get(each) or pytest.fail(each)).state == "queued"]  # one that runs may end well
    time.sleep(0.2)
    assert {ann("GET", f"/v1/tasks/{each}").get_json()["state"] for each in waiting} <= {"queued", "running"}
    ann("PATCH", "/v1/deployments/d", {"desired_state": "running"})
    assert [result(ann, each)["outputs"]["y"][0][0] for each in ids] == [2 * number for number in range(20)]
    assert {ann("GET", f"/v1/tasks/{each}").get_json()["attempts"] for each in ids} == {1}


def test_one_that_sleeps_is_woken_by_a_task_and_by_a_batch(stage: Stage) -> None:
    ann = stage.ann
    stage.deploy()
    record = stage.over.storage.deployments.of_owner(ann.principal.user_id, "d")
    assert record is not None
    wakes = (
        lambda: result(ann, submitted(ann))["outputs"],
        lambda: call(ann, "wait=20").get_json()["outputs"],
        lambda: finished(ann, batch(ann, "a,b\n2,1\n"))["rows_done"],
    )
    for wake in wakes:
        assert stage.over.storage.deployments.lull(stage.over.record(record.id), stage.over.services.now())
        stage.over.services.nudge()
        stage.until("d", "sleeping")
        assert wake() in ({"y": [[4, 2]]}, 1)
        assert stage.until("d")["state"] == "running"
    assert {task["attempts"] for task in ann("GET", "/v1/tasks").get_json()["items"]} == {1}


def test_a_script_stands_around_tasks_and_batches(stage: Stage) -> None:
    assert scripted(stage, SCRIPT).status_code == 201
    stage.deploy(script={"name": "s"})
    assert result(stage.ann, submitted(stage.ann, {"inputs": {"rows": [[1, 4]]}}))["outputs"] == {"largest": 10}
    failed = ended(stage.ann, submitted(stage.ann, {"inputs": {"x": [[1, 4]]}}))
    assert failed["state"] == "failed" and failed["error"]["code"] == "model_failed" and "KeyError" in failed["error"]["message"]
    rows = '{"inputs": {"rows": [[1, 4]]}}\n{"rows": [1, 2]}\n{"inputs": {"rows": [[7, 8]]}}\n'
    made = finished(stage.ann, batch(stage.ann, rows, "jsonl"))
    assert (made["state"], made["rows_done"]) == ("succeeded", 3), made
    lines = stage.ann("GET", made["result_url"]).get_data(as_text=True).splitlines()
    assert '"largest":10' in lines[0] and '"largest":18' in lines[2], lines


def test_a_batch_whose_deployment_is_paused_goes_on_later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, answer = stage.ann, batch_answers.answer
    stage.deploy()

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return answer(*arguments)

    monkeypatch.setattr(batch_answers, "answer", slow)
    monkeypatch.setattr(batch_answers, "MOST_TOGETHER", 1)
    count = 400
    batch_id = batch(ann, "a,b\n" + "".join(f"{number},1\n" for number in range(count)))
    within(20, lambda: ann("GET", f"/v1/batches/{batch_id}").get_json()["rows_done"] > 0)
    ann("PATCH", "/v1/deployments/d", {"desired_state": "paused"})
    stage.until("d", "paused")

    def put_off() -> bool:
        task = stage.over.storage.tasks.get(batch_id)
        assert task is not None and not task.is_over, task
        return task.state == "queued" and task.waits > 0 and "paused" in str(task.error_message)

    within(20, put_off)
    ann("PATCH", "/v1/deployments/d", {"desired_state": "running"})
    made = finished(ann, batch_id)
    assert (made["state"], made["rows_done"], made["rows_failed"]) == ("succeeded", count, 0), made
    lines = list(csv.reader(io.StringIO(ann("GET", made["result_url"]).get_data(as_text=True))))[1:]
    assert [(int(line[0]), line[2]) for line in lines] == [(number + 1, f"[{2.0 * number},2.0]") for number in range(count)]


def test_deleted_and_made_again_it_is_another_one(stage: Stage) -> None:
    ann = stage.ann
    stage.deploy()
    ann("PATCH", "/v1/deployments/d", {"desired_state": "paused"})
    stage.until("d", "paused")
    record = stage.over.storage.deployments.find("ann", "d")
    assert record is not None
    task = stage.over.services.tasks.submit(
        ann.principal, Target("ann.d", "", record.id), b'{"inputs": {"x": [[1, 1]]}}', "application/json"
    )
    assert ann("DELETE", "/v1/deployments/d").status_code == 204
    stage.deploy()
    made = ended(ann, task.id)
    assert made["state"] == "failed" and made["error"]["code"] == "not_found"
