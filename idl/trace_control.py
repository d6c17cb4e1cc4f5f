"""Which requests are traced, as it was changed while a server runs: what that publishes in its run folder, and whoever traces follows.

    <folder>/traces/cells          int64 each: a number that changes with every change, then counts: how many more traces there may be
    <folder>/traces/settings.json  {"": {"level": ..., "rate": ..., "count": ...}, model: {...}}, of the server and of models, each with
                                   what differs from what stands above; "count" is the number of the cell that has it

A count goes down under a lock on the first file, so that all processes together never trace more. Who may only read takes none.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from idl.shared_cells import map_cells

FOLDER, CELLS, SETTINGS = "traces", "cells", "settings.json"
OFF = "OFF"
LOOK_S = 0.1
"""How often it is asked whether the files are those of another server by now. A change of the same server is seen at once."""
MOST_COUNTS = 1023
_TRIES, _PATIENCE_S, _PAUSE_S = 64, 1.0, 0.001
_GENERATION = 0
_UNREADABLE = (OSError, ValueError, AttributeError)
Said = Mapping[str, Mapping[str, Any]]


class _Shared:
    """The cells, and the descriptor that locks them."""

    def __init__(self, descriptor: int, *, writable: bool) -> None:
        """Takes the descriptor over. Raises OSError."""
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._finalizer.atexit = False
        self.descriptor, self.writable = descriptor, writable
        self.cells = map_cells(descriptor, 1 + MOST_COUNTS, writable=writable)
        self._thread_lock = threading.Lock()

    def close(self) -> None:
        with self._thread_lock:
            self._finalizer()

    @contextlib.contextmanager
    def locked(self, again: Callable[[int], bool]) -> Iterator[bool]:
        """Whether the lock was had; `again` is asked after each try, with its number, whether there is to be another."""
        with self._thread_lock:
            held = self._lock(again)
            try:
                yield held
            finally:
                if held:
                    fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _lock(self, again: Callable[[int], bool]) -> bool:
        for number in itertools.count(1):
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if not again(number):
                    break
        return False


def _soon(number: int) -> bool:
    """For who must not wait: an event loop. Whoever has the lock needs it for microseconds, unless it has been stopped."""
    os.sched_yield()
    return number < _TRIES


class Rule:
    """What was changed for one model; a model without a rule of its own has the server's. Thread-safe."""

    __slots__ = ("_cell", "_generation", "_shared", "_turns", "off", "rate")

    def __init__(self, said: Mapping[str, Any], generation: int, shared: _Shared, turns: Iterator[int]) -> None:
        """`turns` counts its requests."""
        self.off = said.get("level") == OFF
        self.rate: int | None = said.get("rate")
        """Every so many-th request begins a trace, 0: none does; None: as its process was started."""
        self._cell: int = said.get("count", 0)
        self._generation, self._shared, self._turns = generation, shared, turns

    @property
    def is_counted(self) -> bool:
        return self._cell > 0

    def is_turn(self) -> bool:
        """Whether the next request is one of the `rate`-th ones, the first among them."""
        return bool(self.rate) and next(self._turns) % (self.rate or 1) == 0

    def take(self) -> bool | None:
        """Takes one of the traces that are left, where they are counted; None where the settings have changed meanwhile."""
        cell, shared = self._cell, self._shared
        if not cell:
            return True
        cells = shared.cells
        if cells[_GENERATION] != self._generation:
            return None
        if cells[cell] <= 0 or not shared.writable:
            return False
        with shared.locked(_soon) as held:
            if not held:
                return False
            if cells[_GENERATION] != self._generation:
                return None
            if cells[cell] <= 0:
                return False
            cells[cell] -= 1
            return True


class _View:
    """What one reading has found."""

    def __init__(self, shared: _Shared, generation: int, said: Said, turns: dict[tuple[str, int], Iterator[int]]) -> None:
        """`turns`: of the reading before, by owner and rate: an unchanged rate goes on counting."""
        self.shared, self.generation = shared, generation
        self.turns: dict[tuple[str, int], Iterator[int]] = {}
        whole = said.get("", {})
        self.server = self._rule("", whole, {}, turns)
        self.models = {model: self._rule(model, own, whole, turns) for model, own in said.items() if model}

    def _rule(self, model: str, own: Mapping[str, Any], whole: Mapping[str, Any], turns: dict[tuple[str, int], Iterator[int]]) -> Rule:
        both = {**whole, **own}
        key = (model if "rate" in own else "", both.get("rate", 0))
        counting = self.turns.setdefault(key, turns.get(key) or itertools.count())
        return Rule(both, self.generation, self.shared, counting)


