"""The body of a prediction, by its content type."""

from flask import request

from gateway.blueprints import forms
from gateway.blueprints.calls import read_body
from gateway.operations import prediction_bodies
from gateway.operations.prediction_bodies import PredictionBody
from idl.codes import Code, ServingError

FORMS = (forms.MULTIPART, forms.URLENCODED)
TYPES = ("application/json", *FORMS)


def read() -> PredictionBody:
    """Raises unsupported_media for another type, and what reading it raises."""
    if request.mimetype in FORMS:
        return prediction_bodies.from_form(*forms.parse(read_body(), request.headers["Content-Type"]))
    if request.is_json:
        return prediction_bodies.from_json(read_body())
    raise ServingError(Code.UNSUPPORTED_MEDIA, f"content type {request.mimetype[:80]!r} is not one of {', '.join(TYPES)}")
