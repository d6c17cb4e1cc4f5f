"""`Prefer: respond-async` and `Prefer: wait=N` (RFC 7240) on predictions: the call becomes a task, whose caller waits for it or not."""

import math
import re
from dataclasses import dataclass

from flask import request
from werkzeug.wrappers import Response

from gateway.blueprints import prediction_body, rest, task_waits
from gateway.blueprints.calls import read_body
from gateway.blueprints.rest import Answer
from gateway.blueprints.task_shapes import TASK
from gateway.blueprints.tasks import as_json
from gateway.context import Services, required_principal, services
from gateway.operations import kept_bodies, prediction_bodies, task_notices
from gateway.operations.tasks import Target
from gateway.shapes import Text, optional
from gateway.storage.task_records import FAILED, SUCCEEDED, TaskRecord
from gateway.types import Scope
from idl.codes import Code, ServingError

_WAIT = re.compile(r"wait\s*=\s*\"?([0-9]{1,6})\"?", re.ASCII)

_LONGEST_S = 120.0
"""After that a submission under an Idempotency-Key that has not ended is taken for one whose process was killed."""

HEADERS = {
    "Prefer": optional(Text(1, 200, r"(respond-async|wait=[0-9]{1,6})(, *(respond-async|wait=[0-9]{1,6}))*"), "how to wait: RFC 7240"),
    "Idempotency-Key": optional(Text(1, 255, r"[!-~]+"), "with Prefer: the same request again within 24 hours is the same task"),
}
"""For the OpenAPI document: what is understood."""
LATER = Answer("a task, for a caller that prefers not to wait", TASK)


@dataclass(frozen=True, slots=True)
class Preference:
    """How long the caller waits, in seconds; then it is told of the task."""

    wait_s: float
    applied: str


def preference() -> Preference | None:
    """What the request prefers, None: an answer, however long it takes. What is not understood is passed over, as the RFC says."""
    given = ",".join(request.headers.getlist("Prefer"))
    if not given:
        return None
    waits, is_async = math.inf, False
    for part in given.split(","):
        word = part.partition(";")[0].strip().lower()
        if found := _WAIT.fullmatch(word):
            waits = min(waits, float(found[1]))
        is_async = is_async or word == "respond-async"
    if math.isfinite(waits):
        return Preference(waits, f"respond-async, wait={waits:.0f}" if is_async else f"wait={waits:.0f}")
    return Preference(0.0, "respond-async") if is_async else None


def respond(target: Target, wanted: Preference) -> Response:
    """The request's prediction as a task of the caller, who may call the target: 200 with the result where it is there in time, an error where
    it fails in time, else 202 with the task."""
    owned, caller = services(), required_principal()
    if Scope.CALL not in caller.scopes:
        raise ServingError(Code.FORBIDDEN, f"this needs an API key with the scope {Scope.CALL.value!r}")
    content, content_type = _content()
    head = {"Preference-Applied": wanted.applied}
    key = request.headers.get("Idempotency-Key")
    if key is None:
        task = owned.tasks.submit(caller, target, content, content_type)
    else:  # the task is kept, and no answer: who comes again waits for the same one
        made = rest.once(
            caller, key, _LONGEST_S, lambda: Response(owned.tasks.submit(caller, target, content, content_type).id, 202), content
        )
        task = owned.tasks.get(caller, made.get_data(as_text=True))
        head |= {name: value for name, value in made.headers.items() if name == "Idempotent-Replayed"}
    wait_s = min(wanted.wait_s, owned.settings.request_timeout_s)
    return task_waits.at_its_end(owned, task, wait_s, lambda found: _spelled(owned, found, head), request.path)


def _spelled(owned: Services, task: TaskRecord, head: dict[str, str]) -> Response:
    """Called where there is no request any more."""
    if task.state == SUCCEEDED:
        result = owned.tasks.result_of(task)
        content = result.content if result.content is not None else owned.storage.blobs.read(result.sha256 or "")
        return Response(content, 200, {"Cache-Control": "no-store", **head}, content_type=result.content_type)
    if task.state == FAILED:
        raise ServingError(Code(task.error_code or Code.INTERNAL), task.error_message or "")
    return as_json(task_notices.spelled(task), 202, {"Location": f"/v1/tasks/{task.id}", **head})


def _content() -> tuple[bytes, str]:
    """The request's body as a task keeps it. Raises what reading it for a quick prediction raises."""
    if request.is_json:
        content = read_body()
        prediction_bodies.from_json(content)
        return content, kept_bodies.JSON
    return kept_bodies.encode(prediction_body.read()), kept_bodies.KEPT
