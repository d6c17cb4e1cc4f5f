"""What is logged, changed while the server runs: Triton's log settings (logging extension)."""

import logging
import threading
from collections.abc import Callable, Mapping

from idl.codes import Code, ServingError
from inference_server.errors import invalid_input

Value = bool | int | str
LOGGER = "outboard"
_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_FIXED: Mapping[str, Value] = {"log_file": "", "log_format": "json"}
"""Those that are as they are: lines of JSON on standard error."""


class _Switches(logging.Filter):
    """Lets no record of ours through whose level is switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.off: frozenset[int] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno not in self.off or not record.name.startswith(LOGGER)


class LogSettings:
    """Of this process. Thread-safe. Starts from the logger's level; `changed` is called with the level's name after each change."""

    def __init__(self, changed: Callable[[str], None] = lambda level: None) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._switches = _Switches()
        for handler in logging.root.handlers:
            handler.addFilter(self._switches)
        level = logging.getLogger(LOGGER).getEffectiveLevel()
        self._now: dict[str, Value] = {name: level <= at for name, at in _LEVELS.items()}
        self._now["log_verbose_level"] = int(level <= logging.DEBUG)

    def change(self, settings: Mapping[str, Value | None]) -> dict[str, Value]:
        """Changes what is given, all of it or nothing, and tells what counts now. `log_verbose_level` from 1 on: every request is logged.

        Raises invalid_input, and unsupported for what cannot be changed.
        """
        for name, value in settings.items():
            _check(name, value)
        with self._lock:
            self._now |= {name: value for name, value in settings.items() if name not in _FIXED and value is not None}
            if settings:
                self._apply()
            return {**_FIXED, **self._now}

    def _apply(self) -> None:
        self._switches.off = frozenset(at for name, at in _LEVELS.items() if not self._now[name])
        on = [at for name, at in _LEVELS.items() if self._now[name]]
        level = logging.DEBUG if self._now["log_verbose_level"] else min(on, default=logging.CRITICAL)
        logging.getLogger(LOGGER).setLevel(level)
        self._changed(logging.getLevelName(level).lower())


def _check(name: str, value: Value | None) -> None:
    if name in _FIXED:
        if value != _FIXED[name]:
            raise ServingError(Code.UNSUPPORTED, f"the log setting {name!r} cannot be changed: the log is lines of JSON on standard error")
    elif name in _LEVELS:
        if not isinstance(value, bool):
            raise invalid_input(f"the log setting {name!r} is true or false")
    elif name == "log_verbose_level":
        if type(value) is not int or not 0 <= value < 2**32:
            raise invalid_input("the log setting 'log_verbose_level' is a whole number from 0 on")
    else:
        known = ", ".join((*_FIXED, *_LEVELS, "log_verbose_level"))
        raise invalid_input(f"there is no log setting {name[:40]!r}; known are {known}")
