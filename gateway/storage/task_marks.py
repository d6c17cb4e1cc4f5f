"""Numbers in shared memory that change when tasks do: who waits for a task looks at its number, and at the database when that has changed."""

import os
import secrets
import threading
from pathlib import Path

from idl.shared_cells import map_cells

_CELLS = 4096


class TaskMarks:
    """The numbers in the file at `path`, shared by the processes of one gateway. Tasks share them: a change may be another one's.
    Thread-safe; nothing is opened before the first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._cells: memoryview | None = None

    def read(self, task_id: str) -> int:
        """Read it before what it stands for. Raises OSError."""
        return int(self._opened()[_place(task_id)])

    def change(self, task_id: str) -> None:
        """To be called when the change is committed. Where the file cannot be had nobody is told, who then finds out later."""
        try:
            self._opened()[_place(task_id)] = secrets.randbits(63)
        except OSError:
            return

    def close(self) -> None:
        self._cells = None

    def _opened(self) -> memoryview:
        cells = self._cells
        if cells is not None:
            return cells
        with self._lock:
            if self._cells is None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.ftruncate(descriptor, 8 * _CELLS)
                    self._cells = map_cells(descriptor, _CELLS, writable=True)
                finally:
                    os.close(descriptor)
            return self._cells


def _place(task_id: str) -> int:
    """By the random end of the id."""
    try:
        return int(task_id[-6:], 16) % _CELLS
    except ValueError:
        return 0
