"""`/v1/deployments`, `/v2` and the form API over a real model host, with the worker beside: everything that owners and callers do."""

import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gateway import create_app
from gateway.types import Principal, Role
from gateway.worker import deploying
from gateway.worker.process import Worker
from tests.gateway.conftest import PASSWORD
from tests.gateway.deployed_host import Deployed, deployed, users_host, within  # noqa: F401
from tests.gateway.deployed_rows import model
from tests.onnx_models import slow, times

SCRIPT = """
def preprocess(inputs):
    return {"x": inputs["rows"] + 1}


def postprocess(outputs):
    return {"largest": float(outputs["y"].max())}
"""
POSTPROCESS = "def postprocess(outputs):\n    return {'sum': float(outputs['y'].sum())}\n"


@dataclass
class Person:
    """A client with somebody's token."""

    http: FlaskClient
    headers: dict[str, str]
    principal: Principal

    def __call__(self, method: str, path: str, body: Any = None, **named: Any) -> TestResponse:
        headers = {**self.headers, **named.pop("headers", {})}
        return self.http.open(path, method=method, json=body, headers=headers, **named)

    def made(self, path: str, body: Any, status: int = 201) -> Any:
        answer = self("POST", path, body)
        assert answer.status_code == status, answer.get_data(as_text=True)
        return answer.get_json()


@dataclass
class Stage:
    over: Deployed
    ann: Person
    bob: Person
    nobody: Person
    files: list[Path]

    def until(self, name: str, state: str = "running", who: Person | None = None) -> Any:
        """The deployment once it has that state and all is carried out."""

        def seen() -> Any:
            found = (who or self.ann)("GET", f"/v1/deployments/{name}").get_json()
            return found if found.get("state") == state and found["settled"] else None

        return within(20, seen)

    def deploy(self, name: str = "d", **more: Any) -> Any:
        self.ann.made("/v1/deployments", {"name": name, "model": "m", "version": 1, **more})
        return self.until(name)


@pytest.fixture(params=["hot", "Flask"])
def stage(request: pytest.FixtureRequest, deployed: Deployed, tmp_path: Path) -> Iterator[Stage]:  # noqa: F811
    yield from staged(deployed, tmp_path, hot=request.param == "hot")


@pytest.fixture
def plain(deployed: Deployed, tmp_path: Path) -> Iterator[Stage]:  # noqa: F811
    yield from staged(deployed, tmp_path, hot=True)


def staged(over: Deployed, tmp_path: Path, *, hot: bool) -> Iterator[Stage]:
    services = over.services
    http = create_app(services.settings, services=services, hot=hot).test_client()
    people = [_person(over, http, name) for name in ("ann", "bob")]
    files = [times(tmp_path / f"{factor}.onnx", factor) for factor in (2, 2.0001, 5)]
    model(over.storage, people[0].principal, "m", *files)
    services.settings.run_dir.mkdir(parents=True, exist_ok=True)
    worker = Worker(services, 1, deploying.parts)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield Stage(over, *people, Person(http, {}, people[1].principal), files)
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def _person(over: Deployed, http: FlaskClient, name: str) -> Person:
    made = over.services.users.register(name, PASSWORD)
    issued = over.services.tokens.sign_in(name, PASSWORD, "127.0.0.1")
    return Person(http, {"Authorization": f"Bearer {issued.access_token}"}, Principal(made.id, made.name, Role.USER))


def predict(who: Person, name: str = "d", value: float = 2, **more: Any) -> Any:
    answer = who("POST", f"/v1/deployments/{name}/predictions", {"inputs": {"x": [[value, 0]]}, **more})
    return answer.get_json() if answer.status_code == 200 else (answer.status_code, answer.get_json()["code"])


def infer(who: Person, name: str = "ann.d") -> Any:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [2, 0]}]}
    answer = who("POST", f"/v2/models/{name}/infer", body)
    return answer.get_json()["outputs"][0]["data"][0] if answer.status_code == 200 else (answer.status_code, answer.get_json()["error"])


