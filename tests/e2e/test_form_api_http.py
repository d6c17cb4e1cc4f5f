"""The form API as a client of 2020 uses it: `requests` and form fields, through nginx and uWSGI, with a task worker and a model host behind.

The table below is that of the interface: what each path documents. The test goes through a client's whole life, then through every mistake,
writes down each status that it gets, and in the end every row must have given all of its own.
"""

import base64
import io
import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import requests
from onnx import TensorProto, helper
from PIL import Image

from tests.e2e.test_deployments import worker_of
from tests.eventually import eventually
from tests.needs import has_box, needs
from tests.onnx_models import save, times
from tests.processes import Process, descendants, start_up, wait_until_gone

pytestmark = needs("nginx")
PASSWORD = "correct horse battery"
USER, WORD = "user not found", "invalid password"
MODEL, DEPLOYMENT, TASK = "model not found", "deployment not found", "task not found"
WRONG = "invalid parameter"
ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "/login": ("POST", "", (USER, WORD)),
    "/register": ("POST", "", ("duplication",)),
    "/uploadmodel": ("POST", "modelname modeltype description", (USER, WORD, "duplication", "invalid model")),
    "/modifymodel": ("POST", "modelname", (USER, WORD, MODEL, "duplication", "invalid model")),
    "/getmodelinfo": ("GET", "modelname", (USER, WORD, MODEL)),
    "/getusermodel": ("GET", "", (USER, WORD)),
    "/deletemodel": ("DELETE", "modelname", (USER, WORD, MODEL)),
    "/testmodel": ("POST", "modelname input filetype", (USER, WORD, MODEL, "invalid input")),
    "/createdeployment": ("POST", "modelname deployment", (USER, WORD, MODEL, "duplication", "insufficient capacity")),
    "/getmodeldeployment": ("GET", "modelname", (USER, WORD, MODEL)),
    "/setdeploymentstatusrunning": ("POST", "modelname deployment", (USER, WORD, DEPLOYMENT)),
    "/settaskstatuspause": ("POST", "modelname deployment", (USER, WORD, DEPLOYMENT)),
    "/setdeploymentstatuspause": ("POST", "modelname deployment", (USER, WORD, DEPLOYMENT)),
    "/deletedeployment": ("DELETE", "modelname deployment", (USER, WORD, DEPLOYMENT)),
    "/getdeploymentstatus": ("GET", "modelname deployment", (USER, WORD, DEPLOYMENT)),
    "/predict": ("POST", "modelname deployment input filetype", (USER, WORD, DEPLOYMENT, "deployment paused", "invalid input")),
    "/submit": (
        "POST",
        "modelname deployment input filetype",
        (USER, WORD, DEPLOYMENT, "deployment paused", "invalid input", "queue full"),
    ),
    "/gettaskstatus": ("GET", "taskid", (USER, WORD, TASK)),
    "/gettaskresult": ("GET", "taskid", (USER, WORD, TASK, "not finished", "task failed", "task cancelled", "result expired")),
    "/gettasks": ("GET", "", (USER, WORD)),
    "/getmodellist": ("GET", "", (USER, WORD)),
    "/uploadscript": ("POST", "modelname deployment", (USER, WORD, DEPLOYMENT, "invalid script")),
}
"""Path -> method, parameters that must be there besides user and password, statuses besides success."""
NEVER_FAILS = {
    *("/deletemodel", "/createdeployment", "/getmodeldeployment", "/setdeploymentstatusrunning", "/settaskstatuspause"),
    *("/setdeploymentstatuspause", "/deletedeployment"),
}
QUEUE = 8
SCRIPT = b"def postprocess(outputs):\n    return {name: value + 1 for name, value in outputs.items()}\n"


class Old:
    """A client that knows paths, fields and statuses, and nothing else."""

    def __init__(self, up: Process, seen: dict[str, set[str]]) -> None:
        self.url = up["http"]
        self.up = up
        self.seen = seen
        self.user = "user2020"
        self.password = PASSWORD

    def raw(self, path: str, fields: dict[str, Any], files: Any = None) -> tuple[int, dict[str, Any]]:
        method = ROWS[path][0]
        if method == "POST":
            answer = requests.post(self.url + path, data=fields, files=files, timeout=60)
        else:
            answer = requests.request(method, self.url + path, params=fields, timeout=60)
        body = answer.json()
        assert answer.headers["Content-Type"] == "application/json" and isinstance(body["status"], str), (path, answer.text)
        self.seen.setdefault(path, set()).add(body["status"])
        return answer.status_code, body

    def ask(self, path: str, files: Any = None, **fields: Any) -> dict[str, Any]:
        status, body = self.raw(path, {"user": self.user, "password": self.password, **fields}, files)
        assert status == 200, (path, body)
        return body

    def ok(self, path: str, files: Any = None, **fields: Any) -> dict[str, Any]:
        body = self.ask(path, files, **fields)
        assert body["status"] == "success", (path, body)
        return body


