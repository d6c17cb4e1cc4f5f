"""Looking into the answers of a batch, also of one that still runs: the rows that failed, and how its values are spread.

A result may have a million rows: a look at it reads so much and no more, and says where the next one goes on.
"""

import csv
import io
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gateway.operations import batch_results, batch_rows
from gateway.operations.tasks import Tasks
from gateway.storage import Storage
from gateway.storage.batches import BatchRecord
from gateway.storage.task_records import BATCH, TaskRecord
from gateway.types import Principal
from idl.codes import Code, ServingError

LOOK_S = 0.03
"""How long one look searches for rows that failed."""
_LOOK_BYTES = 1 << 14
"""It looks at the clock that often."""
SUMMARY_ROWS, SUMMARY_BYTES = 5_000, 1 << 20
MOST_IN_FILE = 10_000
"""Rows in the file of those that failed."""
_BINS, _CLASSES = 20, 12
_FAILED_JSON = re.compile(rb'\{"row":\d+,(?:"file":"(?:[^"\\]|\\.)*",)?"error":')


@dataclass(frozen=True, slots=True)
class FailedRow:
    """Row `number` of the input, counted from 1; `file`: its name in an archive."""

    number: int
    file: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class FailedRows:
    """`following`: where the next look begins, None where this one came to the end of what is there."""

    rows: list[FailedRow]
    following: int | None


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one output: `bins` of numbers as (low, high, count), or `classes` as (value, count), of which `others` are not told."""

    name: str
    bins: list[tuple[float, float, int]]
    classes: list[tuple[str, int]]
    others: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the first `rows` rows; `whole`: there are no more."""

    rows: int
    whole: bool
    spreads: list[Spread]


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers that are there: `end` bytes of the file at `path`."""

    task: TaskRecord
    batch: BatchRecord
    path: Path
    end: int


def answers(storage: Storage, tasks: Tasks, principal: Principal, batch_id: str) -> Answers:
    """Raises not_found, gone, and conflict for one that has ended without a result."""
    task = tasks.read(principal, batch_id, BATCH)
    batch = storage.batches.get(task.id)
    if batch is None:
        raise ServingError(Code.GONE, "the result is not kept any more")
    if not task.is_over:
        path = storage.batches.result_path(task.id)
        return Answers(task, batch, path, batch.result_offset if path.exists() else 0)
    sha256 = tasks.result_of(task).sha256
    path = storage.blobs.path(sha256 or "")
    try:
        return Answers(task, batch, path, path.stat().st_size)
    except FileNotFoundError:
        raise ServingError(Code.GONE, "the result is not kept any more") from None


def failures(found: Answers, after: int, limit: int) -> FailedRows:
    """The rows that failed, from byte `after` of the result on, at most `limit`; maybe fewer where the search takes long."""
    if not found.end:
        return FailedRows([], None)
    rows: list[FailedRow] = []
    until, checked = time.monotonic() + LOOK_S, after
    with _opened(found.path) as file:
        for row, following in _failed(found, file, max(0, after)):
            if row is not None:
                rows.append(row)
            is_late = False
            if following - checked >= _LOOK_BYTES:
                checked, is_late = following, time.monotonic() > until
            if len(rows) >= limit or is_late:
                return FailedRows(rows, following if following < found.end else None)
    return FailedRows(rows, None)


def _opened(path: Path) -> IO[bytes]:
    """Raises conflict where the batch has ended in this moment: then the rows are elsewhere."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise ServingError(Code.CONFLICT, "the batch has just ended: ask again") from None


def _failed(found: Answers, file: IO[bytes], offset: int) -> Iterator[tuple[FailedRow | None, int]]:
    """Every row from there on, as (None or how it failed, where the next one begins)."""
    is_csv, has_names = found.batch.result_format == batch_results.CSV, found.batch.format == batch_rows.ZIP
    read = batch_rows.read_record if is_csv else batch_rows.read_line
    file.seek(offset)
    if is_csv and offset == 0:
        read(file)
    while file.tell() < found.end and (line := read(file)) is not None:
        yield (_failed_csv(line, has_names) if is_csv else _failed_json(line)), file.tell()


