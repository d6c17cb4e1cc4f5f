"""Deployments: the list of them, and starting and pausing one."""

from flask import request
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.errors import STATUS
from gateway.operations.access import Can
from gateway.pages.deployment_places import deployment_at, opened
from gateway.pages.frame import Pages, doer, go, is_part, me, render
from gateway.storage.deployments import PAUSED, RUNNING
from idl.codes import ServingError

_pages = Pages("deployments")
blueprint = _pages.blueprint


@_pages.page("/ui/deployments/<name>/now")
def now(name: str) -> Response:
    """The head of one deployment, which changes while one looks."""
    return _head(name)


def _head(name: str) -> Response:
    found = opened(name)
    return render("deployments/now.html", opened=found, deployment=found.record)


@_pages.page("/ui/deployments/<name>/turn", "POST")
def turn(name: str) -> Response:
    """Starts or pauses it."""
    record = opened(name, Can.OPERATE).record
    desired = PAUSED if request.form.get("desired") == PAUSED else RUNNING
    try:
        services().deployments.change(me(), name, {"desired_state": desired}, doer())
    except ServingError as error:
        return refused(error)
    return _head(name) if is_part() else go(deployment_at(record.rpc_name))


def refused(error: ServingError) -> Response:
    """Why something could not be done, in the place of the page that is for it. Raises it for a page without scripts."""
    if not is_part():
        raise error
    answer = render("errors/part.html", STATUS[error.code], error=error, reasons={})
    answer.headers["HX-Retarget"], answer.headers["HX-Reswap"] = "#refused", "innerHTML"
    return answer
