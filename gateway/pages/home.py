"""What somebody who signs in sees first: the deployments and how they are, the last tasks, and what is left of the quota."""

from typing import Any

from werkzeug.wrappers import Response

from gateway.context import services
from gateway.operations import quotas
from gateway.operations.deployment_changes import Wanted as WantedDeployments
from gateway.operations.tasks import Wanted as WantedTasks
from gateway.pages.frame import Pages, me, render
from gateway.storage.model_records import Wanted as WantedModels

_pages = Pages("home")
blueprint = _pages.blueprint
_SHOWN = 8


@_pages.page("/ui")
def home() -> Response:
    return render("home/page.html", **_found())


@_pages.page("/ui/home/now")
def now() -> Response:
    """What changes while one looks at it."""
    return render("home/now.html", **_found())


def _found() -> dict[str, Any]:
    owned, principal = services(), me()
    deployments = owned.deployments.listed(principal, WantedDeployments(), 0, _SHOWN + 1)
    return {
        "deployments": deployments[:_SHOWN],
        "more_deployments": len(deployments) > _SHOWN,
        "models": owned.library.listed(principal, WantedModels(principal.user_id, owner=principal.name), None, 1),
        "tasks": owned.tasks.page(principal, WantedTasks(), None, _SHOWN),
        "shares": quotas.shares(owned.storage, principal.user_id),
    }
