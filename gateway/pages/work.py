"""What lists and pages of tasks and of batches share: filters, one page of a list, addresses, durations, what is done to several at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from flask import request
from werkzeug.wrappers import Response

from gateway import clock
from gateway.context import Services, services
from gateway.operations.access import Can
from gateway.operations.deployment_changes import Wanted as WantedDeployments
from gateway.operations.tasks import Wanted
from gateway.pages.deployment_places import Opened, opened
from gateway.pages.forms import whole
from gateway.pages.frame import go, is_part, me, ours
from gateway.storage.task_records import BATCH, PREDICTION, STATES, TaskRecord
from gateway.types import Role
from idl.codes import Code, ServingError

TASKS, BATCHES = "/ui/tasks", "/ui/batches"
SHOWN = 25
_MOST_NEWER = 99
_MOST_CHOICES = 100


def task_at(task: TaskRecord) -> str:
    """The address of a task's page, or of a batch's."""
    return f"{BATCHES if task.kind == BATCH else TASKS}/{task.id}"


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list is asked for, as its form has it. `reasons`: what is wrong with it, by field."""

    values: Mapping[str, str]
    wanted: Wanted
    deployment: Opened | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def query(self, **more: str) -> str:
        """The same as a query string, with `more`."""
        zone = {} if self.values["since"] or self.values["until"] else {"zone": ""}
        return urlencode({name: value for name, value in {**self.values, **zone, **more}.items() if value})


_FIELDS = ("state", "kind", "deployment", "model", "since", "until", "zone", "all")


def asked(kind: str | None = None) -> Filter:
    """The filter in this request's query string; what is wrong in it is passed over, and said beside its field."""
    values = {name: request.args.get(name, "")[:200] for name in _FIELDS}
    reasons: dict[str, str] = {}
    found: Opened | None = None
    if values["deployment"]:
        try:
            found = opened(values["deployment"], Can.READ)
        except ServingError as error:
            reasons["deployment"] = error.message
    zone = _zone(values["zone"])
    since, until = (_day(name, values[name], zone, reasons) for name in ("since", "until"))
    wanted = Wanted(
        values["state"] if values["state"] in STATES else None,
        kind or (values["kind"] if values["kind"] in (PREDICTION, BATCH) else None),
        values["model"] or None,
        found.record.id if found is not None else (0 if values["deployment"] else None),
        bool(values["all"]) and me().role is Role.ADMINISTRATOR,
        since,
        None if until is None else until + timedelta(days=1),
    )
    return Filter(values, wanted, found, reasons)


def told() -> dict[str, int]:
    """How many of those that were chosen before this page were cancelled, deleted, or left as they were."""
    counts = {name: whole(request.args.get(name, ""), 9) for name in ("cancelled", "deleted", "kept")}
    return {name: count for name, count in counts.items() if count is not None}


def _zone(text: str) -> timedelta:
    """How far behind UTC the reader's clock is, as `Date.getTimezoneOffset` has it: minutes."""
    minutes = (whole(text.removeprefix("-"), 4) or 0) * (-1 if text.startswith("-") else 1)
    return timedelta(minutes=minutes if abs(minutes) <= 14 * 60 else 0)


def _day(name: str, text: str, zone: timedelta, reasons: dict[str, str]) -> datetime | None:
    if not text:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        reasons[name] = "is no day"
        return None
    return day + zone if 1971 <= day.year <= 9000 else None


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a list. `newer`: how many have come since; `now`, `before`, `after`: queries of the same page again, and of those around it."""

    tasks: Sequence[TaskRecord]
    newer: int
    now: str
    before: str
    after: str


def listed(chosen: Filter) -> Listed:
    """The page that the query string asks for: below `cursor`, above `back`, or, looked at again, from `from` on."""
    tasks, principal = services().tasks, me()
    cursor, back, first = (_id(request.args.get(name, "")) for name in ("cursor", "back", "from"))
    if back:
        found = tasks.page(principal, chosen.wanted, None, SHOWN, back)
        more = bool(found)
    else:
        below = cursor or (f"{first}g" if first else None)
        found = tasks.page(principal, chosen.wanted, below, SHOWN + 1)
        found, more = found[:SHOWN], len(found) > SHOWN
    newest = first or (found[0].id if found else "")
    newer = len(tasks.page(principal, chosen.wanted, None, _MOST_NEWER, newest)) if newest else 0
    is_top = not request.args.get("deep") if first else not newer
    now = {"from": newest, "deep": "" if is_top else "1"}
    return Listed(
        found,
        newer if is_top else 0,
        chosen.query(**now),
        "" if is_top or not found else chosen.query(back=found[0].id),
        chosen.query(cursor=found[-1].id) if more else "",
    )


def pushed(response: Response, where: str, chosen: Filter) -> Response:
    """With the list's address for the browser, where only its rows are asked for."""
    if is_part():
        response.headers["HX-Push-Url"] = f"{where}{'?' if chosen.query() else ''}{chosen.query()}"
    return response


