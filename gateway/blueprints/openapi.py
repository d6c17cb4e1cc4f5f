"""`GET /openapi.json`: every route of the gateway, as an OpenAPI 3.1 document.

Those of `gateway.blueprints.rest` describe themselves, those of the form API as well; the others stand in `gateway.blueprints.openapi_table`.
"""

import json
import re
from functools import cache
from itertools import chain
from typing import Any

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue

from gateway.blueprints import docs_page, openapi_forms, openapi_v2_shapes
from gateway.blueprints.openapi_table import OPTIONAL_BODIES, TABLE
from gateway.blueprints.rest import ANYBODY, OPERATIONS, WHOEVER, Answer, Operation
from gateway.errors import STATUS
from gateway.operations import names
from idl.codes import Code
from idl.trace_export import version

blueprint = Blueprint("openapi", __name__)
PROBLEM = "Problem"
_JSON, _PROBLEM_JSON = "application/json", "application/problem+json"
_SECURITY: dict[str, list[dict[str, list[str]]]] = {WHOEVER: [], ANYBODY: [{}, {"token": []}]}
_LINE = 16_000
"""Bytes of a request line, less than nginx takes (nginx/gateway.conf.in)."""
_ALWAYS = (Code.INTERNAL, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INSUFFICIENT_CAPACITY, Code.OVERLOADED)
"""What any route can answer."""
ABOUT = """Outboard serves machine learning models over HTTP, gRPC and Thrift.

Send an access token (`POST /v1/tokens`) or an API key (`POST /v1/api-keys`) as `Authorization: Bearer`. Errors are problem documents
(RFC 9457) with one of the codes that `GET /v1/errors` explains, under `/v2` `{"error"}` with the code in the header `Outboard-Code`.
Lists come in pages: `next` of one is `cursor` of the next, and `Link` has its address."""
TAGS = {
    "models": "Models of users, taken in and tried before they are kept, and those of the operators. In a path a plain name is one's own model or an operators', "
    "`owner.name` somebody else's.",
    "uploads": "Large files in pieces, which go on where they broke off.",
    "deployments": "What makes a model answer: instances, reservations, canaries, pinned requests, statistics.",
    "scripts": "Python before and after a deployment's model, in a closed box.",
    "tasks": "What runs without its caller waiting: state, result, events.",
    "batches": "One file of many inputs.",
    "webhooks": "Notices of tasks that have ended, signed as Standard Webhooks has it.",
    "sign-in": "Tokens.",
    "accounts": "Registering, and one's own account.",
    "API keys": "Keys for programs, with scopes.",
    "teams": "Who shares models and deployments.",
    "administration": "For administrators, some for operators.",
    "open protocol": "The Open Inference Protocol v2 with Triton's extensions; the official clients speak it.",
    "repository": "The protocol's model repository extension.",
    "run time": "The protocol's shared memory, trace and log extensions; for operators.",
    openapi_forms.TAG: "The interface of the original service: form fields, a password with every call, and a `status` in every answer.",
    "service": "Health, metrics, errors, and this document.",
}
"""Every heading with its text, in the order of the document."""
_TAGS = {name.lower(): name for name in TAGS}
_NAME = f"^{names.PATTERN}$"
_ADDRESSED = rf"^(?:{names.PATTERN}\.)?{names.PATTERN}$"
_ID = "^[A-Za-z0-9_-]{1,64}$"
IN_PATHS: dict[str, tuple[str, str]] = {
    "name": (_ADDRESSED, "one's own by its name, somebody else's by owner.name"),
    "model": (r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,193}$", "an operators' model by its name, a user's deployment by owner.name"),
    "version": (_ID, "its number; under /v2 also a label, such as stable"),
    "request_name": (_NAME, "of the golden request"),
    "team": (_NAME, "the team's name"),
    "username": (_NAME, "the account's name"),
    "region": (r"^[A-Za-z0-9_.-]{1,200}$", "name of the region"),
    **dict.fromkeys(("upload", "key_id", "task_id", "batch_id", "webhook_id", "delivery_id"), (_ID, "its id")),
}
"""What stands in a path -> (what it looks like, what it is). What looks otherwise is not found."""


@blueprint.get("/openapi.json")
def openapi() -> ResponseReturnValue:
    """The document."""
    return Response(_document(), content_type=_JSON)


@blueprint.get("/docs")
def docs() -> ResponseReturnValue:
    """The document as a page."""
    headers = {"Content-Security-Policy": docs_page.POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return Response(_page(), headers=headers, content_type="text/html; charset=utf-8")


@cache
def _document() -> str:
    return json.dumps(document())


@cache
def _page() -> str:
    return docs_page.render(document())


def document() -> dict[str, Any]:
    """The document as a value."""
    paths: dict[str, dict[str, Any]] = {}
    kept: dict[str, Any] = {PROBLEM: _problem()}
    tagged = {operation.path for operation in OPERATIONS if operation.matches}
    for operation in chain(OPERATIONS, TABLE):
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", operation.path)
        made = paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, kept)
        if operation.method == "GET" and operation.path in tagged:
            made["responses"]["304"] = {"description": "If-None-Match has its ETag"}
    for path, methods in openapi_forms.paths().items():
        paths.setdefault(path, {}).update(methods)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Outboard",
            "version": version(),
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": kept,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "an access token or an API key"}},
        },
    }


