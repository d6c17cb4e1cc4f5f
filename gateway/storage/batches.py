"""Batches: how far each has come, and the file that its result grows in."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.clock import to_text
from gateway.storage.database import Database
from gateway.storage.task_marks import TaskMarks
from gateway.storage.task_records import RUNNING, note

_COLUMNS = "task_id, format, result_format, file_name, size, rows_total, rows_done, rows_failed, input_offset, result_offset"


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """`rows_done` counts those that failed as well. `input_offset`: where the next row begins, in the input's own measure (bytes, or files
    of an archive); `result_offset`: bytes of the result that belong to the rows before."""

    task_id: str
    format: str
    result_format: str
    file_name: str
    size: int
    rows_total: int | None
    rows_done: int
    rows_failed: int
    input_offset: int
    result_offset: int


class Batches:
    """`folder`: of results that still grow. Thread-safe."""

    def __init__(self, database: Database, marks: TaskMarks, folder: Path) -> None:
        self._database = database
        self._marks = marks
        self._folder = folder

    def get(self, task_id: str) -> BatchRecord | None:
        with self._database.read() as db:
            row = db.execute(f"select {_COLUMNS} from batches where task_id = ?", [task_id]).fetchone()
        return None if row is None else _record(row)

    def several(self, task_ids: list[str]) -> dict[str, BatchRecord]:
        marks = ", ".join("?" * len(task_ids))
        with self._database.read() as db:
            rows = db.execute(f"select {_COLUMNS} from batches where task_id in ({marks})", task_ids).fetchall()
        return {row["task_id"]: _record(row) for row in rows}

    def result_path(self, task_id: str) -> Path:
        """The growing result, in a folder that is there."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder / f"{task_id}.part"

    def checkpoint(self, batch: BatchRecord, fence: int, progress: float, now: datetime, *, gets_on: bool, tell: bool) -> bool:
        """Notes how far it is, after the result up to there is on the disk: both are then true together. `gets_on`: this run has answered
        rows; then it is no failed attempt, and a later wait in the queue begins anew. `tell`: with an event. False where the claim is not
        valid any more: then nothing was noted."""
        anew = ", attempts = 1, waits = 0, queued_at = ?" if gets_on else ""
        with self._database.write() as db:
            held = db.execute(
                f"update tasks set progress = max(progress, ?){anew} where id = ? and fence = ? and state = '{RUNNING}'",
                [progress, *([to_text(now)] if gets_on else []), batch.task_id, fence],
            )
            if held.rowcount == 0:
                return False
            db.execute(
                "update batches set rows_total = ?, rows_done = ?, rows_failed = ?, input_offset = ?, result_offset = ? where task_id = ?",
                [batch.rows_total, batch.rows_done, batch.rows_failed, batch.input_offset, batch.result_offset, batch.task_id],
            )
            if tell:
                note(db, batch.task_id, now, RUNNING, progress)
        self._marks.change(batch.task_id)
        return True

    def sweep(self) -> int:
        """Removes growing results of tasks that have ended or are gone; how many."""
        count = 0
        for path in self._folder.glob("*.part"):
            with self._database.read() as db:
                sql = "select 1 from tasks where id = ? and state in ('queued', 'running', 'paused')"
                row = db.execute(sql, [path.stem]).fetchone()
            if row is None:
                path.unlink(missing_ok=True)
                count += 1
        return count


def _record(row: Any) -> BatchRecord:
    return BatchRecord(**dict(row))