@pytest.fixture(scope="module")
def seen() -> dict[str, set[str]]:
    return {}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("form") / "data"


@pytest.fixture(scope="module")
def old(data: Path, seen: dict[str, set[str]]) -> Iterator[Old]:
    limits = {"OUTBOARD_GATEWAY_SIGN_IN_FAILURES": "30", "OUTBOARD_GATEWAY_QUOTA_TASKS": str(QUEUE)}
    up = start_up(data, "--no-demo", **limits)
    try:
        yield Old(up, seen)
    finally:
        below = descendants(up.process.pid)
        code = up.stop()
    assert code == 0, up.log.read_text()
    assert not wait_until_gone(below), "processes left over"


def colours(path: Path) -> bytes:
    """A picture of 4 x 4 -> the mean of each colour."""
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", 3, 4, 4))
    y = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ("n", 3))
    node = helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0)
    return save(helper.make_graph([node], "colours", [x], [y]), path).read_bytes()


def file(name: str, content: bytes) -> Any:
    return {name: (f"{name}.bin", io.BytesIO(content))}


def running(old: Old, model: str, deployment: str, wanted: str = "running") -> None:
    def is_so() -> bool:
        (found,) = (each for each in old.ok("/getmodeldeployment", modelname=model)["deployment"] if each["deployment"] == deployment)
        assert found["status"] != "failed", old.ok("/getdeploymentstatus", modelname=model, deployment=deployment)
        return bool(found["status"] == wanted)

    eventually(is_so, f"{deployment} is {wanted}", 60, 0.05)


def ended(old: Old, task: str) -> dict[str, Any]:
    """The answer of a task's result, once there is one."""
    last: dict[str, Any] = {}

    def is_so() -> bool:
        last.update(old.ask("/gettaskresult", taskid=task))
        return bool(last["status"] != "not finished")

    eventually(is_so, "the task ends", 60, 0.05)
    return last


def test_a_clients_whole_life(old: Old, tmp_path: Path) -> None:
    assert old.ok("/register") == {"status": "success"}
    assert old.ok("/login") == {"status": "success"}
    model = times(tmp_path / "double.onnx", 2).read_bytes()
    assert old.ok("/uploadmodel", file("model", model), modelname="double", modeltype="arithmetic", description="twice") == {
        "status": "success"
    }
    told = old.ok("/getmodelinfo", modelname="double")
    assert (told["modelname"], told["modeltype"], told["description"], told["engine"]) == ("double", "arithmetic", "twice", "onnxruntime")
    assert [(each["name"], each["type"], each["dimension"][1]) for each in told["input"]] == [("x", "FP32", 2)]
    assert set(told["output"][0]) == {"name", "type", "range", "dimension", "optype"} and told["time"] and told["algorithm"]
    assert [(each["modelname"], each["modeltype"]) for each in old.ok("/getusermodel")["model"]] == [("double", "arithmetic")]
    assert [(each["modelname"], each["owner"]) for each in old.ok("/getmodellist")["model"]] == [("double", "user2020")]
    tried = old.ok("/testmodel", modelname="double", input=json.dumps({"x": [[1, 2]]}), filetype="none")
    assert tried["output"] == {"y": [[2, 4]]}

    where = {"modelname": "double", "deployment": "one"}
    assert old.ok("/createdeployment", **where, time="2020-05-01 12:00", cpu="0.5", memory="512MiB") == {"status": "success"}
    running(old, "double", "one")
    assert old.ok("/getmodeldeployment", modelname="double")["deployment"] == [
        {"deployment": "one", "status": "running", "time": "2020-05-01 12:00"}
    ]
    assert old.ok("/predict", **where, input='{"x": [[1, 2]]}', filetype="none")["output"] == {"y": [[2, 4]]}
    rows = b"x\n1\n"
    table = old.ask("/predict", file("input", rows), **where, filetype="csv")
    assert table["status"] == "invalid input" and "x" in table["message"], "one column for two numbers"
    assert old.ok("/predict", **where, input='{"x": [[3, 4]]}', filetype='{"x": "none"}')["output"] == {"y": [[6, 8]]}

    task = old.ok("/submit", **where, input='{"x": [[5, 6]]}', filetype="none")["taskid"]
    result = ended(old, task)
    assert result["status"] == "success" and result["output"] == {"y": [[10, 12]]}
    assert old.ok("/gettaskstatus", taskid=task)["state"] == "succeeded"
    assert [each["taskid"] for each in old.ok("/gettasks", modelname="double", deployment="one")["task"]] == [task]
    told = old.ok("/getdeploymentstatus", **where)
    assert told["state"] == "running" and told["requests"] >= 3 and told["p50"] > 0 and told["memory"] > 0
    assert {"errors", "mean", "p95", "p99"} <= told.keys()

    assert old.ok("/settaskstatuspause", **where) == {"status": "success"}
    running(old, "double", "one", "paused")
    asked = {**where, "input": '{"x": [[1, 2]]}', "filetype": "none"}
    assert [old.ask(path, **asked)["status"] for path in ("/predict", "/submit")] == ["deployment paused"] * 2
    assert old.ok("/setdeploymentstatusrunning", **where) == {"status": "success"}
    running(old, "double", "one")
    assert old.ok("/predict", **asked)["output"] == {"y": [[2, 4]]}
    assert old.ok("/setdeploymentstatuspause", **where) == {"status": "success"}
    running(old, "double", "one", "paused")
    assert old.ok("/setdeploymentstatusrunning", **where) == {"status": "success"}

    assert old.ok("/modifymodel", modelname="double", newname="twice", description="two times", modeltype="maths") == {"status": "success"}
    told = old.ok("/getmodelinfo", modelname="twice")
    assert (told["description"], told["modeltype"]) == ("two times", "maths")
    assert old.ask("/getmodelinfo", modelname="double")["status"] == MODEL
    assert old.ok("/deletemodel", modelname="twice") == {"status": "success"}
    assert old.ok("/getusermodel")["model"] == [] and old.ask("/getmodelinfo", modelname="twice")["status"] == MODEL
    asked["modelname"] = "twice"
    assert old.ok("/predict", **asked)["output"] == {"y": [[2, 4]]}, "what is deployed of it goes on"
    assert old.ok("/deletedeployment", modelname="twice", deployment="one") == {"status": "success"}
    assert old.ask("/predict", **asked)["status"] == DEPLOYMENT


