"""Tasks as those see them who submit them: added, read, listed, cancelled, deleted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage.database import Database
from gateway.storage.grouped import Grouped
from gateway.storage.task_marks import TaskMarks
from gateway.storage.task_records import (
    BATCH,
    CANCELLED,
    COLUMNS,
    EXPIRED,
    INPUT,
    PREDICTION,
    QUEUED,
    RESULT,
    RUNNING,
    SUCCEEDED,
    TERMINAL,
    Notice,
    TaskEvent,
    TaskRecord,
    ended,
    new_task_id,
    note,
    record,
    records,
)
from idl.codes import Code, ServingError

_SWEEP = 500
_FULL_RETRY_MS = 5000


@dataclass(frozen=True, slots=True)
class NewTask:
    """`body`: the input where it is small, else `input_sha256` names its blob. `batch`: the columns of a batch, None for a prediction."""

    user_id: int
    model: str
    content_type: str
    body: bytes | None = None
    input_sha256: str | None = None
    deployment_id: int | None = None
    version: str = ""
    kind: str = PREDICTION
    options: Mapping[str, Any] = field(default_factory=dict)
    retry_of: str | None = None
    batch: Mapping[str, Any] | None = None


class Tasks:
    """`most`: tasks that may wait or run at once, of all users. Thread-safe."""

    def __init__(self, database: Database, marks: TaskMarks) -> None:
        self._database = database
        self._grouped = Grouped(database)
        self._marks = marks

    def submit(self, new: NewTask, now: datetime, most_of_user: int, most: int) -> TaskRecord:
        """The task, durable, at the end of its user's part of the queue. Raises overloaded where the queue is full.

        Fair over users (start-time fair queueing, each task of the same weight): a task's turn comes one after its user's task before, or one after the task that was begun
        last, whichever is later. So who has much waiting waits behind himself, and who comes new is next.
        """
        return self._grouped.run(lambda db: _insert(db, new, now, most_of_user, most))

    def get(self, task_id: str) -> TaskRecord | None:
        with self._database.read() as db:
            row = db.execute(f"select {COLUMNS} from tasks where id = ?", [task_id]).fetchone()
        return None if row is None else record(row)

    def page(
        self, wanted: Mapping[str, Any], before: str | None, limit: int, least: str | None = None, *, oldest: bool = False
    ) -> list[TaskRecord]:
        """The newest tasks that agree with `wanted` (user_id, state, kind, model, deployment_id), of those before the id `before` and not
        below `least`; the oldest of them instead, the newest of these first as well."""
        given = dict(wanted)
        conditions = []
        # what the indexes of the rarer ones ask for, word by word
        if given.get("state") not in (None, SUCCEEDED):
            conditions.append(f"state <> '{SUCCEEDED}'")
        if given.get("kind") == BATCH:
            del given["kind"]
            conditions.append(f"kind = '{BATCH}'")
        bounds = {condition: bound for condition, bound in (("id < ?", before), ("id >= ?", least)) if bound is not None}
        conditions += [*(f"{column} = ?" for column in given), *bounds]
        values = [*given.values(), *bounds.values()]
        where = f"where {' and '.join(conditions)}" if conditions else ""
        with self._database.read() as db:
            order = "asc" if oldest else "desc"
            rows = db.execute(f"select {COLUMNS} from tasks {where} order by id {order} limit ?", [*values, limit]).fetchall()
        return records(rows[::-1] if oldest else rows)

    def body(self, task_id: str, part: str) -> bytes | None:
        """The input or the result where it is kept in the database."""
        with self._database.read() as db:
            row = db.execute("select body from task_bodies where task_id = ? and part = ?", [task_id, part]).fetchone()
        return None if row is None else bytes(row["body"])

    def events(self, task_id: str, after: int) -> list[TaskEvent]:
        """Those that came after the event `after`, in their order."""
        with self._database.read() as db:
            rows = db.execute(
                "select id, at, state, progress from task_events where task_id = ? and id > ? order by id limit 1000", [task_id, after]
            ).fetchall()
        return [TaskEvent(**dict(row)) for row in rows]

    def cancel(self, task_id: str, now: datetime, keep_s: float, notice: Notice) -> TaskRecord | None:
        """The task as it is then: cancelled where it did not run, asked to end where it does, as it was where it has ended."""
        with self._database.write() as db:
            row = db.execute(
                f"update tasks set state = '{CANCELLED}', finished_at = ?, expires_at = ?, delayed = 0"
                f" where id = ? and state in ('{QUEUED}', 'paused') returning {COLUMNS}",
                [to_text(now), to_text(now + timedelta(seconds=keep_s)), task_id],
            ).fetchone()
            if row is not None:
                ended(db, [record(row)], now, notice)
            else:
                db.execute(f"update tasks set asked = 'cancel' where id = ? and state = '{RUNNING}'", [task_id])
                row = db.execute(f"select {COLUMNS} from tasks where id = ?", [task_id]).fetchone()
        self._marks.change(task_id)
        return None if row is None else record(row)

    def pause(self, task_id: str, now: datetime) -> bool:
        """False where it has ended, or is asked to. One that runs pauses a moment later."""
        with self._database.write() as db:
            row = db.execute(
                f"update tasks set state = 'paused', delayed = 0 where id = ? and state = '{QUEUED}' returning progress", [task_id]
            ).fetchone()
            if row is not None:
                note(db, task_id, now, "paused", row["progress"])
                done = True
            else:
                asked = f"update tasks set asked = 'pause' where id = ? and state = '{RUNNING}' and asked <> 'cancel'"
                paused = "select 1 from tasks where id = ? and state = 'paused'"
                done = db.execute(asked, [task_id]).rowcount > 0 or db.execute(paused, [task_id]).fetchone() is not None
        self._marks.change(task_id)
        return done

    def resume(self, task_id: str, now: datetime) -> bool:
        """False where it has ended. Its time in the queue begins anew."""
        with self._database.write() as db:
            row = db.execute(
                f"update tasks set state = '{QUEUED}', queued_at = ?, attempts = 0, waits = 0 where id = ? and state = 'paused' returning progress",
                [to_text(now), task_id],
            ).fetchone()
            if row is not None:
                note(db, task_id, now, QUEUED, row["progress"])
            back = f"update tasks set asked = '' where id = ? and state = '{RUNNING}' and asked = 'pause'"
            running = f"select 1 from tasks where id = ? and state in ('{QUEUED}', '{RUNNING}')"
            done = row is not None or db.execute(back, [task_id]).rowcount > 0 or db.execute(running, [task_id]).fetchone() is not None
        self._marks.change(task_id)
        return done

    def delete(self, task_id: str) -> bool:
        """False where it has not ended."""
        with self._database.write() as db:
            return bool(db.execute(f"delete from tasks where id = ? and state in {TERMINAL}", [task_id]).rowcount)

    # what becomes of old ones --------------------------------------------------------------------------------------------------------

    def expire(self, now: datetime, queue_s: float, keep_s: float, notice: Notice) -> int:
        """Ends those that have waited for `queue_s`; how many."""
        message = f"it waited in the queue for more than {queue_s:g} s"
        with self._database.write() as db:
            old = f"select id from tasks where state = '{QUEUED}' and queued_at < ? limit ?"
            rows = db.execute(
                f"update tasks set state = '{EXPIRED}', finished_at = ?, expires_at = ?, delayed = 0, error_code = 'deadline_exceeded',"
                f" error_message = ? || coalesce('; the last time: ' || error_message, '') where id in ({old}) returning {COLUMNS}",
                [
                    to_text(now),
                    to_text(now + timedelta(seconds=keep_s)),
                    message,
                    to_text(now - timedelta(seconds=queue_s)),
                    _SWEEP,
                ],
            ).fetchall()
            tasks = records(rows)
            ended(db, tasks, now, notice)
        for task in tasks:
            self._marks.change(task.id)
        return len(tasks)

    def forget_results(self, now: datetime) -> int:
        """Removes inputs and results that have had their time; how many tasks."""
        with self._database.write() as db:
            old = db.execute("select id from tasks where expires_at <= ? limit ?", [to_text(now), _SWEEP]).fetchall()
            ids = [(row["id"],) for row in old]
            db.conn.executemany("delete from task_bodies where task_id = ?", ids)
            db.conn.executemany(
                "update tasks set input_sha256 = null, result_sha256 = null, result_type = '', expires_at = null where id = ?", ids
            )
        return len(ids)

    def forget(self, before: datetime) -> int:
        """Removes tasks that ended before; how many."""
        with self._database.write() as db:
            old = "select id from tasks where finished_at < ? limit ?"
            return int(db.execute(f"delete from tasks where id in ({old})", [to_text(before), _SWEEP]).rowcount)

    def sizes(self, user_id: int = 0) -> Mapping[str, int]:
        """How many tasks of a user are queued, running and paused; of all users by default."""
        with self._database.read() as db:
            row = db.execute("select queued, running, paused from queues where user_id = ?", [user_id]).fetchone()
        return dict(row) if row is not None else {"queued": 0, "running": 0, "paused": 0}


def _insert(db: SqliteDatabase, new: NewTask, now: datetime, most_of_user: int, most: int) -> TaskRecord:
    rows = db.execute("select * from queues where user_id in (0, ?) order by user_id", [new.user_id]).fetchall()
    known = {row["user_id"]: row for row in rows}
    _refuse_full(known.get(0), most, "the queue is full: {n} tasks wait and run")
    _refuse_full(known.get(new.user_id), most_of_user, "your queue is full: you have {n} tasks that have not ended")
    turn = next_turn(db, new.user_id)
    task_id, at = new_task_id(now), to_text(now)
    row = db.execute(
        "insert into tasks (id, user_id, deployment_id, model, version, kind, state, input_sha256, content_type, options, retry_of, turn,"
        f" created_at, queued_at) values (?, ?, ?, ?, ?, ?, '{QUEUED}', ?, ?, ?, ?, ?, ?, ?) returning {COLUMNS}",
        [
            task_id,
            new.user_id,
            new.deployment_id,
            new.model,
            new.version,
            new.kind,
            new.input_sha256,
            new.content_type,
            json.dumps(dict(new.options)),
            new.retry_of,
            turn,
            at,
            at,
        ],
    ).fetchone()
    db.execute("update queues set turn = ? where user_id = ?", [turn, new.user_id])
    if new.body is not None:
        db.execute("insert into task_bodies (task_id, part, body) values (?, ?, ?)", [task_id, INPUT, new.body])
    if new.batch is not None:
        columns = ", ".join(new.batch)
        marks = ", ".join("?" * len(new.batch))
        db.execute(f"insert into batches (task_id, {columns}) values (?, {marks})", [task_id, *new.batch.values()])
    note(db, task_id, now, QUEUED, 0.0)
    return record(row)


def next_turn(db: SqliteDatabase, user_id: int) -> float:
    """The turn of a task that comes to the end of its user's part of the queue. Of who has nothing waiting it is the next one: turns of tasks
    that were cancelled or have expired are not held against him."""
    row = db.execute("select max(turn) as turn from queues where user_id = 0 or (user_id = ? and queued > 0)", [user_id]).fetchone()
    return float(row["turn"] or 0.0) + 1


def _refuse_full(row: Any, most: int, words: str) -> None:
    count = 0 if row is None else row["queued"] + row["running"] + row["paused"]
    if most and count >= most:
        raise ServingError(Code.OVERLOADED, words.format(n=count), retry_after_ms=_FULL_RETRY_MS)


def keep_result(db: SqliteDatabase, task_id: str, body: bytes) -> None:
    """A small result, in the transaction that ends the task."""
    db.execute("insert or replace into task_bodies (task_id, part, body) values (?, ?, ?)", [task_id, RESULT, body])
