"""Which requests are traced: Triton's trace settings (trace extension), for the server and for single models.

Whoever makes traces by these settings asks `take` once for each request, and sets `available`. Where nobody does they tell what the server was
started with, and a change is refused, because nothing would come of it.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from idl.codes import Code, ServingError
from inference_server.errors import invalid_input

OFF, TIMESTAMPS = "OFF", "TIMESTAMPS"
MODE = "opentelemetry"
NO_LIMIT = -1
_FIELDS = {"trace_level": "level", "trace_rate": "rate", "trace_count": "count"}
_FIXED = (
    "cannot be changed while the server runs: OUTBOARD_SERVER_TRACE_ENDPOINT and OUTBOARD_SERVER_TRACE_RATE say which requests are traced"
)
_NOT_HERE = {
    "trace_file": "traces go to a collector and not to a file",
    "log_frequency": "traces go to a collector and not to files",
}


@dataclass(frozen=True, slots=True)
class TraceSetting:
    """`rate`: every so many-th request is traced; `count`: so many more at most, -1 for no limit."""

    level: str = OFF
    rate: int = 1000
    count: int = NO_LIMIT


class TraceSettings:
    """Those of the server, and of models what differs from them. Thread-safe."""

    def __init__(self, start: TraceSetting = TraceSetting(), *, available: bool = False) -> None:
        self.available = available
        self._lock = threading.Lock()
        self._start = start
        self._server: dict[str, int | str] = {}
        self._models: dict[str, dict[str, int | str]] = {}
        self._left: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def of(self, model: str = "") -> TraceSetting:
        """What counts for a model, or for the server."""
        with self._lock:
            return self._of(model)

    def _of(self, model: str) -> TraceSetting:
        return replace(self._start, **(self._server | self._models.get(model, {})))  # type: ignore[arg-type]

    def take(self, model: str) -> bool:
        """Whether this request is to be traced; counts it."""
        with self._lock:
            setting = self._of(model)
            if setting.level == OFF:
                return False
            turn = self._seen[model] = self._seen.get(model, -1) + 1
            if turn % setting.rate:
                return False
            if setting.count == NO_LIMIT:
                return True
            whose = model if "count" in self._models.get(model, {}) else ""
            left = self._left.get(whose, setting.count)
            self._left[whose] = max(0, left - 1)
            return left > 0

    def change(self, model: str, settings: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Changes what is given, all of it or nothing, and tells what counts now. An empty value: what stands above counts again.

        Raises invalid_input, and unsupported for a setting, or a value, that this server has not.
        """
        read = {name: self._read(name, tuple(values)) for name, values in settings.items()}
        for name, value in read.items():
            if not self.available and name in _FIELDS and value not in (None, getattr(self._start, _FIELDS[name])):
                raise ServingError(Code.UNSUPPORTED, f"{name} {_FIXED}")
        with self._lock:
            kept = self._models.setdefault(model, {}) if model else self._server
            for name, value in read.items():
                field = _FIELDS.get(name)
                if field is None:
                    continue
                if value is None:
                    kept.pop(field, None)
                else:
                    kept[field] = value
                if field == "count":
                    self._left.pop(model, None)
                self._seen.pop(model, None)
            if model and not kept:
                del self._models[model]
            return _told(self._of(model))

    def _read(self, name: str, values: Sequence[str]) -> int | str | None:
        if name == "trace_level":
            return self._level(values)
        if name == "trace_mode":
            if values and tuple(values) != (MODE,):
                raise ServingError(Code.UNSUPPORTED, f"trace_mode {values[0][:40]!r} is not supported: it is {MODE!r}")
            return None
        if name in _NOT_HERE:
            raise ServingError(Code.UNSUPPORTED, f"the trace setting {name!r} is not supported: {_NOT_HERE[name]}")
        if name not in _FIELDS:
            raise invalid_input(f"there is no trace setting {name[:40]!r}; known are {', '.join((*_FIELDS, 'trace_mode'))}")
        if not values:
            return None
        least = 1 if name == "trace_rate" else NO_LIMIT
        text = values[0]
        if len(values) != 1 or not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 10 or int(text) < least:
            raise invalid_input(f"{name} = {', '.join(values)[:40]!r} is not a whole number from {least} on")
        return int(text)

    def _level(self, values: Sequence[str]) -> str | None:
        if not values:
            return None
        for level in values:
            if level not in (OFF, TIMESTAMPS):
                known = level in ("TENSORS", "MIN", "MAX")
                raise ServingError(
                    Code.UNSUPPORTED if known else Code.INVALID_INPUT, f"trace_level {level[:40]!r} is neither OFF nor TIMESTAMPS"
                )
        if set(values) == {OFF}:
            return OFF
        return TIMESTAMPS


def started_with(share: float) -> TraceSetting:
    """What `share` of the requests, 0 to 1, that begin a trace comes to."""
    return TraceSetting(TIMESTAMPS, max(1, round(1 / share))) if share > 0 else TraceSetting()


def _told(setting: TraceSetting) -> dict[str, list[str]]:
    return {
        "trace_level": [setting.level],
        "trace_rate": [str(setting.rate)],
        "trace_count": [str(setting.count)],
        "trace_mode": [MODE],
    }
