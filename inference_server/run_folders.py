"""Run folders: one server in each, and none that a killed server left for ever."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

LOCK = "server.lock"
_PREFIX = "outboard-"
_SETTLED_S = 60.0
"""A younger folder may be one whose server is about to lock it."""


def temporary() -> Path:
    """A fresh folder among the temporary files. Those that killed servers of this user left there are removed."""
    _remove_left_overs(Path(tempfile.gettempdir()), time.time())
    return Path(tempfile.mkdtemp(prefix=_PREFIX))


def lock(folder: Path) -> int:
    """Holds a folder for this process, as long as the descriptor that it returns is open: two servers in one would take each other's sockets.

    Raises OSError where another one has it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise OSError(f"another server uses the run folder {folder}") from None
    return descriptor


def _remove_left_overs(among: Path, now: float) -> None:
    """`now` in seconds since the epoch."""
    for folder in among.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
            found, locked = folder.lstat(), (folder / LOCK).lstat()
            ours = stat.S_ISDIR(found.st_mode) and stat.S_ISREG(locked.st_mode) and found.st_uid == os.geteuid()
            if ours and now - locked.st_mtime > _SETTLED_S:
                held = lock(folder)
                try:
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(held)
