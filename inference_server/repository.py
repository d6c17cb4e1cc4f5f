"""The model repository on disk: `<root>/<model>/<integer version>/model.onnx`, with `model.toml` or `config.pbtxt` beside the versions.

Several roots are served as one; where two hold the same model the first is taken. Files come in through `put_file`, which writes
beside, verifies and links: what stands under its final name is whole and never overwritten.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from idl.codes import Code, ServingError
from inference_server import errors, model_folders, model_links, repository_model, whole_files
from inference_server.file_stamps import look
from inference_server.load_order import MODEL_NAME, PIN_FILE, VERSION, LoadOrder
from inference_server.model_settings import ModelSettings
from inference_server.repository_model import RepositoryModel
from inference_server.spool import Spooled
from inference_server.types import FileHeader, StoredFile
from inference_server.version_labels import LABELS_FILE
from inference_server.warmup_samples import FOLDER as WARMUP

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEFT_OVER_S = 3600.0


class Repository:
    """`roots`: the first holds what is pushed for models that no root has yet, unless `push_root` says another. Thread-safe."""

    def __init__(self, roots: Sequence[Path], push_root: Path | None = None) -> None:
        self._roots = tuple(roots)
        self._push_root = push_root or self._roots[0]
        self._lock = threading.Lock()
        self._known: dict[str, tuple[object, RepositoryModel]] = {}

    @property
    def push_root(self) -> Path:
        return self._push_root

    def names(self) -> tuple[str, ...]:
        """Every model that some root has, sorted."""
        found: set[str] = set()
        for root in self._roots:
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(root) if entry.is_dir() and MODEL_NAME.fullmatch(entry.name))
        return tuple(sorted(name for name in found if self._folder(name) is not None))

    def folders(self) -> dict[str, Path]:
        """Every folder that has a model's name, whatever is in it; of two with one name the first root's. Raises OSError for a root."""
        found: dict[str, Path] = {}
        for root in self._roots:
            for entry in os.scandir(root):
                if entry.is_dir() and MODEL_NAME.fullmatch(entry.name):
                    found.setdefault(entry.name, root / entry.name)
        return found

    def devices(self) -> tuple[int, ...]:
        """Of each root the file system that it is on: another one means that something was mounted, or is no more. Raises OSError."""
        return tuple(root.stat().st_dev for root in self._roots)

    def read(self, name: str) -> RepositoryModel | None:
        """What the disk says of `name` now; None where no root has it."""
        folder = self._folder(name)
        return None if folder is None else self._read(name, folder)

    def peek(self, name: str) -> RepositoryModel | None:
        """What `read` gives, out of memory where the folder looks as it did the last time: for answers, not for loads."""
        folder = self._folder(name)
        if folder is None:
            return None
        try:
            seen = tuple(look(folder))
        except OSError:  # just removed
            return None
        with self._lock:
            known = self._known.get(name)
        if known is None or known[0] != seen:
            known = (seen, self._read(name, folder))
            with self._lock:
                self._known[name] = known
        return known[1]

    def ordered(self, name: str, order: LoadOrder, spooled: Spooled | None) -> RepositoryModel | None:
        """What a load request describes: `spooled` are its files, without them those of the repository are meant.

        A configuration in the request takes the place of `config.pbtxt` and stands above `model.toml`. None where there are no files.
        """
        folder = self._folder(name)
        if spooled is None:
            found = None if folder is None else self._read(name, folder, order.config)
        else:
            found = replace(repository_model.read(name, spooled.folder, order.config), spooled=spooled)
            was_public = folder is None or self._read(name, folder).settings.public
            if not was_public:  # files in a request do not open a private model to everybody
                found = replace(found, settings=replace(found.settings, public=False))
        return None if found is None else replace(found, pinned=order.version)

    def _read(self, name: str, folder: Path, sent: str = "") -> RepositoryModel:
        if link := model_links.leaving(folder, self._roots):
            problem = f"{link} is a link that leads out of the model repositories; where it leads to may be named as one of them"
            return RepositoryModel(name, folder, model_folders.versions(folder), ModelSettings(public=False), problem)
        return repository_model.read(name, folder, sent)

    def _folder(self, name: str) -> Path | None:
        if not MODEL_NAME.fullmatch(name):
            return None
        for root in self._roots:
            folder = root / name
            if folder.is_dir() and model_folders.is_model(folder):
                return folder
        return None

    def pin(self, model: RepositoryModel, version: int) -> bool:
        """Remembers which version serves, over restarts; 0: the version policy decides again. False where the folder cannot be written."""
        path = model.folder / PIN_FILE
        try:
            if version:
                whole_files.write(path, f"{version}\n")
            else:
                path.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def put_file(self, header: FileHeader, chunks: Iterator[bytes]) -> StoredFile:
        """Stores one file. Raises invalid_input (names, size, hash), already_exists (other bytes are there), insufficient_capacity (disk)."""
        _check(header)
        root = self._push_root if (folder := self._folder(header.model_name)) is None else folder.parent
        folder = root / header.model_name / str(header.version) if header.version else root / header.model_name
        target = folder / header.file_name
        if (stored := _already(target, header)) is not None:
            return stored
        part = whole_files.part_of(target)
        try:
            with self._lock:  # a refused copy's clean-up must not take the folder away before there is something in it
                folder.mkdir(parents=True, exist_ok=True)
                _remove_left_overs(folder)
                part.touch(exist_ok=False)
            if shutil.disk_usage(folder).free < header.size:
                raise OSError(errno.ENOSPC, "disk full")
            _write(part, header, chunks)
            return self._publish(part, target, header)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ServingError(Code.INSUFFICIENT_CAPACITY, f"the model host's disk has no room for {header.size} bytes") from error
            raise ServingError(Code.INTERNAL, f"the file could not be written: {error.strerror}") from error
        finally:
            with self._lock:
                part.unlink(missing_ok=True)
                _remove_empty(folder, *([folder.parent] if header.version else []))

    def _publish(self, part: Path, target: Path, header: FileHeader) -> StoredFile:
        with self._lock:
            try:
                os.link(part, target)  # unlike a rename it refuses to replace what is there
            except FileExistsError:
                if (stored := _already(target, header)) is not None:
                    return stored
                raise
        whole_files.sync(target.parent)
        return StoredFile(header.size, header.sha256, existed=False)


def _check(header: FileHeader) -> None:
    if not MODEL_NAME.fullmatch(header.model_name):
        raise errors.invalid_input(
            f"model name {header.model_name!r} is not letters, digits, '_', '-' and '.', a letter or digit first, 128 at most"
        )
    if not _FILE_NAME.fullmatch(header.file_name) or header.file_name.endswith(".part"):
        raise errors.invalid_input(f"file name {header.file_name!r} is not a plain name of letters, digits, '_', '-' and '.'")
    if not 0 <= header.version < 10**18:
        raise errors.invalid_input(f"version {header.version} is not a whole number from 1 (or 0 for a file beside the versions)")
    if not header.version and (VERSION.fullmatch(header.file_name) or header.file_name in (PIN_FILE, LABELS_FILE, WARMUP)):
        raise errors.invalid_input(f"file name {header.file_name!r} is the server's own")
    if not _SHA256.fullmatch(header.sha256):
        raise errors.invalid_input("sha256 is not 64 lower-case hexadecimal digits")


def _already(target: Path, header: FileHeader) -> StoredFile | None:
    """The stored file where the same bytes are there; None where there are none. Raises already_exists for other bytes."""
    try:
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    if digest == header.sha256:
        return StoredFile(target.stat().st_size, digest, existed=True)
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


def _remove_empty(*folders: Path) -> None:
    """What a refused copy made; a folder that holds anything stays."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
