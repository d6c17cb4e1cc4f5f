"""Makes the executors of a model version: what each is told, where it may run, and what an earlier load has measured."""

import hashlib
import json
import logging
import os
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

from inference_server.executors.process import LoadRequest, ProcessExecutor, Watcher, Zygote
from inference_server.executors.thread import ThreadExecutor
from inference_server.executors.tuning import Tuning
from inference_server.instance import Executor, Start
from inference_server.metrics import Metrics
from inference_server.model_settings import ModelSettings
from inference_server.repository import RepositoryModel
from inference_server.served import ServedVersion
from inference_server.settings import Settings

log = logging.getLogger("outboard.server")

_MEASURED = "measured"
_MOST_MEASURED = 4096


class Launcher:
    """Thread-safe."""

    def __init__(self, settings: Settings, metrics: Metrics, zygote: Zygote, watcher: Watcher) -> None:
        self._settings = settings
        self._metrics = metrics
        self._zygote = zygote
        self._watcher = watcher
        self._measured = Measurements(zygote.run_dir / _MEASURED)

    def start(self, model: RepositoryModel, number: int, instances: int) -> ServedVersion:
        """Loads version `number` in as many instances; returns it ready. Raises ServingError."""
        stats = self._metrics.model(model.name, str(number))
        threads = self._threads(model.settings, instances)

        def start(instance: int) -> Start:
            return lambda: self._executor(model, number, threads)

        return ServedVersion(model.name, number, model.settings, start, stats, instances)

    def _executor(self, model: RepositoryModel, number: int, threads: int) -> Executor:
        path = model.file(number)
        key = _identity(path, threads, self._settings.execution_providers)
        known = self._measured.find(key)
        asked = {
            "name": model.name,
            "path": str(path),
            "threads": threads,
            "providers": self._settings.execution_providers,
            "queue": _queue(model.settings),
            "tuning": known.to_json() if known is not None else None,
        }
        wanted = LoadRequest(model.name, asked)
        limit = self._settings.max_message_bytes
        if model.settings.executor == "thread":
            made: Executor = ThreadExecutor(self._zygote.run_dir, wanted, limit)
        else:
            made = ProcessExecutor(self._zygote, self._watcher, wanted, limit)
        if known is None and model.settings.max_batch_size is None:
            self._measured.keep(key, made.loaded.tuning)
        return made

    def _threads(self, settings: ModelSettings, instances: int) -> int:
        """Of one model run; 0 for as many as there are cores. Several instances share the cores."""
        if settings.cpus:
            return max(1, round(settings.cpus))
        if self._settings.model_threads or instances == 1:
            return self._settings.model_threads
        return max(1, len(os.sched_getaffinity(0)) // instances)


def _queue(settings: ModelSettings) -> dict[str, Any]:
    names = (
        "max_batch_size",
        "preferred_batch_sizes",
        "max_queue_delay_us",
        "max_queue_size",
        "priority_levels",
        "default_priority",
        "default_timeout_us",
    )
    said = {name: getattr(settings, name, None) for name in names}
    return said if getattr(settings, "batching", True) else said | {"max_batch_size": 1}


def _identity(path: Path, threads: int, providers: tuple[str, ...]) -> str:
    """What a measurement holds for: this file on this host, run this way. "" where the file cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return ""
    told = (str(path.resolve()), found.st_size, found.st_mtime_ns, threads, providers, _runtime(), os.cpu_count())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _runtime() -> str:
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:  # the GPU's package has another name
        return metadata.version("onnxruntime-gpu")


class Measurements:
    """What loads have measured, by the identity of what they loaded: in memory, and in a folder that outlives the server. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, Tuning] = {}

    def find(self, key: str) -> Tuning | None:
        with self._lock:
            known = self._known.get(key)
        if known is not None or not key:
            return known
        try:
            return self._remember(key, Tuning.from_json(json.loads((self._folder / f"{key}.json").read_bytes())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, key: str, tuning: Tuning) -> None:
        if not key:
            return
        self._remember(key, tuning)
        part = self._folder / f".{key}.{os.getpid()}-{threading.get_ident()}.part"
        try:
            self._folder.mkdir(exist_ok=True)
            part.write_text(json.dumps(tuning.to_json()))
            part.replace(self._folder / f"{key}.json")
        except OSError:
            part.unlink(missing_ok=True)  # it is measured again at the next start

    def _remember(self, key: str, tuning: Tuning) -> Tuning:
        with self._lock:
            if len(self._known) >= _MOST_MEASURED:
                self._known.clear()
            self._known[key] = tuning
        return tuning
