"""Making a deployment: the form, and what of it follows the model that is chosen."""

from typing import Any

from flask import request
from werkzeug.wrappers import Response

from gateway.blueprints.rest import take
from gateway.context import services
from gateway.errors import STATUS
from gateway.operations.access import Can
from gateway.operations.models import Found
from gateway.pages import deployment_forms as forms
from gateway.pages.deployment_places import deployment_at
from gateway.pages.frame import Pages, doer, go, me, render
from gateway.storage.deployments import PAUSED, RUNNING
from gateway.storage.model_records import VersionRecord
from idl.codes import ServingError

_pages = Pages("deployment_making")
blueprint = _pages.blueprint
_FIELDS = (
    "model",
    "version",
    "name",
    "instances",
    "cpus",
    "memory",
    "min_instances",
    "max_instances",
    "sleep_after_s",
    "visibility",
    "team",
)
_SHOWN = (*_FIELDS, "paused")


@_pages.page("/ui/deployments/new")
def new() -> Response:
    typed = forms.typed(*_SHOWN, source=request.args)
    typed |= {"instances": typed["instances"] or "1", "visibility": typed["visibility"] or "private"}
    found = _model(typed["model"])
    if found is not None and not typed["name"]:
        typed["name"] = _free_name(found.model.name)
    return _form(typed, {})


@_pages.page("/ui/deployments/new", "POST")
def make() -> Response:
    try:
        values = forms.read(*_FIELDS)
        values["desired_state"] = PAUSED if request.form.get("paused") else RUNNING
        if values.get("visibility") == "private":
            values["team"] = None
        take(("deployments", 60, 2.0), me())
        made = services().deployments.create(me(), values, doer())
    except ServingError as error:
        return _form(forms.typed(*_SHOWN), forms.reasons_of(error), STATUS[error.code])
    return go(deployment_at(made.rpc_name))


@_pages.page("/ui/deployments/new/models")
def models() -> Response:
    """Options of the field for the model, for what is typed in it."""
    return render("deployments/new-models.html", models=forms.models(request.args.get("model", "").strip()))


@_pages.page("/ui/deployments/new/versions")
def versions() -> Response:
    """The field for the version, after another model was chosen."""
    typed = {"model": request.args.get("model", "").strip()[:140], "version": ""}
    answer = render("deployments/new-versions.html", typed=typed, reasons={}, **_chosen(typed))
    answer.headers["HX-Trigger-After-Swap"] = "fit"
    return answer


@_pages.page("/ui/deployments/fit")
def fit() -> Response:
    """What was measured, what is free, and what is about to be reserved of it; all of it is seen by whoever deploys, the hosts' addresses are not."""
    found = _model(request.args.get("model", "").strip())
    version = None if found is None else _version(found, request.args.get("version", ""))
    return render("deployments/fit.html", **forms.fit(version, "", request.args))


def _form(typed: dict[str, str], reasons: dict[str, str], status: int = 200) -> Response:
    known = {"models": forms.models(""), "teams": forms.teams()}
    return render("deployments/new.html", status, typed=typed, reasons=reasons, **known, **_chosen(typed))


def _chosen(typed: dict[str, str]) -> dict[str, Any]:
    found = _model(typed["model"])
    return {"versions": forms.versions_of(found.model.id) if found is not None else (), "found": found}


def _model(name: str) -> Found | None:
    """One that the reader may deploy."""
    try:
        return services().library.find(me(), name, Can.CHANGE) if name else None
    except ServingError:
        return None


def _version(found: Found, number: str) -> VersionRecord | None:
    if not number:
        return found.version
    wanted = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0
    return next((each for each in forms.versions_of(found.model.id) if each.number == wanted), None)


def _free_name(wanted: str) -> str:
    """A name that the reader's deployments leave free: the model's, or that with a number."""
    rows, owner = services().storage.deployments, me().user_id
    candidates = [wanted[:64], *(f"{wanted[:60]}-{number}" for number in range(2, 10))]
    return next((name for name in candidates if rows.of_owner(owner, name) is None), "")
