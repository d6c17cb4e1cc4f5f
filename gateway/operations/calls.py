"""A task's prediction, made as the one who submitted it would make it now."""

import json
import time
from dataclasses import dataclass

from gateway.models_rpc import Models
from gateway.operations import deployment_calls, inference, kept_bodies, predictions
from gateway.operations.deployed import Deployed
from gateway.operations.deployments import Target
from gateway.operations.inference import Call
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.task_queue import Claimed
from gateway.storage.task_records import TaskRecord
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

WAKE_S = 1.0
"""How long a run waits for a deployment that is starting; then it is put off. No longer: the thread is for everybody's tasks."""
# made once: json.dumps makes one for each call
_spell = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Room:
    """What running a task needs of the process."""

    settings: Settings
    storage: Storage
    models: Models
    deployed: Deployed


def principal_of(claimed: Claimed) -> Principal:
    """Who submitted it, with the role of this moment. Raises forbidden where the account is gone."""
    if not claimed.user:
        raise ServingError(Code.FORBIDDEN, "the account that submitted it is gone")
    return Principal(claimed.task.user_id, claimed.user, Role(claimed.role))


def run(room: Room, claimed: Claimed, connection: int) -> bytes:
    """The answer's JSON. `connection`: a descriptor whose hang-up takes the request back. Raises ServingError: what the caller of a quick
    prediction would be told."""
    task, started = claimed.task, time.monotonic()
    call = Call(principal_of(claimed), task.id, started + room.settings.task_run_s, connection=connection)
    body = kept_bodies.decode(task.content_type, input_of(room, claimed))
    if task.deployment_id is None:
        inference.require_callable(room.models, call, task.model, task.version)
        return _spell(predictions.predict(room.models, room.settings, call, task.model, task.version, body, started)).encode()
    target = deployment_of(room, call.principal, task)
    try:
        said = deployment_calls.predict(room.models, room.settings, call, target, body, task.version)
    except ServingError as error:
        target = room.deployed.again(target, error, time.monotonic() + WAKE_S)
        said = deployment_calls.predict(room.models, room.settings, call, target, body, task.version)
    return _spell(said).encode()


def input_of(room: Room, claimed: Claimed) -> bytes:
    """Raises gone where it is not kept any more."""
    if claimed.body is not None:
        return claimed.body
    if claimed.task.input_sha256 is None:
        raise ServingError(Code.GONE, "the task's input is not kept any more")
    return room.storage.blobs.read(claimed.task.input_sha256)


def deployment_of(room: Room, principal: Principal | None, task: TaskRecord) -> Target:
    """The deployment that the task was submitted to; one that sleeps is woken. Raises not_found where it is another one by now, forbidden,
    deployment_paused, not_ready."""
    target = room.deployed.target(principal, task.model)
    if target.id != task.deployment_id:
        raise ServingError(Code.NOT_FOUND, f"there is no deployment {task.model!r} any more")
    return room.deployed.ready(target, time.monotonic() + WAKE_S)
