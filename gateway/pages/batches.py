"""Batches: the list of them, a new one, and one with its progress, the rows that failed and how its values are spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from flask import request
from flask_babel import gettext as _
from werkzeug.wrappers import Response

from gateway import clock
from gateway.context import services
from gateway.errors import STATUS
from gateway.operations import batch_views
from gateway.operations.access import Can
from gateway.operations.batch_views import Spread
from gateway.operations.deployment_changes import Wanted as WantedDeployments
from gateway.operations.tasks import is_own
from gateway.pages import work
from gateway.pages.deployment_places import Opened, opened, render_tab
from gateway.pages.frame import Pages, go, is_part, me, render
from gateway.pages.tasks import WORDS, error_code, steps
from gateway.storage.batches import BatchRecord
from gateway.storage.task_records import BATCH, RUNNING, STATES, TaskEvent, TaskRecord
from idl.codes import Code, ServingError
from idl.messages import TensorSpec

_pages = Pages("batches")
blueprint = _pages.blueprint
_STOP_POLLING = 286
_FAILED_SHOWN = 20
_RECENT_EVENTS = 15
_MOST_CHOICES = 100
WIDTH, HEIGHT = 320, 120
"""Of a histogram, in units of its own."""


@_pages.page("/ui/batches")
def batches() -> Response:
    chosen = work.asked(BATCH)
    done = work.told()
    page = render("batches/page.html", **_list(chosen), deployment_names=work.choices(chosen), states=STATES, done=done)
    return work.pushed(page, work.BATCHES, chosen)


@_pages.page("/ui/batches/now")
def batches_now() -> Response:
    """The same rows again as they are now."""
    return render("batches/now.html", **_list(work.asked(BATCH)))


def _list(chosen: work.Filter) -> dict[str, Any]:
    found, owned = work.listed(chosen), services()
    return {
        "chosen": chosen,
        "listed": found,
        "batches": owned.storage.batches.several([task.id for task in found.tasks]) if found.tasks else {},
        "times": {task.id: work.times(task, owned.now()) for task in found.tasks},
        "names": work.names(found.tasks) if chosen.wanted.everybodys else {},
        **WORDS,
    }


@_pages.page("/ui/batches/several", "POST")
def batches_several() -> Response:
    """Cancels or deletes those that were chosen."""
    return work.several(work.BATCHES)


# a new one -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that answers rows. `value`: as the form has it, deployment:NAME or model:NAME."""

    value: str
    name: str


@_pages.page("/ui/batches/new")
def new_batch() -> Response:
    deployment, model = request.args.get("deployment", "")[:200], request.args.get("model", "")[:200]
    within: Opened | None = opened(deployment, Can.CALL) if deployment else None
    chosen = f"deployment:{within.record.rpc_name}" if within else f"model:{model}" if model else ""
    values = {"groups": _choices(chosen), "chosen": chosen, **_expected(chosen)}
    if within is not None:
        return render_tab("batches/new-of-deployment.html", within, "batch", **values)
    return render("batches/new.html", **values)


def _choices(chosen: str) -> list[tuple[str, list[Choice]]]:
    """What may be chosen, by kind."""
    owned, principal = services(), me()
    deployments = owned.deployments.listed(principal, WantedDeployments(shared=True), 0, _MOST_CHOICES)
    names = [f"deployment:{each.rpc_name}" for each in deployments]
    models = [f"model:{each.name}" for each in owned.host_models.listed(principal, "", "", "", _MOST_CHOICES)]
    if chosen and chosen not in (*names, *models):
        (names if chosen.startswith("deployment:") else models).append(chosen)
    groups = ((_("Deployments"), names), (_("Models of the server"), models))
    return [
        (label, [Choice(each, each.partition(":")[2].removeprefix(f"{principal.name}.")) for each in kind])
        for label, kind in groups
        if kind
    ]


@_pages.page("/ui/batches/expected")
def expected() -> Response:
    """What a file for the chosen one must have."""
    return render("batches/expected.html", **_expected(request.args.get("target", "")[:300]))


def _expected(chosen: str) -> dict[str, Any]:
    """Its inputs. `trouble`: why they are not known."""
    kind, _colon, name = chosen.partition(":")
    inputs: Sequence[TensorSpec] = ()
    trouble, script = "", False
    if name:
        owned = services()
        try:
            if kind == "deployment":
                target = owned.deployed.target(me(), name)
                script, name = bool(target.script_name), target.rpc_name
            elif owned.deployed.admit(me(), name) is not None:
                raise ServingError(Code.NOT_FOUND, f"there is no model {name[:140]!r}")
            inputs = owned.models.metadata(name).inputs
        except ServingError as error:
            trouble = error.message
    return {"inputs": inputs, "trouble": trouble, "script": script, "is_one_row": len(inputs) == 1, "example": _example(inputs)}


