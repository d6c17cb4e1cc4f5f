"""The files of a model: what a model host says of those that come, and where those that were kept have to lie on a host."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.errors import InvalidFields
from gateway.models_rpc import Models
from gateway.storage import Storage
from gateway.storage.model_records import FileRecord, NewVersion, VersionRecord
from idl import archives
from idl.codes import Code, ServingError
from idl.messages import ValidatedTensor, Validation

MOST_FILES = 256
_BESIDE_BYTES = 1 << 20
"""What is larger belongs to a version alone: settings, labels and samples to warm up are small."""
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_LEFT_OUT = ("__MACOSX", "__pycache__")


@dataclass(frozen=True, slots=True)
class SentFile:
    """A whole file on our disk. `name`: what its sender calls it; of one that belongs to the model a path in its folder."""

    name: str
    path: Path
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A file as it has to lie on a model host; `version` 0: beside the versions."""

    name: str
    version: int
    path: Path


def check_names(files: Sequence[SentFile]) -> list[str]:
    """What the model host is told of each; the first is the model. Raises invalid_input."""
    first = files[0].name.replace("\\", "/").rpartition("/")[2]
    names = [first if archives.is_path(first) else "model", *(file.name for file in files[1:])]
    for file in files[1:]:
        if not archives.is_path(file.name):
            raise InvalidFields({"files": f"{file.name[:128]!r} is not a name of {archives.PATH_RULE}"})
    if len(set(names)) != len(names):
        raise InvalidFields({"files": "two files have the same name"})
    if len(names) > MOST_FILES:
        raise InvalidFields({"files": f"there are {len(names)}, at most {MOST_FILES} are taken"})
    return names


def tried(models: Models, files: Sequence[SentFile], timeout_s: float) -> Validation:
    """What a model host finds out by trying them. Raises what `Client.validate` raises, and invalid_input for names."""
    names = check_names(files)
    with contextlib.ExitStack() as stack:
        return models.validate(
            [(name, stack.enter_context(file.path.open("rb"))) for name, file in zip(names, files, strict=True)], timeout_s
        )


def version_of(report: Validation, files: Sequence[SentFile]) -> NewVersion:
    """What is kept of it; the blobs are adopted by the caller."""
    main, *others = files
    archive = len(files) == 1 and _is_archive(main.path, len(report.files))
    placed = list(report.files)
    if report.model_file not in placed or (not archive and len(placed) != len(files)):
        raise ServingError(Code.INTERNAL, "the model host does not say what became of each file")
    return NewVersion(
        report.format,
        main.sha256,
        main.size,
        main.name.replace("\\", "/").rpartition("/")[2][:255],
        {"inputs": [_tensor(each) for each in report.inputs], "outputs": [_tensor(each) for each in report.outputs]},
        {
            "platform": report.platform,
            "algorithm": report.algorithm,
            "producer": report.producer,
            "opset": report.opset or None,
            "parameter_count": report.parameter_count,
            "size_bytes": report.size_bytes,
            "warnings": list(report.warnings),
            "archive": archive,
            "model_file": report.model_file,
            "own": placed.index(report.model_file),
            "placed": None if archive else placed[0],
        },
        {
            "memory_bytes": report.memory_bytes,
            "load_ms": report.load_ms,
            "latency": [asdict(each) for each in report.latencies],
            "proposed": {"cpus": report.proposed_cpus, "memory": report.proposed_memory_bytes},
        },
        [FileRecord(name, file.sha256, file.size, False) for name, file in zip(placed[1:], others, strict=True)] if not archive else [],
    )


@contextlib.contextmanager
def placed(storage: Storage, version: VersionRecord) -> Iterator[Sequence[Placed]]:
    """Everything that a model host needs of it, while the block lasts. Raises gone where a file is not kept any more, and
    insufficient_capacity where an archive cannot be unpacked."""
    if version.facts["archive"]:
        with storage.scratch() as folder, _opened(storage, version.sha256) as path:
            try:
                names = archives.unpack(path, folder)
            except archives.BadArchive as error:
                raise ServingError(Code.INVALID_MODEL, f"the model's file: {error}") from None
            except OSError as error:
                raise ServingError(Code.INSUFFICIENT_CAPACITY, f"the archive cannot be unpacked: {error.strerror}") from error
            yield _laid_out([(name, folder / name) for name in names], version)
        return
    with contextlib.ExitStack() as stack:
        files = [(version.facts["placed"], version.sha256), *((file.name, file.sha256) for file in storage.models.files(version.id))]
        yield _laid_out([(name, stack.enter_context(_opened(storage, sha256))) for name, sha256 in files], version)


def _laid_out(files: Sequence[tuple[str, Path]], version: VersionRecord) -> list[Placed]:
    """All in the version, and what may belong to the model's settings beside the versions as well, before what reads it."""
    own = str(version.facts["model_file"])
    within = [Placed(name, version.number, path) for name, path in files]
    if version.facts["archive"]:  # in which the model's own file may have any name; a host finds it at the same place
        within[version.facts["own"]] = Placed(own, version.number, files[version.facts["own"]][1])
    beside = [
        Placed(file.name, 0, file.path)
        for file in within
        if file.name != own
        and ("/" not in file.name or file.name.startswith("warmup/"))
        and not file.name.isdigit()
        and file.name not in archives.HOSTS_OWN
        and file.path.stat().st_size <= _BESIDE_BYTES
    ]
    return beside + within


@contextlib.contextmanager
def _opened(storage: Storage, sha256: str) -> Iterator[Path]:
    """A blob's path, held open: however it is swept meanwhile, its bytes stay readable there."""
    with storage.blobs.open(sha256) as file:
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _is_archive(path: Path, files: int) -> bool:
    """Whether a host that found so many files in it has unpacked it. Some models are zip archives themselves."""
    with path.open("rb") as file:
        if file.read(4) not in _ZIP:
            return False
    try:
        names = archives.names(path)
    except archives.BadArchive:
        return False
    return sum(not _is_left_out(name) for name in names) == files


def _is_left_out(name: str) -> bool:
    return any(part.startswith(".") or part in _LEFT_OUT for part in name.split("/"))


def _tensor(found: ValidatedTensor) -> Mapping[str, Any]:
    known = found.low is not None or found.high is not None
    return {
        "name": found.name,
        "type": found.datatype,
        "shape": [int(axis) if axis.lstrip("-").isdigit() and axis.isascii() else axis for axis in found.shape],
        "range": [found.low, found.high] if known else None,
        "optype": found.optype,
        "values": list(found.values),
    }
