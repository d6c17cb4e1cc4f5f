"""Administration: the hosts, and everything that is on the platform, whoever owns it."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask import request
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.pages import paging
from gateway.pages.frame import Pages, render
from gateway.pages.paging import Paged
from gateway.storage.deployments import DELETING, FAILED, PAUSED, PAUSING, RUNNING, SLEEPING, STARTING
from gateway.storage.task_records import STATES as TASK_STATES
from idl.codes import ServingError
from idl.messages import Capacity

_pages = Pages("admin")
blueprint = _pages.blueprint
_DEPLOYMENT_STATES = (RUNNING, STARTING, SLEEPING, PAUSED, PAUSING, FAILED, DELETING)


@_pages.page("/ui/admin", who="administrator")
def overview() -> Response:
    return render("admin/overview.html", totals=services().storage.platform.totals(), hosts=_hosts())


@_pages.page("/ui/admin/now", who="administrator")
def overview_now() -> Response:
    """What changes while one looks at it."""
    return render("admin/figures.html", totals=services().storage.platform.totals(), hosts=_hosts())


@_pages.page("/ui/admin/hosts", who="operator")
def hosts() -> Response:
    return render("admin/hosts.html", hosts=_hosts())


@_pages.page("/ui/admin/hosts/now", who="operator")
def hosts_now() -> Response:
    """What changes while one looks at it."""
    return render("admin/capacity.html", hosts=_hosts())


def _hosts() -> Sequence[tuple[str, Capacity | None, str]]:
    """(address, what it has, or None and why it does not say)."""
    owned = services()
    told = owned.models.capacities(owned.settings.ready_timeout_s)
    return [(address, None, said.message) if isinstance(said, ServingError) else (address, said, "") for address, said in told]


# whoever owns it ---------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/admin/deployments", who="administrator")
def deployments() -> Response:
    owner, state = _asked("owner"), _chosen("state", _DEPLOYMENT_STATES)
    found = services().storage.platform.deployments(owner, state, paging.number(), paging.SIZE + 1)
    return _list("admin/deployments.html", _paged(found), owner=owner, state=state, states=_DEPLOYMENT_STATES)


@_pages.page("/ui/admin/tasks", who="administrator")
def tasks() -> Response:
    owner, state = _asked("owner"), _chosen("state", TASK_STATES)
    found = services().storage.platform.tasks(owner, state, paging.cursor()[:64], paging.SIZE + 1)
    return _list("admin/tasks.html", _paged(found), owner=owner, state=state, states=TASK_STATES)


@_pages.page("/ui/admin/models", who="administrator")
def models() -> Response:
    owner, search, state = _asked("owner"), _asked("search"), _chosen("state", ("deleted",))
    found = services().storage.platform.models(owner, search, paging.number(), paging.SIZE + 1, deleted=state == "deleted")
    return _list("admin/models.html", _paged(found), owner=owner, search=search, state=state)


def _asked(name: str) -> str:
    return request.args.get(name, "").strip()[:100]


def _chosen(name: str, known: Sequence[str]) -> str:
    """One of those that there are; "" for every other one, and for any."""
    return value if (value := request.args.get(name, "")) in known else ""


def _paged(found: Sequence[Mapping[str, Any]]) -> Paged:
    return paging.paged(found, lambda row: row["id"])


def _list(template: str, found: Paged, **values: Any) -> Response:
    return render(template, found=found, **values)
