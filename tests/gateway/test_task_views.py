"""Looking at tasks and batches: what they were asked with, rows that failed, how values are spread, links that a team may open, times."""

# ruff: noqa: F401, F811 - fixtures are imported, and then are arguments
import csv
import io
import json
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import to_text
from gateway.operations import batch_rows, batch_views
from gateway.storage.task_records import first_task_id, new_task_id
from gateway.worker import deploying
from gateway.worker.task_runner import TaskRunner
from tests.gateway.deployed_host import Deployed, deployed, users_host
from tests.gateway.deployed_stage import Stage, person, staged
from tests.gateway.test_batches import answered, archive, gateway, picture
from tests.gateway.test_deployment_tasks import batch, ended, submitted
from tests.gateway.working import Working

MIXED = b"a,b\n1,2\nx,4\n5,6\n7\n"


@pytest.fixture
def stage(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """With a worker that runs tasks as well."""
    parts = deploying.parts
    monkeypatch.setattr(deploying, "parts", lambda services, number: [TaskRunner(services, number), *parts(services, number)])
    yield from staged(deployed, tmp_path, hot=True)


def read(gateway: Working, path: str, status: int = 200) -> Any:
    answer = gateway.client.get(path, headers=gateway.ann)
    assert answer.status_code == status, answer.get_data(as_text=True)
    return answer


def test_the_team_of_a_deployment_reads_its_tasks_by_their_ids(stage: Stage) -> None:
    ann, bob = stage.ann, stage.bob
    eve = person(stage.over, bob.http, "eve")
    ann.made("/v1/teams", {"name": "crew"})
    assert ann("PUT", "/v1/teams/crew/members/bob", {"role": "viewer"}).status_code in (200, 201, 204)
    stage.deploy()
    task, rows = submitted(ann), batch(ann, "a,b\n1,2\n3,x\n")
    assert ended(ann, task)["state"] == ended(ann, rows)["state"] == "succeeded"
    reads = [f"/v1/tasks/{task}{more}" for more in ("", "/result", "/input", "/events")]
    reads += [f"/v1/batches/{rows}{more}" for more in ("", "/result", "/input", "/failures", "/failures/file", "/summary")]
    changes = [("POST", f"/v1/tasks/{task}/cancel"), ("POST", f"/v1/tasks/{task}/retry"), ("DELETE", f"/v1/tasks/{task}")]
    changes += [("POST", f"/v1/batches/{rows}/{verb}") for verb in ("pause", "resume", "cancel")] + [("DELETE", f"/v1/batches/{rows}")]

    def seen(who: Any) -> set[int]:
        return {who("GET", path).status_code for path in reads}

    def changed(who: Any) -> set[int]:
        return {who(method, path).status_code for method, path in changes}

    assert (seen(ann), seen(bob), changed(bob)) == ({200}, {404}, {404}), "it is private"
    assert ann("PATCH", "/v1/deployments/d", {"visibility": "team", "team": "crew"}).status_code == 200
    assert (seen(bob), changed(bob), seen(eve), changed(eve)) == ({200}, {403}, {404}, {404})
    assert bob("GET", "/v1/tasks").get_json()["items"] == [], "his list is of his own"
    assert ann("PATCH", "/v1/deployments/d", {"visibility": "public"}).status_code == 200
    assert (seen(bob), seen(eve)) == ({200}, {404}), "public is who may call it, not whose tasks they are"
    assert seen(stage.nobody) == {401}
    asked = eve("POST", "/v1/deployments/ann.d/predictions", {"inputs": {"x": [[1, 2]]}}, headers={"Prefer": "respond-async"})
    hers = f"/v1/tasks/{asked.get_json()['id']}"
    assert [who("GET", hers).status_code for who in (eve, bob, ann)] == [200, 404, 404], "she has shared nothing with the team"
    assert ann("DELETE", "/v1/teams/crew/members/bob").status_code == 204
    assert seen(bob) == {404}


def test_what_a_task_was_asked_with(gateway: Working) -> None:
    path, headers = "/v1/models/triple/predictions", {**gateway.ann, "Prefer": "respond-async"}

    def asked(**sent: Any) -> Any:
        made = gateway.client.post(path, headers=headers, **sent)
        assert made.status_code == 202, made.get_json()
        return read(gateway, f"/v1/tasks/{made.get_json()['id']}/input").get_json()

    body = {"inputs": {"x": [[1, 2]]}, "outputs": ["y"]}
    assert asked(json=body) == body
    assert asked(json={"inputs": {"x": [[1.5] * 2] * 3000}})["inputs"]["x"][2999] == [1.5, 1.5], "kept as a file"
    assert asked(data={"x": "[[1, 2]]", "top_k": "3"}) == {"inputs": {"x": "[[1, 2]]"}, "top_k": 3}
    assert asked(data={"x": (io.BytesIO(b"\x00abc"), "x.bin")}) == {"inputs": {"x": {"b64": "AGFiYw=="}}}
    form = {"filetype": "csv", "inputfile_x": (io.BytesIO(b"1,2"), "x.csv")}
    assert asked(data=form) == {"filetype": "csv", "inputfile_x": {"b64": "MSwy"}}
    made = gateway.submit(gateway.ann).get_json()["id"]
    assert gateway.client.get(f"/v1/tasks/{made}/input", headers=gateway.bob).status_code == 404


def test_rows_that_failed_of_each_kind_of_file(gateway: Working) -> None:
    batch_, _ = answered(gateway, "numbers.csv", MIXED)
    found = read(gateway, f"/v1/batches/{batch_['id']}/failures").get_json()
    assert [row["row"] for row in found["items"]] == [2, 4] and found["next"] is None
    assert found["items"][0]["error"]["code"] == "invalid_input" and "'x'" in found["items"][0]["error"]["message"]
    first = read(gateway, f"/v1/batches/{batch_['id']}/failures?limit=1").get_json()
    rest = read(gateway, f"/v1/batches/{batch_['id']}/failures?limit=1&cursor={first['next']}").get_json()
    assert [row["row"] for row in first["items"] + rest["items"]] == [2, 4]
    answer = read(gateway, f"/v1/batches/{batch_['id']}/failures/file")
    assert 'filename="numbers-failed.csv"' in answer.headers["Content-Disposition"]
    lines = list(csv.reader(io.StringIO(answer.get_data(as_text=True))))
    assert [line[:1] + line[2:] for line in lines] == [["row", "a", "b"], ["2", "x", "4"], ["4", "7"]] and "'x'" in lines[1][1]
    assert read(gateway, f"/v1/batches/{batch_['id']}/input").data == MIXED

    batch_, _ = answered(gateway, "lines.jsonl", b'[1, 2]\n\n{"z": 1}\nnot json\n[3, 4]\n')
    values = [json.loads(line) for line in read(gateway, f"/v1/batches/{batch_['id']}/failures/file").data.splitlines()]
    assert [(each["row"], each["input"]) for each in values] == [(2, {"z": 1}), (3, "not json")] and values[0]["error"]["message"]

    files = archive(a_dot_png=picture((255, 0, 0)), b_dot_png=b"no picture")
    batch_, _ = answered(gateway, "pictures.zip", files, model="photo", result_format="csv")
    (row,) = read(gateway, f"/v1/batches/{batch_['id']}/failures").get_json()["items"]
    assert (row["row"], row["file"]) == (2, "b.png")
    answer = read(gateway, f"/v1/batches/{batch_['id']}/failures/file")
    assert answer.mimetype == "text/csv" and b'2,b.png,"invalid_input: ' in answer.data


def test_the_file_of_failed_rows_is_sent_again_as_it_is(gateway: Working) -> None:
    batch_, _ = answered(gateway, "numbers.csv", MIXED)
    file = read(gateway, f"/v1/batches/{batch_['id']}/failures/file").data
    assert file.count(b",x,4\r\n") == 1 and file.endswith(b",7\r\n")
    batch_, _ = answered(gateway, "numbers-failed.csv", file)
    assert (batch_["rows_total"], batch_["rows_failed"]) == (2, 2)
    again = read(gateway, f"/v1/batches/{batch_['id']}/failures/file").data
    assert again.startswith(b"row,error,a,b\r\n1,") and again.count(b"row,error") == 1 and again.endswith(b",7\r\n")
    corrected = again.replace(b",x,4\r\n", b",5,4\r\n").removesuffix(b"\r\n") + b",8\r\n"
    batch_, result = answered(gateway, "numbers-failed-failed.csv", corrected)
    assert batch_["rows_failed"] == 0 and b"15" in result and b"24" in result
    found = read(gateway, f"/v1/batches/{batch_['id']}/summary").get_json()
    assert found["rows"] == 2 and [each["name"] for each in found["outputs"]] == ["y"]

    batch_, _ = answered(gateway, "lines.jsonl", b'[1, 2]\n{"z": 1}\n{"inputs": {"z": [[1, 2]]}}\nnot json\n')
    file = read(gateway, f"/v1/batches/{batch_['id']}/failures/file").data
    batch_, _ = answered(gateway, "lines-failed.jsonl", file)
    again = read(gateway, f"/v1/batches/{batch_['id']}/failures/file").data
    assert [json.loads(line)["input"] for line in again.splitlines()] == [{"z": 1}, {"inputs": {"z": [[1, 2]]}}, "not json"]
    corrected = again.replace(b'"z":1', b'"x":[2,3]').replace(b'"z"', b'"x"').replace(b'"not json"', b"[4,5]")
    batch_, result = answered(gateway, "lines-failed-failed.jsonl", corrected)
    assert batch_["rows_failed"] == 0
    assert [json.loads(line)["outputs"]["y"] for line in result.splitlines()] == [[6, 9], [[3, 6]], [12, 15]]
    batch_, _ = answered(gateway, "lines.jsonl", b'{"row": 1, "error": "mine", "input": [1, 2]}\n')
    assert batch_["rows_failed"] == 1, "no file of ours"


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("row,error,x\n7,invalid_input: a,[1]\n8,,2\n", ("x",), [["[1]"], ["2"]]),
        ('row,error,row,error\n7,"invalid_input: a ""b"", c",1,2\n', ("row", "error"), [["1", "2"]]),
        ('\ufeffrow,error,a\n\n7,"",1\n9\n', ("a",), [["1"], ["9"]]),
        ("row,error,x\n7,0.5,1\n", ("row", "error", "x"), [["7", "0.5", "1"]]),
        ("row,error,x\n7,what: else,1\n", ("row", "error", "x"), [["7", "what: else", "1"]]),
        ("row,error,x\n", ("row", "error", "x"), []),
    ],
)
def test_which_files_are_of_failed_rows(text: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    found, read_rows = batch_rows.of_csv(io.BytesIO(text.encode()), 0)
    each = list(read_rows)
    assert (found, [row.value for row in each]) == (columns, rows)
    for place, row in enumerate(each):  # after a pause it goes on there
        later = batch_rows.of_csv(io.BytesIO(text.encode()), row.following)
        assert (later[0], [one.value for one in later[1]]) == (columns, rows[place + 1 :])


def test_a_look_for_rows_that_failed_ends_and_goes_on(gateway: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_, _ = answered(gateway, "numbers.csv", b"a,b\n" + b"1,2\n" * 1000 + b"x,1\n")
    monkeypatch.setattr(batch_views, "LOOK_S", 0.0)
    monkeypatch.setattr(batch_views, "_LOOK_BYTES", 1 << 10)
    path, looks, cursor = f"/v1/batches/{batch_['id']}/failures", 0, ""
    rows: list[int] = []
    while looks == 0 or cursor:
        found = read(gateway, f"{path}?cursor={cursor}" if cursor else path).get_json()
        rows, cursor, looks = rows + [row["row"] for row in found["items"]], found["next"], looks + 1
    assert rows == [1001] and looks > 4
    for wrong in ("WyJ4Il0", "W10", "WzEsMl0"):
        assert read(gateway, f"{path}?cursor={wrong}", 400)
    assert read(gateway, f"{path}?cursor=WzEwMDAwMDAwMDBd").get_json() == {"items": [], "next": None}


def test_how_values_are_spread(gateway: Working) -> None:
    batch_, _ = answered(gateway, "numbers.csv", b"a,b\n" + b"".join(b"%d,0.5\n" % number for number in range(100)) + b"x,1\n")
    found = read(gateway, f"/v1/batches/{batch_['id']}/summary").get_json()
    assert (found["rows"], found["whole"]) == (101, True)
    (output,) = found["outputs"]
    assert output["name"] == "y" and output["classes"] == [] and len(output["bins"]) == 20
    assert sum(count for _, _, count in output["bins"]) == 200 and output["bins"][0][0] == 0 and output["bins"][-1][1] == 297
    rows = b'{"x": [0.1, 0.7, 0.2], "z": 5}\n{"x": [3, 2, 1], "z": 6}\n{"x": [0, 2, 1], "z": 6}'
    for kind in ("csv", "jsonl"):
        batch_, _ = answered(gateway, "animals.jsonl", rows, model="animals", result_format=kind, outputs="other,scores", top_k="1")
        outputs = {each["name"]: each for each in read(gateway, f"/v1/batches/{batch_['id']}/summary").get_json()["outputs"]}
        assert outputs["label"]["classes"] == [["dog", 2], ["cat", 1]] and outputs["other"]["classes"] == [["6", 2], ["5", 1]], kind


def test_of_a_batch_without_answers_there_is_nothing_to_look_at(gateway: Working) -> None:
    made = gateway.client.post(
        "/v1/batches", data={"model": "triple", "file": (io.BytesIO(MIXED), "a.csv")}, headers=gateway.ann
    ).get_json()
    path = f"/v1/batches/{made['id']}"
    assert read(gateway, f"{path}/failures").get_json() == {"items": [], "next": None}
    assert read(gateway, f"{path}/summary").get_json() == {"rows": 0, "whole": False, "outputs": []}
    assert read(gateway, f"{path}/failures/file").data == b"row,error,a,b\r\n"
    gateway.client.post(f"{path}/cancel", headers=gateway.ann)
    for more in ("failures", "failures/file", "summary"):
        assert read(gateway, f"{path}/{more}", 409)


def test_lists_between_two_moments(gateway: Working) -> None:
    ids = [gateway.submit(gateway.ann).get_json()["id"] for _ in range(3)]
    at = [gateway.task(gateway.ann, each)["created_at"] for each in ids]

    def listed(**query: str) -> list[str]:
        answer = gateway.client.get("/v1/tasks", query_string=query, headers=gateway.ann)
        assert answer.status_code == 200, answer.get_json()
        return [task["id"] for task in answer.get_json()["items"]]

    assert listed(since=at[1]) == [ids[2], ids[1]] and listed(until=at[1]) == [ids[0]]
    assert listed(since=at[1], until=at[2]) == [ids[1]] and listed(since=at[0], limit="1") == [ids[2]]
    assert listed(until="1969-01-01T00:00:00+08:00") == []
    for wrong in ("yesterday", "2026-11-21", ""):
        assert gateway.client.get("/v1/tasks", query_string={"since": wrong}, headers=gateway.ann).status_code == 400


def test_ids_and_moments() -> None:
    moment = datetime(2026, 11, 21, 4, 5, 6, 7, tzinfo=UTC)
    assert first_task_id(moment) <= new_task_id(moment) < first_task_id(moment.replace(microsecond=8)) and to_text(moment)
