"""What is short or gone while tasks run: the disk, the database, the model host. Tasks are kept."""

import io
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.operations import tasks
from gateway.storage import blobs
from gateway.worker import batch_run
from idl.codes import Code, ServingError
from tests.conftest import Record
from tests.eventually import eventually
from tests.gateway.working import Working, working
from tests.onnx_models import times
from tests.processes import Process, start_server


@pytest.fixture
def gateway(host: Process, tmp_path: Path) -> Iterator[Working]:
    with working(host, tmp_path) as made:
        yield made


def test_a_full_disk_puts_tasks_and_batches_off(gateway: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blob of a result, and the growing result of a batch, cannot be written for a while."""
    is_full = threading.Event()
    is_full.set()
    put, settle = blobs.Blobs.put, batch_run._Result.settle

    def no_put(self: Any, pieces: Any, now: Any) -> Any:
        if is_full.is_set():
            raise blobs.full(OSError(28, "No space left on device"))
        return put(self, pieces, now)

    def no_settle(self: Any) -> int:
        if is_full.is_set():
            raise OSError(28, "No space left on device")
        return settle(self)

    sha256, size = gateway.services.storage.blobs.put([b"a,b\n1,2\n3,4\n"], gateway.services.now())
    task_id = gateway.submit(gateway.ann).get_json()["id"]
    batch = gateway.services.tasks.add(
        tasks.NewTask(1, "triple", "", input_sha256=sha256, kind="batch", batch={"format": "csv", "result_format": "csv", "size": size})
    )
    monkeypatch.setattr(tasks, "INLINE_BYTES", 0)
    monkeypatch.setattr(blobs.Blobs, "put", no_put)
    monkeypatch.setattr(batch_run._Result, "settle", no_settle)
    refused = gateway.submit(gateway.ann)
    assert refused.status_code == 507 and refused.get_json()["code"] == "insufficient_capacity"
    with gateway.worker():
        for each in (task_id, batch.id):
            eventually(lambda each=each: (gateway.services.storage.tasks.get(each) or batch).waits > 0, "it is put off", 20)  # type: ignore[misc]
            found = gateway.task(gateway.ann, each)
            assert found["state"] in ("queued", "running") and found["attempts"] <= 1, found
        is_full.clear()
        assert {gateway.ended(gateway.ann, each)["state"] for each in (task_id, batch.id)} == {"succeeded"}


def quick(gateway: Working) -> Any:
    return gateway.client.post("/v1/models/triple/predictions", json={"inputs": {"x": [[1, 2]]}}, headers=gateway.ann)


def test_a_locked_database_keeps_what_is_over(gateway: Working, long: bool, figure: Record) -> None:
    """Somebody holds the write lock for longer than anybody waits for it: a second and a tenth, with --long ten and five as it is."""
    storage, locked_s = gateway.services.storage, 10.0 if long else 1.0
    ids = [gateway.submit(gateway.ann).get_json()["id"] for _ in range(20)]
    if not long:
        storage.database._busy_timeout_s = 0.1  # of connections that are opened from here on
        for db in storage.database._idle:
            db.execute("pragma busy_timeout = 100")
    with gateway.worker():
        other = sqlite3.connect(gateway.services.settings.state_dir / "outboard.db", isolation_level=None, timeout=30.0)
        other.execute("begin immediate")
        began = time.monotonic()
        refused, answers = [], []
        while time.monotonic() < began + locked_s:
            refused.append(gateway.submit(gateway.ann))
            answers.append(quick(gateway))
        other.execute("rollback")
        other.close()
        for answer in refused:
            assert answer.status_code == 503 and answer.headers["Retry-After"] and answer.get_json()["code"] == Code.UNAVAILABLE.value
        assert {answer.status_code for answer in answers} == {200}, "who only reads is not held up"
        assert {gateway.ended(gateway.ann, each)["state"] for each in ids} == {"succeeded"}
    ends = [event.state for each in ids for event in storage.tasks.events(each, 0)]
    assert ends.count("succeeded") == 20 and len(gateway.client.get("/v1/tasks", headers=gateway.ann).get_json()["items"]) == 20
    figure(
        f"database locked for {locked_s:g} s: {len(refused)} submissions refused, {len(answers)} quick calls answered, 20 tasks each ended once"
    )


def test_a_model_host_that_is_gone_costs_no_attempt(tmp_path: Path, long: bool, figure: Record) -> None:
    """For two seconds, or with --long for a minute."""
    models, gone_s = tmp_path / "models", 60.0 if long else 2.0
    times(models / "triple" / "1" / "model.onnx", 3)

    def start() -> Process:
        made = start_server(models, tmp_path, "--thrift-socket", str(tmp_path / "t.sock"))
        made.addresses["socket"] = str(tmp_path / "t.sock")
        return made

    host = start()
    with working(host, tmp_path) as gateway:
        ids = [gateway.submit(gateway.ann).get_json()["id"] for _ in range(30)]
        form = {"model": "triple", "file": (io.BytesIO(b"a,b\n" + b"1,2\n" * 1000), "a.csv")}
        batch_id = gateway.client.post("/v1/batches", data=form, headers=gateway.ann).get_json()["id"]
        host.stop()
        began, answers = time.monotonic(), 0
        with gateway.worker():
            eventually(lambda: any(gateway.task(gateway.ann, each)["started_at"] for each in ids), "they were tried", 20)
            while time.monotonic() < began + gone_s:
                refused, answers = quick(gateway), answers + 1
                assert refused.status_code == 503 and refused.headers["Retry-After"] and refused.get_json()["code"] == "unavailable"
                assert gateway.submit(gateway.ann, model="triple").status_code in (202, 503)
                assert {gateway.task(gateway.ann, each)["state"] for each in (*ids, batch_id)} <= {"queued", "running"}
                threading.Event().wait(0.2)
            host = start()
            found = [gateway.ended(gateway.ann, each) for each in ids]
            assert gateway.ended(gateway.ann, batch_id)["state"] == "succeeded"
        assert {(task["state"], task["attempts"]) for task in found} == {("succeeded", 1)}
    host.stop()
    figure(
        f"model host gone for {gone_s:g} s: {answers} quick calls refused with retry-after, 30 tasks and a batch kept, no attempt counted"
    )


def test_a_full_disk_is_told_when_the_input_is_large(gateway: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise ServingError(Code.INSUFFICIENT_CAPACITY, "the disk is full")

    monkeypatch.setattr(blobs.Blobs, "put", full)
    body = {"inputs": {"features": [[1.5, 2, 3, 4]] * 5000}}
    answer = gateway.client.post("/v1/models/rows/predictions", json=body, headers={**gateway.ann, "Prefer": "respond-async"})
    assert answer.status_code == 507 and gateway.services.storage.tasks.sizes()["queued"] == 0
