"""Pages of tasks and batches: lists with filters, one of each, what may be done to them and by whom."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway.clock import to_text
from gateway.context import Services
from gateway.operations.tasks import Target
from gateway.pages import batches, work
from gateway.storage.task_records import RESULT, TaskEvent, TaskRecord
from gateway.storage.tasks import NewTask
from gateway.types import Principal, Role
from tests.gateway.conftest import SetClock
from tests.pages.test_frame import register, sign_in, token

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def ann(client: FlaskClient, services: Services) -> Principal:
    """Signed in with `client`."""
    register(services)
    sign_in(client)
    user = services.storage.users.by_name("ann")
    assert user is not None
    return Principal(user.id, user.name, Role.USER)


def submit(services: Services, who: Principal, model: str = "triple") -> TaskRecord:
    body = json.dumps({"inputs": {"x": [[1, 2]]}}).encode()
    return services.tasks.submit(who, Target(model), body, "application/json")


def end(services: Services, task: TaskRecord, state: str = "succeeded", result: bytes = b"", **columns: Any) -> None:
    """As a worker would."""
    at = services.now()
    values = {
        "state": state,
        "started_at": to_text(at),
        "finished_at": to_text(at),
        "expires_at": to_text(at + timedelta(days=1)),
        **columns,
    }
    with services.storage.database.write() as db:
        db.execute(f"update tasks set {', '.join(f'{name} = ?' for name in values)} where id = ?", [*values.values(), task.id])
        if task.kind == "prediction":
            db.execute("insert into task_bodies (task_id, part, body) values (?, ?, ?)", [task.id, RESULT, result])


def sent(services: Services, who: Principal, name: str = "rows.csv", rows: bytes = b"a,b\n1,2\nx,1\n") -> TaskRecord:
    sha256, size = services.storage.blobs.put([rows], services.now())
    columns = {"format": "csv", "result_format": "csv", "file_name": name, "size": size}
    return services.tasks.add(NewTask(who.user_id, "triple", "", input_sha256=sha256, kind="batch", batch=columns))


def answer(services: Services, task: TaskRecord, result: bytes, done: int, failed: int) -> None:
    sha256, _ = services.storage.blobs.put([result], services.now())
    end(services, task, result_sha256=sha256, result_type="text/csv")
    with services.storage.database.write() as db:
        sql = "update batches set rows_total = ?, rows_done = ?, rows_failed = ? where task_id = ?"
        db.execute(sql, [done, done, failed, task.id])


def shown(client: FlaskClient, path: str) -> list[str]:
    """The tasks in a list, by id."""
    page = client.get(path)
    assert page.status_code == 200, page.text
    return re.findall(r'id="(?:task)-([0-9a-f]{32})"', page.text)


def post(client: FlaskClient, path: str, **fields: Any) -> Any:
    return client.post(path, data={"form_token": token(client.get("/ui/tasks")), **fields})


def test_a_list_with_filters_and_pages(client: FlaskClient, services: Services, ann: Principal, time_of_day: SetClock) -> None:
    assert "No task yet" in client.get("/ui/tasks").text and "No batch yet" in client.get("/ui/batches").text
    tasks = []
    for number in range(work.SHOWN + 3):
        tasks.append(submit(services, ann, "other" if number == 0 else "triple"))
        time_of_day.advance(1)
    ids = [task.id for task in reversed(tasks)]
    assert shown(client, "/ui/tasks") == ids[: work.SHOWN]
    page = client.get("/ui/tasks").text
    (following,) = re.findall(r'rel="next" href="([^"]+)"', page)
    assert 'rel="prev"' not in page and shown(client, following.replace("&amp;", "&")) == ids[work.SHOWN :]
    (back,) = re.findall(r'rel="prev" href="([^"]+)"', client.get(following).text)
    assert shown(client, back.replace("&amp;", "&")) == ids[: work.SHOWN]
    assert shown(client, "/ui/tasks?model=other") == [tasks[0].id]
    end(services, tasks[1], "failed", error_code="invalid_input", error_message=HOSTILE)
    assert shown(client, "/ui/tasks?state=failed") == [tasks[1].id] and shown(client, "/ui/tasks?state=paused") == []
    assert "<script>alert" not in client.get("/ui/tasks?state=failed").text
    assert "No task like that" in client.get("/ui/tasks?state=paused").text
    batch = sent(services, ann)
    assert shown(client, "/ui/tasks?kind=batch") == shown(client, "/ui/batches") == [batch.id]
    missing = client.get("/ui/tasks?deployment=nobody.d")
    assert missing.status_code == 200 and "there is no deployment" in missing.text and shown(client, "/ui/tasks?deployment=nobody.d") == []


def test_days_are_those_of_the_reader(client: FlaskClient, services: Services, ann: Principal) -> None:
    task = submit(services, ann)  # 2026-11-21 04:05 in UTC
    assert shown(client, "/ui/tasks?since=2026-11-21&until=2026-11-21") == [task.id]
    assert shown(client, "/ui/tasks?until=2026-11-20") == [] and shown(client, "/ui/tasks?since=2026-11-22") == []
    assert shown(client, "/ui/tasks?until=2026-11-20&zone=300") == [task.id], "in New York it is the day before"
    assert "is no day" in client.get("/ui/tasks?since=soon").text


def test_what_has_come_since_is_told_and_not_put_in(client: FlaskClient, services: Services, ann: Principal, time_of_day: SetClock) -> None:
    first = submit(services, ann)
    (again,) = re.findall(r'hx-get="(/ui/tasks/now[^"]+)"', client.get("/ui/tasks").text)
    again = again.replace("&amp;", "&")
    assert shown(client, again) == [first.id] and "come since" not in client.get(again).text
    time_of_day.advance(1)
    second = submit(services, ann)
    services.tasks.cancel(ann, first.id)
    page = client.get(again).text
    assert shown(client, again) == [first.id] and "Show what has come since: 1" in page and 'data-state="cancelled"' in page
    assert shown(client, "/ui/tasks") == [second.id, first.id]


def test_one_task(client: FlaskClient, services: Services, ann: Principal) -> None:
    task = submit(services, ann, HOSTILE)
    page = client.get(f"/ui/tasks/{task.id}")
    assert page.status_code == 200 and 'hx-trigger="every 1s"' in page.text and f"/v1/tasks/{task.id}/input" in page.text
    assert "<script>alert" not in page.text and "/result" not in page.text
    assert client.get(f"/ui/tasks/{task.id}/now").status_code == 200
    end(services, task, "failed", error_code="model_failed", error_message="it broke")
    last = client.get(f"/ui/tasks/{task.id}/now")
    assert last.status_code == 286 and "every 1s" not in last.text, "htmx asks no more"
    assert "it broke" in last.text and "model_failed" in last.text and f"Request {task.id}" in last.text and "Try again" in last.text
    other = submit(services, ann)
    end(services, other, result=b"{}")
    assert f'data-view="/v1/tasks/{other.id}/result"' in client.get(f"/ui/tasks/{other.id}").text
    assert client.get(f"/v1/tasks/{other.id}/input").get_json() == {"inputs": {"x": [[1, 2]]}}
    batch = sent(services, ann)
    assert client.get(f"/ui/tasks/{batch.id}").headers["Location"] == f"/ui/batches/{batch.id}"
    assert client.get(f"/ui/batches/{task.id}").status_code == 404


def test_cancel_retry_and_delete(client: FlaskClient, services: Services, ann: Principal) -> None:
    task = submit(services, ann)
    assert post(client, f"/ui/tasks/{task.id}/delete").status_code == 409
    refused = post(client, f"/ui/tasks/{task.id}/retry")
    assert refused.status_code == 409 and "only a task that has failed" in refused.text and "Cancel" in refused.text
    assert client.post(f"/ui/tasks/{task.id}/cancel").status_code == 403, "without a form's token"
    assert post(client, f"/ui/tasks/{task.id}/cancel").headers["Location"] == f"/ui/tasks/{task.id}"
    again = post(client, f"/ui/tasks/{task.id}/retry").headers["Location"]
    new = services.tasks.get(ann, again.rpartition("/")[2])
    assert (new.retry_of, new.state) == (task.id, "queued") and task.id in client.get(again).text
    assert post(client, f"/ui/tasks/{task.id}/delete").headers["Location"] == "/ui/tasks"
    assert client.get(f"/ui/tasks/{task.id}").status_code == 404
    assert post(client, f"/ui/tasks/{new.id}/explode").status_code == 404


def test_several_at_once(client: FlaskClient, services: Services, ann: Principal) -> None:
    waiting, over = submit(services, ann), submit(services, ann)
    end(services, over)
    answer_ = post(client, "/ui/tasks/several", task=[waiting.id, over.id, "nothing"], verb="cancel", next="/ui/tasks?state=queued")
    assert answer_.headers["Location"] == "/ui/tasks?state=queued&cancelled=1&kept=2"
    assert "Asked to end: 1." in client.get(answer_.headers["Location"]).text
    assert services.tasks.get(ann, waiting.id).state == "cancelled"
    answer_ = post(client, "/ui/tasks/several", task=[waiting.id, over.id], verb="delete", next="//evil.example")
    assert answer_.headers["Location"] == "/ui/tasks?deleted=2&kept=0" and shown(client, "/ui/tasks") == []
    assert post(client, "/ui/tasks/several", task=[over.id], verb="own").status_code == 400


def test_counts_in_an_address_are_anybodys(client: FlaskClient, ann: Principal) -> None:
    for path in ("/ui/tasks", "/ui/batches"):
        for odd in ("9" * 5000, "²", "%FF", "-1"):
            assert client.get(f"{path}?cancelled={odd}&kept={odd}").status_code == 200, (path, odd[:9])


def test_what_is_somebody_elses_is_not_there(client: FlaskClient, services: Services, ann: Principal) -> None:
    bob = Principal(services.users.register("bob", "correct horse battery").id, "bob", Role.USER)
    task, batch = submit(services, bob), sent(services, bob)
    for path in (
        f"tasks/{task.id}",
        f"tasks/{task.id}/now",
        f"tasks/{task.id}/notices",
        f"batches/{batch.id}",
        f"batches/{batch.id}/failures",
    ):
        assert client.get(f"/ui/{path}").status_code == 404, path
    for path in (f"tasks/{task.id}/cancel", f"batches/{batch.id}/cancel"):
        assert post(client, f"/ui/{path}").status_code == 404, path
    assert post(client, "/ui/tasks/several", task=[task.id], verb="cancel").headers["Location"].endswith("cancelled=0&kept=1")
    assert shown(client, "/ui/tasks") == shown(client, "/ui/batches") == shown(client, "/ui/tasks?all=1") == []
    assert services.tasks.get(bob, task.id).state == "queued"


def test_one_batch_with_rows_that_failed(client: FlaskClient, services: Services, ann: Principal) -> None:
    batch = sent(services, ann, f"{HOSTILE}.csv")
    assert 'hx-trigger="every 1s"' in client.get(f"/ui/batches/{batch.id}").text
    assert post(client, f"/ui/batches/{batch.id}/pause").status_code == 303
    assert "Resume" in client.get(f"/ui/batches/{batch.id}").text
    assert post(client, f"/ui/batches/{batch.id}/resume").status_code == 303
    bad = "".join(f'{number},"invalid_input: cell {HOSTILE} {number}",\r\n' for number in range(2, 32))
    answer(services, batch, f"row,error,y\r\n1,,2.5\r\n{bad}".encode(), 31, 30)
    page = client.get(f"/ui/batches/{batch.id}").text
    assert f"/v1/batches/{batch.id}/result" in page and f"/v1/batches/{batch.id}/failures/file" in page and "<script>alert" not in page
    part = client.get(f"/ui/batches/{batch.id}/failures", headers={"HX-Request": "true"}).text
    assert part.count("<tr>") == 21 and "<script>" not in part and "<html" not in part
    (more,) = re.findall(r'hx-get="([^"]+)"', part)
    rest = client.get(more.replace("&amp;", "&")).text
    assert rest.count("<tr>") == 11 and "<html" in rest, "without script it is a page"
    seen = client.get(f"/ui/batches/{batch.id}/summary", headers={"HX-Request": "true"}).text
    assert "Of all 31 rows" in seen and "<rect" in seen
    assert HOSTILE not in client.get("/ui/batches").text


def test_a_new_batch(client: FlaskClient, services: Services, ann: Principal) -> None:
    page = client.get("/ui/batches/new?model=triple")
    assert page.status_code == 200 and 'value="model:triple" selected' in page.text and "is not known now" in page.text
    assert client.get("/ui/batches/new?deployment=ann.nothing").status_code == 404
    assert "Choose what answers first" in client.get("/ui/batches/expected").text


def test_how_fast_a_batch_gets_on(services: Services, ann: Principal) -> None:
    task = sent(services, ann)
    row = services.storage.batches.get(task.id)
    now = services.now()
    assert row is not None

    def event(seconds_ago: float, progress: float, state: str = "running") -> TaskEvent:
        return TaskEvent(1, to_text(now - timedelta(seconds=seconds_ago)), state, progress)

    def of(state: str, done: int, progress: float, *events: TaskEvent) -> tuple[Any, Any]:
        columns: dict[str, Any] = {"state": state, "progress": progress}
        found = batches.pace(replace(task, **columns), replace(row, rows_done=done), list(events), now)
        return found.rate, found.left

    assert of("queued", 0, 0.0) == (None, None)
    paused = (event(500, 0.0), event(400, 0.2), event(300, 0.2, "paused"))
    rate, left = of("running", 500, 0.5, *paused, event(10, 0.3), event(5, 0.4))
    assert rate == pytest.approx(20) and left == pytest.approx(25), "the pause does not count"
    assert of("running", 500, 0.5, event(0.1, 0.49)) == (None, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0123, "12 ms"), (1.25, "1.2 s"), (61, "1 min 1 s"), (3720, "1 h 2 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert work.span(seconds) == text
