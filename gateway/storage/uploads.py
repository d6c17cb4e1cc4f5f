"""Files that come in pieces: a row says what was announced, the file's length how much has come."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from gateway.clock import to_text
from gateway.storage.blobs import full
from gateway.storage.database import Database
from idl.codes import Code, ServingError

_COLUMNS = "id, user_id, file_name, size, sha256, created_at, expires_at"
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """`size` in bytes and `sha256` as announced, the latter None where it was not."""

    id: str
    user_id: int
    file_name: str
    size: int
    sha256: str | None
    created_at: str
    expires_at: str


class Uploads:
    """The files lie under `folder`, on the file system of the blobs. Thread-safe."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    def create(self, record: UploadRecord, most: int) -> None:
        """Raises insufficient_capacity beyond `most` of one user."""
        with self._database.write() as db:
            count = db.execute("select count(*) as n from uploads where user_id = ?", [record.user_id]).fetchone()["n"]
            if count >= most:
                raise ServingError(Code.INSUFFICIENT_CAPACITY, f"{count} uploads are open, {most} are allowed: finish or delete one")
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(self._folder / record.id, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            except OSError as error:
                raise full(error) from error
            values = [getattr(record, name) for name in _COLUMNS.split(", ")]
            db.execute(f"insert into uploads ({_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?)", values)

    def find(self, user_id: int, upload_id: str) -> UploadRecord | None:
        """One's own."""
        if not _ID.fullmatch(upload_id):
            return None
        with self._database.read() as db:
            row = db.execute(f"select {_COLUMNS} from uploads where id = ? and user_id = ?", [upload_id, user_id]).fetchone()
        return None if row is None else UploadRecord(**dict(row))

    def received(self, upload_id: str) -> int:
        """Bytes that are there, 0 also where the file is gone."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / upload_id).stat().st_size
        return 0

    def path(self, upload_id: str) -> Path:
        return self._folder / upload_id

    @contextlib.contextmanager
    def held(self, upload_id: str) -> Iterator[IO[bytes]]:
        """The file, open for reading and writing, for one holder at a time in all processes. Raises conflict where there is another, and
        not_found where it is gone. A killed holder holds nothing."""
        try:
            file = (self._folder / upload_id).open("r+b")
        except FileNotFoundError:
            raise ServingError(Code.NOT_FOUND, "there is no such upload any more") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServingError(
                    Code.CONFLICT, "another request is at this upload: ask for its offset and go on", retry_after_ms=1000
                ) from None
            if not (self._folder / upload_id).exists():  # removed, or adopted, by whoever held it before
                raise ServingError(Code.NOT_FOUND, "there is no such upload any more")
            yield file

    def append(self, file: IO[bytes], pieces: Iterable[bytes], most: int) -> int:
        """Bytes that are there afterwards, at most `most`: what is over raises too_large, and is not kept. Raises insufficient_capacity
        where the disk is full; what came before it stays."""
        size = file.seek(0, os.SEEK_END)
        try:
            for piece in pieces:
                if size + len(piece) > most:
                    raise ServingError(Code.TOO_LARGE, f"the upload was announced with {most} bytes, more came")
                file.write(piece)
                size += len(piece)
            file.flush()
        except OSError as error:
            raise full(error) from error
        finally:
            with contextlib.suppress(OSError):
                file.flush()
        return size

    def remove(self, upload_id: str) -> None:
        """Idempotent."""
        with self._database.write() as db:
            db.execute("delete from uploads where id = ?", [upload_id])
        (self._folder / upload_id).unlink(missing_ok=True)

    def sweep(self, now: datetime) -> int:
        """Removes what has expired, and files without a row; how many."""
        with self._database.read() as db:
            rows = db.execute("select id from uploads where expires_at <= ?", [to_text(now)]).fetchall()
        for row in rows:
            self.remove(row["id"])
        return len(rows) + self._sweep_files()

    def _sweep_files(self) -> int:
        count = 0
        names = {path.name for path in self._folder.glob("*")}
        with self._database.write() as db:  # after the names were read, and with the lock: a new one's row is there, or will be
            for name in names:
                if db.execute("select 1 from uploads where id = ?", [name]).fetchone() is None:
                    (self._folder / name).unlink(missing_ok=True)
                    count += 1
        return count