def test_made_called_changed_paused_and_deleted(stage: Stage) -> None:
    ann = stage.ann
    made = ann.made("/v1/deployments", {"name": "d", "model": "m", "version": 1, "time": "noon"})
    assert (made["state"], made["rpc_name"], made["version"], made["serving_version"], made["time"]) == (
        "starting",
        "ann.d",
        1,
        None,
        "noon",
    )
    said = predict(ann)  # which waits for the start
    assert (said["model"], said["deployment"], said["version"], said["outputs"]) == ("m", "ann.d", "1", {"y": [[4, 0]]})
    assert said["timing_ms"]["total"] > 0
    ready = stage.until("d")
    assert (ready["serving_version"], ready["settled"], ready["reason"]) == (1, True, "") and infer(ann) == 4
    assert ann("POST", "/v1/deployments", {"name": "d", "model": "m"}).status_code == 409
    read = ann("GET", "/v1/deployments/d")
    changed = ann("PATCH", "/v1/deployments/d", {"version": 3, "instances": 2}, headers={"If-Match": read.headers["ETag"]})
    assert changed.status_code == 200 and changed.headers["ETag"] != read.headers["ETag"]
    assert ann("PATCH", "/v1/deployments/d", {"version": 1}, headers={"If-Match": read.headers["ETag"]}).status_code == 412
    again = stage.until("d")
    assert (again["serving_version"], again["previous_version"], again["instances"]) == (3, 1, 2)
    assert predict(ann)["outputs"] == {"y": [[10, 0]]} and infer(ann) == 10
    assert predict(ann, value=1, outputs=[]) == (400, "invalid_input")
    assert ann("PATCH", "/v1/deployments/d", {"desired_state": "paused"}).get_json()["state"] == "pausing"
    assert predict(ann) == (409, "deployment_paused") and infer(ann) == (409, "deployment 'ann.d' is paused")
    stage.until("d", "paused")
    assert predict(ann) == (409, "deployment_paused") and infer(ann)[0] == 409
    assert ann("POST", "/v1/deployments/d/rollback").get_json()["version"] == 1
    assert ann("PATCH", "/v1/deployments/d", {"desired_state": "running"}).get_json()["state"] == "starting"
    assert predict(ann)["outputs"] == {"y": [[4, 0]]}
    listed = ann("GET", "/v1/deployments").get_json()
    assert [entry["name"] for entry in listed["items"]] == ["d"] and listed["next"] is None
    assert ann("GET", "/v1/deployments?model=other").status_code == 404
    stage.until("d")
    assert ann("DELETE", "/v1/deployments/d").status_code == 204
    assert predict(ann) == (404, "not_found") and infer(ann)[0] == 404
    ann.made("/v1/deployments", {"name": "d", "model": "m", "version": 3})  # its name is free at once
    assert stage.until("d")["serving_version"] == 3 and predict(ann)["outputs"] == {"y": [[10, 0]]}


