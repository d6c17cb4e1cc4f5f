"""Validations: files come, are recognised, tried, and removed again, whatever happens."""

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from idl import archives
from idl.archives import BadArchive, Limits
from idl.codes import Code, ServingError
from idl.messages import Validation
from inference_server import errors, host
from inference_server.executors.fresh_processes import FreshProcesses
from inference_server.executors.memory_groups import started
from inference_server.executors.memory_limit import MemoryLimits
from inference_server.reservations import in_units
from inference_server.types import FileHeader
from inference_server.validation import formats
from inference_server.validation.formats import Unrecognised
from inference_server.validation.reports import validation
from inference_server.validation.trial import MODEL
from inference_server.validation.trials import Hopeless, TrialLimits, Trials

log = logging.getLogger("outboard.server")

RETRY_BUSY_MS = 5000
MOST_FILES = 1000
_LEAST_MEMORY = 256 * 2**20
_KEPT_DISK = 64 * 2**20
"""Bytes that are left to others on the disk."""
_BESIDE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ValidationLimits:
    """`at_once`: how many; `bytes`: of all files of one, unpacked as well; `memory`: bytes of the process that tries it."""

    at_once: int
    bytes: int
    timeout_s: float
    memory: int


@dataclass(slots=True)
class _Incoming:
    """Files as they come into `folder`, which is empty."""

    folder: Path
    most_bytes: int
    size: int = 0
    names: list[str] = field(default_factory=list)

    def receive(self, parts: Iterator[FileHeader | bytes]) -> None:
        """Raises invalid_input, too_large, insufficient_capacity."""
        part = next(parts, None)
        if part is None:
            raise errors.invalid_input("there is no file to validate")
        while part is not None:
            if not isinstance(part, FileHeader):
                raise errors.invalid_input("the first message of a file must be its header")
            part = self._file(part, parts)

    def _file(self, header: FileHeader, parts: Iterator[FileHeader | bytes]) -> FileHeader | bytes | None:
        """Takes one file; gives what came behind it."""
        name = header.file_name
        if not archives.is_path(name):
            raise errors.invalid_input(f"file name {name[:200]!r} is not one of {archives.PATH_RULE}")
        if name in self.names or len(self.names) >= MOST_FILES:
            raise errors.invalid_input(f"file {name!r} came twice" if name in self.names else f"at most {MOST_FILES} files are taken")
        self._check_size(header.size)
        digest, before = hashlib.sha256(), self.size
        target = self.folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = target.open("xb")
        except (FileExistsError, NotADirectoryError):
            raise errors.invalid_input(f"file {name!r} is a file and a folder") from None
        following: FileHeader | bytes | None = None
        with file:
            for part in parts:
                if isinstance(part, FileHeader):
                    following = part
                    break
                self.size += len(part)
                self._check_size(0)
                digest.update(part)
                file.write(part)
        self.names.append(name)
        if header.size and header.size != self.size - before:
            raise errors.invalid_input(f"{name}: {header.size} bytes were announced, {self.size - before} came")
        if header.sha256 and header.sha256 != digest.hexdigest():
            raise errors.invalid_input(f"{name}: the SHA-256 of what came is {digest.hexdigest()}, {header.sha256[:64]} was announced")
        return following

    def _check_size(self, announced: int) -> None:
        if self.size + announced > self.most_bytes:
            raise errors.too_large(f"the files have more than {in_units(self.most_bytes)}, which is what a validation may take")
        if shutil.disk_usage(self.folder).free < announced + _KEPT_DISK:
            raise OSError(errno.ENOSPC, "disk full")


