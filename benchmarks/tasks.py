"""Tasks and batches: how many a second, and what a submission takes while many wait. `python -m benchmarks.tasks` prints a table.

One gateway without nginx (two uWSGI workers), one model host, a tiny model; callers are threads with a connection for each request, as uWSGI's own port has it.
"""

import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from gateway.settings import Settings
from gateway.storage import Storage
from tests.gateway.conftest import PASSWORD, spawn, start_gateway
from tests.onnx_models import times
from tests.processes import free_port, start_server

CALLERS = 8
TASKS = 10_000
ROWS = 100_000
ONE_BY_ONE = 2000


class Caller:
    def __init__(self, port: int, token: str = "") -> None:
        self._port, self._token = port, token

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        given = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        signed = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        connection.request(method, path, given, {"Content-Type": kind, **signed, **headers})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content


def in_threads(count: int, each: Any) -> float:
    """Seconds until `each(number)` has been called for all numbers, by CALLERS threads."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            each(number)

    threads = [threading.Thread(target=work) for _ in range(CALLERS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times(folder / "models" / "tiny" / "1" / "model.onnx", 3, ("batch", 8))
        host = start_server(folder / "models", folder, "--thrift-socket", str(folder / "t.sock"))
        settings = Settings(data_dir=folder / "data", model_hosts=(f"thrift+unix://{folder / 't.sock'}",), http_port=free_port(), workers=0)
        gateway = start_gateway(settings)
        try:
            measure(settings)
        finally:
            gateway.program.stop()
            host.stop()
    return 0


def measure(settings: Settings) -> None:
    anybody = Caller(settings.http_port)
    anybody.ask("POST", "/v1/users", {"username": "ann", "password": PASSWORD})
    token = json.loads(anybody.ask("POST", "/v1/tokens", {"username": "ann", "password": PASSWORD})[1])["access_token"]
    ann = Caller(settings.http_port, token)
    body = {"inputs": {"x": [[1, 2, 3, 4, 5, 6, 7, 8]]}}
    took: list[float] = []

    def submit(_: int) -> None:
        began = time.perf_counter()
        status, content = ann.ask("POST", "/v1/models/tiny/predictions", body, Prefer="respond-async")
        took.append(time.perf_counter() - began)
        assert status == 202, content

    seconds = in_threads(TASKS, submit)
    print(f"tasks submitted/s, {CALLERS} callers: {TASKS / seconds:,.0f}")
    took.clear()
    in_threads(1000, submit)
    took.sort()
    print(f"submission while {TASKS:,} wait: p50 {1000 * statistics.median(took):.1f} ms, p99 {1000 * took[int(len(took) * 0.99)]:.1f} ms")
    worker = spawn([sys.executable, "-m", "gateway.worker"], settings.to_env())
    try:
        worker.wait_for('"worker_ready"')
        completed(settings)
        batches(ann)
    finally:
        worker.stop()


def completed(settings: Settings) -> None:
    """The rate from the first look at the queue until it is empty."""
    storage = Storage(settings.state_dir)
    waiting = storage.tasks.sizes()["queued"]
    began = time.perf_counter()
    while storage.tasks.sizes()["queued"] > 0:
        time.sleep(0.05)
    print(f"tasks completed/s: {waiting / (time.perf_counter() - began):,.0f}")
    storage.close()


def batches(ann: Caller) -> None:
    line = ",".join("12345678")
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    form += (",".join("abcdefgh") + "\n" + (line + "\n") * ROWS).encode() + b"\r\n--b--\r\n"
    began = time.perf_counter()
    status, content = ann.ask("POST", "/v1/batches", form, "multipart/form-data; boundary=b")
    assert status == 202, content
    batch = json.loads(content)
    while batch["state"] in ("queued", "running"):
        batch = json.loads(ann.ask("GET", f"/v1/batches/{batch['id']}?wait=25")[1])
    assert batch["state"] == "succeeded" and batch["rows_failed"] == 0, batch
    print(f"batch rows/s, {ROWS:,} rows of csv: {ROWS / (time.perf_counter() - began):,.0f}")
    body = {"inputs": {"x": [[1, 2, 3, 4, 5, 6, 7, 8]]}}

    def call(_: int) -> None:
        assert ann.ask("POST", "/v1/models/tiny/predictions", body)[0] == 200

    began = time.perf_counter()
    for number in range(ONE_BY_ONE):
        call(number)
    print(f"the same rows called one by one, one caller: {ONE_BY_ONE / (time.perf_counter() - began):,.0f}")
    print(f"the same, {CALLERS} callers: {ONE_BY_ONE / in_threads(ONE_BY_ONE, call):,.0f}")


if __name__ == "__main__":
    sys.exit(main())
