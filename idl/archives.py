"""Zip archives of strangers: what is in one is known, and bounded, before a byte of it is unpacked.

Refused are names that lead out of the folder, links, encryption, entries that overlap or are there twice, and bombs: too many entries, too
many bytes, entries that grow too much. The directory itself is bounded before it is read. Source: APPNOTE.TXT of PKWARE, "End of central
directory record" and "Zip64 end of central directory record".
"""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

DEPTH = 4
"""Parts of a path in a model's folder."""
PATH_RULE = f"letters, digits, '_', '-' and '.', a letter, a digit or '_' first, in at most {DEPTH - 1} folders"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LONGEST_COMMENT = 22, 65535
_MOST_DIRECTORY = 8 * 2**20
_GROWS_MOST = 200
_GROWS_FROM = 2**20
"""Bytes: what is smaller when unpacked may grow as it likes."""
HOSTS_OWN = frozenset({"serving-version", "serving-labels", "loaded", "warmup"})
"""Names of files that a model host writes beside a model's versions, or of a folder that it looks for there: no file of a user's has one of them there."""
_PASSED_OVER = ("__MACOSX", "__pycache__")
_PIECE = 2**20


class BadArchive(ValueError):
    """The archive is not taken; the message says why, and names no path but those in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Entries, and bytes when unpacked."""

    entries: int = 4096
    bytes: int = 2 * 2**30


def is_path(name: str) -> bool:
    """Whether `name` may be that of a file in a user's model: see `PATH_RULE`."""
    parts = name.split("/")
    return len(parts) <= DEPTH and all(_PART.fullmatch(part) for part in parts) and not name.endswith(".part")


def names(path: Path, limits: Limits = Limits()) -> tuple[str, ...]:
    """The files in an archive, as they are called there. Raises BadArchive, OSError."""
    with _opened(path, limits) as archive:
        return tuple(info.filename for info in _checked(archive, path, limits))


def unpack(path: Path, folder: Path, limits: Limits = Limits()) -> tuple[str, ...]:
    """Writes the files into `folder`, which is empty, and gives their paths there: without hidden ones and what tools of one system leave,
    and without the one folder that all lie in. Raises BadArchive, OSError; then some may have been written.
    """
    with _opened(path, limits) as archive:
        infos = [info for info in _checked(archive, path, limits) if not _is_passed_over(info.filename)]
        if not infos:
            raise BadArchive("the zip archive has no file in it")
        within = common_folder([info.filename for info in infos])
        written = []
        for info in infos:
            name = info.filename.removeprefix(within)
            if not is_path(name):
                raise BadArchive(f"{info.filename[:128]!r} in the zip archive is not a name of {PATH_RULE}")
            _write(archive, info, folder / name)
            written.append(name)
    return tuple(written)


def common_folder(files: Sequence[str]) -> str:
    """The folder, with a slash, that all of `files` lie in, "" where there is none."""
    first = files[0].partition("/")[0] + "/" if files else ""
    return first if all(name.startswith(first) and name != first for name in files) else ""


def _opened(path: Path, limits: Limits) -> zipfile.ZipFile:
    entries, directory = _announced(path)
    if entries > limits.entries:
        raise BadArchive(f"the zip archive has {entries} entries, at most {limits.entries} are taken")
    if directory > _MOST_DIRECTORY:
        raise BadArchive(f"the zip archive's directory has {directory} bytes, at most {_MOST_DIRECTORY} are taken")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise BadArchive(f"the zip archive is damaged or cut off: {error}") from error


def _announced(path: Path) -> tuple[int, int]:
    """(entries, bytes of the directory) as the end of the file says, before anything believes it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_BYTES - _LONGEST_COMMENT - 20))
        tail = file.read()
        at = len(tail) - _END_BYTES if tail[-_END_BYTES:][:4] == _END and tail.endswith(b"\0\0") else tail.rfind(_END)
        if at < 0 or len(tail) - at < _END_BYTES:
            raise BadArchive("the zip archive is damaged or cut off: its end is missing")
        _, _, _, here, entries, directory, _, _ = struct.unpack("<4s4H2LH", tail[at : at + _END_BYTES])
        if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR:
            (offset,) = struct.unpack("<Q", tail[at - 12 : at - 4])
            before = size - len(tail) + at - 20 - 56
            found = [_announced64(file, each) for each in (offset, before) if 0 <= each < size]  # readers differ in where they look
            return max((each[0] for each in found), default=entries), max((each[1] for each in found), default=directory)
    return max(entries, here), directory


def _announced64(file: BinaryIO, offset: int) -> tuple[int, int]:
    file.seek(offset)
    end = file.read(56)
    if len(end) < 56 or not end.startswith(_END64):
        return 0, 0
    here, entries, directory = struct.unpack("<3Q", end[24:48])
    return max(here, entries), directory


def _checked(archive: zipfile.ZipFile, path: Path, limits: Limits) -> list[zipfile.ZipInfo]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(archive.infolist()) > limits.entries:
        raise BadArchive(f"the zip archive has {len(archive.infolist())} entries, at most {limits.entries} are taken")
    known: set[str] = set()
    size, free = 0, 0
    for info in sorted(infos, key=lambda each: each.header_offset):
        _check(info)
        if info.filename in known:
            raise BadArchive(f"{info.filename[:128]!r} is in the zip archive twice")
        known.add(info.filename)
        size += info.file_size
        if size > limits.bytes:
            raise BadArchive(f"what is in the zip archive has more than {limits.bytes} bytes")
        if info.header_offset < free:
            raise BadArchive(f"{info.filename[:128]!r} overlaps another file of the zip archive")
        free = info.header_offset + info.compress_size
    if free > path.stat().st_size:
        raise BadArchive("the zip archive is damaged or cut off: a file in it reaches beyond its end")
    return infos


def _check(info: zipfile.ZipInfo) -> None:
    name, shown = info.filename, f"{info.filename[:128]!r} in the zip archive"
    if name.startswith(("/", "\\")) or "\\" in name or "\0" in info.orig_filename or ".." in name.split("/") or name[1:2] == ":":
        raise BadArchive(f"{shown} leads out of its folder")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise BadArchive(f"{shown} is {'a link' if kind == stat.S_IFLNK else 'no plain file'}")
    if info.flag_bits & 0x1:
        raise BadArchive(f"{shown} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadArchive(f"{shown} is compressed in a way that is not read (deflate is)")
    if info.file_size > _GROWS_FROM and info.file_size > _GROWS_MOST * max(1, info.compress_size):
        raise BadArchive(f"{shown} would grow to more than {_GROWS_MOST} times its size")


def _is_passed_over(name: str) -> bool:
    return any(part.startswith(".") or part in _PASSED_OVER for part in name.split("/"))


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    left = info.file_size
    try:
        with archive.open(info) as source, os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            while piece := source.read(min(_PIECE, left + 1)):
                left -= len(piece)
                if left < 0:
                    raise BadArchive(f"{info.filename[:128]!r} in the zip archive has more bytes than it says")
                file.write(piece)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadArchive(f"{info.filename[:128]!r} in the zip archive is damaged: {error}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise BadArchive(f"{info.filename[:128]!r} in the zip archive is a file and a folder") from error
