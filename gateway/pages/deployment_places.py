"""Where the pages of deployments are, and what is around those of one: its name, its state, and the tabs.

One scheme for all of them: `/ui/deployments/OWNER.NAME`, as `/v1` and `/v2` name what is somebody's. A plain name is the reader's own, as in `/v1`;
links always say the owner, so that they can be sent to others.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from flask_babel import gettext as _
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.operations.access import Can, Shared
from gateway.pages.frame import me, render
from gateway.storage.deployments import DeploymentRecord
from gateway.storage.model_records import ModelRecord

DEPLOYMENTS = "/ui/deployments"


def deployment_at(name: str, tab: str = "") -> str:
    """The address of one, or of one of its tabs (try, use, script, settings). `name`: its `rpc_name`, "owner.name"."""
    return f"{DEPLOYMENTS}/{quote(name, safe='')}{'/' if tab else ''}{tab}"


def new_deployment_at(model: str = "", version: int | None = None) -> str:
    """Where one is made, of a model ("owner.name") that is chosen already, or of none."""
    chosen = {key: str(value) for key, value in (("model", model), ("version", version)) if value}
    return f"{DEPLOYMENTS}/new{'?' if chosen else ''}{urlencode(chosen)}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A deployment that somebody looks at, and what he may do with it. `model` None: it is deleted, or not his to see."""

    record: DeploymentRecord
    can: Can
    model: ModelRecord | None

    def may(self, verb: str) -> bool:
        """For templates: read, call, change, own or operate."""
        return Can[verb.upper()] in self.can


@dataclass(frozen=True, slots=True)
class Tab:
    """A part of what there is to see of one deployment."""

    key: str
    name: str
    where: str
    picture: str


def opened(name: str, wanted: Can = Can.READ) -> Opened:
    """The deployment that an address names. Raises not_found and forbidden as `/v1` does."""
    owned, principal = services(), me()
    record = owned.deployments.find(principal, name, wanted)
    can = owned.access.of(principal, Shared(record.owner_id, record.visibility, record.team_id))
    model = owned.storage.models.by_id(record.model_id)
    if model is not None and (
        model.deleted_at or Can.READ not in owned.access.of(principal, Shared(model.owner_id, model.visibility, model.team_id))
    ):
        model = None
    return Opened(record, can, model)


def tabs(found: Opened) -> list[Tab]:
    """Those that the reader has something to do in."""
    name = found.record.rpc_name
    query = urlencode({"deployment": name})
    known = (
        ("overview", _("Overview"), deployment_at(name), "chart-line", Can.READ),
        ("try", _("Try"), deployment_at(name, "try"), "flask", Can.CALL),
        ("use", _("Use"), deployment_at(name, "use"), "code", Can.CALL),
        ("script", _("Script"), deployment_at(name, "script"), "wand", Can.CHANGE),
        ("tasks", _("Tasks"), f"/ui/tasks?{query}", "checklist", Can.CALL),
        ("batch", _("Batch"), f"/ui/batches/new?{query}", "stack-2", Can.CALL),
        ("settings", _("Settings"), deployment_at(name, "settings"), "settings", Can.CHANGE),
    )
    return [Tab(key, label, where, picture) for key, label, where, picture, needed in known if needed in found.can]


def render_tab(template: str, found: Opened, tab: str, status: int = 200, **values: Any) -> Response:
    """A page that extends `deployments/tabs.html` and fills its block `tab`; `tab` is the key of the one that it is."""
    return render(template, status, opened=found, deployment=found.record, tab=tab, tabs=tabs(found), **values)
