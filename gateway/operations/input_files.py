"""Files of inputs that hold many samples: csv, txt, and zip archives of pictures or texts."""

import csv
import io
import os
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.operations.file_kinds import kind_of
from gateway.operations.images import FORMATS, Limits
from idl import archives
from idl.codes import Code, ServingError
from idl.tensors import invalid

_LEFT_OUT = ("__MACOSX", "Thumbs.db", "desktop.ini")
_DELIMITERS = ",;\t"
_LONGEST_LINE = 1 << 20
csv.field_size_limit(_LONGEST_LINE)


@dataclass(frozen=True, slots=True)
class FormLimits:
    """`samples`: rows, lines, files or frames of one call; `unpacked`: bytes of an archive; `pictures`: of each one, with the deadline."""

    samples: int
    unpacked: int
    pictures: Limits

    def check(self, where: str, number: int) -> None:
        """Before sample `number`, counted from 1. Raises too_large, deadline_exceeded."""
        if number > self.samples:
            raise ServingError(Code.TOO_LARGE, f"{where} has more than {self.samples} samples: send it as a batch")
        if time.monotonic() > self.pictures.deadline:
            raise ServingError(Code.DEADLINE_EXCEEDED, f"{where}: {number - 1} samples were read in the time allowed")


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture's bytes, or a text. `where` it stands, for messages."""

    where: str
    content: bytes
    is_picture: bool


def text_of(where: str, data: bytes) -> str:
    """Raises invalid_input for what is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = kind_of(data)
        what = f"it is {kind}" if kind and kind != "plain text" else f"byte {error.start} is not UTF-8"
        raise invalid(f"{where} is not text: {what}") from None


def rows(where: str, data: bytes, limits: FormLimits) -> tuple[Sequence[str], Iterator[tuple[int, Sequence[str]]]]:
    """The header, and (number of the line, cells) of each row that follows. The separator is a comma, else a semicolon or tab that stands
    in the header. Raises invalid_input, too_large, deadline_exceeded, also while the rows are read."""
    text = text_of(where, data)
    head = text[: text.find("\n")] if "\n" in text else text
    delimiter = next((each for each in _DELIMITERS if each in head), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip() for name in _next(where, reader) or ()]
    if not any(header):
        raise invalid(f"{where} is empty: its first line must have the names of the inputs")
    if len(set(header)) != len(header):
        raise invalid(f"{where} has a column twice: {next(name for name in header if header.count(name) > 1)[:80]!r}")
    return header, _rows(where, reader, len(header), limits)


def _rows(where: str, reader: Any, width: int, limits: FormLimits) -> Iterator[tuple[int, Sequence[str]]]:
    number = 0
    while (cells := _next(where, reader)) is not None:
        if not cells:  # an empty line
            continue
        number += 1
        limits.check(where, number)
        if len(cells) != width:
            raise invalid(f"{where}, line {reader.line_num}: {len(cells)} cells, the header has {width}")
        yield reader.line_num, cells
    if not number:
        raise invalid(f"{where} has a header and no rows")


def _next(where: str, reader: Any) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise invalid(f"{where}, line {reader.line_num}: {error}") from None


def lines(where: str, data: bytes, limits: FormLimits) -> Iterator[tuple[int, str]]:
    """(number, text) of each line; empty ones at the end do not count. Raises as `rows`."""
    text = text_of(where, data).rstrip("\r\n")
    if not text:
        raise invalid(f"{where} is empty")
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        limits.check(where, number)
        if "\0" in line:
            raise invalid(f"{where}, line {number}: a zero byte is no text")
        yield number, line.removesuffix("\n")


def archived(where: str, data: bytes, limits: FormLimits) -> Iterator[Sample]:
    """The pictures and texts of a zip archive, in its order; hidden files and what systems leave do not count. Raises as `rows`."""
    with _archive(where, data, limits) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir() and not _is_left_out(info.filename)]
        if not infos:
            raise invalid(f"{where} has no file in it")
        left = limits.unpacked
        for number, info in enumerate(infos, 1):
            limits.check(where, number)
            inside = f"{where}, {info.filename[:128]!r}"
            content = _read(inside, archive, info, left)
            left -= len(content)
            is_picture = kind_of(content) in FORMATS
            if not is_picture and not info.filename.lower().endswith(".txt"):
                raise invalid(f"{inside} is {kind_of(content) or 'nothing that is known'}: pictures and .txt files are taken")
            yield Sample(inside, content, is_picture)


@contextmanager
def _archive(where: str, data: bytes, limits: FormLimits) -> Iterator[zipfile.ZipFile]:
    descriptor = os.memfd_create("inputs", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "w+b") as file:
        file.write(data)
        file.flush()
        path = Path(f"/proc/self/fd/{descriptor}")
        try:
            # some files of a system may stand beside each of the samples
            archives.names(path, archives.Limits(2 * limits.samples + 16, limits.unpacked))
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (archives.BadArchive, zipfile.BadZipFile, NotImplementedError) as error:
            raise invalid(f"{where}: {error}") from None


def _read(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    try:
        with archive.open(info) as file:
            content = file.read(min(most, info.file_size) + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise invalid(f"{where} is damaged: {error}") from None
    if len(content) > most:
        raise ServingError(Code.TOO_LARGE, f"{where} makes the archive larger than it may be, unpacked")
    return content


def _is_left_out(name: str) -> bool:
    return any(part.startswith(".") or part in _LEFT_OUT for part in name.split("/"))
