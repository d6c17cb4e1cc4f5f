"""Writes of several threads in one transaction: making a transaction durable costs a millisecond or more, whatever it holds.

Whoever finds nobody writing writes for all that wait; who comes meanwhile waits, and is written with the next ones.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlite_utils import Database as SqliteDatabase

from gateway.storage.database import Database

T = TypeVar("T")
_MOST = 256
"""Of one transaction: the others wait no longer than that takes."""


class _Entry(Generic[T]):
    __slots__ = ("error", "is_done", "result", "write")

    def __init__(self, write: Callable[[SqliteDatabase], T]) -> None:
        self.write = write
        self.is_done = False
        self.result: T | None = None
        self.error: BaseException | None = None


class Grouped:
    """Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: list[_Entry[object]] = []

    def run(self, write: Callable[[SqliteDatabase], T]) -> T:
        """What `write` returns, once it is durable. What it raises undoes it alone; where the transaction fails, all of it is undone and
        everybody's call raises that."""
        entry = _Entry(write)
        with self._lock:
            self._waiting.append(entry)  # type: ignore[arg-type]
        while not entry.is_done:
            with self._writing:
                if not entry.is_done:
                    self._lead()
        if entry.error is not None:
            raise entry.error
        return entry.result  # type: ignore[return-value]

    def _lead(self) -> None:
        with self._lock:
            entries, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        try:
            with self._database.write() as db:
                for entry in entries:
                    self._write(db, entry)
        except BaseException as error:
            for entry in entries:
                entry.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for entry in entries:
                entry.is_done = True

    @staticmethod
    def _write(db: SqliteDatabase, entry: _Entry[object]) -> None:
        db.execute("savepoint one")
        try:
            entry.result = entry.write(db)
        except Exception as error:
            if not db.conn.in_transaction:  # SQLite has given up the whole
                raise
            entry.error = error
            db.execute("rollback to one")
        db.execute("release one")
