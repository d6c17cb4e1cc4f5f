"""`/v1/tasks`: what runs without its caller waiting."""

import json
import re
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, request
from werkzeug.wrappers import Response
from werkzeug.wsgi import wrap_file

from gateway import clock
from gateway.blueprints import rest, task_waits
from gateway.blueprints.rest import Answer, Asked, Reply, Rest, page, page_of
from gateway.blueprints.task_shapes import PREDICTION_ANSWER, TASK, TASK_QUERY, WAIT
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations import task_notices
from gateway.operations.tasks import Result, Wanted
from gateway.shapes import Reasons, Whole, optional
from gateway.storage.task_records import TaskRecord
from gateway.types import Scope
from idl.codes import Code

blueprint = Blueprint("tasks", __name__)
routes = Rest(blueprint, "Tasks")
RESULT_TYPES = ("application/json", "text/csv", "application/x-ndjson")
INPUT_TYPES = (*RESULT_TYPES, "application/zip")
_MISSING = (Code.NOT_FOUND,)


@routes.route(
    "GET",
    "/v1/tasks",
    "One's own tasks, the newest first",
    {200: Answer("a page", page_of("Tasks", TASK))},
    query={**rest.PAGE, **TASK_QUERY},
    errors=_MISSING,
)
def list_tasks(asked: Asked) -> Reply:
    wanted = wanted_of(asked)
    before = before_of(asked)
    found = services().tasks.page(asked.me, wanted, before, asked.limit + 1)
    return page(found, lambda task: [task.id], task_notices.spelled, asked.limit)


def wanted_of(asked: Asked, kind: str | None = None) -> Wanted:
    """What the query string asks for."""
    owned, query, deployment_id = services(), asked.query, None
    if "deployment" in query:
        deployment_id = owned.deployed.target(asked.me, query["deployment"]).id
    reasons: Reasons = {}
    since, until = (_moment(name, query.get(name), reasons) for name in ("since", "until"))
    if reasons:
        raise InvalidFields(reasons)
    return Wanted(query.get("state"), kind or query.get("kind"), query.get("model"), deployment_id, bool(query.get("all")), since, until)


def _moment(name: str, text: str | None, reasons: Reasons) -> datetime | None:
    """A moment of the query; one without a zone is of UTC."""
    if text is None:
        return None
    try:
        return max(clock.utc_from_text(text), datetime(1970, 1, 1, tzinfo=UTC))
    except (ValueError, OverflowError):
        reasons[name] = "is no moment in ISO 8601, such as 2026-11-21T08:30:00Z"
        return None


def before_of(asked: Asked) -> str | None:
    """The id that the page begins below."""
    after = asked.after
    if after is None:
        return None
    if len(after) != 1 or not isinstance(after[0], str):
        raise InvalidFields({"cursor": "is none that an answer gave"})
    return after[0]


@routes.route(
    "GET",
    "/v1/tasks/<task_id>",
    "A task's state; `wait` holds the answer back until it has ended",
    {200: Answer("the task", TASK)},
    query=WAIT,
    errors=_MISSING,
)
def read_task(asked: Asked, task_id: str) -> Response | Reply:
    task = services().tasks.read(asked.me, task_id)
    return waited(asked, task)


def waited(asked: Asked, task: TaskRecord, spell: Any = task_notices.spelled) -> Response | Reply:
    """The task, at its end or when the caller's time is over."""
    owned = services()
    wait_s = min(float(asked.query.get("wait", 0)), owned.settings.request_timeout_s)
    if task.is_over or wait_s <= 0:
        return Reply(spell(task))
    return task_waits.at_its_end(owned, task, wait_s, lambda found: as_json(spell(found)), request.path)


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The same answer without a request's context."""
    head = {"Cache-Control": "no-store", **(headers or {})}
    return Response(json.dumps(value, allow_nan=False), status, head, content_type="application/json")


