"""`/v1/models`: the models of users, and beside them those of the operators."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Blueprint

from gateway.blueprints import model_bodies, model_uploads
from gateway.blueprints.model_bodies import CHANGE, CREATE, CREATE_FORM, MODEL, MODEL_VERSION, VERSION
from gateway.blueprints.rest import ANYBODY, PAGE, Answer, Asked, Reply, Rest, page, page_of
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations.host_models import HostModel
from gateway.operations.model_files import SentFile
from gateway.operations.models import VISIBILITIES, Found
from gateway.shapes import Flag, Object, Text, is_unicode, optional
from gateway.storage.model_records import Wanted
from gateway.types import Principal, Scope
from idl.codes import Code, ServingError

blueprint = Blueprint("models", __name__)
_routes = Rest(blueprint, "models")
_UPLOAD_ERRORS = (
    *(Code.MODEL_NOT_FOUND, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.CONFLICT, Code.INVALID_MODEL, Code.UNSUPPORTED),
    *(Code.UNSUPPORTED_MEDIA, Code.TOO_LARGE, Code.CANCELLED, Code.NOT_READY),
)
_RATE = ("model uploads", 300, 1.0)
_NOTHING = Object({})


@_routes.route(
    "POST",
    "/v1/models",
    "takes in a model, which a model host tries first",
    {201: Answer("the model", MODEL)},
    scope=Scope.WRITE,
    raw=model_uploads.bodies(CREATE_FORM, CREATE),
    errors=_UPLOAD_ERRORS,
    creates=True,
    rate=_RATE,
)
def create_model(asked: Asked) -> Reply:
    def make(values: Mapping[str, Any], files: Sequence[SentFile]) -> Found:
        return services().library.create(asked.me, values, files, asked.doer)

    made = model_uploads.take(asked.me, CREATE_FORM, CREATE, make)
    return Reply(model_bodies.model(made), 201, {"Location": f"/v1/models/{made.model.name}"}, made.model.revision)


@_routes.route(
    "GET",
    "/v1/models",
    "lists the models that the caller may see: the operators' first, then those of users, by name",
    {200: Answer("a page", page_of("Models", MODEL))},
    who=ANYBODY,
    query={
        **PAGE,
        "q": optional(Text(1, 100), "stands in the name, the description, the type or a tag"),
        "type": optional(Text(1, 64)),
        "tag": optional(Text(1, 40)),
        "owner": optional(Text(1, 64), "a user's name"),
        "visibility": optional(Text(choices=VISIBILITIES)),
        "deleted": optional(Flag(), "one's own that were deleted, and can be restored"),
    },
)
def list_models(asked: Asked) -> Reply:
    wanted = Wanted(
        None, **{field: asked.query.get(name, "") for name, field in _FILTERS.items()}, deleted=asked.query.get("deleted", False)
    )
    after, entries = _after(asked), list[Found | HostModel]()
    if isinstance(after, str):
        if not (wanted.type or wanted.tag or wanted.owner or wanted.deleted):
            entries += services().host_models.listed(asked.caller, wanted.text, wanted.visibility, after, asked.limit + 1)
        after = None
    if len(entries) <= asked.limit:
        entries += services().library.listed(asked.caller, wanted, after, asked.limit + 1 - len(entries))
    return page(entries, _key, _entry, asked.limit)


_FILTERS = {"q": "text", "type": "type", "tag": "tag", "owner": "owner", "visibility": "visibility"}


def _after(asked: Asked) -> str | tuple[str, int] | None:
    """A text: after that one of the operators' models; a pair: after that one of users'."""
    match asked.after:
        case None:
            return ""
        case [str(name)] if is_unicode(name):
            return name
        case [str(name), int(number)] if abs(number) < 2**63 and is_unicode(name):
            return name, number
    raise InvalidFields({"cursor": "is none that an answer gave"})


def _key(entry: Found | HostModel) -> Sequence[Any]:
    return [entry.name] if isinstance(entry, HostModel) else [entry.model.name, entry.model.id]


def _entry(entry: Found | HostModel) -> Mapping[str, Any]:
    return model_bodies.host_model(entry) if isinstance(entry, HostModel) else model_bodies.model(entry, short=True)


@_routes.route(
    "GET",
    "/v1/models/<name>",
    "reads a model",
    {200: Answer("the model", MODEL)},
    who=ANYBODY,
    errors=(Code.MODEL_NOT_FOUND, Code.NOT_READY, Code.INVALID_MODEL),
)
def read_model(asked: Asked, name: str) -> Reply:
    owned = services()
    try:
        found = owned.library.find(asked.caller, name)
    except ServingError as error:
        if error.code not in (Code.MODEL_NOT_FOUND, Code.UNAUTHENTICATED):
            raise
        return Reply(model_bodies.host_model(_host_model(asked.caller, name, error)))
    return Reply(model_bodies.model(found), revision=found.model.revision)


def _host_model(caller: Principal | None, name: str, otherwise: ServingError) -> HostModel:
    try:
        return services().host_models.find(caller, name)
    except ServingError as error:
        raise otherwise if error.code is Code.MODEL_NOT_FOUND else error from None


@_routes.route(
    "PATCH",
    "/v1/models/<name>",
    "changes what is said of a model, who may see it, and its name",
    {200: Answer("the model", MODEL)},
    scope=Scope.WRITE,
    body=CHANGE,
    matches=True,
    errors=(Code.MODEL_NOT_FOUND, Code.ALREADY_EXISTS),
)
def change_model(asked: Asked, name: str) -> Reply:
    found = services().library.change(asked.me, name, asked.body, asked.doer, asked.revision)
    return Reply(model_bodies.model(found), revision=found.model.revision)


@_routes.route(
    "DELETE",
    "/v1/models/<name>",
    "deletes a model; it can be restored for a while",
    {204: Answer("it is deleted")},
    scope=Scope.WRITE,
    matches=True,
    errors=(Code.MODEL_NOT_FOUND,),
)
def delete_model(asked: Asked, name: str) -> Reply:
    services().library.delete(asked.me, name, asked.doer, asked.revision)
    return Reply()


@_routes.route(
    "POST",
    "/v1/models/<name>/restore",
    "brings back the model of that name that was deleted last",
    {200: Answer("the model", MODEL)},
    scope=Scope.WRITE,
    errors=(Code.MODEL_NOT_FOUND, Code.ALREADY_EXISTS),
)
def restore_model(asked: Asked, name: str) -> Reply:
    found = services().library.restore(asked.me, name, asked.doer)
    return Reply(model_bodies.model(found), revision=found.model.revision)


@_routes.route(
    "POST",
    "/v1/models/<name>/versions",
    "takes in a new version of a model",
    {201: Answer("the version", MODEL_VERSION)},
    scope=Scope.WRITE,
    raw=model_uploads.bodies(_NOTHING, VERSION),
    errors=_UPLOAD_ERRORS,
    creates=True,
    rate=_RATE,
)
def create_version(asked: Asked, name: str) -> Reply:
    library = services().library

    def make(values: Mapping[str, Any], files: Sequence[SentFile]) -> Found:
        return library.add_version(asked.me, name, files, asked.doer)

    made = model_uploads.take(asked.me, _NOTHING, VERSION, make)
    version = library.version(made, None)
    return Reply(model_bodies.model_version(version), 201, {"Location": f"/v1/models/{name}/versions/{version.number}"})


@_routes.route(
    "GET",
    "/v1/models/<name>/versions",
    "lists the versions of a model, newest first",
    {200: Answer("a page", page_of("ModelVersions", MODEL_VERSION))},
    who=ANYBODY,
    query=PAGE,
    errors=(Code.MODEL_NOT_FOUND,),
)
def list_versions(asked: Asked, name: str) -> Reply:
    library, after = services().library, asked.after
    if after is not None and not (len(after) == 1 and isinstance(after[0], int) and abs(after[0]) < 2**63):
        raise InvalidFields({"cursor": "is none that an answer gave"})
    found = library.find(asked.caller, name)
    versions = library.versions(found, None if after is None else after[0], asked.limit + 1)
    return page(versions, lambda each: [each.number], model_bodies.model_version, asked.limit)


@_routes.route(
    "GET",
    "/v1/models/<name>/versions/<version>",
    "reads a version",
    {200: Answer("the version", MODEL_VERSION)},
    who=ANYBODY,
    errors=(Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND),
)
def read_version(asked: Asked, name: str, version: str) -> Reply:
    library = services().library
    return Reply(model_bodies.model_version(library.version(library.find(asked.caller, name), number_of(version))))


@_routes.route(
    "DELETE",
    "/v1/models/<name>/versions/<version>",
    "deletes a version that no deployment uses and that is not the only one",
    {204: Answer("it is deleted")},
    scope=Scope.WRITE,
    errors=(Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.CONFLICT),
)
def delete_version(asked: Asked, name: str, version: str) -> Reply:
    services().library.delete_version(asked.me, name, number_of(version), asked.doer)
    return Reply()


@_routes.route(
    "POST",
    "/v1/models/<name>/versions/<version>/restore",
    "takes the deletion of a version back, until it is purged",
    {200: Answer("the version", MODEL_VERSION)},
    scope=Scope.WRITE,
    errors=(Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND),
)
def restore_version(asked: Asked, name: str, version: str) -> Reply:
    return Reply(model_bodies.model_version(services().library.restore_version(asked.me, name, number_of(version), asked.doer)))


def number_of(version: str) -> int:
    """Of a path. Raises version_not_found for what no version is called."""
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise ServingError(Code.VERSION_NOT_FOUND, f"there is no version {version[:40]!r}")
    return int(version)
