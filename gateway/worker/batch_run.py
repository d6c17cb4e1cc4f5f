"""One run of a batch: rows are read, asked of the model many at a time, and written in their order.

From time to time what is written is made durable, and then noted together with how far the input was read. A run that begins cuts the
result there and goes on with the next row: whatever ended the one before, each row is answered once.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO

from gateway import clock
from gateway.operations import batch_answers, batch_results, batch_rows, calls
from gateway.operations.batch_answers import Answer, Signature
from gateway.operations.batch_rows import Row
from gateway.operations.calls import Room
from gateway.operations.deployments import Target
from gateway.operations.inference import Call
from gateway.storage.batches import BatchRecord
from gateway.storage.blobs import full
from gateway.storage.task_queue import Claimed, Finished
from gateway.storage.task_records import SUCCEEDED, TaskRecord
from idl import last_words
from idl.codes import Code, ServingError

_log = logging.getLogger(__name__)
CHECKPOINT_S = 1.0
_AHEAD = 2
"""Requests that wait for a thread, for each that is under way."""
_MOST_GROUP_BYTES = 4 << 20
_MOST_WAITING_BYTES = 64 << 20
"""Of rows that are read and not yet answered; the files of an archive may each have as much."""
_PATIENCE_S = 10.0
"""How long a request is repeated that the model refuses because it is full or starting, before the batch waits as a whole."""
_FIRST_PAUSE_S = 0.02
_FATAL = frozenset(
    {
        *(Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.NOT_FOUND, Code.FORBIDDEN, Code.UNAUTHENTICATED, Code.INVALID_MODEL),
        *(Code.UNAVAILABLE, Code.CANCELLED, Code.DEPLOYMENT_PAUSED, Code.INSUFFICIENT_CAPACITY),
    }
)
"""What concerns every row."""
_PATIENT = frozenset({Code.OVERLOADED, Code.NOT_READY})
_NOT_SERVED = frozenset({Code.NOT_READY, Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND})
"""What a host says of a deployment that it has just stopped to serve."""
Group = list[Row]
Count = Callable[[str, str, int], None]


class BatchRun:
    """`stop` is set where it is to end after what is written; `connection` then hangs up. `count(format, result, rows)` is told of rows that
    are written, `asks(is_asking)` where the first of some requests begins and the last one has ended."""

    def __init__(
        self,
        room: Room,
        now: clock.Clock,
        claimed: Claimed,
        connection: int,
        stop: threading.Event,
        count: Count,
        asks: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._room = room
        self._now = now
        self._claimed = claimed
        self._task = claimed.task
        self._connection = connection
        self._stop = stop
        self._count = count
        self._asks = asks
        self._asking = 0
        self._lock = threading.Lock()
        self._told = claimed.task.progress
        self._noted: BatchRecord | None = None
        self._target: Target | None = None
        """Its deployment, where that has come to be another than at the beginning: another version of its script, say."""

    @property
    def task(self) -> TaskRecord:
        """As it was claimed; once this run has answered rows, with this one attempt and no waits."""
        return self._task

    @property
    def gets_on(self) -> bool:
        """Whether this run has answered rows, which the next one need not answer again."""
        return self._task is not self._claimed.task

    def run(self) -> Finished:
        """Raises ServingError: what ended it before its end, after a checkpoint."""
        batch = self._room.storage.batches.get(self._task.id)
        if batch is None or self._task.input_sha256 is None:
            raise ServingError(Code.GONE, "the batch's input is not kept any more")
        try:
            with contextlib.closing(_Result(self._room.storage.batches.result_path(self._task.id), batch.result_offset)) as result:
                if result.is_lost:
                    batch = replace(batch, rows_done=0, rows_failed=0, input_offset=0, result_offset=0)
                self._noted = batch
                return self._go_on(batch, result)
        except OSError as error:
            raise full(error) from error

    def _go_on(self, batch: BatchRecord, result: "_Result") -> Finished:
        blobs, sha256 = self._room.storage.blobs, self._task.input_sha256
        assert sha256 is not None
        with blobs.open(sha256) as file:
            columns, rows = (), iter(())  # type: tuple[str, ...], Iterator[Row]
            if batch.format == batch_rows.CSV:
                columns, rows = batch_rows.of_csv(file, batch.input_offset)
            elif batch.format == batch_rows.JSONL:
                rows = batch_rows.of_jsonl(file, batch.input_offset)
            else:
                total, rows = batch_rows.of_zip(blobs.path(sha256), batch.input_offset, self._room.settings.max_body_bytes)
                batch = replace(batch, rows_total=total)
            known = self._signature(columns)
            lines = batch_results.Lines(
                batch.result_format, known.shown, has_names=batch.format == batch_rows.ZIP, has_labels=bool(known.labelled)
            )
            if batch.result_offset == 0:
                result.write(lines.head())
            batch = self._answer_all(batch, result, lines, known, rows)
        batch = replace(batch, rows_total=batch.rows_done, result_offset=result.settle())
        self._checkpoint(batch)
        if batch.rows_done == 0:
            raise ServingError(Code.INVALID_INPUT, "the file has no rows")
        kept = result.keep(self._room, self._now)
        return Finished(self._task, SUCCEEDED, result_sha256=kept, result_type=batch_results.TYPES[batch.result_format])

    def _signature(self, columns: tuple[str, ...]) -> Signature:
        options, task = self._task.options, self._task
        principal = calls.principal_of(self._claimed)
        target = calls.deployment_of(self._room, principal, task) if task.deployment_id is not None else None
        outputs = tuple(options["outputs"]) if options.get("outputs") is not None else None
        return batch_answers.signature(self._room.models, task.model, task.version, columns, outputs, options.get("top_k"), target)

    def _answer_all(
        self, batch: BatchRecord, result: "_Result", lines: batch_results.Lines, known: Signature, rows: Iterator[Row]
    ) -> BatchRecord:
        """In order, with many requests under way. What ends it early leaves a checkpoint."""
        count = self._room.settings.batch_requests
        waiting: deque[tuple[Group, Future[list[Answer]]]] = deque()
        groups = _groups(rows, known.together)
        pool = ThreadPoolExecutor(count, thread_name_prefix="batch-row")
        pause_s = CHECKPOINT_S / 16
        checkpoint_at = 0.0  # with the first rows: what is killed three times before it has failed
        size = 0
        try:
            while True:
                while len(waiting) < count * (1 + _AHEAD) and size < _MOST_WAITING_BYTES and (following := next(groups, None)) is not None:
                    waiting.append((following, pool.submit(self._answer, known, following)))
                    size += sum(row.size for row in following)
                if not waiting:
                    return batch
                group, future = waiting.popleft()
                size -= sum(row.size for row in group)
                answers = future.result()
                batch = self._write(batch, result, lines, group, answers)
                if self._stop.is_set():
                    raise ServingError(Code.CANCELLED, "it was asked to end")
                if time.monotonic() >= checkpoint_at:
                    batch = replace(batch, result_offset=result.settle())
                    self._checkpoint(batch)
                    pause_s = min(CHECKPOINT_S, 2 * pause_s)
                    checkpoint_at = time.monotonic() + pause_s
        except ServingError:
            self._checkpoint(replace(batch, result_offset=result.settle()))
            raise
        finally:
            self._leave(pool, [future for _, future in waiting])

    @staticmethod
    def _leave(pool: ThreadPoolExecutor, futures: Sequence["Future[list[Answer]]"]) -> None:
        for future in futures:
            future.cancel()
        pool.shutdown(wait=True)

    def _write(
        self, batch: BatchRecord, result: "_Result", lines: batch_results.Lines, group: Group, answers: Sequence[Answer]
    ) -> BatchRecord:
        number = batch.rows_done
        if number + len(group) > batch_rows.MOST_ROWS:
            raise ServingError(Code.TOO_LARGE, f"the file has over {batch_rows.MOST_ROWS} rows")
        pairs = zip(group, answers, strict=True)
        result.write(b"".join(lines.spell(place, row.name, answer) for place, (row, answer) in enumerate(pairs, number + 1)))
        failed = sum("error" in answer for answer in answers)
        return replace(batch, rows_done=number + len(group), rows_failed=batch.rows_failed + failed, input_offset=group[-1].following)

    def _checkpoint(self, batch: BatchRecord) -> None:
        """Raises cancelled where the task is somebody else's by now."""
        whole = batch.rows_total if batch.format == batch_rows.ZIP else batch.size
        progress = min(1.0, batch.input_offset / whole) if whole else 0.0
        tell = progress - self._told >= 0.01
        self._told = progress if tell else self._told
        before = self._noted
        assert before is not None, "it runs"
        gets_on = self.gets_on or batch.rows_done > before.rows_done
        if not self._room.storage.batches.checkpoint(batch, self._task.fence, progress, self._now(), gets_on=gets_on, tell=tell):
            raise ServingError(Code.CANCELLED, "the batch is another worker's by now")
        self._noted = batch
        if gets_on:
            self._task = replace(self._claimed.task, attempts=1, waits=0, progress=progress)
        failed, done = batch.rows_failed - before.rows_failed, batch.rows_done - before.rows_done
        for result, number in (("failed", failed), ("succeeded", done - failed)):
            if number > 0:
                self._count(batch.format, result, number)

    # one request ---------------------------------------------------------------------------------------------------------------------

    def _answer(self, known: Signature, group: Group) -> list[Answer]:
        """An answer or an error for each row. Raises what concerns all of them."""
        if len(group) == 1:
            return [self._of_one(known, group[0])]
        try:
            return self._ask(known, group)
        except ServingError as error:
            if error.code in _FATAL or error.code in _PATIENT:
                raise
        return [self._of_one(known, row) for row in group]

    def _of_one(self, known: Signature, row: Row) -> Answer:
        error = row.error
        if error is None:
            try:
                return self._ask(known, [row])[0]
            except ServingError as failure:
                if failure.code in _FATAL or failure.code in _PATIENT:
                    raise
                error = failure
        return {"error": {"code": error.code.value, "message": error.message[:1000]}}

    def _ask(self, known: Signature, group: Group) -> list[Answer]:
        """Refusals of a full or starting model are waited out for a while; a model that dies is asked once more. Of a deployment that is not
        served as it was the reason is told: that it is paused, say, which ends no batch."""
        until, pause_s, died = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S, False
        while True:
            if known.target is not None and (target := self._target) is not None:
                known = replace(known, target=target)
            try:
                deadline = time.monotonic() + self._room.settings.task_run_s
                call = Call(calls.principal_of(self._claimed), self._task.id, deadline, connection=self._connection)
                with self._while_asking():
                    return batch_answers.answer(self._room.models, self._room.settings, call, known, group)
            except ServingError as error:
                again = error.code is Code.MODEL_FAILED and last_words.is_death(error.message) and not died
                died = died or again
                is_late = time.monotonic() > until
                if known.target is not None and error.code in _NOT_SERVED and not is_late:
                    self._target = self._room.deployed.again(known.target, error, time.monotonic() + calls.WAKE_S)
                elif not again and (error.code not in _PATIENT or is_late):
                    raise
            if self._stop.wait(pause_s):
                raise ServingError(Code.CANCELLED, "it was asked to end")
            pause_s = min(1.0, pause_s * 2)

    @contextlib.contextmanager
    def _while_asking(self) -> Iterator[None]:
        with self._lock:
            self._asking += 1
            if self._asking == 1:
                self._asks(True)
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1
                if self._asking == 0:
                    self._asks(False)


