"""The rows of a batch's file, one after the other, from any place that an earlier run had come to.

Each row comes with where the next one begins: bytes of the file for lines, the number of the file for archives. What is wrong with one
row is that row's error, and the next one is read.

The file of an earlier batch's rows that failed (`batch_views.failed_file`) is read as the rows alone: what says why they failed is left out.
"""

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gateway.operations import batch_archive, tensor_json
from idl.codes import Code, ServingError
from idl.tensors import invalid

CSV, JSONL, ZIP = "csv", "jsonl", "zip"
FORMATS = (CSV, JSONL, ZIP)
MOST_ROWS = 1_000_000
MOST_ROW_BYTES = 1 << 20
"""Of a line; a file of an archive may have as much as a request's body."""
_BOM = b"\xef\xbb\xbf"
_WHY_HEAD = re.compile(rb'\s*"?row"?\s*,\s*"?error"?\s*,')
_WHY_CODES = "|".join(code.value for code in Code).encode()
_WHY_FIRST = re.compile(rb'\s*\d+\s*,(?:\s*,|""\s*,|"?(?:' + _WHY_CODES + rb"): )")
_WHY = re.compile(rb'\s*\d*\s*,(?:"(?:[^"]|"")*"|[^",]*),')
"""Before the columns, and before the cells of a row: its number and its error, which may have been emptied."""
_SKIPPED = ("__MACOSX/", ".")
csv.field_size_limit(
    max(csv.field_size_limit(), MOST_ROW_BYTES)
)  # of the process: a row's size is the limit, and none of 128 KiB for a cell


@dataclass(frozen=True, slots=True)
class Row:
    """`value`: the cells of a csv row as texts, a line's JSON value, or the bytes of a file. `error` instead, where it cannot be read.
    `size` in bytes; `name`: of the file in an archive."""

    following: int
    size: int
    value: Any = None
    error: ServingError | None = None
    name: str = ""


def of_csv(file: IO[bytes], offset: int, *, is_result: bool = False) -> tuple[tuple[str, ...], Iterator[Row]]:
    """(columns, rows), the rows from `offset` on, 0: from the first. `is_result`: a batch's own, whose rows say why they failed.

    Raises invalid_input for a file without a usable first line.
    """
    file.seek(0)
    head = read_record(file)
    if head is None:
        raise invalid("the file is empty: its first line must name the columns")
    if len(head) > MOST_ROW_BYTES:
        raise ServingError(Code.TOO_LARGE, f"the first line has over {MOST_ROW_BYTES} bytes")
    again, begin = not is_result and is_of_failed_rows(file, head), file.tell()
    columns = tuple(cell.strip() for cell in _cells(without_head(head) if again else head.removeprefix(_BOM)))
    if len(set(columns)) != len(columns) or not all(columns):
        raise invalid("the first line must name the columns, each with a name of its own")
    file.seek(max(offset, begin))
    return columns, _csv_rows(file, len(columns), again)


def is_of_failed_rows(file: IO[bytes], head: bytes) -> bool:
    """Whether a csv file with this first line is one of rows that failed, by its first row; `file` stays where it is, behind that line."""
    if not _WHY_HEAD.match(head.removeprefix(_BOM)):
        return False
    begin = file.tell()
    first = next((record for record in iter(lambda: read_line(file), None) if record.strip()), b"")
    file.seek(begin)
    return _WHY_FIRST.match(first) is not None


def without_head(head: bytes) -> bytes:
    """The first line of such a file without what is not of the row's."""
    return _WHY_HEAD.sub(b"", head.removeprefix(_BOM), count=1)


def without_why(record: bytes) -> bytes:
    """A row of such a file as it was sent before."""
    found = _WHY.match(record)
    return record[found.end() :] if found else record


def _csv_rows(file: IO[bytes], width: int, again: bool) -> Iterator[Row]:
    while (record := read_record(file)) is not None:
        if record.strip():
            yield _csv_row(without_why(record) if again else record, width, file.tell())


