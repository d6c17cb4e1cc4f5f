"""Tasks, their events and batches through nginx and uWSGI, with the worker that `outboard up` brings."""

import json
import urllib.request
from typing import Any

from tests.eventually import eventually
from tests.gateway.test_metrics import parse, value
from tests.processes import Process

BODY = {"inputs": {"x": [[1, 2]]}}


def ask(stack: Process, path: str, headers: dict[str, str], body: Any = None, kind: str = "application/json") -> tuple[int, Any, bytes]:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(stack["http"] + path, data, {"Content-Type": kind, **headers})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.headers, answer.read()


def batches_counted(stack: Process) -> float:
    """Those that succeeded."""
    return value(parse(ask(stack, "/metrics", {})[2].decode()), "tasks_total", kind="batch", state="succeeded")


def test_tasks_events_and_batches_through_nginx(stack: Process) -> None:
    _, _, content = ask(stack, "/v1/tokens", {}, {"username": "admin", "password": "correct horse battery"})
    admin = {"Authorization": f"Bearer {json.loads(content)['access_token']}"}
    status, headers, content = ask(stack, "/v1/models/triple/predictions", {**admin, "Prefer": "respond-async"}, BODY)
    assert status == 202 and headers["Location"] == f"/v1/tasks/{json.loads(content)['id']}"
    path = headers["Location"]
    status, headers, events = ask(stack, f"{path}/events", admin)
    assert status == 200 and headers["Content-Type"] == "text/event-stream"
    assert [line for line in events.decode().splitlines() if line.startswith("event: ")][-1] == "event: succeeded"
    assert json.loads(ask(stack, f"{path}?wait=20", admin)[2])["state"] == "succeeded"
    assert json.loads(ask(stack, f"{path}/result", admin)[2])["outputs"] == {"y": [[3.0, 6.0]]}
    status, headers, content = ask(stack, "/v1/models/triple/predictions", {**admin, "Prefer": "wait=20"}, BODY)
    assert status == 200 and headers["Preference-Applied"] == "wait=20" and json.loads(content)["outputs"] == {"y": [[3.0, 6.0]]}
    assert ask(stack, "/v1/models/triple/predictions", admin, BODY)[0] == 200
    rows = "a,b\n" + "".join(f"{number},1\n" for number in range(300))
    form = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntriple\r\n--b\r\n'
    form += f'Content-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n{rows}\r\n--b--\r\n'
    before = batches_counted(stack)
    status, _, content = ask(stack, "/v1/batches", admin, form.encode(), "multipart/form-data; boundary=b")
    assert status == 202
    batch = json.loads(ask(stack, f"/v1/batches/{json.loads(content)['id']}?wait=25", admin)[2])
    assert (batch["state"], batch["rows_done"], batch["rows_failed"]) == ("succeeded", 300, 0)
    status, headers, content = ask(stack, batch["result_url"], admin)
    assert headers["Content-Type"].startswith("text/csv") and content.decode().splitlines()[300] == '300,,"[897.0,3.0]"'
    eventually(lambda: batches_counted(stack) == before + 1, "it is counted, soon after its end", every_s=0.05)