class Validations:
    """`root` holds what is under way; what killed servers left there is removed. Thread-safe, `close` is idempotent."""

    def __init__(
        self, root: Path, memory_limits: MemoryLimits, limits: ValidationLimits, promised_free: Callable[[], int] | None = None
    ) -> None:
        """`promised_free`: bytes of memory that no model has reserved; None: nothing is reserved."""
        self._root = root
        self._promised_free = promised_free
        self._fresh = FreshProcesses(root, 0)
        self._trials = Trials(self._fresh, memory_limits)
        self._limits = limits
        self._places = threading.Semaphore(limits.at_once)
        self._numbers = itertools.count(1)
        self._me = f"{os.getpid()}-{started(os.getpid())}"
        _sweep(root)

    def close(self) -> None:
        """To be called when none is under way any more."""
        self._fresh.close()

    def validate(self, parts: Iterator[FileHeader | bytes], deadline: float, active: Callable[[], bool]) -> Validation:
        """Raises invalid_model with the reason, invalid_input, too_large, unsupported, overloaded, insufficient_capacity, cancelled,
        deadline_exceeded.
        """
        if not self._places.acquire(blocking=False):
            raise errors.overloaded(f"{self._limits.at_once} validations are under way, and no more are done at once", RETRY_BUSY_MS)
        begun, folder, outcome = time.monotonic(), self._root / f"{self._me}-{next(self._numbers)}", "failed"
        try:
            found = self._validated(folder, parts, deadline, active)
            outcome = found.format
            return found
        except ServingError as error:
            outcome = error.code.value
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._places.release()
            log.info("validated", extra={"fields": {"outcome": outcome, "seconds": round(time.monotonic() - begun, 3)}})

    def _validated(self, folder: Path, parts: Iterator[FileHeader | bytes], deadline: float, active: Callable[[], bool]) -> Validation:
        try:
            incoming = _Incoming(folder / "sent", self._limits.bytes)
            incoming.folder.mkdir(parents=True, mode=0o700)
            incoming.receive(parts)
            return self._tried(folder, incoming, deadline, active)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise errors.insufficient_capacity("the model host's disk has no room for a validation of these files") from error
            raise ServingError(Code.UNAVAILABLE, f"the model host cannot keep the files: {error.strerror}") from error

    def _tried(self, folder: Path, incoming: _Incoming, deadline: float, active: Callable[[], bool]) -> Validation:
        told = ", ".join(incoming.names[:4])
        try:
            sent, names = self._unpacked(folder, incoming)
            kind, own = formats.recognised(sent, names)
        except (Unrecognised, BadArchive) as error:
            raise ServingError(Code.INVALID_MODEL, str(error) if isinstance(error, Unrecognised) else f"{told}: {error}") from None
        model = _laid_out(folder / MODEL, sent, names, kind, own)
        left = deadline - time.monotonic()
        if left <= 0:
            raise errors.deadline_exceeded("the time for the validation passed while the files came")
        within = TrialLimits(self._memory(), min(self._limits.timeout_s, left))
        try:
            tried = self._trials.run(kind, model, within, active)
        except Hopeless as error:
            raise ServingError(Code.INVALID_MODEL, f"{own}: {_in_their_words(str(error), kind, own)}") from None
        own_file = formats.MODEL_FILES[kind]
        files = [own_file if name == own else name for name in names]
        try:
            return validation(kind, tried, own_file, files, incoming.size)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ServingError(Code.INVALID_MODEL, f"{own}: its process told something that cannot be read") from None

    def _memory(self) -> int:
        """What the process may take: never what is in use, nor what models have reserved."""
        room = host.memory()[1]
        if self._promised_free is not None:
            room = min(room, self._promised_free())
        if room < _LEAST_MEMORY:
            raise errors.insufficient_capacity(f"the model host has {in_units(room)} of memory left: no model is tried there now")
        return min(self._limits.memory, room)

    def _unpacked(self, folder: Path, incoming: _Incoming) -> tuple[Path, Sequence[str]]:
        """What was sent, or what is in the one zip archive that was sent, where that is no model itself. Raises BadArchive, Unrecognised."""
        only = incoming.folder / incoming.names[0]
        with only.open("rb") as file:
            if len(incoming.names) > 1 or not formats.is_zip(file.read(4)):
                return incoming.folder, incoming.names
        limits = Limits(bytes=self._limits.bytes)
        try:
            if formats.in_archive(archives.names(only, limits)):
                return incoming.folder, incoming.names
        except Unrecognised as error:
            raise Unrecognised(f"{incoming.names[0]} {error}") from None
        inside = folder / "unpacked"
        inside.mkdir()
        return inside, archives.unpack(only, inside, limits)


def _laid_out(model: Path, sent: Path, names: Sequence[str], kind: str, own: str) -> Path:
    """The files as a model's folder has them: all in version 1, and what may belong to its settings beside it as well."""
    for name in names:
        target = model / "1" / (formats.MODEL_FILES[kind] if name == own else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(sent / name, target)
        is_small = name != own and name not in archives.HOSTS_OWN and target.stat().st_size <= _BESIDE_BYTES
        if is_small and ("/" not in name or name.startswith("warmup/")) and name != "1":
            beside = model / name
            beside.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.link(sent / name, beside)
    return model


def _in_their_words(text: str, kind: str, own: str) -> str:
    """The file as its sender calls it; its name is said once."""
    text = text.replace(formats.MODEL_FILES[kind], own)
    return next((text.removeprefix(said) for said in (f"{own} ", f"{own}: ", f"{own}, ") if text.startswith(said)), text)


def _sweep(root: Path) -> None:
    """Removes what servers have left that live no more."""
    with contextlib.suppress(OSError):
        for entry in list(root.iterdir()):
            pid, _, rest = entry.name.partition("-")
            if not pid.isdigit() or started(int(pid)) != rest.partition("-")[0]:
                shutil.rmtree(entry, ignore_errors=True)
