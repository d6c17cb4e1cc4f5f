"""The whole state in one file, taken while everything runs, and put back: a tar archive of the database, the files, the secret, and a list of all of
it with SHA-256 digests.

The database is SQLite's own copy of one moment. The files that it names are linked into a folder beside them before anything is read, so that a
sweep cannot take them away meanwhile; where one was gone already, another moment is tried.
"""

import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage.blobs import _NAMED_BY, _UNNAMED
from gateway.storage.schema import migrations

FORMAT = 1
DATABASE, SECRET, BLOBS, MANIFEST = "outboard.db", "secret", "blobs", "manifest.json"
_MOMENT = "backup-"
"""What the names of folders begin with that hold a moment's state while it is written."""
_MOMENTS = 5
_PIECE = 1 << 20
_MOST_MANIFEST = 1 << 30
_NAME = re.compile(r"outboard\.db|secret|blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})", re.ASCII)


class BackupError(Exception):
    """The message says what is wrong, in words for whoever runs the command."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is in a backup."""

    made_at: str
    users: int
    files: int
    bytes: int


def write(state: Path, target: Path, now: datetime) -> Told:
    """Raises BackupError, and OSError; then there is no file at `target`, where none may be before."""
    if not (state / DATABASE).is_file():
        raise BackupError(f"there is no gateway's database in {state}")
    if target.exists():
        raise BackupError(f"{target} is there already: a backup is never overwritten")
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    with _moment(state) as frozen:
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                told = _archive(frozen, file, now)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, target)  # fails where a file has come meanwhile
        except FileExistsError:
            raise BackupError(f"{target} is there already: a backup is never overwritten") from None
        finally:
            partial.unlink(missing_ok=True)
    _settle(target.parent)
    return told


@contextmanager
def _moment(state: Path) -> Iterator[Path]:
    """A folder with the state of one moment, on the same file system: links cost nothing. One backup at a time; the next one waits."""
    with _locked(state):
        for left in state.glob(f"{_MOMENT}*"):  # by one that was killed: its links keep files that were long removed
            shutil.rmtree(left, ignore_errors=True)
        with _made_moment(state / f"{_MOMENT}{secrets.token_hex(4)}", state) as folder:
            yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _made_moment(folder: Path, state: Path) -> Iterator[Path]:
    folder.mkdir(mode=0o700)
    try:
        for attempt in range(_MOMENTS):
            _copy_database(state / DATABASE, folder / DATABASE)
            if _link_files(state / BLOBS, folder / BLOBS, _named(folder / DATABASE)):
                break
            if attempt == _MOMENTS - 1:
                raise BackupError("files that the database names are not on the disk: the state is damaged")
            shutil.rmtree(folder / BLOBS)
        if (state / SECRET).exists():
            shutil.copyfile(state / SECRET, folder / SECRET)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_database(source: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(source, timeout=30)) as live, closing(sqlite3.connect(copy)) as made:
            live.backup(made)
            made.execute("pragma journal_mode = delete")  # one file
            made.execute("pragma foreign_keys = on")
            made.execute(f"delete from blobs where true {_UNNAMED}")
            made.execute("delete from uploads")  # their halves are not kept
            made.commit()
    except sqlite3.Error as error:
        raise BackupError(f"the database cannot be copied: {error}") from error


