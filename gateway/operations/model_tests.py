"""Trying a model that is not deployed: it is loaded on the model host when somebody asks, and goes when nobody has for a while.

On the host it is `owner.model.test`. What is loaded stands in the database, and whoever uses, loads or unloads a model holds its file lock,
shared or alone: both hold across all processes of the gateway, and a killed one holds nothing. All that are loaded together have a budget
of memory; for a new one the longest unused go first.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gateway import clock
from gateway.models_rpc import Models
from gateway.operations import host_settings, model_files
from gateway.operations.access import Can
from gateway.operations.models import Library
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.model_records import ModelRecord, VersionRecord
from gateway.storage.test_loads import TestLoad
from gateway.types import Principal
from idl.codes import Code, ServingError

_GONE = frozenset({Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.NOT_READY})
"""What a host says of a model that it does not have: it was restarted without its files, or somebody has unloaded it."""
_LOOK_S = 0.02
_LEAST_MEMORY = 64 << 20
Answer = TypeVar("Answer")


class ModelTests:
    """Thread-safe."""

    def __init__(self, storage: Storage, models: Models, library: Library, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._storage = storage
        self._loads = storage.test_loads
        self._models = models
        self._library = library
        self._settings = settings
        self._now = now
        self._folder = settings.run_dir / "tests"

    def run(self, principal: Principal, name: str, number: int | None, deadline: float, ask: Callable[[str, str], Answer]) -> Answer:
        """What `ask` answers, given the host's name and version of the model. `number` None: the newest; `deadline` in seconds of
        `time.monotonic()`.

        Raises model_not_found, version_not_found, forbidden; what loading raises; not_ready where it takes longer than there is time;
        insufficient_capacity where it does not fit the budget; and what `ask` raises.
        """
        found = self._library.find(principal, name, Can.CHANGE)
        version = self._library.version(found, number)
        on_host = f"{found.model.owner}.{found.model.name}.test"
        for _ in range(3):
            with self._locked(on_host, fcntl.LOCK_SH, deadline):
                if self._is_there(on_host, version):
                    try:
                        return ask(on_host, str(version.number))
                    except ServingError as error:
                        if error.code not in _GONE:
                            raise
                    finally:
                        self._loads.used(on_host, self._seconds())
                    self._loads.forget(on_host)
            with self._locked(on_host, fcntl.LOCK_EX, deadline):
                if not self._is_there(on_host, version):  # somebody else may have loaded it meanwhile
                    self._load(found.model, version, on_host, deadline)
        raise ServingError(Code.NOT_READY, f"model {found.model.name!r} does not stay loaded: try again", retry_after_ms=1000)

    def with_script(self, on_host: str, source: bytes, deadline: float, ask: Callable[[], Answer]) -> Answer:
        """What `ask` answers while a script lies on the hosts as version 1 of `on_host`; then it is removed. The rest as `run`."""
        with self._locked(on_host, fcntl.LOCK_EX, deadline):
            load = TestLoad(on_host, 0, 1, _LEAST_MEMORY, False, self._seconds())  # swept, should this process be killed
            self._make_room(load, "script", deadline)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    for name, version, content in (("script.py", 1, source), ("model.toml", 0, host_settings.of_script(1))):
                        path = Path(folder) / name
                        path.write_bytes(content)
                        if version:
                            self._models.remove_model(on_host)
                        self._models.put_file(path, on_host, version, name)
                self._models.load(on_host, {"version": "1"})
                return ask()
            finally:
                with contextlib.suppress(ServingError):
                    self._models.remove_model(on_host)
                    self._loads.forget(on_host)

    def sweep(self) -> bool:
        """Unloads what nobody has tried for a while. True where something was."""
        oldest, unloaded = self._seconds() - self._settings.test_idle_s, False
        for load in self._loads.all():
            if load.used_at <= oldest:
                unloaded |= self._unload(load.name, lambda current: current is None or current.used_at <= oldest)
        return unloaded

    def _is_there(self, on_host: str, version: VersionRecord) -> bool:
        load = self._loads.find(on_host)
        return load is not None and load.ready and load.version_id == version.id

    def _load(self, model: ModelRecord, version: VersionRecord, on_host: str, deadline: float) -> None:
        """Its lock is held alone."""
        measured: Any = version.measured
        memory = max(_LEAST_MEMORY, int(measured["proposed"]["memory"]))
        self._make_room(TestLoad(on_host, version.id, version.number, memory, False, self._seconds()), model.name, deadline)
        try:
            with model_files.placed(self._storage, version) as files:
                # whatever another version, or another model of that name, has left beside the versions
                self._models.remove_model(on_host)
                for file in files:
                    self._models.put_file(file.path, on_host, file.version, file.name)
            self._models.load(on_host, {"version": str(version.number)})
        except BaseException:
            with contextlib.suppress(ServingError):
                self._models.remove_model(on_host)
                self._loads.forget(on_host)  # else a sweep tries again to remove it
            raise
        self._loads.ready(on_host, self._seconds())

    def _make_room(self, load: TestLoad, shown: str, deadline: float) -> None:
        most = self._settings.test_memory_bytes
        if load.memory > most:
            raise ServingError(
                Code.INSUFFICIENT_CAPACITY,
                f"model {shown!r} needs {load.memory} bytes, models that are tried have {most} together: deploy it",
            )
        while not self._loads.begin(load, most):
            others = [other for other in self._loads.all() if other.name != load.name]
            if any(self._unload(other.name, lambda current: True) for other in others):
                continue
            if time.monotonic() > deadline - _LOOK_S:
                raise ServingError(
                    Code.INSUFFICIENT_CAPACITY, f"model {shown!r} does not fit beside those that are tried now", retry_after_ms=2000
                )
            time.sleep(_LOOK_S)

    def _unload(self, on_host: str, due: Callable[[TestLoad | None], bool]) -> bool:
        """False where somebody uses it, or it is not `due` any more."""
        with self._try_lock(on_host) as held:
            if not held or not due(self._loads.find(on_host)):
                return False
            self._models.remove_model(on_host)
            self._loads.forget(on_host)
            return True

    @contextlib.contextmanager
    def _locked(self, on_host: str, kind: int, deadline: float) -> Iterator[None]:
        """Raises not_ready where the lock is not free in time: it is being loaded."""
        with self._lock_file(on_host) as descriptor:
            while not _lock(descriptor, kind):
                if time.monotonic() > deadline - _LOOK_S:
                    raise ServingError(Code.NOT_READY, "the model is being loaded: try again in a moment", retry_after_ms=2000)
                time.sleep(_LOOK_S)
            yield

    @contextlib.contextmanager
    def _try_lock(self, on_host: str) -> Iterator[bool]:
        with self._lock_file(on_host) as descriptor:
            yield _lock(descriptor, fcntl.LOCK_EX)

    @contextlib.contextmanager
    def _lock_file(self, on_host: str) -> Iterator[int]:
        """The file stays: removed, it could be locked twice."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path: Path = self._folder / on_host.lower()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _seconds(self) -> float:
        return self._now().timestamp()


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
