"""Taking in a batch: what kind of file it is, and whether it can be begun at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gateway.errors import InvalidFields
from gateway.operations import batch_results, batch_rows
from gateway.operations.tasks import Target, Tasks
from gateway.storage import Storage
from gateway.storage.batches import BatchRecord
from gateway.storage.task_records import BATCH, TaskRecord
from gateway.storage.tasks import NewTask
from gateway.types import Principal
from idl.codes import ServingError

_BY_NAME = {
    ".csv": batch_rows.CSV,
    ".jsonl": batch_rows.JSONL,
    ".ndjson": batch_rows.JSONL,
    ".zip": batch_rows.ZIP,
}


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What somebody wants of a file; None: what follows from the file."""

    target: Target
    format: str | None = None
    result_format: str | None = None
    outputs: Sequence[str] | None = None
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class SentBatch:
    """The file, whole, on the file system of the blobs; it is renamed."""

    name: str
    path: Path
    sha256: str
    size: int


def create(
    storage: Storage, tasks: Tasks, now: datetime, principal: Principal, new: NewBatch, file: SentBatch
) -> tuple[TaskRecord, BatchRecord]:
    """Queues it. Whether the caller may call the target, the caller of this has seen to.

    Raises invalid_input for a file whose format is not known or that is not of its format, overloaded, insufficient_capacity.
    """
    kind = new.format or _BY_NAME.get(Path(file.name).suffix.lower())
    if kind is None:
        raise InvalidFields(
            {"format": f"is missing, and the file's name {file.name[:80]!r} does not say it: one of {', '.join(batch_rows.FORMATS)}"}
        )
    _look(kind, file.path)
    result_format = new.result_format or (batch_results.CSV if kind == batch_rows.CSV else batch_results.JSONL)
    storage.blobs.adopt(file.path, file.sha256, file.size, now)
    options = {"outputs": list(new.outputs) if new.outputs is not None else None, "top_k": new.top_k}
    columns = {"format": kind, "result_format": result_format, "file_name": file.name[-255:], "size": file.size}
    task = tasks.add(
        NewTask(
            principal.user_id,
            new.target.model,
            "",
            input_sha256=file.sha256,
            deployment_id=new.target.deployment_id,
            version=new.target.version,
            kind=BATCH,
            options=options,
            batch=columns,
        )
    )
    batch = storage.batches.get(task.id)
    assert batch is not None
    return task, batch


def _look(kind: str, path: Path) -> None:
    """Raises invalid_input for a file that is wrong from its beginning."""
    try:
        if kind == batch_rows.ZIP:
            batch_rows.of_zip(path, 0, 1)
            return
        with path.open("rb") as file:
            if kind == batch_rows.CSV:
                batch_rows.of_csv(file, 0)
    except ServingError as error:
        raise InvalidFields({"file": error.message}) from error