def test_who_may_call_it(plain: Stage) -> None:
    stage = plain
    stage.deploy()
    unknown = infer(stage.bob, "ann.nothing")
    assert unknown[0] == 404 and infer(stage.bob)[0] == 404 and infer(stage.bob)[1] == unknown[1].replace("ann.nothing", "ann.d")
    assert predict(stage.bob, "ann.d") == predict(stage.bob, "ann.nothing") == (404, "not_found")
    assert infer(stage.nobody)[0] == infer(stage.nobody, "ann.nothing")[0] == 401
    assert predict(stage.nobody, "ann.d") == predict(stage.nobody, "ann.nothing") == (401, "unauthenticated")
    for method, path in (("GET", "d"), ("PATCH", "d"), ("DELETE", "d"), ("POST", "d/promote"), ("GET", "d/stats"), ("GET", "d/golden")):
        assert stage.bob(method, f"/v1/deployments/ann.{path}", {} if method == "PATCH" else None).status_code == 404, path
    for path in ("", "/config", "/stats", "/ready"):
        assert stage.bob("GET", f"/v2/models/ann.d{path}").status_code == 404, path
        assert stage.ann("GET", f"/v2/models/ann.d{path}").status_code == 200, path
    names = [entry["name"] for entry in stage.bob("POST", "/v2/repository/index").get_json()]
    assert "ann.d" not in names and "triple" in names
    assert "ann.d" in [entry["name"] for entry in stage.ann("POST", "/v2/repository/index").get_json()]
    assert stage.ann("PATCH", "/v1/deployments/d", {"visibility": "public"}).status_code == 200
    for who in (stage.bob, stage.nobody):
        assert infer(who) == 4 and predict(who, "ann.d")["outputs"] == {"y": [[4, 0]]}
    assert stage.bob("PATCH", "/v1/deployments/ann.d", {"instances": 2}).status_code == 403
    listed = stage.bob("GET", "/v1/deployments?shared=true").get_json()["items"]
    assert [entry["rpc_name"] for entry in listed] == ["ann.d"] and stage.bob("GET", "/v1/deployments").get_json()["items"] == []
    assert stage.ann("PATCH", "/v1/deployments/d", {"visibility": "private"}).status_code == 200
    assert infer(stage.bob)[0] == 404 and infer(stage.nobody)[0] == 401
    # what is there to be tried, or left over, is nobody's to call
    stage.over.client.put_file(stage.files[0], "ann.m.test", 1, "model.onnx", user=True)
    stage.over.client.load_model("ann.m.test")
    assert infer(stage.bob, "ann.m.test")[0] == infer(stage.ann, "ann.m.test")[0] == 404
    assert stage.bob("POST", "/v1/models/ann.d/predictions", {"inputs": {"x": [[1, 1]]}}).status_code == 404


def test_what_cannot_be_wanted(plain: Stage) -> None:
    ann = plain.ann
    plain.deploy()

    def refused(method: str, path: str, body: Any) -> Any:
        answer = ann(method, path, body)
        found = answer.get_json()
        return answer.status_code, [error["field"] for error in found.get("errors", [])] or found["code"]

    assert refused("POST", "/v1/deployments", {"name": "a.b", "model": "m"}) == (400, ["name"])
    assert refused("POST", "/v1/deployments", {"name": "e", "model": "none"}) == (404, "model_not_found")
    assert refused("POST", "/v1/deployments", {"name": "e", "model": "m", "version": 9}) == (404, "version_not_found")
    assert refused("POST", "/v1/deployments", {"name": "e", "model": "m", "memory": 1 << 50}) == (507, "insufficient_capacity")
    assert "free" in ann("POST", "/v1/deployments", {"name": "e", "model": "m", "cpus": 4000}).get_json()["detail"]
    assert refused("POST", "/v1/deployments", {"name": "e", "model": "m", "min_instances": 3, "max_instances": 2}) == (
        400,
        ["min_instances"],
    )
    assert refused("POST", "/v1/deployments", {"name": "e", "model": "m", "script": {"name": "none"}}) == (400, ["script"])
    assert refused("POST", "/v1/deployments", {"name": "e", "model": "m", "visibility": "team"}) == (400, ["team"])
    assert refused("PATCH", "/v1/deployments/d", {"canary": {"version": 1, "percent": 5}}) == (400, ["canary.version"])
    assert refused("PATCH", "/v1/deployments/d", {"canary": {"version": 3, "percent": 101}}) == (400, ["canary.percent"])
    assert refused("PATCH", "/v1/deployments/d", {"instances": 0, "cpus": -1, "wrong": 1}) == (400, ["instances", "cpus", "wrong"])
    assert refused("POST", "/v1/deployments/d/promote", None) == refused("POST", "/v1/deployments/d/rollback", None) == (409, "conflict")
    assert plain.bob("POST", "/v1/deployments", {"name": "e", "model": "ann.m"}).status_code == 404
    assert [entry["name"] for entry in ann("GET", "/v1/deployments").get_json()["items"]] == ["d"]
    assert ann("GET", "/v1/deployments?limit=1&cursor=WyJhIl0").status_code == 400
    with plain.over.storage.database.write() as db:
        db.execute("update users set quota = ? where name = 'ann'", [json.dumps({"deployments": 1})])
    assert refused("POST", "/v1/deployments", {"name": "e", "model": "m"}) == (507, "insufficient_capacity")


