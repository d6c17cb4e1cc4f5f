"""A task as the outside sees it: in answers, in streams of events, and in the notices that webhooks are sent."""

import json
from typing import Any

from gateway.storage.task_records import TaskEvent, TaskRecord

JOB = "webhooks"
"""The worker's job that sends notices."""
EVENTS = ("task.succeeded", "task.failed", "task.cancelled", "task.expired")
"""What a webhook may be told of."""


def spelled(task: TaskRecord) -> dict[str, Any]:
    """The JSON value of a task."""
    error = None if task.error_code is None else {"code": task.error_code, "message": task.error_message or ""}
    return {
        "id": task.id,
        "kind": task.kind,
        "state": task.state,
        "deployment": task.model if task.deployment_id is not None else None,
        "model": task.model if task.deployment_id is None else None,
        "version": task.version or None,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "attempts": task.attempts,
        "progress": task.progress,
        "error": error,
        "result_url": f"/v1/{'batches' if task.kind == 'batch' else 'tasks'}/{task.id}/result" if task.state == "succeeded" else None,
        "expires_at": task.expires_at,
        "retry_of": task.retry_of,
    }


def notice(task: TaskRecord) -> tuple[str, str]:
    """(event, payload) of a task that has ended, as Standard Webhooks has payloads: `type`, `timestamp`, `data`."""
    event = f"task.{task.state}"
    payload = {"type": event, "timestamp": task.finished_at, "data": spelled(task)}
    return event, json.dumps(payload, separators=(",", ":"))


def event_text(event: TaskEvent) -> bytes:
    """One event of a stream (HTML, "Server-sent events")."""
    data = json.dumps({"state": event.state, "progress": event.progress, "at": event.at}, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.state}\ndata: {data}\n\n".encode()
