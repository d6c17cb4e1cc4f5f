"""One file that comes in pieces: written beside, verified, put under its name in one step. What stands there is whole.

Names decide where files are written, so nothing but plain ones is taken, and of users' models folders of them.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from idl import archives
from idl.codes import Code, ServingError
from inference_server import errors, whole_files
from inference_server.load_order import MARK_FILE, MODEL_NAME, PIN_FILE, VERSION
from inference_server.types import FileHeader, StoredFile
from inference_server.version_labels import LABELS_FILE
from inference_server.warmup_samples import FOLDER as WARMUP

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEFT_OVER_S = 3600.0


class PushedFiles:
    """Writes files below model folders. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def store(self, root: Path, header: FileHeader, chunks: Iterator[bytes]) -> StoredFile:
        """To `root/<model>/...`. Raises already_exists (other bytes are there), invalid_input (size, hash), insufficient_capacity (disk)."""
        model = root / header.model_name
        target = (model / str(header.version) if header.version else model) / header.file_name
        replaces = header.user and not header.version
        if (stored := _already(target, header, replaces)) is not None:
            return stored
        part = whole_files.part_of(target)
        try:
            with self._lock:  # a refused copy's clean-up must not take the folder away before there is something in it
                target.parent.mkdir(parents=True, exist_ok=True)
                _remove_left_overs(target.parent)
                part.touch(exist_ok=False)
            if shutil.disk_usage(target.parent).free < header.size:
                raise OSError(errno.ENOSPC, "disk full")
            _write(part, header, chunks)
            return self._publish(part, target, header, replaces)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise errors.insufficient_capacity(f"the model host's disk has no room for {header.size} bytes") from error
            if isinstance(error, FileNotFoundError):
                raise ServingError(Code.CONFLICT, f"model {header.model_name!r} was removed while {header.file_name} came") from error
            raise ServingError(Code.INTERNAL, f"the file could not be written: {error.strerror}") from error
        finally:
            with self._lock:
                part.unlink(missing_ok=True)
                _remove_empty(target.parent, model)

    def _publish(self, part: Path, target: Path, header: FileHeader, replaces: bool) -> StoredFile:
        with self._lock:
            if replaces:
                part.replace(target)
            else:
                try:
                    os.link(part, target)  # unlike a rename it refuses to replace what is there
                except FileExistsError:
                    if (stored := _already(target, header, replaces)) is not None:
                        return stored
                    raise
        whole_files.sync(target.parent)
        return StoredFile(header.size, header.sha256, existed=False)


def check(header: FileHeader) -> None:
    """Raises invalid_input for a name, a version or a hash that cannot be."""
    if not MODEL_NAME.fullmatch(header.model_name):
        raise errors.invalid_input(
            f"model name {header.model_name!r} is not letters, digits, '_', '-' and '.', a letter or digit first, 194 at most"
        )
    parts = header.file_name.split("/")
    if header.user and not archives.is_path(header.file_name):
        raise errors.invalid_input(f"file name {header.file_name!r} is not one of {archives.PATH_RULE}")
    if not header.user and (not _FILE_NAME.fullmatch(header.file_name) or header.file_name.endswith(".part")):
        raise errors.invalid_input(f"file name {header.file_name!r} is not a plain name of letters, digits, '_', '-' and '.'")
    if not 0 <= header.version < 10**18:
        raise errors.invalid_input(f"version {header.version} is not a whole number from 1 (or 0 for a file beside the versions)")
    own = (PIN_FILE, LABELS_FILE, MARK_FILE, *(() if len(parts) > 1 else (WARMUP,)))
    if not header.version and (VERSION.fullmatch(parts[0]) or parts[0] in own):
        raise errors.invalid_input(f"file name {header.file_name!r} is the server's own")
    if not _SHA256.fullmatch(header.sha256):
        raise errors.invalid_input("sha256 is not 64 lower-case hexadecimal digits")


def _already(target: Path, header: FileHeader, replaces: bool) -> StoredFile | None:
    """The stored file where the same bytes are there; None where there are none, or may be replaced. Raises already_exists for other bytes."""
    try:
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        digest = ""
    if digest == header.sha256:
        return StoredFile(target.stat().st_size, digest, existed=True)
    if replaces and digest:
        return None
    where = f"version {header.version}" if header.version else "its folder"
    raise ServingError(
        Code.ALREADY_EXISTS, f"model {header.model_name!r}: {where} has a {header.file_name} with other bytes; push a new version"
    )


def _write(part: Path, header: FileHeader, chunks: Iterator[bytes]) -> None:
    digest, size = hashlib.sha256(), 0
    with part.open("wb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > header.size:
                break
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if size != header.size:
        raise errors.invalid_input(f"{header.file_name}: {header.size} bytes were announced, {'more' if size > header.size else size} came")
    if digest.hexdigest() != header.sha256:
        raise errors.invalid_input(f"{header.file_name}: the SHA-256 of what came is {digest.hexdigest()}, {header.sha256} was announced")


def _remove_left_overs(folder: Path) -> None:
    """Parts of copies that were killed half-way, an hour ago or more."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if part.stat().st_mtime < time.time() - _LEFT_OVER_S:
                part.unlink()


def _remove_empty(folder: Path, last: Path) -> None:
    """What a refused copy made, from `folder` up to `last`; a folder that holds anything stays."""
    with contextlib.suppress(OSError):
        while folder.is_relative_to(last):
            folder.rmdir()
            folder = folder.parent