def test_canary_promoted_and_taken_back(plain: Stage) -> None:
    ann = plain.ann
    plain.deploy()
    ann("PATCH", "/v1/deployments/d", {"canary": {"version": 3, "percent": 50}})
    assert plain.until("d")["canary"] == {"version": 3, "percent": 50}
    versions = [predict(ann)["version"] for _ in range(60)]
    assert 10 <= versions.count("3") <= 50
    assert ann("POST", "/v1/deployments/d/rollback").get_json()["canary"] is None
    plain.until("d")
    assert {predict(ann)["version"] for _ in range(20)} == {"1"}
    ann("PATCH", "/v1/deployments/d", {"canary": {"version": 3, "percent": 10}})
    plain.until("d")
    canary = ann("POST", "/v1/deployments/d/predictions?version=canary", {"inputs": {"x": [[2, 0]]}})
    assert canary.get_json()["version"] == "3"
    assert ann("POST", "/v1/deployments/d/promote").get_json()["version"] == 3
    promoted = plain.until("d")
    assert (promoted["serving_version"], promoted["previous_version"], promoted["canary"]) == (3, 1, None)
    assert {predict(ann)["version"] for _ in range(20)} == {"3"}


def test_golden_requests(plain: Stage) -> None:
    ann = plain.ann
    plain.deploy()
    pinned = ann.made("/v1/deployments/d/golden?name=big", {"inputs": {"x": [[1000, 1]]}})
    assert pinned["outputs"] == {"y": [[2000, 2]]}
    assert ann("POST", "/v1/deployments/d/golden?name=big", {"inputs": {"x": [[1, 1]]}}).status_code == 409
    form = {"x": "[[3, 4]]"}
    assert ann("POST", "/v1/deployments/d/golden?name=form", data=form).status_code == 201
    assert [entry["name"] for entry in ann("GET", "/v1/deployments/d/golden").get_json()["items"]] == ["big", "form"]
    assert ann("GET", "/v1/deployments/d/golden/form").get_json()["outputs"] == {"y": [[6, 8]]}
    ann("PATCH", "/v1/deployments/d", {"version": 3})
    refused = plain.until("d")
    assert refused["version"] == refused["serving_version"] == 1
    assert refused["reason"].startswith("version 3 was refused: golden request 'big': output 'y' differs by 1.5 at element 0")
    assert predict(ann)["version"] == "1"
    ann("PATCH", "/v1/deployments/d", {"version": 2})
    assert plain.until("d")["serving_version"] == 2
    ann("PATCH", "/v1/deployments/d", {"version": 3, "golden_tolerance": 10})
    assert plain.until("d")["serving_version"] == 3
    for name in ("big", "form"):
        assert ann("DELETE", f"/v1/deployments/d/golden/{name}").status_code == 204
    assert ann("DELETE", "/v1/deployments/d/golden/big").status_code == ann("GET", "/v1/deployments/d/golden/big").status_code == 404


def scripted(stage: Stage, source: str, name: str = "s") -> Any:
    answer = stage.ann("POST", f"/v1/scripts?name={name}", data=source, content_type="text/x-python")
    if answer.status_code == 501:
        pytest.skip("no box for scripts here")
    return answer