class Followed:
    """What the server publishes in `folder`, which may come and go. Thread-safe; asking costs a look at shared memory unless something
    has changed. Satisfies `traces.Control`."""

    def __init__(self, folder: Path | str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = Path(folder) / FOLDER
        self._path = self._folder / CELLS
        self._clock = clock
        self._lock = threading.Lock()
        self._look_at = float("-inf")
        self._view: _View | None = None

    def rule(self, model: str) -> Rule | None:
        """What was changed for a model, "" for requests that are for none; None where this server takes no changes."""
        if (now := self._clock()) >= self._look_at:
            self._look(now)
        view = self._view
        if view is None:
            return None
        if view.shared.cells[_GENERATION] != view.generation:
            view = self._read_again()
            if view is None:
                return None
        return view.models.get(model, view.server)

    def _look(self, now: float) -> None:
        with self._lock:
            if now < self._look_at:
                return
            view = self._view
            try:
                found = self._path.stat()
                if view is None or not os.path.samestat(found, os.fstat(view.shared.descriptor)):
                    self._view = self._read(_attached(self._path), {})
            except _UNREADABLE:
                self._view = None
            self._look_at = now + LOOK_S  # last: who comes meanwhile waits for what is found

    def _read_again(self) -> _View | None:
        with self._lock:
            view = self._view
            if view is not None and view.shared.cells[_GENERATION] != view.generation:
                try:
                    view = self._view = self._read(view.shared, view.turns)
                except _UNREADABLE:  # removed: its server ends
                    view.generation = view.shared.cells[_GENERATION]
            return view

    def _read(self, shared: _Shared, turns: dict[tuple[str, int], Iterator[int]]) -> _View:
        """Raises OSError, ValueError."""
        generation = shared.cells[_GENERATION]  # first: what is read after it is as new, or newer
        said = json.loads((self._folder / SETTINGS).read_bytes()) if generation else {}
        return _View(shared, generation, {model: _checked(own) for model, own in said.items()}, turns)


def _checked(own: Any) -> dict[str, Any]:
    """What stands in the file for one model. Raises ValueError."""
    rate, cell = own.get("rate", 0), own.get("count", 0)
    if type(rate) is not int or rate < 0 or type(cell) is not int or not 0 <= cell <= MOST_COUNTS:
        raise ValueError("not settings of traces")
    return {name: own[name] for name in ("level", "rate", "count") if name in own}


def _attached(path: Path) -> _Shared:
    """Raises OSError."""
    try:
        return _Shared(os.open(path, os.O_RDWR | os.O_CLOEXEC), writable=True)
    except PermissionError:
        return _Shared(os.open(path, os.O_RDONLY | os.O_CLOEXEC), writable=False)


def forget(folder: Path) -> None:
    """What an earlier server has published there."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


class Published:
    """What one server says. One owner, who does one thing at a time; `close` is idempotent."""

    def __init__(self, folder: Path) -> None:
        """Nothing has been changed yet. Raises OSError."""
        self._top = folder
        self._folder = folder / FOLDER
        forget(folder)
        self._folder.mkdir(mode=0o750)
        part = self._folder / f".{CELLS}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o660)  # who may ask models may count traces of them, as with a model's socket
            os.ftruncate(descriptor, 8 * (1 + MOST_COUNTS))
        except OSError:
            os.close(descriptor)
            raise
        self._shared = _Shared(descriptor, writable=True)
        part.replace(self._folder / CELLS)

    def publish(self, said: Said, counts: Mapping[int, int]) -> None:
        """All of what differs from the start, and new values of cells: at once for everybody. Raises OSError, TimeoutError among them
        where a process that was stopped has the lock; then nothing has changed."""
        give_up = time.monotonic() + _PATIENCE_S
        part = self._folder / f".{SETTINGS}.part"
        part.write_text(json.dumps(said))
        part.chmod(0o640)
        with self._shared.locked(lambda _: time.sleep(_PAUSE_S) or time.monotonic() < give_up) as held:  # type: ignore[func-returns-value]
            if not held:
                raise TimeoutError("a process that traces does not answer")
            part.replace(self._folder / SETTINGS)
            for cell, count in counts.items():
                self._shared.cells[cell] = count
            self._shared.cells[_GENERATION] += 1

    def left(self, cell: int) -> int:
        """Traces that there may still be."""
        return self._shared.cells[cell]

    def close(self) -> None:
        forget(self._top)
        self._shared.close()