def _operation(operation: Operation, kept: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [_TAGS.get(operation.tag.lower(), operation.tag)],
        "summary": operation.summary,
        "security": _SECURITY.get(operation.who, [{"token": []}]),
        "parameters": _parameters(operation),
        "responses": _responses(operation, kept),
    }
    content = {kind: {"schema": _named(schema, kept)} for kind, schema in operation.raw.items()}
    if operation.body is not None:
        content[_JSON] = {"schema": _named(operation.body.schema(), kept)}
    return made | ({"requestBody": {"required": operation.name not in OPTIONAL_BODIES, "content": content}} if content else {})


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found = [_in_path(name) for name in re.findall(r"<(?:\w+:)?(\w+)>", operation.path)]
    found += [
        {"name": name, "in": "query", "required": known.required, "description": known.text, "schema": known.shape.schema()}
        for name, known in operation.query.fields.items()
    ]
    found += [_header(name, known.text, known.shape.schema()) for name, known in operation.headers.items()]
    if operation.creates:
        text = "the same request again within 24 hours gives the same answer"
        found.append(_header("Idempotency-Key", text, {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}))
    if operation.matches:
        found.append(_header("If-Match", "the ETag that the change is made to", {"type": "string", "pattern": '^(W/)?"[0-9]{1,17}"$'}))
    return found


def _in_path(name: str) -> dict[str, Any]:
    pattern, text = IN_PATHS.get(name, (r"^[^/]+$", ""))
    return {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string", "pattern": pattern}}


def _header(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _responses(operation: Operation, kept: dict[str, Any]) -> dict[str, Any]:
    found = {str(status): _response(answer, kept) for status, answer in operation.answers.items()}
    codes = {*operation.errors, *_ALWAYS}
    if "<" in operation.path:
        codes.add(Code.NOT_FOUND)
    if operation.query.fields or operation.body is not None or operation.raw or operation.creates or operation.matches:
        codes.add(Code.INVALID_INPUT)
    if operation.body is not None or operation.raw:
        codes |= {Code.UNSUPPORTED_MEDIA, Code.TOO_LARGE}
    if operation.who != WHOEVER:
        codes |= {Code.UNAUTHENTICATED, Code.FORBIDDEN}
    if operation.creates or operation.matches:
        codes.add(Code.CONFLICT)
    by_status: dict[int, list[str]] = {}
    for code in Code:
        if code in codes:
            by_status.setdefault(STATUS[code], []).append(code.value)
    if operation.matches:
        by_status[412] = [Code.CONFLICT.value]
    if any(_may_be_long(known.shape.schema()) for known in operation.query.fields.values()):
        by_status[414] = [Code.TOO_LARGE.value]
    if operation.path.startswith("/v2"):
        content = {_JSON: {"schema": _named(openapi_v2_shapes.ERROR.schema(), kept)}}
    else:
        content = {_PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{PROBLEM}"}}}
    for status, codes_of in by_status.items():
        known = found.setdefault(str(status), {"description": ", ".join(codes_of)})
        known["content"] = _either(known.get("content", {}), content)
    return found


def _may_be_long(schema: dict[str, Any]) -> bool:
    """Whether what it takes, each character spelled as %XX up to four times, may be longer than a request line."""
    return (
        schema.get("type") == "string" and not {"enum", "pattern", "format"} & schema.keys() and schema.get("maxLength", _LINE) * 12 > _LINE
    )


def _either(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The contents of both, as one of a status has an answer of its own and errors besides."""
    made = {**other, **one}
    for kind in one.keys() & other.keys():
        if one[kind] != other[kind]:
            made[kind] = {"schema": {"anyOf": [one[kind]["schema"], other[kind]["schema"]]}}
    return made


def _response(answer: Answer, kept: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"description": answer.text}
    if answer.shape is not None:
        schema = _named(answer.shape.schema(), kept)
        made["content"] = {kind: {"schema": schema} if kind.endswith("json") else {} for kind in answer.types}
    elif answer.types != (_JSON,):
        made["content"] = {kind: {"schema": {}} for kind in answer.types}
    return made


def _named(schema: Any, kept: dict[str, Any]) -> Any:
    """The same with every object that has a title among the components."""
    if isinstance(schema, list):
        return [_named(part, kept) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _named(value, kept) for key, value in schema.items()}
    title = made.get("title")
    if made.get("type") == "object" and isinstance(title, str):
        kept[title] = made
        return {"$ref": f"#/components/schemas/{title}"}
    return made


def _problem() -> dict[str, Any]:
    texts = {name: {"type": "string"} for name in ("type", "title", "detail", "request_id")}
    field = {"type": "object", "properties": {"field": {"type": "string"}, "message": {"type": "string"}}, "required": ["field", "message"]}
    return {
        "title": PROBLEM,
        "description": "RFC 9457",
        "type": "object",
        "properties": {
            **texts,
            "status": {"type": "integer"},
            "code": {"type": "string", "enum": [code.value for code in Code]},
            "errors": {"type": "array", "items": field},
        },
        "required": ["type", "title", "status", "detail", "code", "request_id"],
    }