def test_a_script_stands_around_predictions(stage: Stage) -> None:
    ann = stage.ann
    made = scripted(stage, SCRIPT)
    assert made.status_code == 201 and made.get_json()["functions"] == ["preprocess", "postprocess"]
    stage.deploy(script={"name": "s"})
    assert stage.until("d")["script"] == {"name": "s", "version": 1, "functions": ["preprocess", "postprocess"]}

    def asked(body: Any) -> Any:
        answer = ann("POST", "/v1/deployments/d/predictions", body)
        return answer.get_json()["outputs"] if answer.status_code == 200 else (answer.status_code, answer.get_json()["detail"])

    assert asked({"inputs": {"rows": [[1, 4]]}}) == {"largest": 10}
    tensor = {"name": "rows", "datatype": "INT64", "shape": [1, 2], "data": [1, 4]}
    over_v2 = ann("POST", "/v2/models/ann.d/infer", {"inputs": [tensor]})
    assert [(output["name"], output["data"]) for output in over_v2.get_json()["outputs"]] == [("largest", [10.0])]
    assert asked({"inputs": {"x": [[1, 4]]}})[0] == 500 and "KeyError" in asked({"inputs": {"x": [[1, 4]]}})[1]
    assert asked({"inputs": {"rows": [1, 4]}}) == (
        500,
        "the script's preprocess gave 'x' of shape [2], and the model takes [-1, 2] (-1: any size)",
    )
    assert asked({"inputs": {"rows": [[1, 4]]}, "outputs": ["y"]})[0] == 400
    new = ann("POST", "/v1/scripts/s/versions", data=POSTPROCESS, content_type="text/plain")
    assert new.status_code == 201 and new.get_json()["version"] == 2
    assert asked({"inputs": {"rows": [[1, 4]]}}) == {"largest": 10}, "it keeps its version"
    ann("PATCH", "/v1/deployments/d", {"script": {"name": "s", "version": 2}})
    stage.until("d")
    assert asked({"inputs": {"x": [[1, 4]]}}) == {"sum": 10} and asked({"columns": ["a", "b"], "data": [[1, 4], [2, 2]]}) == {"sum": 18}
    assert ann("DELETE", "/v1/scripts/s").status_code == 409
    ann("PATCH", "/v1/deployments/d", {"script": None})
    stage.until("d")
    assert asked({"inputs": {"x": [[1, 4]]}}) == {"y": [[2, 8]]}


def test_a_script_that_never_ends_harms_nobody(plain: Stage) -> None:
    assert scripted(plain, "def postprocess(outputs):\n    while True: pass\n").status_code == 201
    plain.deploy(script={"name": "s"})
    plain.deploy("other")
    with ThreadPoolExecutor(2) as pool:
        looping = pool.submit(predict, plain.ann)
        started = time.monotonic()
        assert predict(plain.ann, "other")["outputs"] == {"y": [[4, 0]]} and time.monotonic() - started < 3
        assert looping.result(30) == (500, "model_failed")


def test_scripts(plain: Stage) -> None:
    ann = plain.ann
    assert scripted(plain, SCRIPT).headers["Location"] == "/v1/scripts/s"
    assert scripted(plain, SCRIPT).status_code == 409
    wrong = scripted(plain, "def preprocess(inputs:\n", "t")
    assert wrong.status_code == 400 and "line 1" in wrong.get_json()["detail"]
    assert scripted(plain, "x = 1\n", "t").status_code == 400 and scripted(plain, "", "t").status_code == 400
    again = ann("POST", "/v1/scripts/s/versions", data={"script": (io.BytesIO(SCRIPT.encode()), "s.py")})
    assert again.status_code == 201 and again.get_json()["version"] == 1, "the same source is the same version"
    ann("POST", "/v1/scripts/s/versions", data=POSTPROCESS, content_type="text/plain")
    assert [entry["version"] for entry in ann("GET", "/v1/scripts/s/versions").get_json()["items"]] == [2, 1]
    assert ann("GET", "/v1/scripts/s/versions/1/source").get_data(as_text=True) == SCRIPT
    assert ann("GET", "/v1/scripts/s/versions/3/source").status_code == 404
    read = ann("GET", "/v1/scripts/s")
    assert (read.get_json()["version"], read.get_json()["functions"]) == (2, ["postprocess"])
    assert ann("PATCH", "/v1/scripts/s", {"description": "sums"}, headers={"If-Match": '"99"'}).status_code == 412
    assert ann("PATCH", "/v1/scripts/s", {"description": "sums"}).get_json()["description"] == "sums"
    assert [entry["name"] for entry in ann("GET", "/v1/scripts").get_json()["items"]] == ["s"]
    assert plain.bob("GET", "/v1/scripts/s").status_code == 404 and plain.bob("GET", "/v1/scripts").get_json()["items"] == []
    assert ann("DELETE", "/v1/scripts/s").status_code == 204 and ann("GET", "/v1/scripts/s").status_code == 404


