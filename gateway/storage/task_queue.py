"""Tasks as the worker sees them: claimed, held by a lease, finished, given back.

Who has claimed a task says with every write which claim is his (`fence`): a worker that was taken for dead and comes back changes nothing.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage.database import Database
from gateway.storage.task_marks import TaskMarks
from gateway.storage.task_records import (
    CANCELLED,
    COLUMNS,
    FAILED,
    INPUT,
    QUEUED,
    RUNNING,
    Notice,
    TaskRecord,
    ended,
    note,
    record,
    records,
)
from gateway.storage.tasks import keep_result, next_turn

_SWEEP = 500
_EVENTS_KEPT = 8
"""Of a task that is put off again and again, besides its first one: what is refused for hours would otherwise write thousands."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A task that is this worker's for now. `body`: its input where that is kept in the database; `user` "" where the user was deleted."""

    task: TaskRecord
    body: bytes | None
    user: str
    role: str


@dataclass(frozen=True, slots=True)
class Finished:
    """How a task ended: `body` is a small result, `result_sha256` names the blob of a larger one."""

    task: TaskRecord
    state: str
    body: bytes | None = None
    result_sha256: str | None = None
    result_type: str = ""
    error_code: str | None = None
    error_message: str | None = None
    progress: float = 1.0


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A task that is to be tried again after `delay_s`. `attempts`, `waits`: what they are then. `state` queued or paused; `error`: why.
    `behind`: at the end of its user's part of the queue, as a new one would be; else it keeps its turn."""

    task: TaskRecord
    delay_s: float
    attempts: int
    waits: int
    error: str = ""
    state: str = QUEUED
    behind: bool = False


class TaskQueue:
    """The queue of one database, for the worker `number`. Thread-safe."""

    def __init__(self, database: Database, marks: TaskMarks) -> None:
        self._database = database
        self._marks = marks

    def settle(
        self,
        finished: Sequence[Finished],
        returned: Sequence[GivenBack],
        now: datetime,
        keep_s: float,
        notice: Notice,
        claims: Mapping[str, int],
        worker: int,
        lease_s: float,
    ) -> tuple[int, list[Claimed]]:
        """All of it in one transaction: ends tasks, gives others back, and claims the next ones, `claims` (kind -> how many) at most.

        Returns how many ends counted (not those of claims that somebody else has had since) and what was claimed, in the order of the queue.
        """
        with self._database.write() as db:
            over = [task for each in finished if (task := _finish(db, each, now, keep_s)) is not None]
            ended(db, over, now, notice)
            cancelled = [task for each in returned if (task := _give_back(db, each, now, keep_s)) is not None and task.is_over]
            ended(db, cancelled, now, notice)
            claimed = _claim(db, claims, now, worker, lease_s) if any(claims.values()) else []
        for changed in (*(each.task for each in finished), *(each.task for each in returned), *(each.task for each in claimed)):
            self._marks.change(changed.id)
        return len(over), claimed

    def beat(self, held: Sequence[tuple[str, int]], now: datetime, lease_s: float) -> None:
        """Keeps what is held, (id, fence) each, for another `lease_s`."""
        until = now.timestamp() + lease_s
        with self._database.write() as db:
            db.conn.executemany(
                f"update tasks set lease_until = ? where id = ? and fence = ? and state = '{RUNNING}'",
                [(until, task_id, fence) for task_id, fence in held],
            )

    def asked(self, worker: int) -> dict[str, str]:
        """What running tasks of a worker are to do instead: id -> cancel or pause."""
        with self._database.read() as db:
            rows = db.execute(f"select id, asked from tasks where worker = ? and state = '{RUNNING}' and asked <> ''", [worker]).fetchall()
        return {row["id"]: row["asked"] for row in rows}

    def due_in(self, now: datetime) -> float | None:
        """Seconds until a task that was put off is due; None where there is none."""
        with self._database.read() as db:
            row = db.execute(f"select min(not_before) as due from tasks where state = '{QUEUED}' and delayed = 1").fetchone()
        return None if row["due"] is None else max(0.0, row["due"] - now.timestamp())

    def others_wait(self, kind: str, users: Collection[int]) -> bool:
        """Whether a task of that kind could be begun that is of none of `users`."""
        marks = ", ".join("?" * len(users))
        sql = f"select 1 from tasks where state = '{QUEUED}' and delayed = 0 and kind = ? and user_id not in ({marks}) limit 1"
        with self._database.read() as db:
            return db.execute(sql, [kind, *users]).fetchone() is not None

    def take_over(self, worker: int, has_begun: Callable[[str], bool] = lambda _: True) -> int:
        """A worker begins whose predecessor is dead: what that one held is nobody's. `has_begun` says of which id a run may have begun; the
        others had none. Returns how many tasks."""
        with self._database.write() as db:
            held = db.execute(f"select id from tasks where worker = ? and state = '{RUNNING}'", [worker]).fetchall()
            db.conn.executemany(
                "update tasks set attempts = max(0, attempts - 1) where id = ?", [(row["id"],) for row in held if not has_begun(row["id"])]
            )
            return int(db.execute(f"update tasks set lease_until = 0 where worker = ? and state = '{RUNNING}'", [worker]).rowcount)

    def reap(self, now: datetime, most_attempts: int, delay_s: Callable[[int], float], keep_s: float, notice: Notice) -> tuple[int, int]:
        """Takes back what nobody holds any more: (given back, ended). What was begun `most_attempts` times has failed; the rest may be begun
        again after `delay_s` of the attempts so far."""
        with self._database.write() as db:
            rows = db.execute(
                f"select {COLUMNS} from tasks where state = '{RUNNING}' and lease_until < ? limit ?", [now.timestamp(), _SWEEP]
            ).fetchall()
            over: list[TaskRecord] = []
            back = 0
            for task in records(rows):
                if task.asked == "cancel":
                    found = _end(db, Finished(task, CANCELLED, progress=task.progress), now, keep_s)
                elif task.attempts >= most_attempts:
                    message = f"it was begun {task.attempts} times, and what ran it died each time"
                    found = _end(
                        db, Finished(task, FAILED, error_code="unavailable", error_message=message, progress=task.progress), now, keep_s
                    )
                else:
                    state = "paused" if task.asked == "pause" else QUEUED
                    error = "what ran it died"
                    found, back = (
                        _give_back(db, GivenBack(task, delay_s(task.attempts), task.attempts, task.waits, error, state), now, keep_s),
                        back + 1,
                    )
                if found is not None and found.is_over:
                    over.append(found)
            ended(db, over, now, notice)
        for row in rows:
            self._marks.change(row["id"])
        return back, len(over)


