"""What somebody who signs in sees first: the deployments and how they are, the last tasks, what is left of the quota, and until then the first
steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from werkzeug.wrappers import Response

from gateway.context import services
from gateway.operations import deployment_lists, quotas
from gateway.operations.deployment_lists import Listed
from gateway.operations.tasks import Wanted as WantedTasks
from gateway.pages.deployment_places import deployment_at, new_deployment_at
from gateway.pages.frame import Pages, me, render
from gateway.storage.deployment_lists import MINE, Browsed
from gateway.storage.deployment_statistics import HOUR, MINUTE
from gateway.storage.model_records import Wanted as WantedModels

_pages = Pages("home")
blueprint = _pages.blueprint
_SHOWN = 6
_TASKS = 8
_PER_BAR = 2
"""Minutes of one bar of a pulse."""


@dataclass(frozen=True, slots=True)
class Step:
    """One of the first steps. `where` "": one cannot do it yet."""

    key: str
    where: str
    is_done: bool


@_pages.page("/ui")
def home() -> Response:
    return render("home/page.html", **_found())


@_pages.page("/ui/home/now")
def now() -> Response:
    """What changes while one looks at it."""
    return render("home/now.html", **_found())


def _found() -> dict[str, Any]:
    owned, principal = services(), me()
    now_s = owned.now().timestamp()
    wanted = Browsed(0, whose=MINE, order="called")
    deployments = deployment_lists.browse(owned.storage, owned.access, principal, wanted, None, _SHOWN, now_s)
    return {
        "deployments": deployments,
        "states": owned.storage.deployments.states(principal.user_id),
        "pulses": _pulses(deployments, now_s),
        "steps": _steps(deployments),
        "tasks": owned.tasks.page(principal, WantedTasks(), None, _TASKS),
        "shares": quotas.shares(owned.storage, principal.user_id),
    }


def _pulses(deployments: Sequence[Listed], now_s: float) -> Mapping[int, Sequence[float]]:
    """By deployment how often it was called in the last hour: bars from 0 to 1, the highest one's height."""
    begin = int(now_s) // MINUTE * MINUTE - HOUR
    called = services().storage.deployment_statistics.requests([each.record.id for each in deployments], begin)
    made = {}
    for number, minutes in called.items():
        bars = [0] * (HOUR // MINUTE // _PER_BAR + 1)
        for at, count in minutes.items():
            bars[min((at - begin) // MINUTE // _PER_BAR, len(bars) - 1)] += count
        most = max(bars)
        made[number] = [count / most for count in bars]
    return made


def _steps(deployments: Sequence[Listed]) -> Sequence[Step]:
    """The first steps; none where all are done."""
    principal = me()
    models = services().library.listed(principal, WantedModels(principal.user_id, owner=principal.name), None, 1)
    records = [each.record for each in deployments]
    is_called = any(record.last_call_at for record in records)
    if is_called:
        return ()
    return (
        Step("upload", "/ui/models/new", bool(models or records)),
        Step("deploy", new_deployment_at() if models or records else "", bool(records)),
        Step("call", deployment_at(records[0].rpc_name, "try") if records else "", False),
    )
