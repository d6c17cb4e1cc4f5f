"""Runs of batches that are ended, killed or refused half-way: a batch that gets on does not fail, and holds no place for ever."""

import csv
import io
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.operations import batch_answers, task_notices, task_outcomes
from gateway.storage.task_records import BATCH
from gateway.storage.tasks import NewTask
from gateway.worker import batch_run, task_runner
from idl.codes import Code, ServingError
from tests.eventually import eventually
from tests.gateway.working import Working, working
from tests.processes import Process


@pytest.fixture
def gateway(host: Process, tmp_path: Path) -> Iterator[Working]:
    with working(host, tmp_path, batches_at_once=1, batch_requests=1) as made:
        yield made


def send(gateway: Working, rows: list[str], who: Any = None, model: str = "triple", head: str = "a,b") -> str:
    content = "\n".join([head, *rows]).encode()
    form = {"model": model, "file": (io.BytesIO(content), "rows.csv")}
    answer = gateway.client.post("/v1/batches", data=form, headers=who or gateway.ann)
    assert answer.status_code == 202, answer.get_json()
    return str(answer.get_json()["id"])


def look(gateway: Working, batch_id: str, who: Any = None) -> dict[str, Any]:
    return dict(gateway.client.get(f"/v1/batches/{batch_id}", headers=who or gateway.ann).get_json())


def ended(gateway: Working, batch_id: str, who: Any = None) -> dict[str, Any]:
    eventually(lambda: look(gateway, batch_id, who)["state"] not in ("queued", "running"), "it has ended", 60)
    return look(gateway, batch_id, who)


def numbers(gateway: Working, batch_id: str, who: Any = None) -> list[int]:
    """The rows' numbers in the result."""
    result = gateway.client.get(f"/v1/batches/{batch_id}/result", headers=who or gateway.ann)
    return [int(line[0]) for line in list(csv.reader(io.StringIO(result.data.decode())))[1:]]