def _csv_row(record: bytes, width: int, following: int) -> Row:
    if len(record) > MOST_ROW_BYTES:
        return Row(following, MOST_ROW_BYTES, error=ServingError(Code.TOO_LARGE, f"the row has over {MOST_ROW_BYTES} bytes"))
    try:
        cells = _cells(record)
    except ServingError as error:
        return Row(following, len(record), error=error)
    if len(cells) != width:
        return Row(following, len(record), error=invalid(f"the row has {len(cells)} cells, there are {width} columns"))
    return Row(following, len(record), cells)


def _cells(record: bytes) -> list[str]:
    try:
        return next(csv.reader([record.decode()], strict=True), [])
    except UnicodeDecodeError:
        raise invalid("the row is not UTF-8") from None
    except csv.Error as error:
        raise invalid(f"the row is not csv: {error}") from None


def read_record(file: IO[bytes]) -> bytes | None:
    """One row with its line ends inside quotes; None at the end of the file. A quote that is not closed within a row's size counts as
    what it is in its first line: that row alone is lost."""
    line = read_line(file)
    if line is None or line.count(b'"') % 2 == 0:
        return line
    begin, lines, size = file.tell(), [line], len(line)
    while size <= MOST_ROW_BYTES and (more := read_line(file)) is not None:
        lines.append(more)
        size += len(more)
        if more.count(b'"') % 2:
            return b"".join(lines)
    file.seek(begin)
    return line


def read_line(file: IO[bytes]) -> bytes | None:
    """None at the end of the file. What is too long for a row is read to its end and comes as its beginning."""
    line = file.readline(MOST_ROW_BYTES + 1)
    if not line:
        return None
    last = line
    while len(last) > MOST_ROW_BYTES and not last.endswith(b"\n"):
        last = file.readline(MOST_ROW_BYTES + 1)
    return line


def of_jsonl(file: IO[bytes], offset: int) -> Iterator[Row]:
    """A JSON value in each line; empty lines are none."""
    file.seek(offset)
    while (line := read_line(file)) is not None:
        text = line.removeprefix(_BOM).strip()
        if not text:
            continue
        following = file.tell()
        if len(line) > MOST_ROW_BYTES:
            yield Row(following, MOST_ROW_BYTES, error=ServingError(Code.TOO_LARGE, f"the line has over {MOST_ROW_BYTES} bytes"))
            continue
        try:
            yield Row(following, len(line), as_sent(tensor_json.parse(text, "the line")))
        except ServingError as error:
            yield Row(following, len(line), error=error)


def as_sent(value: Any) -> Any:
    """A line's JSON value, of a file of rows that failed without what is around it."""
    while isinstance(value, dict) and value.keys() == {"row", "error", "input"} and _is_error(value["error"]):
        value = value["input"]
    return value


def _is_error(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"code", "message"}


def of_zip(path: Path, offset: int, most_bytes: int) -> tuple[int, Iterator[Row]]:
    """(how many files, those from number `offset` on), in the archive's order; `most_bytes`: of one file when it is unpacked. Raises invalid_input for what is no archive, too_large
    for one with too many files."""
    count = 0
    with path.open("rb") as file:
        for _ in _members(file):
            count += 1
            if count > MOST_ROWS:
                raise ServingError(Code.TOO_LARGE, f"the archive has over {MOST_ROWS} files")
    return count, _files(path, offset, most_bytes)


def _files(path: Path, offset: int, most_bytes: int) -> Iterator[Row]:
    with path.open("rb") as directory, path.open("rb") as file:
        for number, member in enumerate(itertools.islice(_members(directory), offset, None), offset + 1):
            name = member.name[-255:]
            try:
                found = batch_archive.content(file, member, most_bytes)
            except ServingError as error:
                yield Row(number, 0, error=error, name=name)
            else:
                yield Row(number, len(found), found, name=name)


def _members(file: IO[bytes]) -> Iterator[batch_archive.Member]:
    return (member for member in batch_archive.members(file) if not _is_hidden(member.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(_SKIPPED) or name.rpartition("/")[2].startswith(".")