def _example(inputs: Sequence[TensorSpec]) -> str:
    """The first line of a csv file for them."""
    if len(inputs) == 1 and len(inputs[0].shape) == 2 and 1 < inputs[0].shape[1] <= 8 and inputs[0].datatype != "BYTES":
        return ",".join(f"x{place}" for place in range(1, inputs[0].shape[1] + 1))
    return ",".join(spec.name for spec in inputs)


# one -----------------------------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/batches/<batch_id>")
def batch(batch_id: str) -> Response:
    return _page(services().tasks.read(me(), batch_id, BATCH))


def _page(found: TaskRecord, error: ServingError | None = None) -> Response:
    return render("batches/batch.html", STATUS[error.code] if error else 200, error=error, **_one(found))


@_pages.page("/ui/batches/<batch_id>/now")
def batch_now(batch_id: str) -> Response:
    """What of it changes while one looks."""
    found = services().tasks.read(me(), batch_id, BATCH)
    return render("batches/batch-now.html", _STOP_POLLING if found.is_over else 200, **_one(found))


def _one(found: TaskRecord) -> dict[str, Any]:
    owned = services()
    row = owned.storage.batches.get(found.id)
    events = owned.tasks.events(found.id, 0)
    submitter = owned.storage.users.by_id(found.user_id, deleted=True) if found.user_id != me().user_id else None
    return {
        "task": found,
        "batch": row or BatchRecord(found.id, "csv", "csv", "", 0, None, 0, 0, 0, 0),
        "steps": steps(events),
        "times": work.times(found, owned.now()),
        "pace": pace(found, row, events, owned.now()),
        "may": is_own(me(), found),
        "submitter": submitter.name if submitter else "",
        "code": error_code(found),
        **WORDS,
    }


@dataclass(frozen=True, slots=True)
class Pace:
    """Rows per second, and the seconds that are left; None where that is not known (yet)."""

    rate: float | None
    left: float | None


def pace(found: TaskRecord, row: BatchRecord | None, events: list[TaskEvent], now: datetime) -> Pace:
    """Of one that runs by what it did of late, of one that has ended over all of its time."""
    if row is None or not row.rows_done:
        return Pace(None, None)
    if found.state != RUNNING:
        ran = work.times(found, now).ran
        return Pace(row.rows_done / ran if found.is_over and ran else None, None)
    stretch: list[TaskEvent] = []
    for event in reversed(events):
        if event.state != RUNNING or len(stretch) > _RECENT_EVENTS:
            break
        stretch.append(event)
    if not stretch or not found.progress:
        return Pace(None, None)
    seconds, share = (now - clock.from_text(stretch[-1].at)).total_seconds(), found.progress - stretch[-1].progress
    if seconds <= 0.2 or share <= 0:
        return Pace(None, None)
    return Pace(row.rows_done / found.progress * share / seconds, (1 - found.progress) * seconds / share)


@_pages.page("/ui/batches/<batch_id>/failures")
def failures(batch_id: str) -> Response:
    """The rows that failed, some at a time."""
    owned = services()
    text = request.args.get("after", "0")
    after = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
    answers = batch_views.answers(owned.storage, owned.tasks, me(), batch_id)
    found = batch_views.failures(answers, after, _FAILED_SHOWN)
    template = "batches/failures.html" if is_part() else "batches/failures-page.html"
    return render(template, task=answers.task, batch=answers.batch, found=found, after=after, **WORDS)


@_pages.page("/ui/batches/<batch_id>/summary")
def summary(batch_id: str) -> Response:
    """How the values are spread."""
    owned = services()
    found = batch_views.summary(batch_views.answers(owned.storage, owned.tasks, me(), batch_id))
    template = "batches/summary.html" if is_part() else "batches/summary-page.html"
    return render(template, found=found, batch_id=batch_id, columns=columns, width=WIDTH, height=HEIGHT, figure=figure)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a histogram in units of the picture."""

    x: float
    y: float
    width: float
    height: float
    text: str


def columns(spread: Spread) -> list[Column]:
    most, width = max((count for *_range, count in spread.bins), default=1), WIDTH / max(1, len(spread.bins))
    made = []
    for place, (low, high, count) in enumerate(spread.bins):
        height = max(2.0 if count else 0.0, HEIGHT * count / most)
        text = f"{figure(low)} – {figure(high)}: {count:,}"
        made.append(Column(round(place * width + 1, 2), round(HEIGHT - height, 2), round(width - 2, 2), round(height, 2), text))
    return made


def figure(number: float) -> str:
    return f"{number:.4g}"


@_pages.page("/ui/batches/<batch_id>/<verb>", "POST")
def change_batch(batch_id: str, verb: str) -> Response:
    """Pauses, resumes, cancels, retries or deletes it."""
    tasks = services().tasks
    tasks.read(me(), batch_id, BATCH)
    try:
        changed = work.one(batch_id, verb)
    except ServingError as error:
        if error.code in (Code.NOT_FOUND, Code.FORBIDDEN):
            raise
        return _page(tasks.read(me(), batch_id, BATCH), error)
    return go(work.BATCHES if changed is None else f"{work.BATCHES}/{quote(changed.id)}")
