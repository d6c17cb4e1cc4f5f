"""`/v1/scripts`: what users put before and after the models of their deployments, in versions."""

from typing import Any

from flask import Blueprint, Response, request

from gateway.blueprints import forms
from gateway.blueprints.calls import read_body
from gateway.blueprints.deployment_bodies import NAME
from gateway.blueprints.models import number_of
from gateway.blueprints.rest import PAGE, Answer, Asked, Reply, Rest, page, page_of
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.shapes import BYTES, Items, Object, Text, Whole, answer, optional, required
from gateway.storage.scripts import ScriptRecord, ScriptVersionRecord
from gateway.types import Scope
from idl.codes import Code, ServingError

blueprint = Blueprint("scripts", __name__)
_routes = Rest(blueprint, "scripts")
PLAIN = ("text/x-python", "text/plain")
TYPES = (*PLAIN, forms.MULTIPART)
_BODIES = {**{kind: {"type": "string"} for kind in PLAIN}, forms.MULTIPART: Object({"script": required(BYTES)}).schema()}
_DESCRIPTION = Text(0, 2000, lines=True)
_VERSION = answer(
    "ScriptVersion",
    {
        "version": (Whole(), ""),
        "functions": (Items(Text()), "preprocess, postprocess or both"),
        "sha256": (Text(), ""),
        "created_at": (Text(), ""),
    },
)
SCRIPT = answer(
    "Script",
    {
        "name": (Text(), ""),
        "description": (Text(), ""),
        "version": (Whole(), "the newest"),
        "functions": (Items(Text()), "of the newest"),
        "created_at": (Text(), ""),
        "updated_at": (Text(), ""),
    },
)
_ERRORS = (Code.UNSUPPORTED, Code.NOT_READY)
_RATE = ("scripts", 30, 2.0)


@_routes.route(
    "POST",
    "/v1/scripts",
    "takes in a script, which a model host looks at first; the body is its source, or a form with the file `script`",
    {201: Answer("the script", SCRIPT)},
    scope=Scope.WRITE,
    query={"name": required(NAME), "description": optional(_DESCRIPTION)},
    raw=_BODIES,
    errors=(*_ERRORS, Code.ALREADY_EXISTS),
    creates=True,
    rate=_RATE,
)
def create_script(asked: Asked) -> Reply:
    name = asked.query["name"]
    made, version = services().scripts.put(asked.me, name, source(), asked.doer, description=asked.query.get("description", ""), new=True)
    return Reply(_script(made, version), 201, {"Location": f"/v1/scripts/{made.name}"}, made.revision)


@_routes.route(
    "POST",
    "/v1/script-checks",
    "looks at a script as a model host does before it is taken in, and keeps nothing",
    {200: Answer("what it has", answer("ScriptCheck", {"functions": (Items(Text()), "preprocess, postprocess or both")}))},
    scope=Scope.WRITE,
    raw=_BODIES,
    errors=_ERRORS,
    rate=("script checks", 30, 1.0),
)
def check_script(asked: Asked) -> Reply:
    return Reply({"functions": list(services().scripts.check(source()))})


@_routes.route(
    "GET", "/v1/scripts", "lists the caller's scripts, oldest first", {200: Answer("a page", page_of("Scripts", SCRIPT))}, query=PAGE
)
def list_scripts(asked: Asked) -> Reply:
    scripts, key = services().scripts, asked.key(int)
    found = scripts.listed(asked.me, 0 if key is None else int(key[0]), asked.limit + 1)
    return page(found, lambda each: [each.id], lambda each: _script(each, scripts.version(each, None)), asked.limit)


@_routes.route("GET", "/v1/scripts/<name>", "reads a script", {200: Answer("the script", SCRIPT)}, errors=(Code.NOT_FOUND,))
def read_script(asked: Asked, name: str) -> Reply:
    return _reply(services().scripts.read(asked.me, name))


