"""Tasks: predictions whose callers do not wait, over a real model host."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.eventually import eventually
from tests.gateway.working import Working, working
from tests.processes import Process, executors, stopped


@pytest.fixture
def gateway(host: Process, tmp_path: Path) -> Iterator[Working]:
    with working(host, tmp_path) as made:
        yield made


@pytest.fixture
def running(gateway: Working) -> Iterator[Working]:
    with gateway.worker():
        yield gateway


def test_a_task_is_made_and_its_result_fetched(running: Working) -> None:
    answer = running.submit(running.ann, 2.0)
    assert answer.status_code == 202, answer.get_json()
    assert answer.headers["Preference-Applied"] == "respond-async"
    task = answer.get_json()
    assert answer.headers["Location"] == f"/v1/tasks/{task['id']}"
    assert task["state"] == "queued" and task["model"] == "triple" and task["deployment"] is None and task["attempts"] == 0
    ended = running.ended(running.ann, task["id"])
    assert ended["state"] == "succeeded" and ended["progress"] == 1 and ended["attempts"] == 1 and ended["error"] is None
    assert ended["created_at"] <= ended["started_at"] <= ended["finished_at"] < ended["expires_at"]
    result = running.client.get(ended["result_url"], headers=running.ann)
    assert result.status_code == 200 and result.get_json()["outputs"] == {"y": [[6.0, 6.0]]}
    assert result.get_json()["id"] == task["id"]


def test_whoever_waits_gets_the_answer_or_a_task_of_the_same_id(gateway: Working) -> None:
    late = gateway.submit(gateway.ann, prefer="wait=0")
    assert late.status_code == 202 and late.headers["Preference-Applied"] == "wait=0"
    with gateway.worker():
        at_once = gateway.submit(gateway.ann, 3.0, prefer="respond-async, wait=20")
        assert at_once.status_code == 200 and at_once.get_json()["outputs"] == {"y": [[9.0, 9.0]]}
        assert gateway.task(gateway.ann, at_once.get_json()["id"])["state"] == "succeeded"
        assert gateway.ended(gateway.ann, late.get_json()["id"])["state"] == "succeeded"
        refused = gateway.client.post(
            "/v1/models/triple/predictions", json={"inputs": {"x": [["a", 1]]}}, headers={**gateway.ann, "Prefer": "wait=20"}
        )
        assert refused.status_code == 400 and "'x'" in refused.get_json()["detail"]
    passed_over = gateway.client.post(
        "/v1/models/triple/predictions", json={"inputs": {"x": [[1, 1]]}}, headers={**gateway.ann, "Prefer": "handling=strict"}
    )
    assert passed_over.status_code == 200 and "Preference-Applied" not in passed_over.headers


def test_what_cannot_be_a_task_is_refused_at_once(gateway: Working) -> None:
    def post(path: str = "triple", headers: Any = None, **body: Any) -> Any:
        return gateway.client.post(f"/v1/models/{path}/predictions", headers={"Prefer": "respond-async", **(headers or {})}, **body)

    assert post(json={"inputs": {"x": [1]}}).status_code == 401
    assert post("nothing", gateway.ann, json={"inputs": {"x": [1]}}).status_code == 404
    assert post(headers=gateway.ann, json={"inputs": 1}).status_code == 400
    assert post(headers=gateway.ann, data=b"{", content_type="application/json").status_code == 400
    assert post(headers=gateway.ann, data=b"x", content_type="text/plain").status_code == 415
    assert gateway.services.storage.tasks.sizes()["queued"] == 0


def test_a_wrong_input_fails_for_good_and_says_why(running: Working) -> None:
    answer = running.client.post(
        "/v1/models/triple/predictions", json={"inputs": {"z": [1]}}, headers={**running.ann, "Prefer": "respond-async"}
    )
    ended = running.ended(running.ann, answer.get_json()["id"])
    assert ended["state"] == "failed" and ended["attempts"] == 1
    assert ended["error"]["code"] == "invalid_input" and "'z'" in ended["error"]["message"]
    result = running.client.get(f"/v1/tasks/{ended['id']}/result", headers=running.ann)
    assert result.status_code == 409 and "failed" in result.get_json()["detail"]


def test_forms_and_large_inputs_and_results_are_kept(running: Working) -> None:
    form = {"x": "[[1, 2]]"}
    answer = running.client.post("/v1/models/triple/predictions", data=form, headers={**running.ann, "Prefer": "wait=20"})
    assert answer.get_json()["outputs"] == {"y": [[3.0, 6.0]]}
    numbers = list(range(40_000))
    body = {"inputs": {"features": [numbers[place : place + 4] for place in range(0, len(numbers), 4)]}}
    large = running.client.post("/v1/models/rows/predictions", json=body, headers={**running.ann, "Prefer": "wait=20"})
    assert large.status_code == 200 and len(large.get_json()["outputs"]["same"]) == 10_000
    task_id = large.get_json()["id"]
    assert running.client.get(f"/v1/tasks/{task_id}/result", headers=running.ann).get_json() == large.get_json()
    task = running.services.storage.tasks.get(task_id)
    assert task is not None and task.input_sha256 and task.result_sha256


def test_the_list_its_filters_and_its_pages(gateway: Working) -> None:
    ids = [gateway.submit(gateway.ann).get_json()["id"] for _ in range(5)]
    other = gateway.submit(gateway.bob, model="scalar").get_json()["id"]
    gateway.client.post(f"/v1/tasks/{ids[0]}/cancel", headers=gateway.ann)

    def found(headers: Any = gateway.ann, **query: Any) -> list[str]:
        answer = gateway.client.get("/v1/tasks", query_string=query, headers=headers)
        assert answer.status_code == 200, answer.get_json()
        return [task["id"] for task in answer.get_json()["items"]]

    assert found() == ids[::-1] and found(gateway.bob) == [other]
    assert found(state="cancelled") == ids[:1] and found(state="queued") == ids[:0:-1]
    assert found(model="triple") == ids[::-1] and found(model="scalar") == [] and found(kind="batch") == []
    first = gateway.client.get("/v1/tasks?limit=2", headers=gateway.ann).get_json()
    second = gateway.client.get("/v1/tasks", query_string={"limit": 3, "cursor": first["next"]}, headers=gateway.ann).get_json()
    assert [task["id"] for task in first["items"] + second["items"]] == ids[::-1] and second["next"] is None
    for wrong in ("state=odd", "all=true", "cursor=e30", "deployment=ann.nothing"):
        assert gateway.client.get(f"/v1/tasks?{wrong}", headers=gateway.ann).status_code in (400, 403, 404), wrong


def test_somebody_elses_task_is_as_if_it_were_not_there(gateway: Working) -> None:
    task_id = gateway.submit(gateway.ann).get_json()["id"]
    missing = "0" * 32
    for method, path in (("get", ""), ("get", "/result"), ("get", "/events"), ("post", "/cancel"), ("post", "/retry"), ("delete", "")):
        answers = [getattr(gateway.client, method)(f"/v1/tasks/{each}{path}", headers=gateway.bob) for each in (task_id, missing)]
        assert [answer.status_code for answer in answers] == [404, 404], path
        told = [
            {**answer.get_json(), "request_id": "", "detail": answer.get_json()["detail"].replace(task_id, missing)} for answer in answers
        ]
        assert told[0] == told[1]
        assert getattr(gateway.client, method)(f"/v1/tasks/{task_id}{path}").status_code == 401
    assert gateway.task(gateway.ann, task_id)["state"] == "queued"


def test_cancel_retry_delete(gateway: Working) -> None:
    task_id = gateway.submit(gateway.ann, 5.0).get_json()["id"]

    def post(verb: str, each: str = task_id) -> Any:
        return gateway.client.post(f"/v1/tasks/{each}/{verb}", headers=gateway.ann)

    assert gateway.client.delete(f"/v1/tasks/{task_id}", headers=gateway.ann).status_code == 409
    assert post("retry").status_code == 409
    assert post("cancel").get_json()["state"] == "cancelled" and post("cancel").status_code == 200
    assert gateway.client.get(f"/v1/tasks/{task_id}/result", headers=gateway.ann).status_code == 409
    again = post("retry")
    assert again.status_code == 202 and again.get_json()["retry_of"] == task_id and again.get_json()["id"] != task_id
    with gateway.worker():
        assert gateway.ended(gateway.ann, again.get_json()["id"])["state"] == "succeeded"
    assert post("cancel", again.get_json()["id"]).status_code == 409 and post("retry", again.get_json()["id"]).status_code == 409
    assert gateway.client.delete(f"/v1/tasks/{task_id}", headers=gateway.ann).status_code == 204
    assert gateway.client.get(f"/v1/tasks/{task_id}", headers=gateway.ann).status_code == 404


def test_a_running_task_is_taken_back_from_the_model(running: Working, host: Process) -> None:
    with stopped(executors(host.process.pid, "slow")):  # so that none ends before it is cancelled
        ids = [running.submit(running.ann, model="slow").get_json()["id"] for _ in range(2)]
        eventually(lambda: all(running.task(running.ann, each)["state"] == "running" for each in ids), "they run", 20)
        for each in ids:
            running.client.post(f"/v1/tasks/{each}/cancel", headers=running.ann)
        assert {running.ended(running.ann, each)["state"] for each in ids} == {"cancelled"}


def events_of(body: bytes) -> list[tuple[int, str, dict[str, Any]]]:
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_events_are_told_as_they_come_and_again(gateway: Working) -> None:
    task_id = gateway.submit(gateway.ann).get_json()["id"]
    with gateway.worker():
        stream = gateway.client.get(f"/v1/tasks/{task_id}/events", headers=gateway.ann)
        assert stream.status_code == 200 and stream.content_type == "text/event-stream"
        told = events_of(stream.data)
    assert [state for _, state, _ in told] == ["queued", "running", "succeeded"] and told[2][2]["progress"] == 1
    path = f"/v1/tasks/{task_id}/events"
    assert events_of(gateway.client.get(path, headers=gateway.ann).data) == told
    later = gateway.client.get(path, headers={**gateway.ann, "Last-Event-ID": str(told[0][0])})
    assert events_of(later.data) == told[1:]
    assert gateway.client.get(f"{path}?after={told[2][0]}", headers=gateway.ann).status_code == 204
    assert gateway.client.get(path, headers={**gateway.ann, "Last-Event-ID": "x"}).status_code == 400


def test_the_same_submission_again_is_the_same_task(gateway: Working) -> None:
    """Whoever does not know whether the first one came through asks again under the same key."""

    def post(key: str, who: Any = gateway.ann, prefer: str = "respond-async", value: float = 2.0, **more: Any) -> Any:
        headers = {**who, "Prefer": prefer, "Idempotency-Key": key}
        body = more or {"json": {"inputs": {"x": [[value, 1]]}}}
        return gateway.client.post("/v1/models/triple/predictions", headers=headers, **body)

    first, again, other = post("one"), post("one"), post("two")
    assert {answer.status_code for answer in (first, again, other)} == {202}
    assert again.get_json()["id"] == first.get_json()["id"] != other.get_json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true" and "Idempotent-Replayed" not in first.headers
    assert post("one", gateway.bob).get_json()["id"] not in (first.get_json()["id"], other.get_json()["id"]), "keys are everybody's own"
    assert post("one", value=3.0).status_code == 400 and post("k" * 300).status_code == 400
    assert post("form", data={"x": "[[1, 1]]"}).get_json()["id"] == post("form", data={"x": "[[1, 1]]"}).get_json()["id"]
    assert post("form", data={"x": "[[1, 2]]"}).status_code == 400, "a form is known by what is in it"
    assert post("wrong", json={"inputs": 1}).status_code == post("wrong", json={"inputs": 1}).status_code == 400
    with gateway.worker():
        waited = post("one", prefer="wait=20")
        assert waited.status_code == 200 and waited.get_json()["id"] == first.get_json()["id"]
        assert waited.get_json()["outputs"] == {"y": [[6.0, 3.0]]} and waited.headers["Idempotent-Replayed"] == "true"
    assert len(gateway.client.get("/v1/tasks", headers=gateway.ann).get_json()["items"]) == 3
