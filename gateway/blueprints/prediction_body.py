"""The body of a prediction, by its content type."""

from flask import request

from gateway.blueprints import forms
from gateway.blueprints.calls import read_body
from gateway.operations import prediction_bodies
from gateway.operations.prediction_bodies import PredictionBody
from gateway.shapes import TEXT_OR_BYTES
from idl.codes import Code, ServingError

FORMS = (forms.MULTIPART, forms.URLENCODED)
TYPES = ("application/json", *FORMS)
_COMMON = {
    "outputs": {"type": "array", "items": {"type": "string"}, "description": "only these outputs; none of them: the labels alone"},
    "top_k": {"type": "integer", "minimum": 1, "description": "most labels of a sample"},
}
_FILETYPE = {"description": "what the inputs are: one word, or an object with a word for each input, as the form API has it"}
_JSON = {
    "title": "PredictionRequest",
    "type": "object",
    "properties": {
        "inputs": {"type": "object", "description": 'by input: nested lists, or {"b64": ...} for a file, or a list of those'},
        "records": {"type": "array", "items": {"type": "object"}, "minItems": 1, "description": "rows of a table"},
        "columns": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "data": {"type": "array", "items": {"type": "array"}, "minItems": 1, "description": "rows, with a value for each of columns"},
        "filetype": _FILETYPE,
        "input": {"description": "with filetype: what the form API's field of this name has"},
        **_COMMON,
    },
    "patternProperties": {f"^{prediction_bodies.OF_ONE}": {"description": "with filetype: one input"}},
    "additionalProperties": False,
    "oneOf": [{"required": names} for names in (["inputs"], ["records"], ["columns"], ["filetype"])],
}
_FORM = {
    "properties": {
        "outputs": {"type": "string", "description": "names, commas between them"},
        "top_k": {"type": "string", "pattern": "^[0-9]{1,9}$"},
        "filetype": {"type": "string"} | _FILETYPE,
    },
    "description": "by input name: text, or in multipart/form-data a file; several of one name are several samples",
    "minProperties": 1,
}
BODIES = {
    "application/json": _JSON,
    forms.MULTIPART: {"title": "PredictionForm", "type": "object", "additionalProperties": TEXT_OR_BYTES.schema(), **_FORM},
    forms.URLENCODED: {"title": "PredictionFields", "type": "object", "additionalProperties": {"type": "string"}, **_FORM},
}
"""Content type -> what it looks like, for the OpenAPI document."""


def read() -> PredictionBody:
    """Raises unsupported_media for another type, and what reading it raises."""
    if request.mimetype in FORMS:
        return prediction_bodies.from_form(*forms.parse(read_body(), request.headers["Content-Type"]))
    if request.is_json:
        return prediction_bodies.from_json(read_body())
    raise ServingError(Code.UNSUPPORTED_MEDIA, f"content type {request.mimetype[:80]!r} is not one of {', '.join(TYPES)}")