@routes.route(
    "GET",
    "/v1/tasks/<task_id>/result",
    "What a task has made",
    {200: Answer("the result", PREDICTION_ANSWER, RESULT_TYPES)},
    errors=(*_MISSING, Code.CONFLICT, Code.GONE),
)
def read_result(asked: Asked, task_id: str) -> Response:
    return result_answer(services().tasks.result(asked.me, task_id))


def attachment(name: str) -> dict[str, str]:
    """Headers of an answer that a browser saves as a file."""
    return {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{re.sub(r"[^A-Za-z0-9._-]", "_", name)}"'}


def result_answer(result: Result, file_name: str = "") -> Response:
    """The result's content, a large one from its file."""
    headers = attachment(file_name) if file_name else {"Cache-Control": "no-store"}
    if result.content is not None:
        return Response(result.content, 200, headers, content_type=result.content_type)
    assert result.sha256 is not None
    blobs = services().storage.blobs
    file = blobs.open(result.sha256)
    headers["Content-Length"] = str(blobs.path(result.sha256).stat().st_size)
    return Response(wrap_file(request.environ, file, 1 << 16), 200, headers, content_type=result.content_type, direct_passthrough=True)


@routes.route(
    "GET",
    "/v1/tasks/<task_id>/input",
    "What a task was asked with: a prediction's body as JSON, files as base64; of a batch its file",
    {200: Answer("the input", None, INPUT_TYPES)},
    errors=(*_MISSING, Code.GONE),
)
def read_input(asked: Asked, task_id: str) -> Response:
    return result_answer(services().tasks.input(asked.me, task_id))


@routes.route(
    "GET",
    "/v1/tasks/<task_id>/events",
    "What happens to a task, as server-sent events; Last-Event-ID, or `after`, goes on after an event",
    {
        200: Answer("a stream of events named after states, each with its id", None, (task_waits.EVENT_STREAM,)),
        204: Answer("nothing more will come"),
    },
    query={"after": optional(Whole(), "the id of the last event that is known")},
    errors=_MISSING,
)
def read_events(asked: Asked, task_id: str) -> Response | Reply:
    owned = services()
    task = owned.tasks.read(asked.me, task_id)
    after = max(int(asked.query.get("after", 0)), _last_event_id())
    if task.is_over and after and not owned.tasks.events(task.id, after):
        return Reply(None, 204)  # a browser does not come back then (HTML, "Server-sent events")
    return task_waits.events(owned, task.id, after)


def _last_event_id() -> int:
    text = request.headers.get("Last-Event-ID", "").strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 17):
        raise InvalidFields({"Last-Event-ID": "must be the id of an event"})
    return int(text)


@routes.route(
    "POST",
    "/v1/tasks/<task_id>/cancel",
    "Ends a task that has not ended",
    {200: Answer("the task; one that runs ends a moment later", TASK)},
    scope=Scope.CALL,
    errors=(*_MISSING, Code.FORBIDDEN, Code.CONFLICT),
)
def cancel_task(asked: Asked, task_id: str) -> Reply:
    return Reply(task_notices.spelled(services().tasks.cancel(asked.me, task_id)))


@routes.route(
    "POST",
    "/v1/tasks/<task_id>/retry",
    "A new task with the input of one that has failed, expired or was cancelled",
    {202: Answer("the new task", TASK)},
    scope=Scope.CALL,
    errors=(*_MISSING, Code.CONFLICT, Code.GONE, Code.FORBIDDEN, Code.DEPLOYMENT_PAUSED),
    creates=True,
)
def retry_task(asked: Asked, task_id: str) -> Reply:
    task = services().tasks.retry(asked.me, task_id)
    return Reply(task_notices.spelled(task), 202, {"Location": f"/v1/tasks/{task.id}"})


@routes.route(
    "DELETE",
    "/v1/tasks/<task_id>",
    "Removes a task that has ended, with its result",
    {204: Answer("it is gone")},
    scope=Scope.CALL,
    errors=(*_MISSING, Code.FORBIDDEN, Code.CONFLICT),
)
def delete_task(asked: Asked, task_id: str) -> Reply:
    services().tasks.delete(asked.me, task_id)
    return Reply()
