"""Which tasks a worker is running at this moment, in shared memory: a kill does not take that away, and its successor knows what had begun.

A worker claims more than it has threads for, so that none waits for a transaction. What it had not begun when it was killed has had no run.
"""

import logging
import os
from collections.abc import Collection
from pathlib import Path

from idl.shared_cells import map_cells

_log = logging.getLogger(__name__)


def mark_of(task_id: str) -> int:
    """By the random end of the id; never 0."""
    return int(task_id[-15:], 16) or 1


class Begun:
    """The file at `path`, with a cell for each of `places` runs. Each place belongs to one thread at a time, the file to one process."""

    def __init__(self, path: Path, places: int) -> None:
        self.left: Collection[int] | None = None
        """What a predecessor was running when it died; None: not known."""
        try:
            self._cells = self._opened(path, places)
        except OSError as error:  # a full disk, say: then every run counts
            _log.warning("begun_unusable", extra={"reason": error.strerror})
            self._cells = memoryview(bytearray(8 * places)).cast("q")

    def _opened(self, path: Path, places: int) -> memoryview:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(descriptor).st_size // 8
            if before < places:  # written, and not only made longer: what is mapped must be on the disk
                os.pwrite(descriptor, bytes(8 * (places - before)), 8 * before)
            cells = map_cells(descriptor, max(before, places), writable=True)
        finally:
            os.close(descriptor)
        if before:
            self.left = {cell for cell in cells if cell}
        return cells

    def forget(self) -> None:
        """The predecessor's; once that is noted."""
        for place in range(len(self._cells)):
            self._cells[place] = 0

    def begin(self, place: int, task_id: str) -> None:
        self._cells[place] = mark_of(task_id)

    def end(self, place: int) -> None:
        self._cells[place] = 0
