"""The form API on deployments: making, starting, pausing, deleting, calling and watching them, and their scripts.

A deployment is named with its model, whose it has to be.
"""

import re
from collections.abc import Mapping
from typing import Any

from flask import Blueprint

from gateway.blueprints.calls import current_call
from gateway.blueprints.form_api import (
    DEPLOYMENT_NOT_FOUND,
    DEPLOYMENT_PAUSED,
    DUPLICATION,
    INVALID_INPUT,
    INVALID_SCRIPT,
    MODEL_NOT_FOUND,
    NO_CAPACITY,
    FormAsked,
    FormRoutes,
)
from gateway.blueprints.form_models import form_input, output_of
from gateway.context import request_id, services
from gateway.errors import InvalidFields
from gateway.operations import deployment_calls, deployment_statistics, deployments
from gateway.operations.deployment_changes import Wanted
from gateway.operations.deployment_errors import FORM
from gateway.operations.prediction_bodies import PredictionBody
from gateway.storage.deployment_statistics import HOUR
from gateway.storage.deployments import DELETING, PAUSED, RUNNING, DeploymentRecord
from idl.codes import Code, ServingError

blueprint = Blueprint("form_deployments", __name__)
_routes = FormRoutes(blueprint)
_PAGE = 200
_NAMES = ("modelname", "deployment")
_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_MEMORY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?i?b)?", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,9})?", re.ASCII)


@_routes.route(
    "POST",
    "/createdeployment",
    _NAMES,
    optional=("time", "cpu", "memory"),
    statuses=(MODEL_NOT_FOUND, DUPLICATION, NO_CAPACITY),
    never_fails=True,
)
def create_deployment(asked: FormAsked) -> Mapping[str, Any]:
    """A deployment, which starts. `cpu`: cores; `memory`: such as 512MiB; `time` is kept as given."""
    if len(asked.get("time") or "") > 64:
        raise InvalidFields({"time": "has more than 64 characters"})
    values = {"name": asked["deployment"], "model": asked["modelname"], "time": asked.get("time") or ""}
    services().deployments.create(asked.me, values | _reserved(asked), asked.doer)
    return {}


@_routes.route("GET", "/getmodeldeployment", ("modelname",), statuses=(MODEL_NOT_FOUND,), never_fails=True)
def model_deployments(asked: FormAsked) -> Mapping[str, Any]:
    """The deployments of a model."""
    found: list[DeploymentRecord] = []
    while more := services().deployments.listed(asked.me, Wanted(asked["modelname"]), found[-1].id if found else 0, _PAGE):
        found += more
    shown = [record for record in found if record.state != DELETING]
    return {
        "deployment": [
            {"deployment": record.name, "status": record.state, "time": record.shown_time or record.created_at} for record in shown
        ]
    }


@_routes.route("POST", "/setdeploymentstatusrunning", _NAMES, statuses=(DEPLOYMENT_NOT_FOUND, NO_CAPACITY), never_fails=True)
def start_deployment(asked: FormAsked) -> Mapping[str, Any]:
    """It is to run."""
    return _set(asked, RUNNING)


@_routes.route("POST", "/settaskstatuspause", _NAMES, statuses=(DEPLOYMENT_NOT_FOUND,), never_fails=True)
def pause_deployment(asked: FormAsked) -> Mapping[str, Any]:
    """It is to be paused; what is inside is finished."""
    return _set(asked, PAUSED)


@_routes.route("POST", "/setdeploymentstatuspause", _NAMES, statuses=(DEPLOYMENT_NOT_FOUND,), never_fails=True)
def pause_deployment_too(asked: FormAsked) -> Mapping[str, Any]:
    """The same by its better name."""
    return _set(asked, PAUSED)


def _set(asked: FormAsked, desired: str) -> Mapping[str, Any]:
    record = own_deployment(asked)
    if record.desired_state != desired or record.state not in (RUNNING, PAUSED):
        services().deployments.change(asked.me, _path(record), {"desired_state": desired}, asked.doer)
    return {}