def test_a_sleeping_one_wakes_for_a_call(plain: Stage) -> None:
    plain.deploy()
    record = plain.over.storage.deployments.of_owner(plain.ann.principal.user_id, "d")
    assert record is not None
    for call in (predict, infer):
        now = plain.over.services.now()
        assert plain.over.storage.deployments.lull(plain.over.record(record.id), now)
        plain.over.services.nudge()
        plain.until("d", "sleeping")
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _, call=call: call(plain.ann), range(16)))
        assert all(answer == 4 or answer["outputs"] == {"y": [[4, 0]]} for answer in answers), answers
        plain.until("d")


def test_changes_at_once_are_one_after_the_other(plain: Stage) -> None:
    plain.deploy()

    def change(number: int) -> int:
        http = plain.ann.http.application.test_client()
        who = Person(http, plain.ann.headers, plain.ann.principal)
        return who("PATCH", "/v1/deployments/d", {"golden_tolerance": float(number)}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(change, range(16))) == [200] * 16
    assert plain.until("d")["state"] == "running"


def test_roles_of_a_team_and_of_the_platform(plain: Stage) -> None:
    """What each may do: call, read statistics, change, pause, delete."""
    services, ann = plain.over.services, plain.ann
    plain.deploy()
    people = {name: _person(plain.over, ann.http, name) for name in ("viewer", "editor", "operator", "administrator")}
    team = plain.over.storage.teams.create("team", ann.principal.user_id, services.now())
    with plain.over.storage.database.write() as db:
        for role in ("viewer", "editor"):
            db.execute("insert into team_members values (?, ?, ?, 'now')", [team.id, people[role].principal.user_id, role])
        for role in ("operator", "administrator"):
            db.execute("update users set role = ? where name = ?", [role, role])
    plain.over.storage.principals.change()
    assert ann("PATCH", "/v1/deployments/d", {"visibility": "team", "team": "team"}).get_json()["team"] == "team"

    def may(who: Person) -> list[int]:
        call = who("POST", "/v1/deployments/ann.d/predictions", {"inputs": {"x": [[2, 0]]}}).status_code
        infer = who("POST", "/v2/models/ann.d/infer", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [2, 0]}]})
        stats = who("GET", "/v1/deployments/ann.d/stats").status_code
        change = who("PATCH", "/v1/deployments/ann.d", {"golden_tolerance": 0.5}).status_code
        golden = who("GET", "/v1/deployments/ann.d/golden").status_code
        start = who("PATCH", "/v1/deployments/ann.d", {"desired_state": "running"}).status_code
        share = who("PATCH", "/v1/deployments/ann.d", {"visibility": "team"}).status_code
        return [call, infer.status_code, stats, change, golden, start, share]

    assert may(plain.bob) == [404] * 7 and may(plain.nobody) == [401] * 7
    assert may(people["viewer"]) == [200, 200, 200, 403, 403, 403, 403]
    assert may(people["editor"]) == [200, 200, 200, 200, 200, 200, 403]
    assert may(people["operator"]) == [403, 403, 200, 403, 403, 200, 403]
    assert may(people["administrator"]) == [200] * 7
    assert people["editor"]("DELETE", "/v1/deployments/ann.d").status_code == 403
    assert [entry["rpc_name"] for entry in people["viewer"]("GET", "/v1/deployments?shared=1").get_json()["items"]] == ["ann.d"]
    with plain.over.storage.database.write() as db:
        db.execute("delete from team_members where user_id = ?", [people["viewer"].principal.user_id])
    plain.over.storage.sharing.change()
    assert may(people["viewer"]) == [404] * 7, "at once"
    assert people["administrator"]("DELETE", "/v1/deployments/ann.d").status_code == 204


