"""`POST /v1/models/{name}/predictions`: an operator's model called with files, forms or JSON."""

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue

from gateway.blueprints import forms
from gateway.blueprints.calls import current_call, read_body
from gateway.context import services
from gateway.operations import prediction_bodies, predictions
from gateway.operations.prediction_bodies import PredictionBody
from idl.codes import Code, ServingError
from idl.tensors import invalid

blueprint = Blueprint("predictions", __name__)
_FORMS = (forms.MULTIPART, forms.URLENCODED)


@blueprint.post("/v1/models/<model>/predictions")
def predict(model: str) -> ResponseReturnValue:
    """One prediction; `?version=` chooses a version."""
    owned = services()
    return Response(
        predictions.answer(owned.models, owned.settings, current_call(inference=model), model, _version(), _body),
        content_type="application/json",
    )


def _version() -> str:
    unknown = sorted(request.args.keys() - {"version"})
    if unknown:
        raise invalid(f"unknown query parameter {unknown[0][:80]!r}; known is version")
    return request.args.get("version", "")


def _body() -> PredictionBody:
    if request.mimetype in _FORMS:
        return prediction_bodies.from_form(*forms.parse(read_body(), request.headers["Content-Type"]))
    if request.is_json:
        return prediction_bodies.from_json(read_body())
    raise ServingError(
        Code.UNSUPPORTED_MEDIA, f"content type {request.mimetype[:80]!r} is not one of application/json, {', '.join(_FORMS)}"
    )
