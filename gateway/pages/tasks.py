"""Tasks: the list of them, live, and one with what went in and what came out."""

from dataclasses import dataclass
from typing import Any

from werkzeug.wrappers import Response

from gateway import clock
from gateway.context import services
from gateway.errors import STATUS
from gateway.operations.tasks import is_own
from gateway.pages import work
from gateway.pages.deployment_places import render_tab
from gateway.pages.frame import Pages, go, is_part, me, render
from gateway.storage.task_records import BATCH, STATES, TaskEvent, TaskRecord
from gateway.storage.webhooks import PENDING
from idl.codes import Code, ServingError

_pages = Pages("tasks")
blueprint = _pages.blueprint
_STOP_POLLING = 286
"""htmx puts the answer in and asks no more."""


@_pages.page("/ui/tasks")
def tasks() -> Response:
    chosen = work.asked()
    done = work.told()
    values = {**_list(chosen), "deployment_names": work.choices(chosen), "states": STATES, "done": done}
    if chosen.deployment is not None and not is_part():
        return render_tab("tasks/of-deployment.html", chosen.deployment, "tasks", **values)
    return work.pushed(render("tasks/page.html", **values), work.TASKS, chosen)


@_pages.page("/ui/tasks/now")
def tasks_now() -> Response:
    """The same rows again as they are now, and how many have come since."""
    return render("tasks/now.html", **_list(work.asked()))


def _list(chosen: work.Filter) -> dict[str, Any]:
    found, now = work.listed(chosen), services().now()
    everybodys = chosen.wanted.everybodys
    return {
        "chosen": chosen,
        "listed": found,
        "times": {task.id: work.times(task, now) for task in found.tasks},
        "names": work.names(found.tasks) if everybodys else {},
        **WORDS,
    }


WORDS: dict[str, Any] = {"task_at": work.task_at, "span": work.span}


@_pages.page("/ui/tasks/several", "POST")
def several() -> Response:
    """Cancels or deletes those that were chosen."""
    return work.several(work.TASKS)


@_pages.page("/ui/tasks/<task_id>")
def task(task_id: str) -> Response:
    found = services().tasks.read(me(), task_id)
    return go(work.task_at(found)) if found.kind == BATCH else _page(found)


def _page(found: TaskRecord, error: ServingError | None = None) -> Response:
    values = {"error": error, "notices": _notices(found)}
    return render("tasks/task.html", STATUS[error.code] if error else 200, **_one(found), **values)


@_pages.page("/ui/tasks/<task_id>/now")
def task_now(task_id: str) -> Response:
    """What of it changes while one looks."""
    found = services().tasks.read(me(), task_id)
    return render("tasks/task-now.html", _STOP_POLLING if found.is_over else 200, **_one(found))


@_pages.page("/ui/tasks/<task_id>/notices")
def task_notices(task_id: str) -> Response:
    found = services().tasks.read(me(), task_id)
    return render("tasks/notices.html", task=found, notices=_notices(found))


def _notices(found: TaskRecord) -> dict[str, Any]:
    sent = services().webhooks.of_task(me(), found)
    return {"sent": sent, "open": not found.is_over or any(delivery.state == PENDING for _, delivery in sent)}


def _one(found: TaskRecord) -> dict[str, Any]:
    owned = services()
    submitter = owned.storage.users.by_id(found.user_id, deleted=True) if found.user_id != me().user_id else None
    return {
        "task": found,
        "steps": steps(owned.tasks.events(found.id, 0)),
        "times": work.times(found, owned.now()),
        "may": is_own(me(), found),
        "submitter": submitter.name if submitter else "",
        "code": error_code(found),
        **WORDS,
    }


def error_code(found: TaskRecord) -> Code | None:
    """Of one that failed."""
    try:
        return Code(found.error_code) if found.error_code else None
    except ValueError:
        return Code.INTERNAL


@dataclass(frozen=True, slots=True)
class Step:
    """A state that a task came to at `at`, `after` seconds in the one before."""

    state: str
    at: str
    after: float


def steps(events: list[TaskEvent]) -> list[Step]:
    """Its states one after the other."""
    begun = [event for place, event in enumerate(events) if place == 0 or events[place - 1].state != event.state]
    moments = [clock.from_text(event.at) for event in begun]
    return [Step(event.state, event.at, (moments[place] - moments[max(0, place - 1)]).total_seconds()) for place, event in enumerate(begun)]


@_pages.page("/ui/tasks/<task_id>/<verb>", "POST")
def change(task_id: str, verb: str) -> Response:
    """Cancels, retries or deletes it."""
    try:
        changed = work.one(task_id, verb)
    except ServingError as error:
        if error.code in (Code.NOT_FOUND, Code.FORBIDDEN):
            raise
        return _page(services().tasks.read(me(), task_id), error)
    return go(work.TASKS if changed is None else work.task_at(changed))
