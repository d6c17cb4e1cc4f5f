"""`/v1/uploads`: files in pieces, that go on where they broke off."""

import re
from collections.abc import Iterator

from flask import Blueprint, request

from gateway.blueprints import model_bodies
from gateway.blueprints.model_bodies import UPLOAD, UPLOADED
from gateway.blueprints.rest import Answer, Asked, Reply, Rest
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations.uploads import Upload
from gateway.shapes import Text, Whole, optional
from gateway.types import Scope
from idl.codes import Code, ServingError
from idl.tensors import invalid

blueprint = Blueprint("uploads", __name__)
_routes = Rest(blueprint, "uploads")
_BINARY = "application/octet-stream"
_PIECE = 1 << 18
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


@_routes.route(
    "POST",
    "/v1/uploads",
    "begins an upload",
    {201: Answer("the upload", UPLOADED)},
    scope=Scope.WRITE,
    body=UPLOAD,
    errors=(Code.TOO_LARGE,),
    creates=True,
    rate=("uploads", 60, 1.0),
)
def create_upload(asked: Asked) -> Reply:
    body = asked.body
    made = services().library.uploads.begin(asked.me, body["file_name"], body["size"], body.get("sha256"))
    return _reply(made, 201, {"Location": f"/v1/uploads/{made.record.id}"})


@_routes.route(
    "GET",
    "/v1/uploads/<upload>",
    "tells how much has come; HEAD tells it in Upload-Offset alone",
    {200: Answer("the upload", UPLOADED)},
    scope=Scope.WRITE,
    errors=(Code.NOT_FOUND,),
)
def read_upload(asked: Asked, upload: str) -> Reply:
    return _reply(services().library.uploads.read(asked.me, upload))


@_routes.route(
    "PATCH",
    "/v1/uploads/<upload>",
    "sends the next bytes: where they begin stands in Upload-Offset or in Content-Range",
    {200: Answer("the upload", UPLOADED)},
    scope=Scope.WRITE,
    raw=(_BINARY,),
    headers={
        "Upload-Offset": optional(Whole(0, 10**18 - 1), "where these bytes begin; this, or Content-Range"),
        "Content-Range": optional(Text(0, 80, _RANGE.pattern), "bytes FIRST-LAST/SIZE"),
    },
    errors=(Code.NOT_FOUND, Code.CONFLICT, Code.TOO_LARGE, Code.UNSUPPORTED_MEDIA),
)
def send_piece(asked: Asked, upload: str) -> Reply:
    if request.mimetype != _BINARY or request.headers.get("Content-Encoding", "identity") != "identity":
        raise ServingError(Code.UNSUPPORTED_MEDIA, f"the body must be {_BINARY}, not compressed")
    return _reply(services().library.uploads.append(asked.me, upload, _offset(), _pieces()))


@_routes.route(
    "DELETE",
    "/v1/uploads/<upload>",
    "gives an upload up",
    {204: Answer("it is gone")},
    scope=Scope.WRITE,
    errors=(Code.NOT_FOUND,),
)
def delete_upload(asked: Asked, upload: str) -> Reply:
    services().library.uploads.remove(asked.me, upload)
    return Reply()


def _reply(given: Upload, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    told = {"Upload-Offset": str(given.offset), "Upload-Length": str(given.record.size)}
    return Reply(model_bodies.upload(given), status, told | (headers or {}))


def _offset() -> int:
    """Raises invalid_input where neither header says it, or they do not fit the body."""
    text, ranged = request.headers.get("Upload-Offset"), request.headers.get("Content-Range")
    if ranged is not None:
        found = _RANGE.fullmatch(ranged)
        if found is None:
            raise InvalidFields({"Content-Range": "must be bytes FIRST-LAST/SIZE"})
        first, last = int(found[1]), int(found[2])
        if last < first or (request.content_length is not None and last - first + 1 != request.content_length):
            raise InvalidFields({"Content-Range": "does not have as many bytes as the body"})
        if text not in (None, found[1]):
            raise InvalidFields({"Upload-Offset": "is not where Content-Range begins"})
        return first
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidFields({"Upload-Offset": "is missing: where these bytes begin"})
    return int(text)


def _pieces() -> Iterator[bytes]:
    request.max_content_length = services().settings.max_upload_bytes
    stream = request.stream
    while True:
        try:
            piece = stream.read(_PIECE)
        except OSError:
            raise invalid("the body broke off") from None
        if not piece:
            return
        yield piece