def test_a_batch_that_gets_on_between_failures_does_not_fail(gateway: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    """More failures than attempts, each after some rows; and then too many without any."""
    monkeypatch.setattr(task_outcomes, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(batch_answers, "MOST_TOGETHER", 2)
    answer, asked, is_broken = batch_answers.answer, [0], [False]

    def fails(*arguments: Any) -> Any:
        asked[0] += 1
        if is_broken[0] or asked[0] % 4 == 0:
            raise ServingError(Code.UNAVAILABLE, "the connection broke")
        return answer(*arguments)

    monkeypatch.setattr(batch_answers, "answer", fails)
    with gateway.worker():
        batch_id = send(gateway, [f"{number},1" for number in range(40)])
        batch = ended(gateway, batch_id)
        assert (batch["state"], batch["rows_done"], batch["rows_failed"]) == ("succeeded", 40, 0) and asked[0] > 20 + 4, batch
        assert numbers(gateway, batch_id) == list(range(1, 41))
        is_broken[0] = True
        batch = ended(gateway, send(gateway, ["1,2"]))
    assert (batch["state"], batch["attempts"]) == ("failed", 3) and "the last of 3 attempts" in batch["error"]["message"]
    counted = gateway.services.metrics.render().decode()
    assert 'outboard_gateway_batch_rows_total{kind="csv",result="succeeded"} 40.0' in counted


def test_a_long_batch_that_comes_back_to_the_queue_has_not_waited(gateway: Working) -> None:
    storage, now = gateway.services.storage, gateway.services.now()
    sha256, size = storage.blobs.put([b"a,b\n1,2\n"], now)
    columns = {"format": "csv", "result_format": "csv", "size": size}
    task = gateway.services.tasks.add(NewTask(1, "triple", "", input_sha256=sha256, kind=BATCH, batch=columns))
    (claimed,) = storage.task_queue.settle((), (), now, 60.0, task_notices.notice, {BATCH: 1}, 1, 60.0)[1]
    batch = storage.batches.get(task.id)
    assert batch is not None
    later = now + timedelta(hours=7)
    assert storage.batches.checkpoint(batch, claimed.task.fence, 0.5, later, gets_on=True, tell=False)
    storage.task_queue.settle((), (task_outcomes.put_back(claimed.task),), later, 60.0, task_notices.notice, {}, 1, 60.0)
    assert storage.tasks.expire(later, 6 * 3600, 60.0, task_notices.notice) == 0
    assert storage.tasks.expire(later + timedelta(hours=7), 6 * 3600, 60.0, task_notices.notice) == 1


def test_a_kill_after_the_result_became_a_blob(gateway: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run makes the same end, whoever it runs as, and writes to no blob."""
    keep, kept = batch_run._Result.keep, []

    def killed(self: Any, *arguments: Any) -> str:
        kept.append(keep(self, *arguments))
        if len(kept) == 1:
            raise ServingError(Code.UNAVAILABLE, "as if it were killed")
        return kept[0]

    monkeypatch.setattr(task_outcomes, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(batch_run._Result, "keep", killed)
    opened: list[int] = []
    part = batch_run._part_from_blob

    def looked_at(path: Path) -> None:
        part(path)
        if path.exists():
            opened.append(path.stat().st_mode & 0o777)
            assert path.stat().st_nlink == 1

    monkeypatch.setattr(batch_run, "_part_from_blob", looked_at)
    with gateway.worker():
        batch_id = send(gateway, ["1,2", "3,4"])
        assert ended(gateway, batch_id)["state"] == "succeeded"
    assert len(kept) == 2 and kept[0] == kept[1] and opened == [0o600]
    assert numbers(gateway, batch_id) == [1, 2]
    blob = gateway.services.storage.blobs.path(kept[0])
    assert blob.stat().st_mode & 0o777 == 0o400 and not blob.samefile(gateway.services.storage.batches.result_path(batch_id))


def test_a_long_batch_makes_room_for_somebody_elses(gateway: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_runner, "BATCH_TURN_S", 0.1)
    monkeypatch.setattr(task_runner, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(batch_run, "CHECKPOINT_S", 0.0)
    answer = batch_answers.answer

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return answer(*arguments)

    monkeypatch.setattr(batch_answers, "answer", slow)
    monkeypatch.setattr(batch_answers, "MOST_TOGETHER", 1)
    with gateway.worker():
        anns = [send(gateway, [f"{number},1" for number in range(300)]) for _ in range(3)]
        eventually(lambda: look(gateway, anns[0])["rows_done"] > 0, "it has begun", 20)
        bobs = send(gateway, ["1,2"] * 5, gateway.bob)
        assert ended(gateway, bobs, gateway.bob)["state"] == "succeeded"
        assert [look(gateway, each)["state"] for each in anns].count("succeeded") == 0
        for each in anns:
            assert gateway.client.post(f"/v1/batches/{each}/cancel", headers=gateway.ann).status_code == 200
            assert ended(gateway, each)["state"] == "cancelled"


def test_rows_that_wait_are_bounded_in_bytes(gateway: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "_MOST_WAITING_BYTES", 10)
    monkeypatch.setattr(batch_answers, "MOST_TOGETHER", 1)
    groups, answer, ahead = batch_run._groups, batch_answers.answer, [0, 0]

    def counted(*arguments: Any) -> Iterator[Any]:
        for group in groups(*arguments):
            ahead[0] += 1
            yield group

    def answered(*arguments: Any) -> Any:
        ahead[1] = max(ahead[1], ahead[0])
        ahead[0] -= 1
        return answer(*arguments)

    monkeypatch.setattr(batch_run, "_groups", counted)
    monkeypatch.setattr(batch_answers, "answer", answered)
    with gateway.worker():
        assert ended(gateway, send(gateway, ["12345,12345"] * 50))["rows_done"] == 50
    assert ahead[1] <= 3