@_routes.route(
    "PATCH",
    "/v1/scripts/<name>",
    "changes what is said of a script",
    {200: Answer("the script", SCRIPT)},
    scope=Scope.WRITE,
    body=Object({"description": required(_DESCRIPTION)}, "ScriptChange"),
    matches=True,
    errors=(Code.NOT_FOUND,),
)
def change_script(asked: Asked, name: str) -> Reply:
    return _reply(services().scripts.describe(asked.me, name, asked.body["description"], asked.doer, asked.revision))


@_routes.route(
    "DELETE",
    "/v1/scripts/<name>",
    "deletes a script that no deployment uses",
    {204: Answer("it is deleted")},
    scope=Scope.WRITE,
    errors=(Code.NOT_FOUND, Code.CONFLICT),
)
def delete_script(asked: Asked, name: str) -> Reply:
    services().scripts.delete(asked.me, name, asked.doer)
    return Reply()


@_routes.route(
    "POST",
    "/v1/scripts/<name>/versions",
    "takes in a new version; deployments keep theirs until they are changed",
    {201: Answer("the version; the same source again is the version that it was", _VERSION)},
    scope=Scope.WRITE,
    raw=_BODIES,
    errors=(*_ERRORS, Code.NOT_FOUND),
    creates=True,
    rate=_RATE,
)
def create_script_version(asked: Asked, name: str) -> Reply:
    scripts = services().scripts
    known = scripts.read(asked.me, name)
    _, version = scripts.put(asked.me, known.name, source(), asked.doer)
    return Reply(_version(version), 201, {"Location": f"/v1/scripts/{known.name}/versions/{version.number}"})


@_routes.route(
    "GET",
    "/v1/scripts/<name>/versions",
    "lists a script's versions, newest first",
    {200: Answer("a page", page_of("ScriptVersions", _VERSION))},
    query=PAGE,
    errors=(Code.NOT_FOUND,),
)
def list_script_versions(asked: Asked, name: str) -> Reply:
    scripts, key = services().scripts, asked.key(int)
    found = scripts.versions(scripts.read(asked.me, name), None if key is None else int(key[0]), asked.limit + 1)
    return page(found, lambda each: [each.number], _version, asked.limit)


@_routes.route(
    "GET",
    "/v1/scripts/<name>/versions/<version>/source",
    "reads a version's source",
    {200: Answer("Python", types=("text/x-python",))},
    errors=(Code.NOT_FOUND, Code.VERSION_NOT_FOUND, Code.GONE),
)
def read_script_source(asked: Asked, name: str, version: str) -> Response:
    scripts = services().scripts
    found = scripts.version(scripts.read(asked.me, name), number_of(version))
    headers = {"Cache-Control": "no-store", "Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
    return Response(scripts.source(found), headers=headers, content_type="text/x-python; charset=utf-8")


def source() -> bytes:
    """The body, or a form's file `script`. Raises unsupported_media, invalid_input, too_large."""
    if request.mimetype in PLAIN:
        return read_body()
    if request.mimetype != forms.MULTIPART:
        raise ServingError(Code.UNSUPPORTED_MEDIA, f"content type {request.mimetype[:80]!r} is not one of {', '.join(TYPES)}")
    fields, files = forms.parse(read_body(), request.headers["Content-Type"])
    found = [content for name, content in files if name == "script"] or [text.encode() for name, text in fields if name == "script"]
    if len(found) != 1:
        raise InvalidFields({"script": "is missing: a file" if not found else "is there more than once"})
    return found[0]


def _reply(script: ScriptRecord) -> Reply:
    return Reply(_script(script, services().scripts.version(script, None)), revision=script.revision)


def _script(script: ScriptRecord, newest: ScriptVersionRecord) -> dict[str, Any]:
    return {
        "name": script.name,
        "description": script.description,
        "version": newest.number,
        "functions": list(newest.functions),
        "created_at": script.created_at,
        "updated_at": script.updated_at,
    }


def _version(version: ScriptVersionRecord) -> dict[str, Any]:
    return {"version": version.number, "functions": list(version.functions), "sha256": version.sha256, "created_at": version.created_at}
