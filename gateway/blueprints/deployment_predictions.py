"""`POST /v1/deployments/{name}/predictions`: a deployment called with JSON, a form or files; and with a script that is only tried."""

import json

from flask import Blueprint
from werkzeug.wrappers import Response

from gateway.blueprints import async_calls, prediction_body
from gateway.blueprints.calls import current_call
from gateway.blueprints.prediction_body import BODIES
from gateway.blueprints.rest import ANYBODY, Answer, Asked, Reply, Rest
from gateway.context import request_id, services
from gateway.operations import deployment_calls, prediction_bodies
from gateway.operations.deployment_errors import V1
from gateway.operations.scripts import MOST_BYTES
from gateway.operations.tasks import Target
from gateway.shapes import Free, Object, Text, optional, required
from gateway.types import Scope
from idl.codes import Code, ServingError

blueprint = Blueprint("deployment_predictions", __name__)
_routes = Rest(blueprint, "deployments")
_TRIAL = Object(
    {
        "script": required(Text(1, MOST_BYTES, lines=True), "its source"),
        "request": required(Free({"type": "object"}), "the body of a prediction"),
    },
    "ScriptTrial",
)
PREDICTION = Free({"type": "object", "required": ["id", "model", "deployment", "version", "outputs"]})
ERRORS = (
    *(Code.NOT_FOUND, Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.DEPLOYMENT_PAUSED, Code.NOT_READY, Code.INVALID_MODEL),
    *(Code.MODEL_FAILED, Code.CANCELLED, Code.FORBIDDEN, Code.UNSUPPORTED, Code.GONE, Code.CONFLICT),
)


@_routes.route(
    "POST",
    "/v1/deployments/<name>/predictions",
    "one prediction; one that sleeps is woken, and the call waits",
    {200: Answer("the prediction", PREDICTION), 202: async_calls.LATER},
    who=ANYBODY,
    scope=Scope.CALL,
    query={"version": optional(Text(1, 64, r"[A-Za-z0-9_-]+", "must be a version's number, stable or canary"), "of those that serve")},
    raw=BODIES,
    headers=async_calls.HEADERS,
    errors=ERRORS,
)
def predict_with_deployment(asked: Asked, name: str) -> Reply | Response:
    owned = services()
    target = owned.deployed.target(asked.caller, name)
    version = asked.query.get("version", "")
    with owned.deployed.errors.noting(target.id, request_id(), V1):
        if (preferred := async_calls.preference()) is not None:
            if not target.is_wanted:
                raise ServingError(Code.DEPLOYMENT_PAUSED, f"deployment {target.rpc_name!r} is paused")
            return async_calls.respond(Target(target.rpc_name, version, target.id), preferred)
        call = current_call(inference=target.rpc_name)
        return Reply(deployment_calls.predict(owned.models, owned.settings, call, target, prediction_body.read(), version))


@_routes.route(
    "POST",
    "/v1/deployments/<name>/script-trials",
    "one prediction with a script that is not kept; other calls go on with the one that they have",
    {200: Answer("the prediction, and the script's `functions`", PREDICTION)},
    scope=Scope.WRITE,
    body=_TRIAL,
    errors=(*ERRORS, Code.INSUFFICIENT_CAPACITY),
    rate=("script trials", 20, 2.0),
)
def try_script(asked: Asked, name: str) -> Reply:
    given = asked.body["request"]
    body = prediction_bodies.from_json(json.dumps(given).encode())
    call = current_call(inference=name)
    return Reply(services().script_trials.run(call, name, asked.body["script"].encode(), body))