def _id(text: str) -> str:
    return text if len(text) <= 64 and text.isascii() and text.isalnum() else ""


def choices(chosen: Filter) -> list[str]:
    """Names of deployments to choose from: those that the reader may see, and the one that is chosen."""
    names = [each.rpc_name for each in services().deployments.listed(me(), WantedDeployments(shared=True), 0, _MOST_CHOICES)]
    given = chosen.deployment.record.rpc_name if chosen.deployment else ""
    return sorted({*names, *([given] if given else [])})


# times ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds in the queue and at work, None where that has not begun."""

    waited: float | None
    ran: float | None


def times(task: TaskRecord, now: datetime) -> Times:
    end = clock.from_text(task.finished_at) if task.finished_at else now
    begun = clock.from_text(task.started_at) if task.started_at else None
    waited = ((begun or end) - clock.from_text(task.created_at)).total_seconds()
    return Times(max(0.0, waited), None if begun is None else max(0.0, (end - begun).total_seconds()))


def span(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


# changes -------------------------------------------------------------------------------------------------------------------------------


def change_all(ids: Sequence[str], verb: str) -> tuple[int, int]:
    """(how many were cancelled or deleted, how many could not be)."""
    owned, principal = services(), me()
    act = _verb(owned, verb)
    done = left = 0
    for task_id in dict.fromkeys(ids[:_MOST_CHOICES]):
        try:
            act(principal, task_id)
            done += 1
        except ServingError as error:
            if error.code not in (Code.NOT_FOUND, Code.CONFLICT, Code.FORBIDDEN):
                raise
            left += 1
    return done, left


def several(where: str) -> Response:
    """Cancels or deletes those that were chosen in the list at `where`, and shows it again."""
    verb = request.form.get("verb", "")
    done, left = change_all(request.form.getlist("task"), verb)
    back = ours(request.form.get("next"), where)
    said = f"{'cancelled' if verb == 'cancel' else 'deleted'}={done}&kept={left}"
    return go(f"{back}{'&' if '?' in back else '?'}{said}")


def _verb(owned: Services, verb: str) -> Callable[..., Any]:
    if verb == "cancel":
        return owned.tasks.cancel
    if verb == "delete":
        return owned.tasks.delete
    raise ServingError(Code.INVALID_INPUT, "only cancel and delete can be done to several")


def one(task_id: str, verb: str) -> TaskRecord | None:
    """A change of one task: it is as it is then, or the new one; None: it is gone."""
    tasks, principal = services().tasks, me()
    verbs: dict[str, Callable[..., TaskRecord | None]] = {
        "cancel": tasks.cancel,
        "retry": tasks.retry,
        "pause": tasks.pause,
        "resume": tasks.resume,
        "delete": tasks.delete,
    }
    if verb not in verbs:
        raise ServingError(Code.NOT_FOUND, "there is nothing at this address")
    return verbs[verb](principal, task_id)


def names(tasks: Sequence[TaskRecord]) -> dict[int, str]:
    """Whose they are, by user, for administrators who look at everybody's."""
    users = services().storage.users
    found = {user_id: users.by_id(user_id, deleted=True) for user_id in {task.user_id for task in tasks}}
    return {user_id: user.name if user else "" for user_id, user in found.items()}
