"""What tasks, batches and webhooks look like in bodies and answers."""

from gateway.operations import batch_results, batch_rows, task_notices, webhook_targets
from gateway.shapes import Dictionary, Flag, Free, Items, Number, Object, OrNull, Shape, Text, Whole, answer, optional, required
from gateway.storage.task_records import BATCH, PREDICTION, STATES
from gateway.storage.webhooks import DELIVERED, FAILED, PENDING

_TIME = Text(format="date-time")
_ERROR = answer("TaskError", {"code": (Text(), "an error code"), "message": (Text(lines=True), "what was wrong")})
_TASK: dict[str, tuple[Shape, str]] = {
    "id": (Text(), "the task's id"),
    "kind": (Text(choices=(PREDICTION, BATCH)), ""),
    "state": (Text(choices=STATES), ""),
    "deployment": (OrNull(Text()), "owner.name of the deployment, null: an operator's model"),
    "model": (OrNull(Text()), "the operator's model, null: a deployment"),
    "version": (OrNull(Text()), "the version that was asked for, null: the one that serves"),
    "created_at": (_TIME, ""),
    "started_at": (OrNull(_TIME), "when it was first begun"),
    "finished_at": (OrNull(_TIME), ""),
    "attempts": (Whole(), "runs that may have begun"),
    "progress": (Number(0, 1), "1: all of it"),
    "error": (OrNull(_ERROR), "why it failed"),
    "result_url": (OrNull(Text()), "where its result is, once it has succeeded"),
    "expires_at": (OrNull(_TIME), "until when the result is kept"),
    "retry_of": (OrNull(Text()), "the task that this one repeats"),
}
TASK = answer("Task", _TASK)
BATCH_SHAPE = answer(
    "Batch",
    {
        **_TASK,
        "format": (Text(choices=batch_rows.FORMATS), "of the file"),
        "result_format": (Text(choices=batch_results.FORMATS), "of the result"),
        "file_name": (Text(), "what its sender calls the file"),
        "rows_total": (OrNull(Whole()), "null: not known before its end"),
        "rows_done": (Whole(), "rows that were answered, those with an error as well"),
        "rows_failed": (Whole(), "rows with an error"),
    },
)
BATCH_FAILURE = answer(
    "BatchFailure",
    {"row": (Whole(1), "counted from 1"), "file": (OrNull(Text()), "its name in an archive"), "error": (_ERROR, "why it failed")},
)
_SPREAD = answer(
    "BatchOutputSummary",
    {
        "name": (Text(), "the output, or label"),
        "bins": (Items(Items(Number(), 3), 100), "of numbers: from, to, and how many; none where classes are told"),
        "classes": (Items(Free({"type": "array"}), 100), "a value and how many, the most frequent first"),
        "others": (Whole(), "values that are in none of the classes"),
    },
)
BATCH_SUMMARY = answer(
    "BatchSummary",
    {
        "rows": (Whole(), "that were looked at"),
        "whole": (Flag(), "whether these are all"),
        "outputs": (Items(_SPREAD, 1000), "those with something to tell"),
    },
)
TASK_QUERY = {
    "state": optional(Text(choices=STATES), "only tasks in this state"),
    "kind": optional(Text(choices=(PREDICTION, BATCH)), "only tasks of this kind"),
    "model": optional(Text(1, 200), "only tasks of this operator's model"),
    "deployment": optional(Text(1, 200), "only tasks of this deployment"),
    "since": optional(Text(1, 40), "only tasks that were submitted at this moment (ISO 8601) or later"),
    "until": optional(Text(1, 40), "only tasks that were submitted before this moment"),
    "all": optional(Flag(), "those of all users; for administrators"),
}
WAIT = {"wait": optional(Number(0, 3600), "seconds to wait for its end, at most; never longer than a request may take")}
PREDICTION_ANSWER = Object(
    {
        "id": required(Text()),
        "model": required(Text()),
        "version": required(Text()),
        "deployment": optional(Text()),
        "outputs": required(Dictionary(Free())),
        "labels": optional(Free()),
        "assumed": optional(Free()),
        "timing_ms": optional(Free()),
    },
    "TaskResult",
)

EVENT = Text(choices=task_notices.EVENTS)
_URL = Text(8, webhook_targets.MOST_URL, format="uri")
NEW_WEBHOOK = Object(
    {
        "url": required(_URL, "where notices are sent, https:// or http://"),
        "events": optional(Items(EVENT, 10), "which ones; none: all"),
        "description": optional(Text(0, 500), ""),
        "secret": optional(OrNull(Text(8, 200)), "whsec_ and base64 of 24 to 64 bytes; without it one is made"),
    },
    "NewWebhook",
)
WEBHOOK_CHANGES = Object(
    {
        "url": optional(_URL, "where notices are sent"),
        "events": optional(Items(EVENT, 10), "which ones; none: all"),
        "description": optional(Text(0, 500), ""),
        "enabled": optional(Flag(), "false: nothing is sent"),
    },
    "WebhookChanges",
)
_WEBHOOK: dict[str, tuple[Shape, str]] = {
    "id": (Text(), ""),
    "url": (Text(), ""),
    "events": (Items(EVENT, 10), "none: all"),
    "description": (Text(), ""),
    "enabled": (Flag(), "false: it was turned off, or its receiver failed too often"),
    "created_at": (_TIME, ""),
    "updated_at": (_TIME, ""),
}
WEBHOOK = answer("Webhook", _WEBHOOK)
WEBHOOK_SECRET = answer("WebhookSecret", {**_WEBHOOK, "secret": (Text(), "signs its notices; shown this once")})
DELIVERY = answer(
    "Delivery",
    {
        "id": (Text(), "the notice's webhook-id"),
        "task_id": (Text(), ""),
        "event": (EVENT, ""),
        "state": (Text(choices=(PENDING, DELIVERED, FAILED)), ""),
        "attempts": (Whole(), ""),
        "next_at": (OrNull(_TIME), "when it is sent next"),
        "last_status": (OrNull(Whole()), "HTTP status of the last answer"),
        "last_error": (OrNull(Text()), "why the last attempt failed"),
        "payload": (Free({"type": "object"}), "what is sent"),
        "created_at": (_TIME, ""),
        "finished_at": (OrNull(_TIME), ""),
    },
)
