"""`GET /openapi.json`: the described routes of `gateway.blueprints.rest`, as an OpenAPI 3.1 document."""

import json
import re
from functools import cache
from typing import Any

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue

from gateway.blueprints.rest import ANYBODY, OPERATIONS, WHOEVER, Answer, Operation
from gateway.errors import STATUS
from idl.codes import Code
from idl.trace_export import version

blueprint = Blueprint("openapi", __name__)
PROBLEM = "Problem"
_SECURITY: dict[str, list[dict[str, list[str]]]] = {WHOEVER: [], ANYBODY: [{}, {"token": []}]}
_ALWAYS = (Code.INTERNAL, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INSUFFICIENT_CAPACITY, Code.OVERLOADED)
"""What any route can answer."""


@blueprint.get("/openapi.json")
def openapi() -> ResponseReturnValue:
    """The document."""
    return Response(_document(), content_type="application/json")


@cache
def _document() -> str:
    return json.dumps(document())


def document() -> dict[str, Any]:
    """The document as a value."""
    paths: dict[str, dict[str, Any]] = {}
    kept: dict[str, Any] = {PROBLEM: _problem()}
    for operation in OPERATIONS:
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, kept)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Outboard", "version": version(), "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": kept,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "an access token or an API key"}},
        },
    }


def _operation(operation: Operation, kept: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "security": _SECURITY.get(operation.who, [{"token": []}]),
        "parameters": _parameters(operation),
        "responses": _responses(operation, kept),
    }
    content: dict[str, Any] = {kind: {"schema": {}} for kind in operation.raw}
    if operation.body is not None:
        content["application/json"] = {"schema": _named(operation.body.schema(), kept)}
    return made | ({"requestBody": {"required": True, "content": content}} if content else {})


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"<(?:\w+:)?(\w+)>", operation.path)
    ]
    found += [
        {"name": name, "in": "query", "required": known.required, "description": known.text, "schema": known.shape.schema()}
        for name, known in operation.query.fields.items()
    ]
    if operation.creates:
        text = "the same request again within 24 hours gives the same answer"
        found.append(_header("Idempotency-Key", text, {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}))
    if operation.matches:
        found.append(_header("If-Match", "the ETag that the change is made to", {"type": "string", "pattern": '^"[0-9]{1,17}"$'}))
    return found


def _header(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _responses(operation: Operation, kept: dict[str, Any]) -> dict[str, Any]:
    found = {str(status): _response(answer, kept) for status, answer in operation.answers.items()}
    codes = {*operation.errors, *_ALWAYS}
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
    for status, names in by_status.items():
        content = {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{PROBLEM}"}}}
        found.setdefault(str(status), {"description": ", ".join(names), "content": content})
    return found


def _response(answer: Answer, kept: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"description": answer.text}
    if answer.shape is not None:
        made["content"] = {kind: {"schema": _named(answer.shape.schema(), kept)} for kind in answer.types}
    elif answer.types != ("application/json",):
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