def test_a_failed_one_says_why(plain: Stage) -> None:
    plain.deploy()
    record = plain.over.storage.deployments.of_owner(plain.ann.principal.user_id, "d")
    assert record is not None
    within(
        20,
        lambda: plain.over.storage.deployments.settle(
            plain.over.record(record.id), {"state": "failed", "reason": "no luck", "retry_at": 1e12}, plain.over.services.now()
        ),
    )
    assert infer(plain.ann) == (503, "deployment 'ann.d' failed: no luck") and predict(plain.ann) == (503, "not_ready")


def test_statistics(plain: Stage) -> None:
    plain.deploy()
    for _ in range(5):
        predict(plain.ann)
    assert predict(plain.ann, value="text")[0] == 400  # type: ignore[arg-type]
    told = within(10, lambda: (found := plain.ann("GET", "/v1/deployments/d/stats").get_json())["total"]["requests"] >= 5 and found)
    assert told["span"] == "minute" and told["total"]["requests"] == 5 and sum(point["requests"] for point in told["points"]) == 5
    assert 0 < told["total"]["latency_ms"]["p50"] <= told["total"]["latency_ms"]["p99"] and told["total"]["memory"] > 0
    assert plain.ann("GET", "/v1/deployments/d/stats?span=hour").get_json()["total"]["requests"] == 5
    assert plain.ann("GET", "/v1/deployments/d/stats?from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z").get_json()["points"] == []
    for wrong in ("span=day", "from=yesterday", "from=2020-01-01", "other=1"):
        assert plain.ann("GET", f"/v1/deployments/d/stats?{wrong}").status_code == 400, wrong


def test_no_prediction_fails_while_versions_change(plain: Stage, tmp_path: Path) -> None:
    plain.deploy()
    stop, answers = threading.Event(), []

    def ask() -> None:
        http = plain.ann.http.application.test_client()
        while not stop.is_set():
            answers.append(predict(Person(http, plain.ann.headers, plain.ann.principal)))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for version in (3, 1, 3):
            plain.ann("PATCH", "/v1/deployments/d", {"version": version})
            plain.until("d")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(answers) > 20 and all(isinstance(answer, dict) for answer in answers), [
        answer for answer in answers if not isinstance(answer, dict)
    ]
    assert {answer["version"] for answer in answers} == {"1", "3"}


class FormUser:
    """What a client of 2020 does: nothing but paths and form fields."""

    def __init__(self, http: FlaskClient) -> None:
        self.http = http

    def __call__(self, method: str, path: str, **fields: Any) -> Any:
        given = {"user": "ann", "password": PASSWORD, "modelname": "m", "deployment": "f", **fields}
        sent = {"query_string": given} if method in ("GET", "DELETE") else {"data": given}
        answer = self.http.open(path, method=method, **sent)
        assert answer.status_code == 200 or answer.get_json()["status"] == "invalid parameter", answer.get_data()
        return answer.get_json()


