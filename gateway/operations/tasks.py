"""The verbs on tasks: submit, look, wait for the result, cancel, retry, delete."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from gateway import clock
from gateway.bells import Bell
from gateway.operations import kept_bodies, task_notices
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.task_records import BATCH, CANCELLED, FAILED, INPUT, RESULT, SUCCEEDED, TaskEvent, TaskRecord, first_task_id
from gateway.storage.tasks import NewTask
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

JOB = "tasks"
"""The worker's part that runs them."""
INLINE_BYTES = 16 * 1024
"""An input or result up to this size is kept in the database, a larger one as a file: a file costs three times what a row does to make
durable (docs/decisions/026-tasks-in-sqlite.md)."""
_NO_INPUT = "the task's input is not kept any more"
_FILE_TYPES = {"csv": "text/csv", "jsonl": "application/x-ndjson", "zip": "application/zip"}


@dataclass(frozen=True, slots=True)
class Target:
    """What a task calls, as the model host calls it: an operator's model, or a deployment, which has an id."""

    model: str
    version: str = ""
    deployment_id: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Of a task that has succeeded. `content` where it is small, else `sha256` names the blob."""

    content_type: str
    content: bytes | None
    sha256: str | None


class NotOver(ServingError):
    """conflict: there is no result, yet or at all. `state`: the task's; `reason`: of one that has failed."""

    def __init__(self, task: TaskRecord) -> None:
        reason = f": {task.error_message}" if task.error_message and task.state == FAILED else ""
        super().__init__(Code.CONFLICT, f"the task is {task.state}{reason}", retry_after_ms=0 if task.is_over else 1000)
        self.state = task.state
        self.reason = task.error_message or ""

    def __reduce__(self) -> tuple[object, ...]:
        return ServingError, (self.code, self.message)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which tasks are listed. `since`, `until`: submitted at that moment or later, and before that moment."""

    state: str | None = None
    kind: str | None = None
    model: str | None = None
    deployment_id: int | None = None
    everybodys: bool = False
    since: datetime | None = None
    until: datetime | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


class Tasks:
    """Thread-safe."""

    def __init__(self, storage: Storage, settings: Settings, bell: Bell, now: clock.Clock = clock.now) -> None:
        self._storage = storage
        self._settings = settings
        self._bell = bell
        self._now = now

    def submit(
        self,
        principal: Principal,
        target: Target,
        body: bytes,
        content_type: str,
        options: Mapping[str, Any] | None = None,
        *,
        retry_of: str | None = None,
    ) -> TaskRecord:
        """A prediction that a worker makes. `content_type`: one of `kept_bodies`; whether the caller may call the target, the caller of
        this has seen to. Raises overloaded where the queue is full, insufficient_capacity where the disk is."""
        sha256 = None
        if len(body) > INLINE_BYTES:
            sha256, _ = self._storage.blobs.put([body], self._now())
        new = NewTask(
            principal.user_id,
            target.model,
            content_type,
            body if sha256 is None else None,
            sha256,
            target.deployment_id,
            target.version,
            options=options or {},
            retry_of=retry_of,
        )
        return self.add(new)

    def add(self, new: NewTask) -> TaskRecord:
        """The same with everything prepared."""
        most = self._storage.quotas.limit(new.user_id, "tasks")
        task = self._storage.tasks.submit(new, self._now(), most, self._settings.task_queue_size)
        self._bell.ring(JOB)
        return task

    def read(self, principal: Principal, task_id: str, kind: str | None = None) -> TaskRecord:
        """To look at it: one's own, or by its id one of a deployment that is shared with a team of one's. Raises not_found, also for what is
        somebody else's."""
        task = self._storage.tasks.get(task_id) if task_id.isascii() and len(task_id) <= 64 else None
        if task is None or (kind is not None and task.kind != kind) or not (is_own(principal, task) or self._is_of_team(principal, task)):
            raise ServingError(Code.NOT_FOUND, f"there is no {kind if kind == BATCH else 'task'} {task_id[:64]!r}")
        return task

    def get(self, principal: Principal, task_id: str, kind: str | None = None) -> TaskRecord:
        """To change it. Raises not_found, forbidden for one that the caller may only look at."""
        task = self.read(principal, task_id, kind)
        if not is_own(principal, task):
            raise ServingError(Code.FORBIDDEN, f"{kind if kind == BATCH else 'task'} {task.id!r}: you may see it, and not do this")
        return task

    def _is_of_team(self, principal: Principal, task: TaskRecord) -> bool:
        deployment = self._storage.deployments.by_id(task.deployment_id) if task.deployment_id is not None else None
        if deployment is None or deployment.deleted_at is not None or deployment.team_id is None or deployment.visibility == "private":
            return False
        # both of them: who calls a public deployment from elsewhere has shared nothing with the team
        return all(self._storage.teams.role(deployment.team_id, user_id) for user_id in (task.user_id, principal.user_id))

    def page(self, principal: Principal, wanted: Wanted, before: str | None, limit: int, after: str | None = None) -> list[TaskRecord]:
        """The newest first: those before the id `before`, or the nearest ones after `after`."""
        if wanted.everybodys and principal.role is not Role.ADMINISTRATOR:
            raise ServingError(Code.FORBIDDEN, "all: this needs the role administrator")
        given = {"state": wanted.state, "kind": wanted.kind, "model": wanted.model, "deployment_id": wanted.deployment_id}
        conditions = {column: value for column, value in given.items() if value is not None} | dict(wanted.more)
        if not wanted.everybodys:
            conditions = {"user_id": principal.user_id} | conditions
        until = None if wanted.until is None else first_task_id(wanted.until)
        before = min((each for each in (before, until) if each is not None), default=None)
        since = None if wanted.since is None else first_task_id(wanted.since)
        least = max((each for each in (after and f"{after}!", since) if each), default=None)
        return self._storage.tasks.page(conditions, before, limit, least, oldest=after is not None)

    def result(self, principal: Principal, task_id: str, kind: str | None = None) -> Result:
        """Raises not_found; NotOver for a task that has not succeeded; gone after its time."""
        return self.result_of(self.read(principal, task_id, kind))

    def input(self, principal: Principal, task_id: str, kind: str | None = None) -> Result:
        """What it was asked with: a prediction's body as JSON, or a batch's file. Raises not_found, gone after its time."""
        task = self.read(principal, task_id, kind)
        if task.kind == BATCH:
            batch = self._storage.batches.get(task.id)
            if batch is None or task.input_sha256 is None:
                raise ServingError(Code.GONE, _NO_INPUT)
            return Result(_FILE_TYPES.get(batch.format, "application/octet-stream"), None, task.input_sha256)
        if task.input_sha256 is not None:
            content: bytes | None = self._storage.blobs.read(task.input_sha256)
        else:
            content = self._storage.tasks.body(task.id, INPUT)
        if content is None:
            raise ServingError(Code.GONE, _NO_INPUT)
        return Result(kept_bodies.JSON, kept_bodies.as_json(task.content_type, content), None)

    def result_of(self, task: TaskRecord) -> Result:
        if task.state != SUCCEEDED:
            raise NotOver(task)
        gone = task.expires_at is None or task.expires_at <= clock.to_text(self._now())
        if gone:
            raise ServingError(Code.GONE, "the result is not kept any more")
        if task.result_sha256 is not None:
            return Result(task.result_type, None, task.result_sha256)
        content = self._storage.tasks.body(task.id, RESULT)
        if content is None:
            raise ServingError(Code.GONE, "the result is not kept any more")
        return Result(task.result_type, content, None)

    def cancel(self, principal: Principal, task_id: str, kind: str | None = None) -> TaskRecord:
        """The task as it is then: one that runs is asked to end. Raises not_found, conflict where it has ended otherwise."""
        task = self.get(principal, task_id, kind)
        found = self._storage.tasks.cancel(task.id, self._now(), self._settings.task_result_ttl_s, task_notices.notice)
        if found is None:
            raise ServingError(Code.NOT_FOUND, f"there is no task {task_id[:64]!r}")
        if found.is_over and found.state != CANCELLED:
            raise ServingError(Code.CONFLICT, f"the task has ended already: it is {found.state}")
        self._bell.ring(JOB)
        self._bell.ring(task_notices.JOB)
        return found

    def pause(self, principal: Principal, task_id: str, kind: str | None = None) -> TaskRecord:
        """Raises not_found, conflict where it has ended."""
        return self._asked(principal, task_id, kind, self._storage.tasks.pause)

    def resume(self, principal: Principal, task_id: str, kind: str | None = None) -> TaskRecord:
        """Raises not_found, conflict where it has ended."""
        return self._asked(principal, task_id, kind, self._storage.tasks.resume)

    def _asked(self, principal: Principal, task_id: str, kind: str | None, verb: Callable[[str, datetime], bool]) -> TaskRecord:
        task = self.get(principal, task_id, kind)
        if not verb(task.id, self._now()):
            raise ServingError(Code.CONFLICT, f"the {kind or 'task'} has ended, or is asked to: it is {task.state}")
        self._bell.ring(JOB)
        return self.get(principal, task_id, kind)

    def retry(self, principal: Principal, task_id: str) -> TaskRecord:
        """A new task with the same input. Raises not_found, conflict for one that has not ended or did succeed, gone without its input."""
        task = self.get(principal, task_id)
        if not task.is_over or task.state == SUCCEEDED:
            raise ServingError(
                Code.CONFLICT, f"only a task that has failed, expired or was cancelled can be tried again; this one is {task.state}"
            )
        body = None if task.input_sha256 else self._storage.tasks.body(task.id, INPUT)
        if body is None and task.input_sha256 is None:
            raise ServingError(Code.GONE, _NO_INPUT)
        batch = self._storage.batches.get(task.id) if task.kind == BATCH else None
        again = None
        if batch is not None:
            again = {name: getattr(batch, name) for name in ("format", "result_format", "file_name", "size")}
        new = NewTask(
            task.user_id,
            task.model,
            task.content_type,
            body,
            task.input_sha256,
            task.deployment_id,
            task.version,
            task.kind,
            task.options,
            task.id,
            again,
        )
        return self.add(new)

    def delete(self, principal: Principal, task_id: str, kind: str | None = None) -> None:
        """Raises not_found, conflict where it has not ended."""
        task = self.get(principal, task_id, kind)
        if not self._storage.tasks.delete(task.id):
            raise ServingError(Code.CONFLICT, f"the task is {task.state}: cancel it first")

    def events(self, task_id: str, after: int) -> list[TaskEvent]:
        """Of a task that the caller may see."""
        return self._storage.tasks.events(task_id, after)

    # housekeeping ----------------------------------------------------------------------------------------------------------------------

    def clean(self) -> bool:
        """Ends what waited too long and removes what was kept long enough. True where there is more to do."""
        settings, now = self._settings, self._now()
        expired = self._storage.tasks.expire(now, settings.task_queue_age_s, settings.task_result_ttl_s, task_notices.notice)
        if expired:
            self._bell.ring(task_notices.JOB)
        past = now - timedelta(seconds=settings.task_history_s)
        forgotten = self._storage.tasks.forget_results(now) + self._storage.tasks.forget(past) + self._storage.webhooks.forget(past)
        return bool(expired or forgotten)


def is_own(principal: Principal, task: TaskRecord) -> bool:
    """Whether the caller may change it: whose it is, and administrators."""
    return task.user_id == principal.user_id or principal.role is Role.ADMINISTRATOR
