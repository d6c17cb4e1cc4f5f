"""Batches: files of many inputs, row by row, over a real model host."""

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gateway.operations import batch_results, batch_rows
from gateway.operations.batch_results import Lines
from gateway.worker import batch_run
from tests.eventually import eventually
from tests.gateway.working import Working, working
from tests.processes import Process


@pytest.fixture
def gateway(host: Process, tmp_path: Path) -> Iterator[Working]:
    with working(host, tmp_path) as made:
        yield made


def send(gateway: Working, name: str, content: bytes, **fields: Any) -> Any:
    form = {"model": "triple", **fields, "file": (io.BytesIO(content), name)}
    return gateway.client.post("/v1/batches", data=form, headers=gateway.ann)


def ended(gateway: Working, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(gateway.client.get(f"/v1/batches/{batch_id}?wait=5", headers=gateway.ann).get_json())
        return found["state"] not in ("queued", "running")

    eventually(over, "it has ended", 60)
    return found


def answered(gateway: Working, name: str, content: bytes, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """The batch at its end, and its result."""
    with gateway.worker():
        made = send(gateway, name, content, **fields)
        assert made.status_code == 202, made.get_json()
        batch = ended(gateway, made.get_json()["id"])
    assert batch["state"] == "succeeded", batch
    result = gateway.client.get(batch["result_url"], headers=gateway.ann)
    assert result.status_code == 200
    return batch, result.data


def test_csv_row_by_row_with_its_errors(gateway: Working) -> None:
    rows = "a,b\r\n" + "".join(f"{number},{number + 0.5}\n" for number in range(1000)) + 'x,1\n1\n"1\n2",3\n\n' + "7,8"
    batch, result = answered(gateway, "numbers.csv", rows.encode())
    assert (batch["format"], batch["result_format"], batch["rows_total"], batch["rows_done"], batch["rows_failed"]) == (
        *("csv", "csv"),
        *(1004, 1004, 3),
    )
    lines = list(csv.reader(io.StringIO(result.decode())))
    assert lines[0] == ["row", "error", "y"] and len(lines) == 1005
    for number in range(1000):
        assert lines[number + 1] == [str(number + 1), "", json.dumps([3.0 * number, 3.0 * (number + 0.5)], separators=(",", ":"))]
    assert [line[1].split(":")[0] for line in lines[1001:]] == ["invalid_input", "invalid_input", "invalid_input", ""]
    assert "'x'" in lines[1001][1] and "1 cells" in lines[1002][1] and lines[1004] == ["1004", "", "[21.0,24.0]"]


def test_jsonl_takes_lists_objects_and_whole_requests(gateway: Working) -> None:
    lines = [[1, 2], {"x": [3, 4]}, {"inputs": {"x": [[5, 6], [7, 8]]}}, {"inputs": {"z": 1}}, {"z": 1}, [1, "a"], 5]
    content = "\n".join(map(json.dumps, lines)) + "\n\nnot json\n[9, 10]"
    batch, result = answered(gateway, "lines.jsonl", content.encode())
    found = [json.loads(line) for line in result.splitlines()]
    assert [line["row"] for line in found] == list(range(1, 10)) and batch["rows_failed"] == 5
    assert [line.get("outputs") for line in found] == [
        *({"y": [3.0, 6.0]}, {"y": [9.0, 12.0]}, {"y": [[15.0, 18.0], [21.0, 24.0]]}),
        *(None, None, None, None, None),
        {"y": [27.0, 30.0]},
    ]
    assert all(line["error"]["code"] == "invalid_input" and line["error"]["message"] for line in found if "error" in line)


def picture(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(out, "PNG")
    return out.getvalue()


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name.replace("_dot_", ".").replace("_slash_", "/"), content)
    return out.getvalue()


def test_pictures_and_texts_of_an_archive(gateway: Working) -> None:
    files = archive(a_dot_png=picture((255, 0, 0)), b_dot_png=b"no picture", __MACOSX_slash_a=b"", c_slash_d_dot_png=picture((0, 255, 0)))
    batch, result = answered(gateway, "pictures.zip", files, model="photo")
    found = [json.loads(line) for line in result.splitlines()]
    assert [line["file"] for line in found] == ["a.png", "b.png", "c/d.png"] and batch["rows_failed"] == 1
    assert found[0]["outputs"]["y"][0][0] == [-0.5, -1.0, 126.0] and "plain text" in found[1]["error"]["message"]
    _, result = answered(gateway, "texts.zip", archive(a=b"hello", b="grüße".encode()), model="same-BYTES")
    assert [next(iter(json.loads(line)["outputs"].values())) for line in result.splitlines()] == ["hello", "grüße"]


def test_labels_and_columns_by_input_name(gateway: Working) -> None:
    _, result = answered(gateway, "people.csv", b'name,age\n=HYPERLINK("x"),30\nbob,1e2\n', model="pair")
    lines = list(csv.reader(io.StringIO(result.decode())))
    assert lines == [["row", "error", "a", "b"], ["1", "", "30.0", '\'=HYPERLINK("x")'], ["2", "", "100.0", "bob"]]
    rows = b'{"x": [0.1, 0.7, 0.2], "z": 5}\n{"x": [3, 2, 1], "z": 6}'
    _, result = answered(gateway, "animals.jsonl", rows, model="animals", result_format="csv", outputs="other,scores", top_k="1")
    (_, first, second) = csv.reader(io.StringIO(result.decode()))
    assert (first[:3], first[4:]) == (["1", "", "5.0"], ["dog", "0.699999988079071"])
    assert second == ["2", "", "6.0", "[3.0,2.0,1.0]", "cat", "3.0"]


@pytest.mark.parametrize(
    ("name", "content", "fields", "says"),
    [
        ("numbers", b"a\n1", {}, "format"),
        ("numbers.csv", b"", {}, "empty"),
        ("numbers.csv", b"a,a\n1,2", {}, "name of its own"),
        ("pictures.zip", b"PK nothing", {}, "zip"),
        ("numbers.csv", b"a\n1", {"deployment": "x.y"}, "either"),
        ("numbers.csv", b"a\n1", {"top_k": "0"}, "top_k"),
        ("numbers.csv", b"a\n1", {"colour": "red"}, "colour"),
    ],
)
def test_what_is_no_batch_is_refused_at_once(gateway: Working, name: str, content: bytes, fields: dict[str, str], says: str) -> None:
    answer = send(gateway, name, content, **fields)
    assert answer.status_code == 400 and says in answer.get_json()["detail"], answer.get_json()
    assert gateway.services.storage.tasks.sizes()["queued"] == 0


def test_a_batch_that_fails_as_a_whole(gateway: Working) -> None:
    with gateway.worker():
        empty = ended(gateway, send(gateway, "numbers.csv", b"a,b\n").get_json()["id"])
        assert empty["state"] == "failed" and "no rows" in empty["error"]["message"]
        wrong = ended(gateway, send(gateway, "numbers.csv", b"a,b\n1,2", outputs="nothing").get_json()["id"])
        assert wrong["state"] == "failed" and "'nothing'" in wrong["error"]["message"]
    assert send(gateway, "numbers.csv", b"a\n1", model="nothing").status_code == 404


def test_pause_resume_and_a_new_worker_go_on_where_it_was(gateway: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "CHECKPOINT_S", 0.0)
    count = 20_000
    rows = "a,b\n" + "".join(f"{number},{number}\n" for number in range(count))

    def look() -> dict[str, Any]:
        return dict(gateway.client.get(f"/v1/batches/{batch_id}", headers=gateway.ann).get_json())

    with gateway.worker():
        batch_id = send(gateway, "numbers.csv", rows.encode()).get_json()["id"]
        eventually(lambda: look()["rows_done"] > 0, "it has begun", 30)
        assert gateway.client.post(f"/v1/batches/{batch_id}/pause", headers=gateway.ann).status_code == 200
        eventually(lambda: look()["state"] in ("paused", "succeeded"), "it pauses", 30)
        paused = look()
        assert paused["state"] == "paused" and 0 < paused["rows_done"] < count and 0 < paused["progress"] < 1
        assert gateway.client.post(f"/v1/batches/{batch_id}/pause", headers=gateway.ann).status_code == 200
        gateway.client.post(f"/v1/batches/{batch_id}/resume", headers=gateway.ann)
        eventually(lambda: look()["rows_done"] > paused["rows_done"], "it goes on", 30)
    stopped = look()
    assert stopped["state"] == "queued" and stopped["rows_done"] < count, "its worker has ended"
    with gateway.worker():
        assert ended(gateway, batch_id)["state"] == "succeeded"
    result = gateway.client.get(f"/v1/batches/{batch_id}/result", headers=gateway.ann)
    lines = list(csv.reader(io.StringIO(result.data.decode())))[1:]
    assert [int(line[0]) for line in lines] == list(range(1, count + 1))
    assert [json.loads(line[2]) for line in lines] == [[3.0 * number, 3.0 * number] for number in range(count)]
    assert 'filename="numbers-result.csv"' in result.headers["Content-Disposition"]
    assert gateway.client.post(f"/v1/batches/{batch_id}/resume", headers=gateway.ann).status_code == 409
    assert gateway.services.storage.batches.sweep() == 1
    assert gateway.client.get("/v1/batches", headers=gateway.ann).get_json()["items"][0]["rows_done"] == count
    assert gateway.client.delete(f"/v1/batches/{batch_id}", headers=gateway.ann).status_code == 204
    assert gateway.client.get(f"/v1/tasks/{batch_id}", headers=gateway.ann).status_code == 404


# the parts -------------------------------------------------------------------------------------------------------------------------------


def test_rows_from_any_offset_are_the_same_rows(tmp_path: Path) -> None:
    text = 'a,b\n1,"x\ny"\r\n2,"say ""hi"""\n\n3,\xe4\n4,"open\n5,z\n6,last'.encode()
    whole = list(batch_rows.of_csv(io.BytesIO(text), 0)[1])
    assert [row.value for row in whole if row.error is None] == [["1", "x\ny"], ["2", 'say "hi"'], ["3", "ä"], ["5", "z"], ["6", "last"]]
    assert [row.error is not None for row in whole] == [False, False, False, True, False, False]
    for place, row in enumerate(whole):
        assert [(each.value, each.following) for each in batch_rows.of_csv(io.BytesIO(text), row.following)[1]] == [
            (each.value, each.following) for each in whole[place + 1 :]
        ]
    lines = b'[1]\n\n{"x": 2}\nbad\n"3"'
    found = list(batch_rows.of_jsonl(io.BytesIO(lines), 0))
    assert [row.value for row in found] == [[1], {"x": 2}, None, "3"]
    assert [row.value for row in batch_rows.of_jsonl(io.BytesIO(lines), found[1].following)] == [None, "3"]


def test_long_lines_and_bombs_cost_one_row(tmp_path: Path) -> None:
    long = b"[" + b"1," * batch_rows.MOST_ROW_BYTES + b"1]"
    found = list(batch_rows.of_jsonl(io.BytesIO(b"[1]\n" + long + b"\n[2]"), 0))
    assert [row.value for row in found] == [[1], None, [2]] and found[1].error is not None
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(archive(a=b"x", b=bytes(5 << 20), c=b"y"))
    count, members = batch_rows.of_zip(bomb, 0, 1 << 20)
    rows = list(members)
    assert count == 3 and [row.value for row in rows] == [b"x", None, b"y"] and rows[1].error is not None
    assert [row.name for row in batch_rows.of_zip(bomb, 2, 1 << 20)[1]] == ["c"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "＝1"])
def test_no_text_becomes_a_formula(text: str) -> None:
    lines = Lines(batch_results.CSV, ["y"], has_names=True, has_labels=True)
    answer = {"outputs": {"y": [text]}, "labels": [{"label": text, "score": -1.5}]}
    (cells,) = csv.reader(io.StringIO(lines.spell(1, text, answer).decode(), newline=""))
    assert cells == ["1", f"'{text}", "", f"'{text}", f"'{text}", "-1.5"]
    (cells,) = csv.reader(io.StringIO(lines.spell(2, "a", {"error": {"code": "x", "message": "=1"}}).decode()))
    assert cells == ["2", "a", "x: =1", "", "", ""]
    assert lines.spell(1, "a", {"outputs": {"y": -2.5}}).startswith(b"1,a,,-2.5,")
