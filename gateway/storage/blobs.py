"""Files on the disk under their SHA-256: models, inputs, results, pictures.

A file is written beside as a partial one, made durable, and renamed; then its row is written. Whoever names a blob in a row does so in a
transaction that sees the blob's row (foreign keys), so `sweep` never takes away what is named: it removes rows that nobody names and
that are older than a while, and the files afterwards.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from gateway.clock import to_text
from gateway.storage.database import Database
from idl.codes import Code, ServingError

PARTIAL = "part-"
"""What the names of files that are still written begin with."""
_NAMED_BY = (
    ("model_versions", "sha256"),
    ("version_files", "sha256"),
    ("script_versions", "sha256"),
    ("golden", "request_sha256"),
    ("golden", "answer_sha256"),
    ("tasks", "input_sha256"),
    ("tasks", "result_sha256"),
    ("users", "avatar_sha256"),
)
"""Table and column of everything that names a blob. `tests/gateway/test_blobs.py` compares it with the schema."""
_UNNAMED = " ".join(f"and not exists (select 1 from {table} t where t.{column} = blobs.sha256)" for table, column in _NAMED_BY)
_PIECE = 200
"""Most files that are removed while nobody else can write."""


class Blobs:
    """The blobs under `folder`. Thread-safe."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    def put(self, pieces: Iterable[bytes], now: datetime) -> tuple[str, int]:
        """(SHA-256, bytes) of a new blob, or of the same one that was there. Raises insufficient_capacity where the disk is full."""
        digest, size = hashlib.sha256(), 0
        partial = self._partial()
        try:
            with _writing(), partial.open("xb") as file:
                for piece in _theirs(pieces):
                    digest.update(piece)
                    size += len(piece)
                    file.write(piece)
                _settle(file)
            return self._keep(partial, digest.hexdigest(), size, now), size
        except _Theirs as broken:
            raise broken.error from None
        finally:
            partial.unlink(missing_ok=True)

    def adopt(self, path: Path, sha256: str, size: int, now: datetime) -> None:
        """Takes a finished file of the same file system, whose digest the caller has computed, by renaming it."""
        with _writing(), path.open("rb") as file:
            os.fsync(file.fileno())
        self._keep(path, sha256, size, now)

    def path(self, sha256: str) -> Path:
        """Where a blob lies, for reading only."""
        return self._folder / sha256[:2] / sha256

    def read(self, sha256: str) -> bytes:
        """Raises gone where it was removed."""
        try:
            return self.path(sha256).read_bytes()
        except FileNotFoundError:
            raise ServingError(Code.GONE, "the file is not kept any more") from None

    def open(self, sha256: str) -> IO[bytes]:
        """The same for what is large."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError:
            raise ServingError(Code.GONE, "the file is not kept any more") from None

    def sweep(self, older_than: datetime, *, dry_run: bool = False) -> tuple[int, int]:
        """(count, bytes) of the blobs that nothing names and that came before `older_than`; they are removed unless `dry_run`."""
        unnamed = f"from blobs where created_at < ? {_UNNAMED}"
        if dry_run:
            with self._database.read() as db:
                row = db.execute(f"select count(*) as n, coalesce(sum(size), 0) as bytes {unnamed}", [to_text(older_than)]).fetchone()
            return row["n"], row["bytes"]
        count, size, last = 0, 0, ""
        while True:
            with self._database.read() as db:  # looking through them holds nobody up
                rows = db.execute(
                    f"select sha256 {unnamed} and sha256 > ? order by sha256 limit ?", [to_text(older_than), last, _PIECE]
                ).fetchall()
            if not rows:
                return count, size
            last = rows[-1]["sha256"]
            removed = self._remove([row["sha256"] for row in rows], older_than)
            count, size = count + len(removed), size + sum(removed)

    def _remove(self, found: list[str], older_than: datetime) -> list[int]:
        """Those that nobody has come to name meanwhile: their sizes."""
        marks = ", ".join("?" * len(found))
        with self._database.write() as db:
            rows = db.execute(
                f"select sha256, size from blobs where sha256 in ({marks}) and created_at < ? {_UNNAMED}", [*found, to_text(older_than)]
            ).fetchall()
            for row in rows:
                db.execute("delete from blobs where sha256 = ?", [row["sha256"]])
                # inside the transaction: a `put` of the same bytes waits for the write lock before it looks at the file
                self.path(row["sha256"]).unlink(missing_ok=True)
        return [row["size"] for row in rows]

    def sweep_partial(self, older_than: datetime, *, dry_run: bool = False) -> int:
        """Removes what writers that were killed left behind; how many files that are, or with `dry_run` would be."""
        count = 0
        for path in self._folder.glob(f"{PARTIAL}*"):
            with contextlib.suppress(FileNotFoundError):  # its writer has finished meanwhile
                if path.stat().st_mtime < older_than.timestamp():
                    count += 1
                    if not dry_run:
                        path.unlink()
        return count

    def _keep(self, partial: Path, sha256: str, size: int, now: datetime) -> str:
        final = self.path(sha256)
        with _writing():
            final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._database.write() as db, _writing():
            db.execute(
                "insert into blobs (sha256, size, created_at) values (?, ?, ?) on conflict do update set created_at = excluded.created_at",
                [sha256, size, to_text(now)],
            )
            if final.exists():
                partial.unlink()
            else:
                partial.chmod(0o400)
                partial.rename(final)
                _settle_folder(final.parent)
        return sha256

    def _partial(self) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder / f"{PARTIAL}{secrets.token_hex(8)}"


def full(error: OSError) -> ServingError:
    """What is told when a file cannot be written."""
    return ServingError(Code.INSUFFICIENT_CAPACITY, f"the gateway cannot keep the file: {error.strerror or 'the disk refuses it'}")


class _Theirs(Exception):
    """What the pieces raised: it may be an OSError, and none of the disk's."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _theirs(pieces: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except Exception as error:
        raise _Theirs(error) from error


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise full(error) from error


def _settle(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _settle_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
