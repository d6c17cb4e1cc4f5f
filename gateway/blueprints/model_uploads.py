"""What comes in with files: a form that streams them to the disk, or JSON that names an upload."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from flask import request

from gateway.blueprints import forms, json_body, multipart
from gateway.blueprints.multipart import FORM_BYTES
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations.model_files import SentFile
from gateway.shapes import BYTES, Items, Object, Reasons, Text, optional, required, texts_of
from gateway.storage.incoming import Incoming
from gateway.types import Principal
from idl.codes import Code, ServingError

KEPT = ("model", "files")
"""The fields of a form whose files go to the disk: the model, and what belongs to it."""
_HOPELESS = (Code.INVALID_MODEL, Code.UNSUPPORTED, Code.INVALID_INPUT, Code.TOO_LARGE)
Made = TypeVar("Made")


def bodies(form: Object, body: Object) -> Mapping[str, Mapping[str, Any]]:
    """What `take` reads, for the OpenAPI document: content type -> schema."""
    files = {
        "model": required(BYTES, "the model: a file, or a zip archive"),
        "files": optional(Items(BYTES), "what belongs to it, such as its external data"),
    }
    fields = {name: optional(Text(), "commas between them") if name == "tags" else known for name, known in form.fields.items()}
    return {forms.MULTIPART: Object({**fields, **files}).schema(), "application/json": body.schema()}


def take(caller: Principal, form: Object, body: Object, make: Callable[[Mapping[str, Any], Sequence[SentFile]], Made]) -> Made:
    """What `make` makes of the checked fields and the files. Nothing is left of files that it did not keep; an upload stays where it
    may work another time."""
    if request.mimetype == forms.MULTIPART:
        with _form(form) as (values, files):
            return make(values, files)
    given = json_body.read_object()
    reasons: Reasons = {}
    values = dict(body.check(given, "", reasons))
    if reasons:
        raise InvalidFields(reasons)
    return _of_upload(caller, values, make)


def _of_upload(caller: Principal, values: dict[str, Any], make: Callable[[Mapping[str, Any], Sequence[SentFile]], Made]) -> Made:
    uploads, upload_id = services().library.uploads, values.pop("upload")
    try:
        with uploads.finished(caller, upload_id) as file:
            made = make(values, [file])
    except ServingError as error:
        if error.code in _HOPELESS and not isinstance(error, InvalidFields):
            _remove(caller, upload_id)
        raise
    _remove(caller, upload_id)
    return made


def _remove(caller: Principal, upload_id: str) -> None:
    try:
        services().library.uploads.remove(caller, upload_id)
    except ServingError as error:
        if error.code is not Code.NOT_FOUND:
            raise


@contextmanager
def _form(form: Object) -> Iterator[tuple[dict[str, Any], Sequence[SentFile]]]:
    owned = services()
    limit = owned.settings.max_upload_bytes
    sent = multipart.read(KEPT, owned.storage.receive(limit), FORM_BYTES, limit + FORM_BYTES)
    try:
        reasons: Reasons = {}
        tags = [tag.strip() for name, text in sent.fields if name == "tags" for tag in text.split(",") if tag.strip()]
        fields = [(name, text) for name, text in sent.fields if name != "tags"]
        given = texts_of(Object({name: known for name, known in form.fields.items() if name != "tags"}), fields, "", reasons)
        if tags and "tags" in form.fields:
            given["tags"] = form.fields["tags"].shape.check(tags, "tags", reasons)
        for part in sent.files:
            reasons[part.field[:80] or "form"] = "is a file that is unknown here"
        if reasons:
            raise InvalidFields(reasons)
        yield given, kept(sent.kept)
    finally:
        sent.discard()


def kept(incoming: Mapping[str, Sequence[Incoming]]) -> list[SentFile]:
    """The files of a form, the model first. Raises invalid_input where there is none, or several."""
    models = incoming.get("model", ())
    if len(models) != 1:
        raise InvalidFields({"model": "is missing: a file" if not models else "is there twice"})
    return [SentFile(each.name, each.path, each.sha256, each.size) for each in (*models, *incoming.get("files", ()))]