def _named(database: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return [(sha256, size) for sha256, size in db.execute("select sha256, size from blobs order by sha256")]


def _link_files(source: Path, folder: Path, named: list[tuple[str, int]]) -> bool:
    """False where one is gone: it was swept after the database's moment."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for sha256, _ in named:
        (folder / sha256[:2]).mkdir(mode=0o700, exist_ok=True)
        try:
            os.link(source / sha256[:2] / sha256, folder / sha256[:2] / sha256)
        except FileNotFoundError:
            return False
    return True


def _archive(frozen: Path, file: IO[bytes], now: datetime) -> Told:
    names = [DATABASE, *([SECRET] if (frozen / SECRET).exists() else [])]
    entries = {name: {"size": (frozen / name).stat().st_size, "sha256": _digest(frozen / name)} for name in names}
    for sha256, size in _named(frozen / DATABASE):
        entries[f"{BLOBS}/{sha256[:2]}/{sha256}"] = {"size": size, "sha256": sha256}
    with closing(sqlite3.connect(f"file:{frozen / DATABASE}?mode=ro", uri=True)) as db:
        users = db.execute("select count(*) from users").fetchone()[0]
    head = {"format": FORMAT, "made_at": to_text(now), "users": users, "files": entries}
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        text = json.dumps(head).encode()
        archive.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
        for name, entry in entries.items():
            with (frozen / name).open("rb") as content:
                if os.fstat(content.fileno()).st_size != entry["size"]:
                    raise _damaged(frozen, name)
                read = _Digested(content)
                archive.addfile(_member(name, int(entry["size"])), read)
            if read.digest.hexdigest() != entry["sha256"]:  # a restore would refuse it: told while there is something to do about it
                raise _damaged(frozen, name)
    return _told(head)


class _Digested(io.RawIOBase):
    """A file that is read once, and its digest so far."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self.digest.update(piece)
        return piece


def _damaged(frozen: Path, name: str) -> BackupError:
    """Says what names the file: that can be deleted, or uploaded anew."""
    sha256 = name.rpartition("/")[2]
    with closing(sqlite3.connect(f"file:{frozen / DATABASE}?mode=ro", uri=True)) as db:
        named = [
            f"{table}.{column}"
            for table, column in _NAMED_BY
            if db.execute(f"select 1 from {table} where {column} = ? limit 1", [sha256]).fetchone()
        ]
    whose = f" (it is named in {', '.join(named)})" if named else ""
    return BackupError(f"{name} is not what was written{whose}: the disk has damaged it, or somebody has changed it")


def _member(name: str, size: int) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.mode = size, 0o600
    return made


# reading ------------------------------------------------------------------------------------------------------------------------------


def unpack(source: Path, folder: Path) -> Told:
    """Puts the state of a backup into `folder`, which is made, once everything in it was compared with its list. Raises BackupError, OSError."""
    folder.mkdir(mode=0o700)
    try:
        with source.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as archive:
            head = _head(archive)
            _unpack_files(archive, head["files"], folder)
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{source} is no backup, or is damaged: {error}") from error
    _check(folder, head["files"])
    return _told(head)


def _head(archive: tarfile.TarFile) -> dict[str, Any]:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > _MOST_MANIFEST:
        raise BackupError("it is no backup: its list is not at its beginning")
    content = archive.extractfile(first)
    try:
        head: dict[str, Any] = dict(json.loads(content.read() if content else b""))
        if head["format"] != FORMAT:
            raise BackupError(f"it was made by another version of this program (format {head['format']})")
        wanted = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in head["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BackupError("its list cannot be read") from None
    if DATABASE not in wanted or any(_NAME.fullmatch(name) is None for name in wanted):
        raise BackupError("its list names what no backup has")
    return head | {"files": wanted}


def _unpack_files(archive: tarfile.TarFile, wanted: dict[str, tuple[int, str]], folder: Path) -> None:
    seen: set[str] = set()
    while (member := archive.next()) is not None:
        if member.name not in wanted or member.name in seen or not member.isreg():
            raise BackupError(f"it holds {member.name[:100]!r}, which its list does not name")
        size, sha256 = wanted[member.name]
        content = archive.extractfile(member)
        if content is None or member.size != size or _copied(content, folder / member.name) != sha256:
            raise BackupError(f"{member.name} is not what the list says: it is damaged")
        seen.add(member.name)
    if missing := wanted.keys() - seen:
        raise BackupError(f"{len(missing)} of its files are missing, such as {min(missing)}: it is cut off")


def _copied(content: IO[bytes], path: Path) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    is_blob = path.parent.parent.name == BLOBS
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400 if is_blob else 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while piece := content.read(_PIECE):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _check(folder: Path, wanted: dict[str, tuple[int, str]]) -> None:
    """The database is whole, is not newer than this program, and names the files that are there and no others."""
    try:
        with closing(sqlite3.connect(folder / DATABASE)) as db:
            if (said := db.execute("pragma integrity_check(1)").fetchone()[0]) != "ok":
                raise BackupError(f"its database is damaged: {said}")
            if db.execute("pragma foreign_key_check").fetchone() is not None:
                raise BackupError("its database is damaged: a row names another that is not there")
            db.row_factory = sqlite3.Row
            known = {migration.name for migration in migrations._migrations}
            if {row.name for row in migrations.applied(SqliteDatabase(db, execute_plugins=False))} - known:
                raise BackupError("it was made by a newer version of this program")
            named = {f"{BLOBS}/{row[0][:2]}/{row[0]}" for row in db.execute("select sha256 from blobs")}
    except sqlite3.Error as error:
        raise BackupError(f"its database cannot be read: {error}") from error
    if named != wanted.keys() - {DATABASE, SECRET}:
        raise BackupError("its database and its list name different files")


def _told(head: dict[str, Any]) -> Told:
    sizes = [entry[0] if isinstance(entry, tuple) else entry["size"] for entry in head["files"].values()]
    return Told(str(head["made_at"]), int(head["users"]), len(sizes), sum(sizes))


def swap(fresh: Path, state: Path, now: datetime) -> Path | None:
    """Puts `fresh` where the state is; what was there is kept beside it: where. Each of the two renames is whole or not done."""
    kept = None
    _give(fresh, state if state.exists() else state.parent)
    if state.exists():
        kept = state.with_name(f"{state.name}.before-{now.strftime('%Y%m%dT%H%M%SZ')}-{secrets.token_hex(2)}")
        state.rename(kept)
    fresh.rename(state)
    _settle(state.parent)
    return kept


def _give(folder: Path, like: Path) -> None:
    """Where root restores, the state is of whoever the gateway runs as, as it was."""
    if os.geteuid() != 0:
        return
    owner = like.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