def test_pictures_and_tables(old: Old, tmp_path: Path) -> None:
    old.ok("/uploadmodel", file("model", colours(tmp_path / "colours.onnx")), modelname="colours", modeltype="", description="")
    where = {"modelname": "colours", "deployment": "seen"}
    old.ok("/createdeployment", **where)
    running(old, "colours", "seen")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 0)).save(picture, "PNG")
    text = base64.b64encode(picture.getvalue()).decode()
    for asked in ({"input": text, "filetype": "jpgbase64"}, {"inputfile_image": text, "filetype": '{"image": "jpgbase64"}'}):
        answer = old.ok("/predict", **where, **asked)
        red, green, blue = answer["output"]["mean"][0]
        assert red > green > blue, answer
    rows = save(_rows(), tmp_path / "rows.onnx").read_bytes()
    old.ok("/uploadmodel", file("model", rows), modelname="rows", modeltype="", description="")
    csv = b"a,b\n1,2\n3,4\n5,6\n"
    assert old.ok("/testmodel", file("input", csv), modelname="rows", filetype="csv")["output"]["sum"] == [3, 7, 11]
    old.ok("/createdeployment", modelname="rows", deployment="rows")
    running(old, "rows", "rows")
    answer = old.ok("/predict", file("input", csv), modelname="rows", deployment="rows", filetype="csv")
    assert answer["output"]["sum"] == [3, 7, 11]


def _rows() -> onnx.GraphProto:
    a, b, total = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n",)) for name in ("a", "b", "sum"))
    return helper.make_graph([helper.make_node("Add", ["a", "b"], ["sum"])], "rows", [a, b], [total])


def test_models_that_cannot_be_used(old: Old, tmp_path: Path) -> None:
    model = times(tmp_path / "m.onnx", 2).read_bytes()
    more = {"modeltype": "", "description": ""}
    for name in ("first", "second"):
        old.ok("/uploadmodel", file("model", model), modelname=name, **more)
    assert old.ask("/uploadmodel", file("model", model), modelname="first", **more)["status"] == "duplication"
    refused = old.ask("/uploadmodel", file("model", b"no model at all"), modelname="third", **more)
    assert refused["status"] == "invalid model" and refused["message"]
    refused = old.ask("/modifymodel", file("model", b"no model at all"), modelname="first")
    assert refused["status"] == "invalid model" and refused["message"]
    assert old.ask("/modifymodel", modelname="first", newname="second")["status"] == "duplication"
    assert old.ask("/testmodel", modelname="first", input='{"z": [1]}', filetype="none")["status"] == "invalid input"
    old.ok("/createdeployment", modelname="first", deployment="kept")
    assert old.ask("/createdeployment", modelname="first", deployment="kept")["status"] == "duplication"
    assert old.ask("/createdeployment", modelname="first", deployment="huge", memory="900TiB")["status"] == "insufficient capacity"
    running(old, "first", "kept")
    where = {"modelname": "first", "deployment": "kept"}
    for path in ("/predict", "/submit"):
        assert old.ask(path, **where, input='{"z": [1]}', filetype="none")["status"] == "invalid input"
    if has_box():
        assert old.ask("/uploadscript", file("script", b"def preprocess(:\n"), **where)["status"] == "invalid script"
        assert old.ok("/uploadscript", file("script", SCRIPT), **where)["version"] == 1
        eventually(
            lambda: old.ask("/predict", **where, input='{"x": [[1, 2]]}', filetype="none").get("output") == {"y": [[3, 5]]},
            "the script changes the answer",
            60,
        )


