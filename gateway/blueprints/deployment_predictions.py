"""`POST /v1/deployments/{name}/predictions`: a deployment called with JSON, a form or files."""

from flask import Blueprint

from gateway.blueprints import prediction_body
from gateway.blueprints.calls import current_call
from gateway.blueprints.prediction_body import TYPES
from gateway.blueprints.rest import ANYBODY, Answer, Asked, Reply, Rest
from gateway.context import services
from gateway.operations import deployment_calls
from gateway.shapes import Free, Text, optional
from gateway.types import Scope
from idl.codes import Code

blueprint = Blueprint("deployment_predictions", __name__)
_routes = Rest(blueprint, "deployments")
PREDICTION = Free({"type": "object", "required": ["id", "model", "deployment", "version", "outputs"]})
ERRORS = (
    *(Code.NOT_FOUND, Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.DEPLOYMENT_PAUSED, Code.NOT_READY, Code.INVALID_MODEL),
    *(Code.MODEL_FAILED, Code.CANCELLED, Code.FORBIDDEN, Code.UNSUPPORTED, Code.GONE, Code.CONFLICT),
)


@_routes.route(
    "POST",
    "/v1/deployments/<name>/predictions",
    "one prediction; one that sleeps is woken, and the call waits",
    {200: Answer("the prediction", PREDICTION)},
    who=ANYBODY,
    scope=Scope.CALL,
    query={"version": optional(Text(1, 64, r"[A-Za-z0-9_-]+", "must be a version's number, stable or canary"), "of those that serve")},
    raw=TYPES,
    errors=ERRORS,
)
def predict_with_deployment(asked: Asked, name: str) -> Reply:
    owned = services()
    target = owned.deployed.target(asked.caller, name)
    call = current_call(inference=target.rpc_name)
    body = prediction_body.read()
    return Reply(deployment_calls.predict(owned.models, owned.settings, call, target, body, asked.query.get("version", "")))
