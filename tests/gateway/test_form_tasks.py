"""The form API on tasks: /submit, /gettaskstatus, /gettaskresult, /gettasks."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.operations import passwords
from gateway.storage.task_records import CANCELLED
from gateway.types import Principal, Role
from tests.eventually import eventually
from tests.gateway.conftest import PASSWORD
from tests.gateway.deployed_rows import deployment, model
from tests.gateway.working import Working, working
from tests.onnx_models import times
from tests.processes import Process, start_server

NAMES = {"modelname": "tripler", "deployment": "mine"}


@pytest.fixture(scope="module")
def deploying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A model host where ann's deployment is."""
    folder = tmp_path_factory.mktemp("deploying")
    times(folder / "models" / "ann.mine" / "1" / "model.onnx", 3)
    made = start_server(folder / "models", folder, "--thrift-socket", str(folder / "thrift.sock"))
    made.addresses["socket"] = str(folder / "thrift.sock")
    yield made
    assert made.stop() == 0


@pytest.fixture
def gateway(deploying: Process, tmp_path: Path) -> Iterator[Working]:
    with working(deploying, tmp_path, quota_tasks=4) as made:
        storage = made.services.storage
        for name in ("ann", "bob"):
            user = storage.users.by_name(name)
            assert user is not None
            storage.users.change_own(user.id, made.services.now(), password_hash=passwords.hash_password(PASSWORD))
        ann = Principal(1, "ann", Role.USER)
        file = times(tmp_path / "model.onnx", 3)
        model_id, (version_id,) = model(storage, ann, "tripler", file)
        deployment(storage, ann, "mine", model_id, version_id, state="running")
        yield made


def ask(gateway: Working, method: str, path: str, user: str = "ann", **fields: Any) -> dict[str, Any]:
    sent = {"user": user, "password": PASSWORD, **fields}
    client = gateway.client
    answer = client.post(path, data=sent) if method == "POST" else client.get(path, query_string=sent)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return dict(answer.get_json())


def submit(gateway: Working, value: Any = None, user: str = "ann", **fields: Any) -> dict[str, Any]:
    given = json.dumps({"x": [[1, 2]] if value is None else value})
    return ask(gateway, "POST", "/submit", user, **{**NAMES, "input": given, "filetype": "none", **fields})


def result(gateway: Working, task_id: str, user: str = "ann") -> dict[str, Any]:
    return ask(gateway, "GET", "/gettaskresult", user, taskid=task_id)


def test_submit_look_and_fetch(gateway: Working) -> None:
    task_id = submit(gateway)["taskid"]
    many = ask(gateway, "POST", "/submit", **NAMES, filetype="csv", input=(io.BytesIO(b"a,b\n1,2\n3,4\n"), "rows.csv"))["taskid"]
    assert ask(gateway, "GET", "/gettaskstatus", taskid=task_id) == {"status": "success", "state": "queued", "progress": 0.0}
    assert result(gateway, task_id) == {"status": "not finished", "state": "queued"}
    with gateway.worker():
        eventually(lambda: result(gateway, many)["status"] == "success" and result(gateway, task_id)["status"] == "success", "they end", 20)
    assert result(gateway, task_id) == {"status": "success", "state": "succeeded", "output": {"y": [[3.0, 6.0]]}}
    assert result(gateway, many)["output"] == {"y": [[3.0, 6.0], [9.0, 12.0]]}
    listed = ask(gateway, "GET", "/gettasks")["task"]
    assert [task["taskid"] for task in listed] == [many, task_id]
    assert listed[0] | {"time": ""} == {"taskid": many, "state": "succeeded", "modelname": "tripler", "deployment": "mine", "time": ""}
    assert len(ask(gateway, "GET", "/gettasks", **NAMES)["task"]) == 2
    assert ask(gateway, "GET", "/gettasks", modelname="other")["task"] == [] == ask(gateway, "GET", "/gettasks", "bob")["task"]


def test_every_status(gateway: Working) -> None:
    assert submit(gateway, user="nobody")["status"] == "user not found"
    assert submit(gateway, password="wrong one")["status"] == "invalid password"
    assert submit(gateway, deployment="none")["status"] == "deployment not found" == submit(gateway, user="bob")["status"]
    assert submit(gateway, [["a", 1]])["status"] == "invalid input"
    wrong = gateway.client.post("/submit", data={"user": "ann", "password": PASSWORD, **NAMES, "input": "{}", "filetype": "odd"})
    assert wrong.status_code == 400 and wrong.get_json()["status"] == "invalid parameter"
    ids = [submit(gateway)["taskid"] for _ in range(4)]
    assert submit(gateway)["status"] == "queue full"
    for path in ("/gettaskstatus", "/gettaskresult"):
        assert ask(gateway, "GET", path, taskid="0" * 32)["status"] == "task not found"
        assert ask(gateway, "GET", path, "bob", taskid=ids[0])["status"] == "task not found"
    ann = Principal(1, "ann", Role.USER)
    assert gateway.services.tasks.cancel(ann, ids[0]).state == CANCELLED
    assert result(gateway, ids[0])["status"] == "task cancelled"
    storage = gateway.services.storage
    with storage.database.write() as db:
        db.execute("update tasks set state = 'failed', error_code = 'model_failed', error_message = 'it raised' where id = ?", [ids[1]])
        db.execute("update tasks set state = 'succeeded', expires_at = '2000' where id = ?", [ids[2]])
        db.execute("update tasks set state = 'expired' where id = ?", [ids[3]])
    assert result(gateway, ids[1]) == {"status": "task failed", "message": "it raised"}
    assert ask(gateway, "GET", "/gettaskstatus", taskid=ids[1])["message"] == "it raised"
    assert result(gateway, ids[2])["status"] == "result expired" and result(gateway, ids[3])["status"] == "task failed"
    found = storage.deployments.of_owner(1, "mine")
    assert found is not None
    with storage.database.write() as db:
        db.execute("update deployments set desired_state = 'paused', state = 'paused' where id = ?", [found.id])
    storage.sharing.change()
    assert submit(gateway)["status"] == "deployment paused"