def _finish(db: SqliteDatabase, finished: Finished, now: datetime, keep_s: float) -> TaskRecord | None:
    task = _end(db, finished, now, keep_s)
    if task is not None and finished.body is not None:
        keep_result(db, task.id, finished.body)
    return task


def _end(db: SqliteDatabase, finished: Finished, now: datetime, keep_s: float) -> TaskRecord | None:
    """None where the claim is not valid any more."""
    row = db.execute(
        f"update tasks set state = ?, progress = ?, result_sha256 = ?, result_type = ?, error_code = ?, error_message = ?, finished_at = ?,"
        f" expires_at = ?, lease_until = 0, asked = '' where id = ? and fence = ? and state = '{RUNNING}' returning {COLUMNS}",
        [
            finished.state,
            finished.progress,
            finished.result_sha256,
            finished.result_type,
            finished.error_code,
            finished.error_message,
            to_text(now),
            to_text(now + timedelta(seconds=keep_s)),
            finished.task.id,
            finished.task.fence,
        ],
    ).fetchone()
    return None if row is None else record(row)


def _give_back(db: SqliteDatabase, back: GivenBack, now: datetime, keep_s: float) -> TaskRecord | None:
    """The task, which was cancelled where somebody has asked for that meanwhile; None where the claim is not valid any more."""
    task = back.task
    where = [task.id, task.fence]
    asked = db.execute(f"select asked from tasks where id = ? and fence = ? and state = '{RUNNING}'", where).fetchone()
    if asked is None:
        return None
    if asked["asked"] == "cancel":
        return _end(db, Finished(task, CANCELLED, progress=task.progress), now, keep_s)
    state = "paused" if asked["asked"] == "pause" else back.state
    if back.behind:
        turn = next_turn(db, task.user_id)
        db.execute("update tasks set turn = ? where id = ?", [turn, task.id])
        db.execute("update queues set turn = ? where user_id = ?", [turn, task.user_id])
    row = db.execute(
        "update tasks set state = ?, attempts = ?, waits = ?, error_message = ?, delayed = ?, not_before = ?, lease_until = 0, asked = '',"
        f" progress = max(progress, ?) where id = ? and fence = ? returning {COLUMNS}",
        [
            state,
            back.attempts,
            back.waits,
            back.error or None,
            int(state == QUEUED and back.delay_s > 0),
            now.timestamp() + back.delay_s,
            task.progress,
            *where,
        ],
    ).fetchone()
    note(db, task.id, now, state, row["progress"])
    if back.waits > _EVENTS_KEPT // 2:
        _thin_out(db, task.id)
    return record(row)


def _thin_out(db: SqliteDatabase, task_id: str) -> None:
    """Who reads the events has had each as it came; who comes later gets the first and the last ones."""
    events = "select id from task_events where task_id = ? order by id"
    db.execute(
        f"delete from task_events where task_id = ? and id not in ({events} limit 1)"
        f" and id < (select min(id) from ({events} desc limit {_EVENTS_KEPT}))",
        [task_id, task_id, task_id],
    )


def _claim(db: SqliteDatabase, claims: Mapping[str, int], now: datetime, worker: int, lease_s: float) -> list[Claimed]:
    db.execute(f"update tasks set delayed = 0 where state = '{QUEUED}' and delayed = 1 and not_before <= ?", [now.timestamp()])
    found: list[Claimed] = []
    for kind, count in claims.items():
        if count <= 0:
            continue
        first = f"select id from tasks where state = '{QUEUED}' and delayed = 0 and kind = ? order by turn, id limit ?"
        rows = db.execute(
            f"update tasks set state = '{RUNNING}', attempts = attempts + 1, fence = fence + 1, worker = ?, lease_until = ?,"
            f" started_at = coalesce(started_at, ?) where id in ({first}) returning {COLUMNS}, turn",
            [worker, now.timestamp() + lease_s, to_text(now), kind, count],
        ).fetchall()
        rows.sort(key=lambda row: (row["turn"], row["id"]))
        if rows:
            db.execute("update queues set turn = max(turn, ?) where user_id = 0", [rows[-1]["turn"]])
        for row in rows:
            values = dict(row)
            del values["turn"]
            found.append(_claimed(db, record(values)))
            note(db, row["id"], now, RUNNING, row["progress"])
    return found


def _claimed(db: SqliteDatabase, task: TaskRecord) -> Claimed:
    body = None
    if task.input_sha256 is None:
        row = db.execute("select body from task_bodies where task_id = ? and part = ?", [task.id, INPUT]).fetchone()
        body = None if row is None else bytes(row["body"])
    user = db.execute("select name, role from users where id = ? and deleted_at is null and disabled_at is null", [task.user_id]).fetchone()
    return Claimed(task, body, user["name"] if user else "", user["role"] if user else "user")
