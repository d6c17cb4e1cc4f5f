"""The form API in the OpenAPI document: made from what its routes say of themselves, with a text for each parameter and answer."""

from collections.abc import Mapping
from typing import Any

from gateway.blueprints import forms
from gateway.blueprints.form_api import ALWAYS, INVALID_PARAMETER, ROUTES, SUCCESS, FormRoute
from gateway.shapes import BYTES, TEXT_OR_BYTES, Free, Items, Number, OrNull, Shape, Text, Whole

TAG = "form API"
_JSON = "application/json"
_COUNT = Whole(0, 2**63 - 1)
_NUMBER = OrNull(Number())
PARAMETERS = {
    "user": "name of the account; may be spelled `uesr`",
    "password": "",
    "email": "where codes go",
    "modelname": "name of the model",
    "newname": "the name that it is to have",
    "modeltype": "what it is for, in a word of the owner's own",
    "description": "",
    "deployment": "name of the deployment",
    "time": "kept as given, for display",
    "cpu": "cores that are reserved",
    "memory": "what is reserved: bytes, or such as 512MiB",
    "filetype": "what `input` is: none, jpgbase64, mp4base64, csv, txt, mp4 or zip; or a JSON object with one of these for each input",
    "input": "the input: JSON, text, base64 or a file, as `filetype` says",
    "taskid": "as /submit answered it",
    "script": "the source, as a file or as text",
}
FILES: Mapping[str, Mapping[str, tuple[Shape, bool]]] = {
    "/uploadmodel": {"model": (BYTES, True), "files": (Items(BYTES), False)},
    "/modifymodel": {"model": (BYTES, False), "files": (Items(BYTES), False)},
    "/uploadscript": {"script": (TEXT_OR_BYTES, True)},
}
"""Route -> its file fields, and whether each must be there. (`input` may be a file wherever it stands.)"""
_TENSOR = Free(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "type": {"type": "string"}, "optype": {"type": "string"}},
        "required": ["name", "type", "range", "dimension", "optype"],
    }
)


def _entry(*names: str) -> Items:
    return Items(Free({"type": "object", "required": list(names)}), 1 << 20)


_OUTPUT = {"output": Free({"type": "object", "description": "by output name; one entry for each sample"})}
ANSWERS: Mapping[str, Mapping[str, Shape]] = {
    "/getmodelinfo": {
        **dict.fromkeys(("modelname", "time", "modeltype", "algorithm", "description", "engine"), Text()),
        **dict.fromkeys(("input", "output"), Items(_TENSOR, 4096)),
    },
    "/getusermodel": {"model": _entry("modelname", "modeltype", "time")},
    "/getmodellist": {"model": _entry("modelname", "modeltype", "time", "owner")},
    "/testmodel": _OUTPUT,
    "/getmodeldeployment": {"deployment": _entry("deployment", "status", "time")},
    "/getdeploymentstatus": {
        "state": Text(),
        **dict.fromkeys(("requests", "errors", "memory"), _COUNT),
        **dict.fromkeys(("mean", "p50", "p95", "p99"), _NUMBER),
    },
    "/predict": _OUTPUT,
    "/submit": {"taskid": Text()},
    "/gettaskstatus": {"state": Text()},
    "/gettaskresult": _OUTPUT,
    "/gettasks": {"task": _entry("taskid", "state")},
    "/uploadscript": {"version": Whole(1)},
}
"""What an answer with `success` holds besides; others may hold more."""


def paths() -> dict[str, dict[str, Any]]:
    """Path -> method -> operation."""
    made: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        made.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return made


def parameters_of(route: FormRoute) -> tuple[list[str], list[str]]:
    """(those that must be there, those that may): text parameters."""
    signs_in = [name for name in ("user", "password") if "user not found" in route.statuses and name not in route.required]
    return [*signs_in, *route.required], list(route.optional)


def _operation(route: FormRoute) -> dict[str, Any]:
    must, may = parameters_of(route)
    made: dict[str, Any] = {
        "operationId": f"form_{route.path.strip('/')}",
        "tags": [TAG],
        "summary": f"HTTP 200 with a status: {', '.join([SUCCESS, *route.statuses])}",
        "security": [],
        "responses": _responses(route),
    }
    if route.method == "POST":
        return made | {"requestBody": {"required": True, "content": _content(route, must, may)}}
    listed = [(name, True) for name in must] + [(name, False) for name in may]
    made["parameters"] = [
        {"name": name, "in": "query", "required": required, "description": PARAMETERS.get(name, ""), "schema": {"type": "string"}}
        for name, required in listed
    ]
    return made


def _content(route: FormRoute, must: list[str], may: list[str]) -> dict[str, Any]:
    files = FILES.get(route.path, {})
    texts = {name: _text(name) for name in (*must, *may)}
    taken = {name: shape.schema() | {"description": "a file"} for name, (shape, _) in files.items()}
    required = [*must, *(name for name, (_, needed) in files.items() if needed)]
    needs_files = any(needed and name not in texts for name, (_, needed) in files.items())
    multipart: dict[str, Any] = {"type": "object", "properties": {**texts, **taken}, "required": required}
    if "input" in texts:
        multipart["properties"]["input"] = TEXT_OR_BYTES.schema() | {"description": PARAMETERS["input"]}
        multipart["patternProperties"] = {"^inputfile_": TEXT_OR_BYTES.schema()}
    made = {forms.MULTIPART: {"schema": multipart}}
    if not needs_files:
        more = {"patternProperties": {"^inputfile_": {"type": "string"}}} if "input" in texts else {}
        made[forms.URLENCODED] = {
            "schema": {"type": "object", "properties": texts, "required": [name for name in required if name in texts], **more}
        }
    return made


def _text(name: str) -> dict[str, Any]:
    return {"type": "string"} | ({"description": PARAMETERS[name]} if PARAMETERS.get(name) else {})


def _responses(route: FormRoute) -> dict[str, Any]:
    statuses = sorted({*ALWAYS, *route.statuses} - (set() if route.never_fails else {INVALID_PARAMETER}))
    more = ANSWERS.get(route.path, {})
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "status": {"type": "string", "enum": statuses},
            "message": {"type": "string"},
            **{name: shape.schema() for name, shape in more.items()},
        },
        "required": ["status"],
    }
    if more:
        schema |= {"if": {"properties": {"status": {"const": SUCCESS}}}, "then": {"required": list(more)}}
    made: dict[str, Any] = {status: {"description": "the proxy's own"} for status in ("413", "429", "503")}
    made["200"] = {"description": "every documented status", "content": {_JSON: {"schema": schema}}}
    if not route.never_fails:
        wrong = {
            "type": "object",
            "properties": {"status": {"const": INVALID_PARAMETER}, "message": {"type": "string"}},
            "required": ["status", "message"],
        }
        made["400"] = {"description": "a parameter is missing or has a wrong type", "content": {_JSON: {"schema": wrong}}}
    return made
