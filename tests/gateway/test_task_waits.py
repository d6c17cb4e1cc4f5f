"""Waiting for tasks over real HTTP: uWSGI's threads are free while callers wait."""

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace

from gateway.settings import Settings
from gateway.storage import Storage
from tests.eventually import eventually
from tests.gateway.conftest import PASSWORD, Gateway, spawn
from tests.processes import Process, free_port

Start = Callable[[Settings], Gateway]


def ask(
    gateway: Gateway, path: str, headers: dict[str, str], body: object = None, method: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(gateway.url(path), data, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_more_callers_wait_than_there_are_threads(settings: Settings, gateways: Start, host: Process) -> None:
    settings = replace(settings, http_port=free_port(), processes=1, threads=2, workers=0, model_hosts=(f"thrift+unix://{host['socket']}",))
    gateway = gateways(settings)
    assert ask(gateway, "/v1/users", {}, {"username": "ann", "password": PASSWORD})[0] == 201
    token = json.loads(ask(gateway, "/v1/tokens", {}, {"username": "ann", "password": PASSWORD})[2])["access_token"]
    ann = {"Authorization": f"Bearer {token}"}
    body = {"inputs": {"x": [[1, 2]]}}
    status, _, content = ask(gateway, "/v1/models/triple/predictions", {**ann, "Prefer": "respond-async"}, body)
    assert status == 202, content
    task_id, answers = json.loads(content)["id"], list[tuple[int, dict[str, str], bytes]]()

    def wait(path: str, headers: dict[str, str], given: object = None) -> None:
        answers.append(ask(gateway, path, {**ann, **headers}, given))

    asked = [(f"/v1/tasks/{task_id}?wait=25", {}, None)] * 5 + [(f"/v1/tasks/{task_id}/events", {}, None)] * 5
    asked += [("/v1/models/triple/predictions", {"Prefer": "wait=25"}, body)] * 5
    threads = [threading.Thread(target=wait, args=each) for each in asked]
    for thread in threads:
        thread.start()
    storage = Storage(settings.state_dir)
    eventually(lambda: storage.tasks.sizes()["queued"] == 6, "all of them are there", 20)
    began = time.monotonic()
    for _ in range(10):
        assert ask(gateway, "/v1/errors", {})[0] == 200
    assert time.monotonic() - began < 5 and not answers, "quick calls are answered while fifteen callers wait for two threads"

    worker = spawn([sys.executable, "-m", "gateway.worker"], settings.to_env())
    try:
        for thread in threads:
            thread.join(30)
        assert [status for status, _, _ in answers] == [200] * 15
        kinds = sorted(headers["Content-Type"] for _, headers, _ in answers)
        assert kinds == ["application/json"] * 10 + ["text/event-stream"] * 5
        for _, headers, content in answers:
            assert headers["X-Request-Id"] and headers["Connection"] == "close"
            if headers["Content-Type"] == "text/event-stream":
                assert [line for line in content.decode().splitlines() if line.startswith("event: ")] == [
                    *("event: queued", "event: running", "event: succeeded"),
                ]
            else:
                made = json.loads(content)
                assert made.get("state") == "succeeded" or made["outputs"] == {"y": [[3.0, 6.0]]}
    finally:
        assert worker.stop() == 0, worker.log
        storage.close()
    assert gateway.program.stop() == 0, gateway.program.log