def test_what_becomes_of_tasks(old: Old, data: Path, tmp_path: Path) -> None:
    """One that waits, one that fails, one that is cancelled (by another program), one whose result is gone, and more than may wait."""
    asked = {"modelname": "rows", "deployment": "rows", "filetype": "none", "input": '{"a": [1], "b": [2]}'}
    worker = worker_of(old.up)
    os.kill(worker, signal.SIGSTOP)  # so that nothing runs for a moment
    try:
        first, cancelled = (old.ok("/submit", **asked)["taskid"] for _ in range(2))
        assert old.ask("/gettaskresult", taskid=first)["status"] == "not finished"
        assert old.ok("/gettaskstatus", taskid=first)["state"] == "queued"
        for _ in range(QUEUE - 2):
            old.ok("/submit", **asked)
        assert old.ask("/submit", **asked)["status"] == "queue full"
        tokens = requests.post(f"{old.url}/v1/tokens", json={"username": old.user, "password": PASSWORD}, timeout=60).json()
        head = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert requests.post(f"{old.url}/v1/tasks/{cancelled}/cancel", headers=head, timeout=60).status_code == 200
    finally:
        os.kill(worker, signal.SIGCONT)
    assert ended(old, cancelled)["status"] == "task cancelled"
    assert ended(old, first)["output"] == {"sum": [3]}
    failing = old.ok("/submit", file("input", b"no video at all"), modelname="colours", deployment="seen", filetype="mp4")["taskid"]
    failed = ended(old, failing)
    assert failed["status"] == "task failed" and failed["message"]
    (database,) = (path for path in data.rglob("*") if path.suffix in (".db", ".sqlite", ".sqlite3"))
    with sqlite3.connect(database, timeout=30) as state:
        state.execute("update tasks set expires_at = '2020-01-01T00:00:00Z' where id = ?", [first])
    state.close()
    assert old.ask("/gettaskresult", taskid=first)["status"] == "result expired"
    assert len(old.ok("/gettasks")["task"]) > 3


@pytest.mark.parametrize("path", ROWS)
def test_what_is_not_there_and_who_is_not_known(old: Old, path: str) -> None:
    _, words, statuses = ROWS[path]
    fields = dict.fromkeys(words.split(), "nothing") | ({"filetype": "none"} if "filetype" in words else {})
    files = file("model", b"x") if path == "/uploadmodel" else file("script", b"x") if path == "/uploadscript" else None
    right = {"user": old.user, "password": old.password, **fields}
    if path != "/register":
        assert old.raw(path, right | {"user": "nobody2020"}, files) == (200, {"status": USER})
        assert old.raw(path, right | {"password": "wrong password"}, files)[1]["status"] == WORD
        spelled = {"uesr" if name == "user" else name: value for name, value in right.items()}
        assert old.raw(path, spelled, file("script", b"x") if files else None)[1]["status"] not in (USER, WORD, "internal error")
    missing = [status for status in statuses if status in (MODEL, DEPLOYMENT, TASK)]
    if missing:
        assert old.ask(path, file("script", b"x") if files else None, **fields)["status"] == missing[0]
    for name in ("user", "password", *words.split()):
        status, body = old.raw(path, {key: value for key, value in right.items() if key != name}, file("other", b"x") if files else None)
        assert body["status"] == WRONG and body["message"].startswith(name), (name, body)
        assert status == (200 if path in NEVER_FAILS else 400)
    if path == "/register":
        assert old.raw(path, right)[1]["status"] == "duplication"


def test_too_many_wrong_passwords(old: Old, seen: dict[str, set[str]]) -> None:
    """After all the others: it holds for this user, at this address."""

    def refused() -> bool:
        return old.raw("/login", {"user": old.user, "password": "wrong password"})[1]["status"] == "too many attempts"

    eventually(refused, "wrong passwords are throttled", 60)


def test_every_row_gave_every_status(seen: dict[str, set[str]]) -> None:
    """Last: what no test above met is missing."""
    missing = {path: sorted({"success", *statuses} - seen.get(path, set())) for path, (_, _, statuses) in ROWS.items()}
    if not has_box():
        missing["/uploadscript"] = []
    assert {path: statuses for path, statuses in missing.items() if statuses} == {}
    assert not any("internal error" in statuses for statuses in seen.values())