def _failed_csv(line: bytes, has_names: bool) -> FailedRow | None:
    if not has_names and line.split(b",", 2)[1:2] in ([], [b""]):
        return None
    try:
        cells = next(csv.reader([line.decode(errors="replace")]), [])
        number, file, error = (cells[0], cells[1], cells[2]) if has_names else (cells[0], "", cells[1])
        code, _, message = error.partition(": ")
        return FailedRow(int(number), file, code, message) if error else None
    except (ValueError, IndexError, csv.Error):
        return None


def _failed_json(line: bytes) -> FailedRow | None:
    if not _FAILED_JSON.match(line):
        return None
    try:
        value = json.loads(line)
        return FailedRow(int(value["row"]), str(value.get("file", "")), str(value["error"]["code"]), str(value["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return None


# the file of those that failed ---------------------------------------------------------------------------------------------------------


def failed_file(storage: Storage, found: Answers) -> tuple[str, Iterator[bytes]]:
    """(format, pieces) of a file with the input's rows that failed and why: csv for csv, and for an archive the names; else a JSON value in each
    line. At most MOST_IN_FILE rows. Raises gone without the input."""
    sha256 = found.task.input_sha256
    if sha256 is None:
        raise ServingError(Code.GONE, "the batch's input is not kept any more")
    rows = _all_failed(found)
    if found.batch.format == batch_rows.ZIP:
        return batch_rows.CSV, _file_names(rows)
    source = storage.blobs.open(sha256)
    return found.batch.format, (_csv_file if found.batch.format == batch_rows.CSV else _json_file)(source, rows)


def _all_failed(found: Answers) -> Iterator[FailedRow]:
    left = min(found.batch.rows_failed, MOST_IN_FILE)
    if not left or not found.end:
        return
    with found.path.open("rb") as file:
        for row, _ in _failed(found, file, 0):
            if row is not None:
                yield row
                left -= 1
            if not left:
                return


def _file_names(rows: Iterator[FailedRow]) -> Iterator[bytes]:
    yield _cells(["row", "file", "error"])
    for row in rows:
        yield _cells([row.number, batch_results.safe(row.file), batch_results.safe(f"{row.code}: {row.message}")])


def _csv_file(source: IO[bytes], rows: Iterator[FailedRow]) -> Iterator[bytes]:
    """The rows themselves stay as they are: they are to be corrected and sent again."""
    with source:
        head = batch_rows.read_record(source) or b""
        again = batch_rows.is_of_failed_rows(source, head)
        yield b"row,error," + (batch_rows.without_head(head) if again else head.removeprefix(b"\xef\xbb\xbf")).strip() + b"\r\n"
        records = (record for record in iter(lambda: batch_rows.read_record(source), None) if record.strip())
        for row, sent in _matched(rows, records):
            record = batch_rows.without_why(sent) if again else sent
            yield _cells([row.number, batch_results.safe(f"{row.code}: {row.message}")]).rstrip(b"\r\n") + b"," + record.strip() + b"\r\n"


def _json_file(source: IO[bytes], rows: Iterator[FailedRow]) -> Iterator[bytes]:
    with source:
        lines = (line.strip() for line in iter(lambda: batch_rows.read_line(source), None) if line.removeprefix(b"\xef\xbb\xbf").strip())
        for row, line in _matched(rows, lines):
            try:
                given = json.dumps(batch_rows.as_sent(json.loads(line)), separators=(",", ":"))
            except (ValueError, RecursionError):  # it failed for this reason, maybe
                given = json.dumps(line.decode(errors="replace"))
            error = json.dumps({"code": row.code, "message": row.message}, separators=(",", ":"))
            yield f'{{"row":{row.number},"error":{error},"input":{given}}}\n'.encode()


def _matched(rows: Iterator[FailedRow], lines: Iterator[bytes]) -> Iterator[tuple[FailedRow, bytes]]:
    """Each row that failed with its line of the input."""
    at = 0
    for row in rows:
        line = b""
        while at < row.number and (following := next(lines, None)) is not None:
            at, line = at + 1, following
        yield row, line


def _cells(cells: Sequence[Any]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue().encode(errors="replace")


# how values are spread -----------------------------------------------------------------------------------------------------------------


def summary(found: Answers) -> Summary:
    """Of the first rows: SUMMARY_ROWS, or as many as SUMMARY_BYTES hold."""
    values: dict[str, list[Any]] = {}
    if not found.end:
        return Summary(0, found.task.is_over, [])
    count, end = 0, 0
    with _opened(found.path) as file:
        rows = _csv_values(file) if found.batch.result_format == batch_results.CSV else _json_values(file)
        for outputs, end in rows:
            if end > found.end:
                break
            count += 1
            for name, value in outputs.items():
                _collect(value, values.setdefault(name, []))
            if count >= SUMMARY_ROWS or end > SUMMARY_BYTES:
                break
    spreads = [spread for name, each in values.items() if (spread := _spread(name, each)) is not None]
    spreads.sort(key=lambda spread: spread.name != "label")
    return Summary(count, found.task.is_over and end >= found.end, spreads)


def _csv_values(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    try:
        columns, rows = batch_rows.of_csv(file, 0, is_result=True)
    except ServingError:  # two columns of one name: an output that is called error, say
        return
    first = columns.index("error") + 1
    shown = (*columns[first:-2], "label") if columns[-2:] == ("label", "score") else columns[first:]
    for row in rows:
        cells = row.value or []
        failed = len(cells) <= first - 1 or cells[first - 1]
        yield ({} if failed else {name: _parsed(cell) for name, cell in zip(shown, cells[first:], strict=False)}), row.following


def _parsed(cell: str) -> Any:
    if not cell:
        return None
    try:
        return float(cell) if cell[0] not in "[{" else json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _json_values(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    while (line := batch_rows.read_line(file)) is not None:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # longer than any line of ours that is read as a whole
            value = {}
        outputs = dict(value.get("outputs") or {})
        best = value.get("labels")
        while isinstance(best, list):
            best = best[0] if best else None
        if isinstance(best, dict):
            outputs["label"] = best.get("label")
        yield outputs, file.tell()


def _collect(value: Any, into: list[Any]) -> None:
    """The elements of a nested value."""
    waiting = [value]
    while waiting and len(into) < 20 * SUMMARY_ROWS:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += reversed(each)
        elif isinstance(each, int) and each.bit_length() > 1000:
            into.append(str(each)[:100] if each.bit_length() < 10_000 else "")  # no number of ours
        elif isinstance(each, (str, int, float)):
            into.append(each)


def _spread(name: str, values: list[Any]) -> Spread | None:
    """None where there is nothing to tell: no values, or nearly each another text."""
    numbers = [float(value) for value in values if not isinstance(value, (str, bool)) and abs(value) < math.inf]
    counts = Counter(str(value) if not isinstance(value, float) else f"{value:g}" for value in values)
    whole = all(number.is_integer() for number in numbers)
    if len(numbers) == len(values) and not (whole and len(counts) <= _CLASSES):
        return Spread(name, _bins(numbers), [])
    if not counts or (len(counts) > _CLASSES and len(counts) > len(values) / 2):
        return None
    classes = counts.most_common(_CLASSES)
    return Spread(name, [], classes, len(values) - sum(count for _, count in classes))


def _bins(numbers: Sequence[float]) -> list[tuple[float, float, int]]:
    low, high = min(numbers), max(numbers)
    width = (high - low) / _BINS
    if width <= 0 or not math.isfinite(width):
        return [(low, high, len(numbers))]
    counts = [0] * _BINS
    for number in numbers:
        counts[min(_BINS - 1, int((number - low) / width))] += 1
    return [(low + place * width, low + (place + 1) * width, count) for place, count in enumerate(counts)]
