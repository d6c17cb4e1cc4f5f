"""`POST /v1/models/{name}/predictions`: an operator's model called with files, forms or JSON."""

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue

from gateway.blueprints import async_calls, prediction_body
from gateway.blueprints.calls import current_call
from gateway.context import required_principal, services
from gateway.operations import predictions
from gateway.operations.tasks import Target
from idl.tensors import invalid

blueprint = Blueprint("predictions", __name__)


@blueprint.post("/v1/models/<model>/predictions")
def predict(model: str) -> ResponseReturnValue:
    """One prediction; `?version=` chooses a version."""
    owned = services()
    if (preferred := async_calls.preference()) is not None:
        version = _version()
        if owned.deployed.admit(required_principal(), model, version) is not None:  # first: what is somebody's own is not told of
            raise predictions.is_deployment(model)
        owned.models.metadata(model, version)
        return async_calls.respond(Target(model, version), preferred)
    return Response(
        predictions.answer(owned.models, owned.settings, current_call(inference=model), model, _version(), prediction_body.read),
        content_type="application/json",
    )


def _version() -> str:
    unknown = sorted(request.args.keys() - {"version"})
    if unknown:
        raise invalid(f"unknown query parameter {unknown[0][:80]!r}; known is version")
    return request.args.get("version", "")
