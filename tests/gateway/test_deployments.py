"""`/v1/deployments`, `/v2` and the form API over a real model host, with the worker beside: everything that owners and callers do."""

# ruff: noqa: F401, F811 - fixtures are imported, and then are arguments
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gateway.deployed_host import deployed, users_host, within
from tests.gateway.deployed_rows import model
from tests.gateway.deployed_stage import Person, Stage, infer, person, plain, predict, stage
from tests.onnx_models import slow


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
    people = {name: person(plain.over, ann.http, name) for name in ("viewer", "editor", "operator", "administrator")}
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
