"""`/v1/deployments/{name}/golden`: pinned requests, which another version must answer as this one does before it serves."""

import json

from flask import Blueprint, request

from gateway.blueprints import deployment_bodies as bodies
from gateway.blueprints import prediction_body
from gateway.blueprints.calls import current_call
from gateway.blueprints.prediction_body import BODIES
from gateway.blueprints.rest import Answer, Asked, Reply, Rest
from gateway.context import services
from gateway.operations import golden
from gateway.operations.access import Can
from gateway.shapes import Items, Object, required
from gateway.types import Scope
from idl.codes import Code, ServingError

blueprint = Blueprint("golden", __name__)
_routes = Rest(blueprint, "deployments")
_LIST = Object({"items": required(Items(bodies.GOLDEN, golden.MOST))}, "GoldenRequests")


@_routes.route(
    "POST",
    "/v1/deployments/<name>/golden",
    "pins a request with the answer that it has now; the body is a prediction's",
    {201: Answer("what is pinned", bodies.GOLDEN_WITH_ANSWER)},
    scope=Scope.WRITE,
    query={"name": required(bodies.NAME)},
    raw=BODIES,
    errors=(
        *(Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.CONFLICT, Code.DEPLOYMENT_PAUSED, Code.NOT_READY, Code.MODEL_NOT_FOUND),
        *(Code.VERSION_NOT_FOUND, Code.INVALID_MODEL, Code.MODEL_FAILED, Code.CANCELLED, Code.UNSUPPORTED, Code.GONE),
    ),
    creates=True,
)
def pin_golden(asked: Asked, name: str) -> Reply:
    owned = services()
    record = owned.deployments.find(asked.me, name, Can.CHANGE)
    body = prediction_body.read()
    pinned, outputs = golden.pin(
        owned.storage,
        owned.models,
        owned.settings,
        current_call(),
        record,
        asked.query["name"],
        body,
        request.mimetype,
        asked.doer,
        owned.now(),
    )
    return Reply({**bodies.golden(pinned), "outputs": outputs}, 201, {"Location": f"/v1/deployments/{name}/golden/{pinned.name}"})


@_routes.route(
    "GET",
    "/v1/deployments/<name>/golden",
    "lists a deployment's golden requests, by name",
    {200: Answer("all of them", _LIST)},
    errors=(Code.NOT_FOUND,),
)
def list_golden(asked: Asked, name: str) -> Reply:
    owned = services()
    record = owned.deployments.find(asked.me, name, Can.CHANGE)
    return Reply({"items": [bodies.golden(pinned) for pinned in owned.storage.golden.of(record.id)]})


@_routes.route(
    "GET",
    "/v1/deployments/<name>/golden/<request_name>",
    "reads a golden request's pinned answer",
    {200: Answer("the answer", bodies.GOLDEN_WITH_ANSWER)},
    errors=(Code.NOT_FOUND, Code.GONE),
)
def read_golden(asked: Asked, name: str, request_name: str) -> Reply:
    owned = services()
    record = owned.deployments.find(asked.me, name, Can.CHANGE)
    for pinned in owned.storage.golden.of(record.id):
        if pinned.name == request_name:
            return Reply({**bodies.golden(pinned), "outputs": json.loads(owned.storage.blobs.read(pinned.answer_sha256))})
    raise _missing(request_name)


@_routes.route(
    "DELETE",
    "/v1/deployments/<name>/golden/<request_name>",
    "removes a golden request",
    {204: Answer("it is removed")},
    scope=Scope.WRITE,
    errors=(Code.NOT_FOUND,),
)
def remove_golden(asked: Asked, name: str, request_name: str) -> Reply:
    owned = services()
    record = owned.deployments.find(asked.me, name, Can.CHANGE)
    if not owned.storage.golden.remove(record.id, request_name, asked.doer, owned.now()):
        raise _missing(request_name)
    return Reply()


def _missing(name: str) -> ServingError:
    return ServingError(Code.NOT_FOUND, f"there is no golden request {name[:80]!r}")