@_routes.route("DELETE", "/deletedeployment", _NAMES, statuses=(DEPLOYMENT_NOT_FOUND,), never_fails=True)
def delete_deployment(asked: FormAsked) -> Mapping[str, Any]:
    """It is on its way out, and its name is free."""
    services().deployments.delete(asked.me, _path(own_deployment(asked)), asked.doer)
    return {}


@_routes.route("GET", "/getdeploymentstatus", _NAMES, statuses=(DEPLOYMENT_NOT_FOUND,))
def deployment_status(asked: FormAsked) -> Mapping[str, Any]:
    """Its state, and what it did in the last 90 days: milliseconds, bytes."""
    owned, record = services(), own_deployment(asked)
    owned.collector.freshen()
    now = int(owned.now().timestamp())
    points = deployment_statistics.points(owned.storage, record, "hour", now - 90 * 24 * HOUR, now + HOUR)
    told = deployment_statistics.told(deployment_statistics.total(points))
    latest = points[-1].counts.memory if points and record.state == RUNNING else 0
    return {
        "state": record.state,
        "reason": record.reason,
        "requests": told["requests"],
        "errors": sum(told["errors"].values()),
        **{name: told["latency_ms"][name] for name in ("mean", "p50", "p95", "p99")},
        "memory": latest,
    }


@_routes.route(
    "POST",
    "/predict",
    (*_NAMES, "filetype"),
    optional=("input",),
    statuses=(DEPLOYMENT_NOT_FOUND, DEPLOYMENT_PAUSED, INVALID_INPUT),
)
def predict(asked: FormAsked) -> Mapping[str, Any]:
    """One prediction, or one for each sample."""
    body = PredictionBody(form=form_input(asked))
    owned, target = services(), deployments.target_of(own_deployment(asked))
    with owned.deployed.errors.noting(target.id, request_id(), FORM):
        call = current_call(inference=target.rpc_name)
        return output_of(deployment_calls.predict(owned.models, owned.settings, call, target, body))


@_routes.route("POST", "/uploadscript", _NAMES, optional=("script",), statuses=(DEPLOYMENT_NOT_FOUND, INVALID_SCRIPT))
def upload_script(asked: FormAsked) -> Mapping[str, Any]:
    """A new version of the deployment's script, which is called as it is, from now on around its predictions."""
    record, part = own_deployment(asked), asked.file("script")
    content = part.content if part is not None else (asked.get("script") or "").encode()
    if not content:
        raise InvalidFields({"script": "is missing: a file"})
    owned = services()
    script, version = owned.scripts.put(asked.me, record.name, content, asked.doer)
    owned.deployments.change(asked.me, _path(record), {"script": {"name": script.name, "version": version.number}}, asked.doer)
    return {"version": version.number}


def own_deployment(asked: FormAsked) -> DeploymentRecord:
    """The caller's own deployment of that model. Raises not_found."""
    found = services().storage.deployments.of_owner(asked.me.user_id, asked["deployment"])
    if found is None or found.state == DELETING or found.model.lower() != asked["modelname"].lower():
        raise ServingError(Code.NOT_FOUND, f"there is no deployment {asked['deployment'][:80]!r} of a model {asked['modelname'][:80]!r}")
    return found


def _path(record: DeploymentRecord) -> str:
    return record.rpc_name


def _reserved(asked: FormAsked) -> dict[str, Any]:
    """What `cpu` and `memory` say. Empty ones say nothing."""
    made: dict[str, Any] = {}
    if cpu := (asked.get("cpu") or "").strip():
        if not _NUMBER.fullmatch(cpu) or not 0.01 <= float(cpu) <= 4096:
            raise InvalidFields({"cpu": "must be a number of cores, from 0.01 to 4096"})
        made["cpus"] = float(cpu)
    if memory := (asked.get("memory") or "").strip():
        found = _MEMORY.fullmatch(memory)
        size = int(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found else 0
        if not 1 << 20 <= size <= 1 << 50:
            raise InvalidFields({"memory": "must be bytes from 1 MiB on, such as 512MiB, 2GiB or 536870912"})
        made["memory"] = size
    return made