def test_the_form_api(plain: Stage) -> None:
    form = FormUser(plain.nobody.http)
    assert form("POST", "/createdeployment", time="2020-02-02", cpu="0.5", memory="64MiB") == {"status": "success"}
    assert form("POST", "/createdeployment")["status"] == "duplication"
    assert form("POST", "/createdeployment", deployment="g", modelname="none")["status"] == "model not found"
    assert form("POST", "/createdeployment", deployment="g", memory="900TiB")["status"] == "insufficient capacity"
    assert form("POST", "/createdeployment", deployment="g", memory="512")["status"] == "invalid parameter"
    assert form("POST", "/createdeployment", deployment="g", password="wrong password")["status"] == "invalid password"
    assert form("POST", "/createdeployment", deployment="g", user="nobody")["status"] == "user not found"
    asked = {"filetype": "none", "input": json.dumps({"x": [[2, 0]]})}
    assert form("POST", "/predict", **asked)["output"] == {"y": [[10, 0]]}, "the newest version, which it waits for"
    plain.until("f")
    assert form("GET", "/getmodeldeployment")["deployment"] == [{"deployment": "f", "status": "running", "time": "2020-02-02"}]
    assert form("GET", "/getmodeldeployment", modelname="none")["status"] == "model not found"
    assert form("POST", "/predict", filetype="none", input="{}")["status"] == "invalid input"
    assert form("POST", "/predict", deployment="none", **asked)["status"] == "deployment not found"
    many = form("POST", "/predict", filetype="csv", input=(io.BytesIO(b"x\n"), "a.csv"))
    assert many["status"] == "invalid input"
    told = within(10, lambda: (found := form("GET", "/getdeploymentstatus"))["requests"] and found)
    assert (
        (told["status"], told["state"], told["errors"]) == ("success", "running", 0)
        and told["p99"] >= told["p50"] > 0
        and told["memory"] > 0
    )
    for path in ("/settaskstatuspause", "/setdeploymentstatuspause"):
        assert form("POST", path) == {"status": "success"}
        assert form("POST", "/predict", **asked)["status"] == "deployment paused"
        assert form("POST", path, deployment="none")["status"] == "deployment not found"
        assert form("POST", "/setdeploymentstatusrunning") == {"status": "success"}
        assert form("POST", "/predict", **asked)["status"] == "success"
        plain.until("f")
    source = form("POST", "/uploadscript", script=(io.BytesIO(POSTPROCESS.encode()), "s.py"))
    if source["status"] == "success":
        plain.until("f")
        assert form("POST", "/predict", **asked)["output"] == {"sum": 10}
        assert form("POST", "/uploadscript", script=(io.BytesIO(b"def x(:"), "s.py"))["status"] == "invalid script"
    assert form("DELETE", "/deletedeployment") == {"status": "success"}
    assert form("DELETE", "/deletedeployment")["status"] == "deployment not found"
    assert form("GET", "/getdeploymentstatus")["status"] == "deployment not found"


def test_instances_follow_the_queue(plain: Stage, tmp_path: Path) -> None:
    ann = plain.ann
    model(plain.over.storage, ann.principal, "slow", slow(tmp_path / "slow.onnx", 400))
    services = plain.over.services
    ann.made("/v1/deployments", {"name": "d", "model": "slow", "max_instances": 2})
    plain.until("d")
    collector, seconds = services.collector, [0.0]
    from gateway.operations.watch import Watch

    watch = Watch(services.storage, collector, services.settings, services.nudge, services.now, lambda: seconds[0])
    watch.step()
    body = {"inputs": {"x": [1]}}
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: ann("POST", "/v1/deployments/d/predictions", body).status_code, range(24)))
    seconds[0] = 10.0
    watch.step()
    assert ann("GET", "/v1/deployments/d").get_json()["instances"] == 2
    plain.until("d")
    within(10, lambda: [entry.instances for entry in plain.over.client.capacity().models if entry.name == "ann.d"] == [2])
    for seconds[0] in (20.0, 100.0):
        watch.step()
    assert ann("GET", "/v1/deployments/d").get_json()["instances"] == 1
    plain.until("d")
