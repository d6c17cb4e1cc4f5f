"""Deployments as they run: behind nginx, uWSGI and the event loops, with the worker as it is started, killed now and then."""

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.eventually import eventually
from tests.gateway.deployed_host import within
from tests.onnx_models import times
from tests.processes import Process, descendants, start_up

PASSWORD = "correct horse battery"


class Caller:
    """Somebody with a token, over real HTTP."""

    def __init__(self, stack: Process, name: str) -> None:
        self.base = stack["http"]
        self.name = name
        self.headers: dict[str, str] = {}
        self("POST", "/v1/users", {"username": name, "password": PASSWORD}, 201)
        token = self("POST", "/v1/tokens", {"username": name, "password": PASSWORD})["access_token"]
        self.headers = {"Authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        found, answer = self.asked(method, path, body)
        assert found == status, (method, path, found, answer)
        return answer

    def asked(self, method: str, path: str, body: Any = None, **more: str) -> tuple[int, Any]:
        headers = self.headers | more
        data = body if isinstance(body, bytes) else None
        if body is not None and data is None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        elif data is not None:
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
        request = urllib.request.Request(f"{self.base}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def infer(self, value: float = 2, name: str = "") -> tuple[int, Any]:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 0]}
        status, answer = self.asked("POST", f"/v2/models/{name or f'{self.name}.d'}/infer", {"inputs": [tensor]})
        return status, answer["outputs"][0]["data"][0] if status == 200 else answer

    def settled(self, state: str = "running") -> Any:
        def seen() -> Any:
            found = self("GET", "/v1/deployments/d")
            return found if found["state"] == state and found["settled"] else None

        return within(40, seen)


BOUNDARY = "b0undary"


def upload_rows(rows: str, **fields: str) -> bytes:
    return upload_content(rows.encode(), "file", "rows.csv", fields)


def upload(file: Path, **fields: str) -> bytes:
    return upload_content(file.read_bytes(), "model", "m.onnx", fields)


def upload_content(content: bytes, field: str, name: str, fields: dict[str, str]) -> bytes:
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode() for key, value in fields.items()]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
    return b"".join([*parts, head, content, f"\r\n--{BOUNDARY}--\r\n".encode()])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One of this module's own: what it kills, others need."""
    folder = tmp_path_factory.mktemp("deployments")
    times(folder / "models" / "triple" / "1" / "model.onnx", 3)
    env = {"OUTBOARD_ADMIN_PASSWORD": PASSWORD, "OUTBOARD_GATEWAY_WATCH_INTERVAL_S": "0.5"}
    made = start_up(folder / "data", "--no-demo", "--models", str(folder / "models"), **env)
    yield made
    assert made.stop(signal.SIGINT) == 0, made.log.read_text()


@pytest.fixture
def ann(stack: Process, tmp_path: Path) -> Caller:
    made = Caller(stack, f"ann{uuid.uuid4().hex[:8]}")
    made("POST", "/v1/models", upload(times(tmp_path / "2.onnx", 2), name="m"), 201)
    made("POST", "/v1/models/m/versions", upload(times(tmp_path / "5.onnx", 5)), 201)
    made("POST", "/v1/deployments", {"name": "d", "model": "m", "version": 1}, 201)
    return made


def worker_of(stack: Process) -> int:
    """The process of the task worker: whoever holds its lock."""
    data = Path(str(stack.log)).parent
    inode = (data / "run" / "worker-1.lock").stat().st_ino
    for pid in descendants(stack.process.pid):
        try:
            held = [entry.stat().st_ino for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if inode in held:
            return pid
    return 0


def test_over_every_way(stack: Process, ann: Caller) -> None:
    said = ann("POST", "/v1/deployments/d/predictions", {"inputs": {"x": [[2, 0]]}})  # while it starts
    assert said["outputs"] == {"y": [[4, 0]]}
    ann.settled()
    assert [ann.infer() for _ in range(20)] == [(200, 4.0)] * 20
    bob = Caller(stack, f"bob{uuid.uuid4().hex[:8]}")
    assert bob.infer(name=f"{ann.name}.d")[0] == bob.infer(name="nobody.d")[0] == 404
    ann("PATCH", "/v1/deployments/d", {"visibility": "public"})
    assert [bob.infer(name=f"{ann.name}.d") for _ in range(5)] == [(200, 4.0)] * 5
    ann("PATCH", "/v1/deployments/d", {"visibility": "private"})
    assert bob.infer(name=f"{ann.name}.d")[0] == 404, "at once, whichever process answers"
    ann("PATCH", "/v1/deployments/d", {"desired_state": "paused"})
    assert all(ann.infer()[0] == 409 for _ in range(10))
    ann.settled("paused")
    ann("PATCH", "/v1/deployments/d", {"desired_state": "running", "sleep_after_s": 1})
    assert ann.infer() == (200, 4.0)
    ann.settled("sleeping")
    started = time.monotonic()
    assert ann.infer() == (200, 4.0) and time.monotonic() - started < 10
    stats = within(10, lambda: (found := ann("GET", "/v1/deployments/d/stats")["total"])["requests"] >= 28 and found)
    assert stats["errors"] == {} and stats["latency_ms"]["p99"] > 0
    ann("PATCH", "/v1/deployments/d", {"sleep_after_s": None})
    assert bob.infer(name="triple") == (200, 6.0), "and the operators' models are everybody's who is signed in"


def test_tasks_and_a_batch_of_one_that_sleeps(stack: Process, ann: Caller) -> None:
    """Whoever does not wait for the answer does not wait for the waking either."""
    ann.settled()
    ann("PATCH", "/v1/deployments/d", {"sleep_after_s": 1})
    body = {"inputs": {"x": [[2, 0]]}}

    def ended(path: str) -> Any:
        return within(40, lambda: (found := ann("GET", f"{path}?wait=5"))["state"] not in ("queued", "running") and found)

    ann.settled("sleeping")
    status, task = ann.asked("POST", "/v1/deployments/d/predictions", body, Prefer="respond-async")
    assert status == 202 and task["deployment"] == f"{ann.name}.d" and task["state"] == "queued"
    task = ended(f"/v1/tasks/{task['id']}")
    assert (task["state"], task["attempts"]) == ("succeeded", 1) and ann("GET", task["result_url"])["outputs"] == {"y": [[4, 0]]}
    assert ann.asked("POST", "/v1/deployments/d/predictions", body, Prefer="wait=20")[1]["deployment"] == f"{ann.name}.d"
    ann.settled("sleeping")
    batch = ann("POST", "/v1/batches", upload_rows("a,b\n" + "2,0\n" * 50, deployment="d"), 202)
    batch = ended(f"/v1/batches/{batch['id']}")
    assert (batch["state"], batch["rows_done"], batch["rows_failed"]) == ("succeeded", 50, 0)
    ann("PATCH", "/v1/deployments/d", {"sleep_after_s": None})


def test_a_worker_that_is_killed_all_the_time(stack: Process, ann: Caller) -> None:
    """What is wanted comes to be between its deaths, and no call fails meanwhile."""
    ann.settled()
    stop, answers, killed = threading.Event(), [], [0]

    def ask() -> None:
        while not stop.is_set():
            answers.append(ann.infer())

    def kill() -> None:
        while not stop.wait(0.35):
            if pid := worker_of(stack):
                os.kill(pid, signal.SIGKILL)
                killed[0] += 1

    threads = [threading.Thread(target=each) for each in (ask, kill)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 1, 2):
            before = killed[0]
            ann("PATCH", "/v1/deployments/d", {"version": version})
            eventually(lambda before=before: killed[0] > before + 1, "its worker is killed meanwhile", 60)  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert killed[0] >= 3
    assert ann.settled()["serving_version"] == 2 and ann.infer() == (200, 10.0)
    assert {status for status, _ in answers} == {200} and {value for _, value in answers} <= {4.0, 10.0}
