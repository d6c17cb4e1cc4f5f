"""The rows of a batch's file, one after the other, from any place that an earlier run had come to.

Each row comes with where the next one begins: bytes of the file for lines, the number of the file for archives. What is wrong with one
row is that row's error, and the next one is read.
"""

import csv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gateway.operations import tensor_json
from idl.codes import Code, ServingError
from idl.tensors import invalid

CSV, JSONL, ZIP = "csv", "jsonl", "zip"
FORMATS = (CSV, JSONL, ZIP)
MOST_ROWS = 1_000_000
MOST_ROW_BYTES = 1 << 20
"""Of a line; a file of an archive may have as much as a request's body."""
_BOM = b"\xef\xbb\xbf"
_SKIPPED = ("__MACOSX/", ".")


@dataclass(frozen=True, slots=True)
class Row:
    """`value`: the cells of a csv row as texts, a line's JSON value, or the bytes of a file. `error` instead, where it cannot be read.
    `size` in bytes; `name`: of the file in an archive."""

    following: int
    size: int
    value: Any = None
    error: ServingError | None = None
    name: str = ""


def of_csv(file: IO[bytes], offset: int) -> tuple[tuple[str, ...], Iterator[Row]]:
    """(columns, rows), the rows from `offset` on, 0: from the first. Raises invalid_input for a file without a usable first line."""
    file.seek(0)
    head = _record(file)
    if head is None:
        raise invalid("the file is empty: its first line must name the columns")
    columns = tuple(cell.strip() for cell in _cells(head.removeprefix(_BOM)))
    if len(set(columns)) != len(columns) or not all(columns):
        raise invalid("the first line must name the columns, each with a name of its own")
    file.seek(max(offset, file.tell()))
    return columns, _csv_rows(file, len(columns))


def _csv_rows(file: IO[bytes], width: int) -> Iterator[Row]:
    while (record := _record(file)) is not None:
        if record.strip():
            yield _csv_row(record, width, file.tell())


def _csv_row(record: bytes, width: int, following: int) -> Row:
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


def _record(file: IO[bytes]) -> bytes | None:
    """One row with its line ends inside quotes; None at the end of the file. A quote that is not closed within a row's size counts as
    what it is in its first line: that row alone is lost."""
    line = _line(file)
    if line is None or line.count(b'"') % 2 == 0:
        return line
    begin, lines, size = file.tell(), [line], len(line)
    while size <= MOST_ROW_BYTES and (more := _line(file)) is not None:
        lines.append(more)
        size += len(more)
        if more.count(b'"') % 2:
            return b"".join(lines)
    file.seek(begin)
    return line


def _line(file: IO[bytes]) -> bytes | None:
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
    while (line := _line(file)) is not None:
        text = line.removeprefix(_BOM).strip()
        if not text:
            continue
        following = file.tell()
        if len(line) > MOST_ROW_BYTES:
            yield Row(following, MOST_ROW_BYTES, error=ServingError(Code.TOO_LARGE, f"the line has over {MOST_ROW_BYTES} bytes"))
            continue
        try:
            yield Row(following, len(line), tensor_json.parse(text, "the line"))
        except ServingError as error:
            yield Row(following, len(line), error=error)


def of_zip(path: Path, offset: int, most_bytes: int) -> tuple[int, Iterator[Row]]:
    """(how many files, those from number `offset` on), in the archive's order; `most_bytes`: of one file when it is unpacked. Raises invalid_input for what is no archive, too_large
    for one with too many files."""
    try:
        archive = zipfile.ZipFile(path)
        members = [info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        raise invalid("the file is not a zip archive") from None
    if len(members) > MOST_ROWS:
        raise ServingError(Code.TOO_LARGE, f"the archive has {len(members)} files, at most {MOST_ROWS} may be there")
    return len(members), _members(archive, members, offset, most_bytes)


def _members(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], offset: int, most_bytes: int) -> Iterator[Row]:
    with archive:
        for number, info in enumerate(members[offset:], offset):
            name = info.filename[-255:]
            try:
                content = _content(archive, info, most_bytes)
            except ServingError as error:
                yield Row(number + 1, 0, error=error, name=name)
            else:
                yield Row(number + 1, len(content), content, name=name)


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most_bytes: int) -> bytes:
    """The size that it announces is not believed."""
    try:
        with archive.open(info) as file:
            content = file.read(most_bytes + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        what = "is encrypted" if info.flag_bits & 1 else "cannot be unpacked"
        raise invalid(f"the file {what}") from error
    except Exception as error:  # zlib.error, lzma.LZMAError: no common base
        raise invalid("the file cannot be unpacked") from error
    if len(content) > most_bytes:
        raise ServingError(Code.TOO_LARGE, f"the file has over {most_bytes} bytes when it is unpacked")
    return content


def _is_hidden(name: str) -> bool:
    return name.startswith(_SKIPPED) or name.rpartition("/")[2].startswith(".")
