"""Logs as one JSON object a line on standard error: time (UTC), level, event, and the event's own fields."""

import contextlib
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

_LEVEL_FILE = "log-level"
"""In the run folder: the level, once it has been changed while the server runs."""


class JsonLines(logging.Formatter):
    """`extra={"fields": {...}}` on a record becomes keys of the line. An exception's traceback stays in the log, never in an answer."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str) -> None:
    """Sends this process's log to standard error from `level` (debug, info, warning, error) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("outboard").setLevel(level.upper())


def own_output() -> IO[str]:
    """Standard output, for lines that nobody else may write: no child of this process has it, and what is printed from now on, by a library or
    a model in this process, goes to standard error.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)  # not to be inherited
    except OSError:  # there is none
        kept = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        os.dup2(2, 1)
    return os.fdopen(kept, "w")


def publish(folder: Path, level: str) -> None:
    """Tells the server's other processes, which follow `folder`, of another level. What cannot be written does not reach them."""
    made = folder / f"{_LEVEL_FILE}.new"
    with contextlib.suppress(OSError):
        made.write_text(level)
        made.replace(folder / _LEVEL_FILE)


def forget(folder: Path) -> None:
    """What an earlier server has published there."""
    with contextlib.suppress(OSError):
        (folder / _LEVEL_FILE).unlink(missing_ok=True)


class Follower:
    """Sets this process's level to what is published in `folder`, once it is told to `look`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / _LEVEL_FILE
        self._stamp: object = None

    def look(self) -> None:
        """Costs one system call where nothing has changed."""
        with contextlib.suppress(OSError, ValueError):
            found = self._file.stat()
            if (stamp := (found.st_mtime_ns, found.st_ino)) != self._stamp:
                logging.getLogger("outboard").setLevel(self._file.read_text().upper())
                self._stamp = stamp
