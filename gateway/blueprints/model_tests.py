"""`POST /v1/models/{name}/test`: one's own model, tried before it is deployed."""

import time
from typing import Any

from flask import Blueprint

from gateway.blueprints import prediction_body
from gateway.blueprints.calls import current_call
from gateway.blueprints.models import number_of
from gateway.blueprints.prediction_body import BODIES
from gateway.blueprints.rest import Answer, Asked, Reply, Rest
from gateway.context import services
from gateway.operations import predictions
from gateway.operations.prediction_bodies import PredictionBody
from gateway.shapes import Free, Text, optional
from gateway.types import Principal, Scope
from idl.codes import Code

blueprint = Blueprint("model_tests", __name__)
_routes = Rest(blueprint, "models")
_PREDICTION = Free({"type": "object", "required": ["id", "model", "version", "outputs"]})


@_routes.route(
    "POST",
    "/v1/models/<name>/test",
    "one prediction of a model that need not be deployed",
    {200: Answer("as of a prediction", _PREDICTION)},
    scope=Scope.CALL,
    query={"version": optional(Text(1, 10), "the newest by default")},
    raw=BODIES,
    errors=(
        *(Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.NOT_READY, Code.INVALID_MODEL, Code.MODEL_FAILED, Code.CANCELLED),
        *(Code.ALREADY_EXISTS, Code.CONFLICT, Code.GONE, Code.UNSUPPORTED),
    ),
)
def test_model(asked: Asked, name: str) -> Reply:
    number = number_of(asked.query["version"]) if "version" in asked.query else None
    return Reply(tried(asked.me, name, number, prediction_body.read()))


def tried(caller: Principal, name: str, number: int | None, body: PredictionBody) -> dict[str, Any]:
    """The answer, under the name that the caller used."""
    owned, call, started = services(), current_call(), time.monotonic()

    def ask(on_host: str, version: str) -> dict[str, Any]:
        return predictions.predict(owned.models, owned.settings, call, on_host, version, body, started)

    return owned.model_tests.run(caller, name, number, call.deadline, ask) | {"model": name}
