"""Which requests are traced: Triton's trace settings (trace extension), for the server and for single models.

What is changed is published for every process that traces, the gateway's on this host among them (`idl.trace_control`). Without an
endpoint nothing is traced: the settings tell so, and a change is refused, because nothing would come of it.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from idl.codes import Code, ServingError
from idl.trace_control import MOST_COUNTS, OFF, Published
from inference_server.errors import invalid_input

TIMESTAMPS = "TIMESTAMPS"
MODE = "opentelemetry"
NO_LIMIT, _NO_CELL = -1, 0
_FIELDS = {"trace_level": "level", "trace_rate": "rate", "trace_count": "count"}
_FIXED = "cannot be changed: this server was started without OUTBOARD_SERVER_TRACE_ENDPOINT, so nothing is traced"
_NOT_HERE = {
    "trace_file": "traces go to a collector and not to a file",
    "log_frequency": "traces go to a collector and not to files",
}
Values = dict[str, int | str]


@dataclass(frozen=True, slots=True)
class TraceSetting:
    """`rate`: every so many-th request without a trace begins one, 0: none does; `count`: so many more at most, -1 for no limit."""

    level: str = OFF
    rate: int = 1000
    count: int = NO_LIMIT


class TraceSettings:
    """Those of the server, and of models what differs from them. Thread-safe. `published`: who takes changes; None where nothing is traced."""

    def __init__(self, start: TraceSetting = TraceSetting(), published: Published | None = None) -> None:
        self._published = published
        self._lock = threading.Lock()
        self._start: Values = {"level": start.level, "rate": start.rate, "count": start.count}
        self._owners: dict[str, Values] = {"": {}}
        """By model, "" for the server's: what was set. `count` is the number of the cell that has it."""

    @property
    def available(self) -> bool:
        """Whether they can be changed."""
        return self._published is not None

    def change(self, model: str, settings: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Changes what is given, all of it or nothing, and tells what counts now. An empty value: what stands above counts again.

        Raises invalid_input; unsupported for a setting, or a value, that this server has not; insufficient_capacity, unavailable where a
        change could not be published.
        """
        given = {name: self._read(name, tuple(values)) for name, values in settings.items()}
        read = {_FIELDS[name]: value for name, value in given.items() if name in _FIELDS}
        with self._lock:
            if self._published is None:
                self._check_fixed(read)
            elif read:
                self._change(self._published, model, read)
            return self._told(model)

    def _check_fixed(self, read: Mapping[str, int | str | None]) -> None:
        for name, field in _FIELDS.items():
            if read.get(field) not in (None, self._start[field]):
                raise ServingError(Code.UNSUPPORTED, f"{name} {_FIXED}")

    def _change(self, published: Published, model: str, read: Mapping[str, int | str | None]) -> None:
        owners = {owner: dict(values) for owner, values in self._owners.items()}
        own = owners.setdefault(model, {})
        counts: dict[int, int] = {}
        for field, value in read.items():
            if value is None:
                own.pop(field, None)
            elif field == "count" and value == NO_LIMIT:
                own[field] = _NO_CELL
            elif field == "count":
                own[field] = cell = own.get(field) or _free(owners)
                counts[int(cell)] = int(value)
            else:
                own[field] = value
        if model and not own:
            del owners[model]
        try:
            published.publish(owners, counts)
        except TimeoutError as error:
            raise ServingError(Code.UNAVAILABLE, f"the trace settings were not changed: {error}", retry_after_ms=1000) from error
        except OSError as error:
            raise ServingError(Code.INSUFFICIENT_CAPACITY, f"the trace settings were not changed: {error.strerror}") from error
        self._owners = owners

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
        least = 0 if name == "trace_rate" else NO_LIMIT
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

    def _told(self, model: str) -> dict[str, list[str]]:
        """The caller holds the lock."""
        changed = self._owners[""] | self._owners.get(model, {})
        now = self._start | changed
        if self._published is not None and (cell := changed.get("count")) is not None:
            now["count"] = self._published.left(int(cell)) if cell else NO_LIMIT
        return {name: [str(now[field])] for name, field in _FIELDS.items()} | {"trace_mode": [MODE]}


def _free(owners: Mapping[str, Values]) -> int:
    """A cell that counts for nobody. Raises insufficient_capacity."""
    used = {values.get("count") for values in owners.values()}
    for cell in range(1, MOST_COUNTS + 1):
        if cell not in used:
            return cell
    raise ServingError(Code.INSUFFICIENT_CAPACITY, f"{MOST_COUNTS} models have a trace_count of their own already")


def started_with(is_traced: bool, share: float) -> TraceSetting:
    """What `share` of the requests, 0 to 1, that begin a trace comes to."""
    return TraceSetting(TIMESTAMPS, round(1 / share) if share > 0 else 0) if is_traced else TraceSetting()
