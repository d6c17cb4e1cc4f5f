"""The form API on tasks: submitting a prediction without waiting for it, and asking what became of it."""

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from flask import Blueprint

from gateway.blueprints.form_api import (
    DEPLOYMENT_NOT_FOUND,
    DEPLOYMENT_PAUSED,
    INVALID_INPUT,
    NOT_FINISHED,
    QUEUE_FULL,
    RESULT_EXPIRED,
    TASK_CANCELLED,
    TASK_FAILED,
    TASK_NOT_FOUND,
    FormAsked,
    FormRoutes,
    Refused,
)
from gateway.blueprints.form_deployments import own_deployment
from gateway.blueprints.form_models import form_input, output_of
from gateway.context import Services, services
from gateway.operations import form_inputs, kept_bodies, prediction_inputs
from gateway.operations.deployments import Target as DeployedTarget
from gateway.operations.prediction_bodies import FormInput, PredictionBody
from gateway.operations.tasks import Target, Wanted
from gateway.storage.deployments import DeploymentRecord
from gateway.storage.task_records import CANCELLED, EXPIRED, FAILED, PREDICTION, SUCCEEDED, TaskRecord
from idl.codes import Code, ServingError

blueprint = Blueprint("form_tasks", __name__)
_routes = FormRoutes(blueprint)
_PAGE = 200
_MOST_LISTED = 10_000
_OF_A_TASK = (TASK_NOT_FOUND, NOT_FINISHED, TASK_FAILED, TASK_CANCELLED, RESULT_EXPIRED)


@_routes.route(
    "POST",
    "/submit",
    ("modelname", "deployment", "filetype"),
    optional=("input",),
    statuses=(DEPLOYMENT_NOT_FOUND, DEPLOYMENT_PAUSED, INVALID_INPUT, QUEUE_FULL),
)
def submit(asked: FormAsked) -> Mapping[str, Any]:
    """What `/predict` does, later."""
    owned, form, record = services(), form_input(asked), own_deployment(asked)
    target = owned.deployed.target(asked.me, record.rpc_name)
    if not target.is_wanted:
        raise ServingError(Code.DEPLOYMENT_PAUSED, f"deployment {record.name!r} is paused")
    _check(owned, target, form)
    content = kept_bodies.encode(PredictionBody(form=form))
    try:
        task = owned.tasks.submit(asked.me, Target(target.rpc_name, "", target.id), content, kept_bodies.KEPT)
    except ServingError as error:
        if error.code is Code.OVERLOADED:
            raise Refused(QUEUE_FULL, error.message) from None
        raise
    return {"taskid": task.id}


@_routes.route("GET", "/gettaskstatus", ("taskid",), statuses=_OF_A_TASK)
def task_status(asked: FormAsked) -> Mapping[str, Any]:
    """Its state, whatever that is."""
    task = _found(asked)
    more = {"message": task.error_message} if task.state == FAILED and task.error_message else {}
    return {"state": task.state, "progress": task.progress, **more}


@_routes.route("GET", "/gettaskresult", ("taskid",), statuses=_OF_A_TASK)
def task_result(asked: FormAsked) -> Mapping[str, Any]:
    """What the prediction has answered."""
    task = _found(asked)
    if task.state == FAILED:
        raise Refused(TASK_FAILED, task.error_message or "")
    if task.state == CANCELLED:
        raise Refused(TASK_CANCELLED)
    if task.state == EXPIRED:
        raise Refused(TASK_FAILED, task.error_message or "it waited too long")
    if task.state != SUCCEEDED:
        raise Refused(NOT_FINISHED, state=task.state)
    owned = services()
    result = owned.tasks.result_of(task)
    content = result.content if result.content is not None else owned.storage.blobs.read(result.sha256 or "")
    return {"state": task.state, **output_of(json.loads(content))}


@_routes.route("GET", "/gettasks", optional=("modelname", "deployment"))
def task_list(asked: FormAsked) -> Mapping[str, Any]:
    """One's own, the newest first."""
    owned = services()
    names: dict[int, DeploymentRecord | None] = {}
    found: list[TaskRecord] = []
    while len(found) < _MOST_LISTED:
        more = owned.tasks.page(asked.me, Wanted(kind=PREDICTION), found[-1].id if found else None, _PAGE)
        found += more
        if len(more) < _PAGE:
            break
    shown = []
    for task in found:
        place = task.deployment_id or 0
        if place and place not in names:
            names[place] = owned.storage.deployments.by_id(place)
        record = names.get(place)
        model = record.model if record else task.model
        deployment = record.name if record else task.model.rpartition(".")[2]
        wanted = ((asked.get("modelname"), model), (asked.get("deployment"), deployment))
        if all(not name or name.lower() == value.lower() for name, value in wanted):
            shown.append({"taskid": task.id, "state": task.state, "modelname": model, "deployment": deployment, "time": task.created_at})
    return {"task": shown}


def _check(owned: Services, target: DeployedTarget, form: FormInput) -> None:
    """Raises invalid_input for what `/predict` would refuse at its first sample, as far as that can be known now: not before a script, nor
    without the model host."""
    kinds = form_inputs.kinds_of(form.filetype)
    if target.script_name or not target.is_running or kinds in (form_inputs.MP4, form_inputs.MP4_TEXT):
        return
    try:
        metadata, declaration = owned.models.metadata(target.rpc_name), owned.models.declaration(target.rpc_name)
    except ServingError:
        return
    limits = form_inputs.limits_of(owned.settings, time.monotonic() + owned.settings.request_timeout_s)
    with contextlib.closing(form_inputs.decode(form.filetype, form.fields, form.files, metadata, declaration, limits)) as samples:
        first = next(samples.bodies, None)
        if first is not None:
            prediction_inputs.prepare(metadata, declaration, first, limits.pictures)


def _found(asked: FormAsked) -> TaskRecord:
    return services().tasks.read(asked.me, asked["taskid"].strip())
