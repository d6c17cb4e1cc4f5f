"""The form API on models: uploading, changing, reading, deleting and trying them."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint

from gateway.blueprints.form_api import (
    DUPLICATION,
    INVALID_INPUT,
    INVALID_MODEL,
    MODEL_NOT_FOUND,
    FormAsked,
    FormRoutes,
)
from gateway.blueprints.model_bodies import CHANGE, CREATE_FORM, engine
from gateway.blueprints.model_tests import tried
from gateway.blueprints.model_uploads import KEPT, kept
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations.models import Found
from gateway.operations.prediction_bodies import FormInput, PredictionBody
from gateway.shapes import Object, Reasons
from gateway.storage.model_records import Wanted

blueprint = Blueprint("form_models", __name__)
_routes = FormRoutes(blueprint)
_FIELDS = {"modeltype": "type", "description": "description", "newname": "name"}
_PAGE = 200


@_routes.route("POST", "/uploadmodel", ("modelname", "modeltype", "description"), statuses=(DUPLICATION, INVALID_MODEL), keep=KEPT)
def upload_model(asked: FormAsked) -> Mapping[str, Any]:
    """A new model from the file `model`; further files of it are `files`."""
    values = {"name": asked["modelname"], "type": asked["modeltype"], "description": asked["description"]}
    services().library.create(asked.me, _checked(CREATE_FORM, values), kept(asked.kept), asked.doer)
    return {}


@_routes.route(
    "POST",
    "/modifymodel",
    ("modelname",),
    optional=("newname", "description", "modeltype"),
    statuses=(MODEL_NOT_FOUND, DUPLICATION, INVALID_MODEL),
    keep=KEPT,
)
def modify_model(asked: FormAsked) -> Mapping[str, Any]:
    """Changes what is given; a file `model` is a new version."""
    given = {field: asked.get(name) for name, field in _FIELDS.items()}
    values = _checked(CHANGE, {field: value for field, value in given.items() if value is not None})
    files = kept(asked.kept) if asked.kept else []
    services().library.change(asked.me, asked["modelname"], values, asked.doer, files=files)
    return {}


@_routes.route("GET", "/getmodelinfo", ("modelname",), statuses=(MODEL_NOT_FOUND,))
def model_info(asked: FormAsked) -> Mapping[str, Any]:
    """What is known of a model."""
    found = services().library.find(asked.me, asked["modelname"])
    version = services().library.version(found, None)
    record = found.model
    return {
        "modelname": record.name,
        "time": record.created_at,
        "modeltype": record.type,
        "algorithm": version.facts["algorithm"],
        "description": record.description,
        "engine": engine(version.format, version.facts["platform"]),
        "input": [_tensor(each) for each in version.signature["inputs"]],
        "output": [_tensor(each) for each in version.signature["outputs"]],
    }


@_routes.route("GET", "/getusermodel")
def user_models(asked: FormAsked) -> Mapping[str, Any]:
    """One's own models."""
    return {"model": [_listed(found) for found in _all(asked, Wanted(None, owner=asked.me.name))]}


@_routes.route("DELETE", "/deletemodel", ("modelname",), statuses=(MODEL_NOT_FOUND,), never_fails=True)
def delete_model(asked: FormAsked) -> Mapping[str, Any]:
    """Deletes a model. Deployments of it go on until they are deleted."""
    services().library.delete(asked.me, asked["modelname"], asked.doer, used=True)
    return {}


@_routes.route("POST", "/testmodel", ("modelname", "filetype"), optional=("input",), statuses=(MODEL_NOT_FOUND, INVALID_INPUT))
def test_model(asked: FormAsked) -> Mapping[str, Any]:
    """One prediction, or one for each sample, of a model that need not be deployed."""
    answer = tried(asked.me, asked["modelname"], None, PredictionBody(form=form_input(asked)))
    return output_of(answer)


@_routes.route("GET", "/getmodellist")
def model_list(asked: FormAsked) -> Mapping[str, Any]:
    """Every model that the caller may see, with its owner; the operators' have none."""
    operators = services().host_models.listed(asked.me, "", "", "", 1 << 30)
    of_host = [{"modelname": model.name, "modeltype": "", "time": "", "owner": None} for model in operators]
    return {"model": of_host + [_listed(found) | {"owner": found.model.owner} for found in _all(asked, Wanted(None))]}


def form_input(asked: FormAsked) -> FormInput:
    """`input`, `filetype` and the inputs' own fields of a form. Raises invalid_input where the input is missing."""
    fields: dict[str, str] = {}
    for name, value in asked.fields:
        fields.setdefault(name, value)
    files = {part.field: part.content for part in reversed(asked.files)}
    if not any(name == "input" or name.startswith("inputfile_") for name in (*fields, *files)):
        raise InvalidFields({"input": "is missing"})
    return FormInput(asked["filetype"], fields, files)


def output_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a form's answer holds of a prediction's: the outputs, and labels and assumptions where there are some."""
    return {"output": answer["outputs"]} | {name: answer[name] for name in ("labels", "assumed") if name in answer}


def _checked(shape: Object, values: Mapping[str, Any]) -> dict[str, Any]:
    reasons: Reasons = {}
    names = {field: name for name, field in _FIELDS.items()} | ({"name": "modelname"} if shape is CREATE_FORM else {})
    made = dict(shape.check(dict(values), "", reasons))
    if reasons:
        raise InvalidFields({names.get(field, field): reason for field, reason in reasons.items()})
    return made


def _all(asked: FormAsked, wanted: Wanted) -> list[Found]:
    found: list[Found] = []
    after: tuple[str, int] | None = None
    while more := services().library.listed(asked.me, wanted, after, _PAGE):
        found += more
        after = (more[-1].model.name, more[-1].model.id)
        if len(more) < _PAGE:
            break
    return found


def _listed(found: Found) -> dict[str, Any]:
    return {"modelname": found.model.name, "modeltype": found.model.type, "time": found.model.created_at}


def _tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tensor[other] for key, other in _TENSOR.items()}


_TENSOR = {"name": "name", "type": "type", "range": "range", "dimension": "shape", "optype": "optype"}