def _groups(rows: Iterator[Row], together: int) -> Iterator[Group]:
    """Rows that go into one request; one with an error, and one that is a whole request, stand alone."""
    group: Group = []
    size = 0
    for row in rows:
        alone = row.error is not None or batch_answers.stands_alone(row) or together == 1
        full_ = len(group) >= together or size + row.size > _MOST_GROUP_BYTES
        if group and (alone or full_ or not batch_answers.alike(group[0], row)):
            yield group
            group, size = [], 0
        if alone:
            yield [row]
            continue
        group.append(row)
        size += row.size
    if group:
        yield group


def _part_from_blob(path: Path) -> None:
    """The worker that had made a blob of a finished result was killed before its end was noted: the blob, which is not to be written to, gets
    a file of its own."""
    try:
        shared = path.stat().st_nlink > 1
    except FileNotFoundError:
        return
    if shared:
        copy = path.with_suffix(".copy")
        shutil.copyfile(path, copy)
        copy.chmod(0o600)
        copy.replace(path)


class _Result:
    """The growing file at `path`, cut at `offset`."""

    def __init__(self, path: Path, offset: int) -> None:
        _part_from_blob(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._path = path
        self._file: IO[bytes] = os.fdopen(descriptor, "r+b", buffering=1 << 16)
        self.is_lost = os.fstat(descriptor).st_size < offset
        offset = 0 if self.is_lost else offset
        self._file.truncate(offset)
        self._file.seek(offset)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def settle(self) -> int:
        """Makes it durable; bytes of it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def keep(self, room: Room, now: clock.Clock) -> str:
        """The SHA-256 under which it is a blob now; the file itself stays until the task has ended, for a run that is killed before."""
        size = self.settle()
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()  # type: ignore[arg-type]
        with room.storage.scratch() as folder:
            link = folder / "result"
            os.link(self._path, link)
            room.storage.blobs.adopt(link, digest, size, now())
        return digest

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what was not written is written again by the next run
            self._file.close()
