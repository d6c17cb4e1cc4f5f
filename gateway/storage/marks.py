"""A number in shared memory that changes whenever accounts or sessions do: who remembers them sees at a glance that it must ask again."""

import logging
import os
import secrets
import threading
from pathlib import Path

from idl.shared_cells import map_cells

_log = logging.getLogger(__name__)
_BYTES = 8


class Mark:
    """The number in the file at `path`, which the processes of one gateway share. Thread-safe; nothing is opened before the first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._cell: memoryview | None = None
        self._warned = False

    def read(self) -> int | None:
        """None where it cannot be known: nothing may then be remembered. Read it before what it stands for."""
        cell = self._cell or self._opened()
        return cell[0] if cell is not None else None

    def change(self) -> None:
        """To be called when the change is committed, and before anybody is told so.

        A fresh random number and no counter: with two writers at once a counter could come back to a value that it had before.
        """
        cell = self._cell or self._opened()
        if cell is not None:
            cell[0] = secrets.randbits(63)

    def put(self, value: int) -> None:
        """A number of the caller's own, for those who `read` it; 63 bits."""
        cell = self._cell or self._opened()
        if cell is not None:
            cell[0] = value

    def close(self) -> None:
        self._cell = None

    def _opened(self) -> memoryview | None:
        with self._lock:
            if self._cell is None:
                try:
                    self._cell = _mapped(self._path)
                except OSError as error:
                    if not self._warned:
                        _log.warning("mark_unusable", extra={"reason": error.strerror})
                    self._warned = True
            return self._cell


def _mapped(path: Path) -> memoryview:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, _BYTES)
        return map_cells(descriptor, 1, writable=True)
    finally:
        os.close(descriptor)
