"""The model repository on disk: `<root>/<model>/<integer version>/model.onnx`, with `model.toml` beside the version folders.

Several roots are served as one; where two hold the same model the first is taken. Files come in only through `put_file`, which writes
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
from dataclasses import dataclass
from pathlib import Path

from idl.codes import Code, ServingError
from inference_server import errors, model_settings
from inference_server.model_settings import InvalidModelSettings, ModelSettings
from inference_server.types import FileHeader, StoredFile

MODEL_FILE = "model.onnx"
PIN_FILE = "serving-version"
"""Beside the version folders, after a load that named a version: the version that a restart is to serve as well."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEFT_OVER_S = 3600.0


@dataclass(frozen=True, slots=True)
class RepositoryModel:
    """One model as it lies on disk now. `versions` ascend; `problem` is why it cannot be served, "" where it can.

    `pinned`: the version that the last load named, 0 where it named none; it stands above the version policy.
    """

    name: str
    folder: Path
    versions: tuple[int, ...]
    settings: ModelSettings
    problem: str
    pinned: int = 0

    def wanted(self) -> tuple[int, ...]:
        """The versions to load, ascending."""
        return (self.pinned,) if self.pinned in self.versions else self.settings.version_policy.choose(self.versions)

    def candidates(self) -> tuple[tuple[int, ...], ...]:
        """What a start tries, one after the other: what is wanted, then, where the policy is "latest", each older version alone."""
        wanted, policy = self.wanted(), self.settings.version_policy
        older = (
            self.versions[: self.versions.index(wanted[0])] if wanted and policy.latest and not policy.specific and not self.pinned else ()
        )
        return (wanted, *((version,) for version in reversed(older)))

    def file(self, version: int) -> Path:
        return self.folder / str(version) / MODEL_FILE


class Repository:
    """`roots`: the first holds what is pushed for models that no root has yet, unless `push_root` says another. Thread-safe."""

    def __init__(self, roots: Sequence[Path], push_root: Path | None = None) -> None:
        self._roots = tuple(roots)
        self._push_root = push_root or self._roots[0]
        self._lock = threading.Lock()

    @property
    def push_root(self) -> Path:
        return self._push_root

    def names(self) -> tuple[str, ...]:
        """Every model that some root has, sorted."""
        found: set[str] = set()
        for root in self._roots:
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(root) if entry.is_dir() and _NAME.fullmatch(entry.name))
        return tuple(sorted(name for name in found if self._folder(name) is not None))

    def read(self, name: str) -> RepositoryModel | None:
        """What the disk says of `name` now; None where no root has it."""
        folder = self._folder(name)
        if folder is None:
            return None
        versions = _versions(folder)
        problem = "" if versions else "it has no version with a model file"
        try:
            return RepositoryModel(name, folder, versions, model_settings.read(folder), problem, _pinned(folder))
        except InvalidModelSettings as error:
            return RepositoryModel(name, folder, versions, ModelSettings(public=False), str(error))

    def _folder(self, name: str) -> Path | None:
        if not _NAME.fullmatch(name):
            return None
        for root in self._roots:
            folder = root / name
            if folder.is_dir() and (_versions(folder) or (folder / "model.toml").exists()):
                return folder
        return None

    def pin(self, model: RepositoryModel, version: int) -> bool:
        """Remembers which version serves, over restarts; 0: the version policy decides again. False where the folder cannot be written."""
        path = model.folder / PIN_FILE
        try:
            if not version:
                path.unlink(missing_ok=True)
                return True
            part = model.folder / f".{PIN_FILE}.{os.getpid()}-{threading.get_ident()}.part"
            part.write_text(f"{version}\n")
            part.replace(path)
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
        part = folder / f".{header.file_name}.{os.getpid()}-{threading.get_ident()}.part"
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
        _sync(target.parent)
        return StoredFile(header.size, header.sha256, existed=False)


def _pinned(folder: Path) -> int:
    try:
        text = (folder / PIN_FILE).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if _VERSION.fullmatch(text) else 0


def _versions(folder: Path) -> tuple[int, ...]:
    try:
        names = [entry.name for entry in os.scandir(folder) if _VERSION.fullmatch(entry.name)]
    except OSError:
        return ()
    return tuple(sorted(int(name) for name in names if (folder / name / MODEL_FILE).is_file()))


def _check(header: FileHeader) -> None:
    if not _NAME.fullmatch(header.model_name):
        raise errors.invalid_input(
            f"model name {header.model_name!r} is not letters, digits, '_', '-' and '.', a letter or digit first, 128 at most"
        )
    if not _FILE_NAME.fullmatch(header.file_name) or header.file_name.endswith(".part"):
        raise errors.invalid_input(f"file name {header.file_name!r} is not a plain name of letters, digits, '_', '-' and '.'")
    if not 0 <= header.version < 10**18:
        raise errors.invalid_input(f"version {header.version} is not a whole number from 1 (or 0 for a file beside the versions)")
    if not header.version and (_VERSION.fullmatch(header.file_name) or header.file_name == PIN_FILE):
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


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
