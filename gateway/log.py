"""The log: one JSON object a line, on standard error.

A log call names an event and gives its facts as `extra`: `log.info("model_host_lost", extra={"address": ...})`. Secrets, passwords,
tokens and query strings are never among them.
"""

import json
import logging
import os
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """time, level, event, then the facts; an exception as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, descriptor: int = 2) -> None:
    """Sends this process's log to a file descriptor, standard error unless another is given, from `level` on."""
    handler = logging.StreamHandler(os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
