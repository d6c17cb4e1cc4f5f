"""The owner of this process's connections to the SQLite file: how they are opened, lent, and given back.

A write begins IMMEDIATE. sqlite-utils' own `atomic()` begins deferred, and a deferred transaction that reads and then writes fails
at once with "database is locked" when another connection wrote in between, whatever the busy timeout.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from sqlite_utils import Database as SqliteDatabase

from gateway.storage.schema import migrations
from idl.codes import Code, ServingError

_log = logging.getLogger(__name__)
_RETRY_MS = 1000


class Database:
    """Connections to the file at `path`, as many as threads use at once. Every method raises unavailable where the file cannot be used.

    A connection must not cross a fork: uWSGI loads the application in each worker, and use in another process raises RuntimeError.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[SqliteDatabase] = []
        self._migrated = False
        self._closed = False

    @contextlib.contextmanager
    def read(self) -> Iterator[SqliteDatabase]:
        """A connection for single statements that change nothing."""
        with self._lent() as db:
            yield db

    @contextlib.contextmanager
    def write(self) -> Iterator[SqliteDatabase]:
        """A transaction that holds the write lock from its beginning; an exception rolls it back."""
        with self._lent() as db, _transaction(db):
            yield db

    def probe(self) -> None:
        """Writes for real and takes it back. Raises unavailable where that fails."""
        with self._lent() as db:
            db.execute("begin immediate")
            try:
                db.execute("insert into attempts (key, clear_at) values ('probe', 0) on conflict do update set clear_at = 0")
            finally:
                if db.conn.in_transaction:
                    db.execute("rollback")

    def close(self) -> None:
        """Closes every connection that nobody holds; the others follow when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for db in idle:
            db.close()

    @contextlib.contextmanager
    def _lent(self) -> Iterator[SqliteDatabase]:
        with _translated():
            db = self._take()
            try:
                yield db
            except sqlite3.Error:
                # whatever state it is in, the next borrower gets a fresh one
                db.close()
                raise
            except BaseException:
                self._give_back(db)
                raise
            self._give_back(db)

    def _take(self) -> SqliteDatabase:
        if os.getpid() != self._process:
            raise RuntimeError("a database connection was carried over a fork")
        with self._lock:
            if self._closed:
                raise RuntimeError("the database is closed")
            if self._idle:
                return self._idle.pop()
            if not self._migrated:
                self._prepare()
                self._migrated = True
        return self._open()

    def _give_back(self, db: SqliteDatabase) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(db)
                return
        db.close()

    def _prepare(self) -> None:
        """Makes the file and brings its schema up to date, one process at a time.

        The file lock is there for the change to WAL: SQLite answers "database is locked" to the second of two processes that make it,
        without waiting.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # it holds password hashes; SQLite gives its other files the same mode
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            db = self._open()
            try:
                db.execute("pragma journal_mode = wal")
                _refuse_newer(db)
                if migrations.pending(db):
                    with _transaction(db):
                        migrations.apply(db)
            finally:
                db.close()

    def _open(self) -> SqliteDatabase:
        # isolation_level None: no transaction begins unless this file says so
        connection = sqlite3.connect(self._path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("pragma foreign_keys = on")
        # what was acknowledged survives a power cut, not only a killed process
        connection.execute("pragma synchronous = full")
        return SqliteDatabase(connection, execute_plugins=False)


@contextlib.contextmanager
def _transaction(db: SqliteDatabase) -> Iterator[None]:
    db.execute("begin immediate")
    try:
        yield
        db.execute("commit")
    except BaseException:
        if db.conn.in_transaction:
            db.execute("rollback")
        raise


def _refuse_newer(db: SqliteDatabase) -> None:
    known = {migration.name for migration in migrations.applied(db)} | {migration.name for migration in migrations.pending(db)}
    own = {migration.name for migration in migrations._migrations}
    if known - own:
        raise ServingError(Code.UNAVAILABLE, "the database was written by a newer version of this program")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """SQLite's and the file system's failures, as the contract's; programming errors stay what they are."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except (sqlite3.OperationalError, sqlite3.DatabaseError, OSError) as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        _log.error("database_unusable", extra={"reason": str(error)})
        message = "the database is busy" if _busy(error) else "the database cannot be used"
        raise ServingError(Code.UNAVAILABLE, message, retry_after_ms=_RETRY_MS) from error


def _busy(error: Exception) -> bool:
    # primary result code: the low byte of the extended one
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
