"""`/v1/batches`: one file of many inputs, and one of their answers."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, request
from werkzeug.wrappers import Response

from gateway.blueprints import forms, json_body, multipart, rest
from gateway.blueprints.multipart import FORM_BYTES
from gateway.blueprints.rest import Answer, Asked, Reply, Rest, page_of
from gateway.blueprints.task_shapes import BATCH_FAILURE, BATCH_SHAPE, BATCH_SUMMARY, TASK_QUERY, WAIT
from gateway.blueprints.tasks import attachment, before_of, result_answer, waited, wanted_of
from gateway.context import Services, services
from gateway.errors import InvalidFields
from gateway.operations import batch_results, batch_rows, batch_views, batches, task_notices
from gateway.operations.batch_views import Answers
from gateway.operations.batches import NewBatch, SentBatch
from gateway.operations.tasks import Target
from gateway.shapes import BYTES, Items, Object, Reasons, Text, Whole, optional, required, texts_of
from gateway.storage.batches import BatchRecord
from gateway.storage.task_records import BATCH, TaskRecord
from gateway.types import Scope
from idl.codes import Code

blueprint = Blueprint("batches", __name__)
routes = Rest(blueprint, "Batches")
_MISSING = (Code.NOT_FOUND,)
_CHANGE: dict[str, Any] = {"scope": Scope.CALL, "errors": (*_MISSING, Code.FORBIDDEN, Code.CONFLICT)}
_NAME = Text(1, 200)
RESULT_TYPES = ("text/csv", "application/x-ndjson")
_FIELDS = {
    "model": optional(_NAME, "an operator's model; this or deployment"),
    "deployment": optional(_NAME, "a deployment"),
    "version": optional(Text(1, 64), "a version, or a label of one"),
    "format": optional(Text(choices=batch_rows.FORMATS), "of the file; found by its name where it is left out"),
    "result_format": optional(Text(choices=batch_results.FORMATS), "csv for a csv file, else jsonl, where it is left out"),
    "top_k": optional(Whole(1, 1000), "labels of each row"),
}
FORM = Object({**_FIELDS, "outputs": optional(Text(0, 2000), "names of outputs, commas between them")})
NEW = Object(
    {**_FIELDS, "upload": required(Text(1, 64), "the id of an upload that is whole"), "outputs": optional(Items(Text(1, 200), 100))},
    "NewBatch",
)
_BODIES = {
    forms.MULTIPART: Object({**FORM.fields, "file": required(BYTES, "csv, jsonl or zip")}).schema(),
    "application/json": NEW.schema(),
}


@routes.route(
    "POST",
    "/v1/batches",
    "Answers every row of a file: the form's field `file`, or an upload that JSON names",
    {202: Answer("the batch", BATCH_SHAPE)},
    scope=Scope.CALL,
    raw=_BODIES,
    errors=(
        *(Code.NOT_FOUND, Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.CONFLICT, Code.DEPLOYMENT_PAUSED, Code.INVALID_MODEL),
        *(Code.NOT_READY, Code.INVALID_INPUT),
    ),
    creates=True,
)
def create_batch(asked: Asked) -> Reply:
    owned = services()
    if request.mimetype != forms.MULTIPART:
        given = _checked(json_body.read_object(), NEW)
        new = _new(owned, asked, given, given.get("outputs"))
        with owned.library.uploads.finished(asked.me, given["upload"]) as sent:
            batch = SentBatch(sent.name, sent.path, sent.sha256, sent.size)
            task, made = batches.create(owned.storage, owned.tasks, owned.now(), asked.me, new, batch)
        return _accepted(task, made)
    limit = owned.settings.max_upload_bytes
    form = multipart.read(("file",), owned.storage.receive(limit), FORM_BYTES, limit + FORM_BYTES)
    try:
        reasons: Reasons = {}
        given = texts_of(FORM, form.fields, "", reasons)
        files = form.kept.get("file", [])
        if len(files) != 1 or form.files:
            reasons["file"] = "must be there once, and no other file"
        if reasons:
            raise InvalidFields(reasons)
        outputs = [name for name in given["outputs"].split(",") if name] if "outputs" in given else None
        new = _new(owned, asked, given, outputs)
        (file,) = files
        sent_file = SentBatch(file.name, file.path, file.sha256, file.size)
        return _accepted(*batches.create(owned.storage, owned.tasks, owned.now(), asked.me, new, sent_file))
    finally:
        form.discard()


def _checked(value: Any, shape: Object) -> Mapping[str, Any]:
    reasons: Reasons = {}
    given: Mapping[str, Any] = shape.check(value, "", reasons)
    if reasons:
        raise InvalidFields(reasons)
    return given


def _new(owned: Services, asked: Asked, given: Mapping[str, Any], outputs: list[str] | None) -> NewBatch:
    if ("model" in given) == ("deployment" in given):
        raise InvalidFields({"deployment": "either this or model must be there"})
    version = given.get("version", "")
    if "model" in given:
        if owned.deployed.admit(asked.me, given["model"], version) is not None:  # first: what is somebody's own is not told of
            raise InvalidFields({"model": "is a deployment: name it as deployment"})
        owned.models.metadata(given["model"], version)
        target = Target(given["model"], version)
    else:
        found = owned.deployed.target(asked.me, given["deployment"])
        target = Target(found.rpc_name, version, found.id)
    return NewBatch(target, given.get("format"), given.get("result_format"), outputs, given.get("top_k"))


def _accepted(task: TaskRecord, batch: BatchRecord) -> Reply:
    return Reply(spelled(task, batch), 202, {"Location": f"/v1/batches/{task.id}"})


def spelled(task: TaskRecord, batch: BatchRecord | None) -> dict[str, Any]:
    """The JSON value of a batch."""
    names = ("format", "result_format", "file_name", "rows_total", "rows_done", "rows_failed")
    empty = {"format": "csv", "result_format": "csv", "file_name": "", "rows_total": None, "rows_done": 0, "rows_failed": 0}
    return task_notices.spelled(task) | (empty if batch is None else {name: getattr(batch, name) for name in names})


@routes.route(
    "GET",
    "/v1/batches",
    "One's own batches, the newest first",
    {200: Answer("a page", page_of("Batches", BATCH_SHAPE))},
    query={**rest.PAGE, **{name: field for name, field in TASK_QUERY.items() if name != "kind"}},
    errors=_MISSING,
)
def list_batches(asked: Asked) -> Reply:
    owned = services()
    found = owned.tasks.page(asked.me, wanted_of(asked, BATCH), before_of(asked), asked.limit + 1)
    rows = owned.storage.batches.several([task.id for task in found]) if found else {}
    return rest.page(found, lambda task: [task.id], lambda task: spelled(task, rows.get(task.id)), asked.limit)


@routes.route(
    "GET",
    "/v1/batches/<batch_id>",
    "How far a batch is; `wait` holds the answer back until its end",
    {200: Answer("the batch", BATCH_SHAPE)},
    query=WAIT,
    errors=_MISSING,
)
def read_batch(asked: Asked, batch_id: str) -> Response | Reply:
    owned = services()
    task = owned.tasks.read(asked.me, batch_id, BATCH)
    return waited(asked, task, lambda found: spelled(found, owned.storage.batches.get(found.id)))


@routes.route(
    "GET",
    "/v1/batches/<batch_id>/result",
    "The answers, row by row",
    {200: Answer("csv, or a JSON value in each line", None, RESULT_TYPES)},
    errors=(*_MISSING, Code.CONFLICT, Code.GONE),
)
def read_batch_result(asked: Asked, batch_id: str) -> Response:
    owned = services()
    task = owned.tasks.read(asked.me, batch_id, BATCH)
    batch = owned.storage.batches.get(task.id)
    name = f"{batch.file_name.rpartition('.')[0] or task.id}-result.{batch.result_format}" if batch else task.id
    return result_answer(owned.tasks.result_of(task), name)


@routes.route(
    "GET",
    "/v1/batches/<batch_id>/input",
    "The file that was sent",
    {200: Answer("the file", None, ("text/csv", "application/x-ndjson", "application/zip"))},
    errors=(*_MISSING, Code.GONE),
)
def read_batch_input(asked: Asked, batch_id: str) -> Response:
    owned = services()
    result = owned.tasks.input(asked.me, batch_id, BATCH)
    batch = owned.storage.batches.get(batch_id)
    return result_answer(result, batch.file_name if batch and batch.file_name else batch_id)


_LOOK: dict[str, Any] = {"errors": (*_MISSING, Code.CONFLICT, Code.GONE)}


def _answers(asked: Asked, batch_id: str) -> Answers:
    owned = services()
    return batch_views.answers(owned.storage, owned.tasks, asked.me, batch_id)


@routes.route(
    "GET",
    "/v1/batches/<batch_id>/failures",
    "The rows that failed and why, in their order, also while it runs; a page may have fewer than its limit, and is the last where `next` is null",
    {200: Answer("a page", page_of("BatchFailures", BATCH_FAILURE))},
    query=rest.PAGE,
    **_LOOK,
)
def list_batch_failures(asked: Asked, batch_id: str) -> Reply:
    (after,) = asked.key(int) or (0,)
    found = batch_views.failures(_answers(asked, batch_id), after, asked.limit)
    items = [{"row": row.number, "file": row.file or None, "error": {"code": row.code, "message": row.message}} for row in found.rows]
    return Reply({"items": items, "next": None if found.following is None else rest.write_cursor([found.following])})


@routes.route(
    "GET",
    "/v1/batches/<batch_id>/failures/file",
    f"The input's rows that failed, each with why, {batch_views.MOST_IN_FILE} at most",
    {200: Answer("csv with the columns row and error before those of the input, or a JSON value in each line", None, RESULT_TYPES)},
    **_LOOK,
)
def read_batch_failures(asked: Asked, batch_id: str) -> Response:
    found = _answers(asked, batch_id)
    kind, pieces = batch_views.failed_file(services().storage, found)
    name = f"{found.batch.file_name.rpartition('.')[0] or found.task.id}-failed.{kind}"
    return Response(pieces, 200, attachment(name), content_type=batch_results.TYPES[kind])


@routes.route(
    "GET",
    "/v1/batches/<batch_id>/summary",
    f"How the values of each output are spread, of the first {batch_views.SUMMARY_ROWS} rows at most",
    {200: Answer("the summary", BATCH_SUMMARY)},
    **_LOOK,
)
def read_batch_summary(asked: Asked, batch_id: str) -> Reply:
    made = batch_views.summary(_answers(asked, batch_id))
    outputs = [{"name": each.name, "bins": each.bins, "classes": each.classes, "others": each.others} for each in made.spreads]
    return Reply({"rows": made.rows, "whole": made.whole, "outputs": outputs})


def _changed(task: TaskRecord) -> Reply:
    """The batch as it is after a change."""
    return Reply(spelled(task, services().storage.batches.get(task.id)))


@routes.route(
    "POST",
    "/v1/batches/<batch_id>/pause",
    "Stops a batch where it is",
    {200: Answer("the batch; one that runs pauses a moment later", BATCH_SHAPE)},
    **_CHANGE,
)
def pause_batch(asked: Asked, batch_id: str) -> Reply:
    return _changed(services().tasks.pause(asked.me, batch_id, BATCH))


@routes.route(
    "POST",
    "/v1/batches/<batch_id>/resume",
    "Goes on with the next row",
    {200: Answer("the batch", BATCH_SHAPE)},
    **_CHANGE,
)
def resume_batch(asked: Asked, batch_id: str) -> Reply:
    return _changed(services().tasks.resume(asked.me, batch_id, BATCH))


@routes.route(
    "POST",
    "/v1/batches/<batch_id>/cancel",
    "Ends a batch that has not ended",
    {200: Answer("the batch; one that runs ends a moment later", BATCH_SHAPE)},
    **_CHANGE,
)
def cancel_batch(asked: Asked, batch_id: str) -> Reply:
    return _changed(services().tasks.cancel(asked.me, batch_id, BATCH))


@routes.route(
    "DELETE",
    "/v1/batches/<batch_id>",
    "Removes a batch that has ended, with its file and its result",
    {204: Answer("it is gone")},
    **_CHANGE,
)
def delete_batch(asked: Asked, batch_id: str) -> Reply:
    services().tasks.delete(asked.me, batch_id, BATCH)
    return Reply()
