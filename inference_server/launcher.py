"""Makes the executors of a model version: what each is told, where it may run, and what an earlier load has measured."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from idl.codes import ServingError
from inference_server import errors, host, pipeline_steps
from inference_server.executors import boxes, script_box
from inference_server.executors.boxes import Box
from inference_server.executors.fresh_processes import FreshProcesses, Surroundings
from inference_server.executors.hang_watch import REASON, HangWatch
from inference_server.executors.memory_limit import MemoryLimits
from inference_server.executors.process import LoadRequest, ProcessExecutor, Watcher, Zygote
from inference_server.executors.thread import ThreadExecutor
from inference_server.executors.tuning import Tuning
from inference_server.instance import Executor
from inference_server.metrics import Metrics
from inference_server.model_settings import FILE, SCRIPT, SCRIPT_TIMEOUT_S, ModelSettings, on_gpu, script_memory, unfit_for_script
from inference_server.pipeline_steps import Step
from inference_server.provider_options import not_used
from inference_server.repository_model import RepositoryModel
from inference_server.reservations import Reservation, Reservations
from inference_server.served import ServedVersion
from inference_server.settings import Settings
from inference_server.types import Signature
from inference_server.warmup_samples import warmup_samples

log = logging.getLogger("outboard.server")

_OWN_PROCESS = frozenset({"pmml", "pytorch"})
"""Backends that cannot be in the server: their files are code, or bring a Java machine."""
_MEASURED = "measured"
_MOST_MEASURED = 4096


class Launcher:
    """Thread-safe."""

    def __init__(
        self, settings: Settings, metrics: Metrics, zygote: Zygote, watcher: Watcher, reservations: Reservations, limits: MemoryLimits
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._zygote = zygote
        self._fresh = FreshProcesses(zygote.run_dir, settings.max_message_bytes)
        self._watcher = watcher
        self._reservations = reservations
        self._limits = limits
        self._measured = Measurements(zygote.run_dir / _MEASURED)
        self._hang_watch = HangWatch(settings.hang_grace_s)
        self._living: dict[int, ProcessExecutor] = {}
        self._hung: set[int] = set()
        self._lock = threading.Lock()
        self._holding: dict[str, list[Reservation]] = {}

    def start(
        self,
        model: RepositoryModel,
        number: int,
        instances: int,
        replaces: Collection[Reservation] = (),
        steps: Sequence[Signature] = (),
    ) -> ServedVersion:
        """Loads version `number` in as many instances; returns it ready. Raises ServingError. `replaces`: what the load is to replace;
        `steps`: what a pipeline's models take and give.
        """
        stats, settings = self._metrics.model(model.name, str(number)), model.settings
        taken_over = list(replaces)

        def reserve(count: int) -> list[_Berth]:
            made = self._reservations.reserve(
                model.name, str(number), settings.cpus, settings.memory, instances=count, replaces=tuple(taken_over)
            )
            taken_over.clear()  # instances that are added later replace nothing
            with self._lock:
                self._holding.setdefault(model.name, []).extend(made)
            return [
                _Berth(self, model, number, reservation, self._threads(reservation, max(count, instances)), steps) for reservation in made
            ]

        try:
            return ServedVersion(model, number, reserve, stats, instances, _tied(model, steps))
        except ServingError as error:
            raise errors.of_version(error, model.name, number) from error

    def launch(self, berth: "_Berth") -> Executor:
        """An executor of the berth's model, loaded."""
        model, number = berth.model, berth.number
        path = model.file(number)
        backend = model.backend(number)
        asked: dict[str, Any] = {
            "name": model.name,
            "version": number,
            "backend": backend,
            "path": str(path),
            "threads": model.settings.threads or berth.threads,
            "memory": self.memory(model),
            "providers": model.settings.providers(self._settings.execution_providers),
            "device_id": model.settings.device_id,
            "session": dict(model.settings.onnxruntime),
            "state": {name: dict(said) for name, said in model.settings.state.items()},
            "sequence": dict(model.settings.sequence),
            "parameters": {**model.parameters, **model.settings.parameters},
            "declared": model.declared.to_json() if model.declared is not None else None,
            "warmup": warmup_samples(model.settings.warmup, model.folder),
        }
        key = "" if model.spooled is not None else _identity(path, asked)  # files of a request have no second load
        known = self._measured.find(key)
        asked |= {
            "queue": _queue(model.settings),
            "tuning": known.to_json() if known is not None else None,
            "named": _named(model.settings),
            "host_memory": host.memory()[0],
            "max_streams": model.settings.max_streams,
            "cache": None if model.settings.cache is None else dict(model.settings.cache),
        }
        if model.settings.steps:
            asked |= {**_pipeline(model, berth.steps), "run_dir": str(self._zygote.run_dir), "limit": self._settings.max_message_bytes}
        if backend == SCRIPT:
            asked |= self._script(model)
        box = boxes.of_model(model.name, model.settings, backend, self._settings.sandbox)
        wanted = LoadRequest(model.name, asked, partial(berth.place, threads=box.threads), self._why, self._forget)
        limit = self._settings.max_message_bytes
        if model.settings.executor == "thread":
            if backend in _OWN_PROCESS:
                raise errors.unsupported(f"model {model.name!r}: a {path.suffix} file is loaded in a process of its own: take executor out")
            made: Executor = ThreadExecutor(self._zygote.run_dir, wanted, limit)
        else:
            made = process = ProcessExecutor(self._starter(model, path, backend, asked, box), self._watcher, wanted, limit)
            self._living[process.pid] = process
        made.loaded = replace(made.loaded, sandbox=box.said)
        unused = not_used(asked["providers"], made.loaded.providers) if backend == "onnx" else ()
        if unused:
            told = {"model": model.name, "version": number, "wanted": unused, "used": made.loaded.providers}
            log.warning("execution providers that run nothing of the model", extra={"fields": told})
        if known is None and model.settings.max_batch_size is None:
            self._measured.keep(key, made.loaded.tuning)
        return made

    def _starter(self, model: RepositoryModel, path: Path, backend: str, asked: Mapping[str, Any], box: Box) -> Any:
        """What starts its processes: the zygote, except for what runs an owner's code, or needs libraries of its own. A script's executor does
        neither: the code is in a box beside it.
        """
        if backend not in boxes.OF_CODE:
            return self._zygote
        readable = (path.parent.resolve(), *(Path("/etc").glob("java-*") if backend == "pmml" else ()))
        devices = tuple(Path("/dev").glob("nvidia*")) if backend == "pytorch" and on_gpu(asked["providers"]) else ()
        said = {"version": asked["version"]}
        around = Surroundings(model.settings.python.get("flags", ()), box.boxed, readable, asked["threads"], devices, told=said)
        return self._fresh.starter(around)

    def _script(self, model: RepositoryModel) -> dict[str, Any]:
        """Raises unsupported where there is no box, which is the only place for a script; invalid_model."""
        if why := script_box.unusable():
            raise errors.unsupported(f"model {model.name!r}: scripts only run in a sandbox, and there is none here: {why}")
        if key := unfit_for_script(model.settings):
            raise errors.invalid_model(model.name, f"{FILE}: {key} says nothing to a script")
        said = model.settings.script
        return {
            "script": {
                "timeout_s": said.get("timeout", SCRIPT_TIMEOUT_S),
                "memory": said.get("memory") or script_memory(model.settings.memory),
            },
            "run_dir": str(self._zygote.run_dir),
            "limit": self._settings.max_message_bytes,
            "log_level": logging.getLevelName(log.getEffectiveLevel()).lower(),
        }

    def close(self) -> None:
        """When no executor is left. Idempotent."""
        self._fresh.close()

    def memory(self, model: RepositoryModel) -> int:
        """What one of its processes may have, in bytes, 0 for no limit. A user's model that says nothing has what its trial had."""
        return model.settings.memory or (self._settings.validation_memory_bytes if model.user else 0)

    def place(self, reservation: Reservation, pid: int, memory: int, threads: int) -> None:
        """`threads`: as many as it may have, where somebody has to look; 0: no limit, or one of the kernel's."""
        self._limits.apply(pid, memory, threads)
        self._reservations.place(reservation, pid)

    def leaving(self, reservation: Reservation) -> None:
        self._reservations.retire(reservation)

    def free(self, reservation: Reservation) -> None:
        self._reservations.release(reservation)
        with self._lock:
            held = self._holding.get(reservation.model, [])
            if reservation in held:
                held.remove(reservation)
            if not held:
                self._holding.pop(reservation.model, None)

    def holding(self, name: str) -> tuple[Reservation, ...]:
        """What the instances of a model have now."""
        with self._lock:
            return tuple(self._holding.get(name, ()))

    def end_hung(self, now_ns: int) -> None:
        """Ends the processes whose request ran far past its deadline; to be called every second, with CLOCK_MONOTONIC's time."""
        living = dict(self._living)
        for pid in self._hang_watch.step(now_ns, {pid: executor.board for pid, executor in living.items()}):
            self._hung.add(pid)
            living[pid].kill()

    def _why(self, pid: int) -> str:
        return REASON if pid in self._hung else self._limits.reason(pid)

    def _forget(self, pid: int) -> None:
        self._living.pop(pid, None)
        self._hung.discard(pid)
        self._reservations.unplace(pid)
        self._limits.forget(pid)

    def _threads(self, reservation: Reservation, instances: int) -> int:
        """Of one model run; 0 for as many as there are cores. Several instances without cores of their own share them."""
        if reservation.threads or instances == 1:
            return reservation.threads
        return max(1, len(reservation.cores) // instances)


class _Berth:
    """One instance's place: its reservation, and how its executor is made."""

    def __init__(
        self, launcher: Launcher, model: RepositoryModel, number: int, reservation: Reservation, threads: int, steps: Sequence[Signature]
    ) -> None:
        self.model, self.number, self.threads, self.steps = model, number, threads, steps
        self._launcher = launcher
        self._reservation = reservation

    def start(self) -> Executor:
        return self._launcher.launch(self)

    def place(self, pid: int, threads: int) -> None:
        self._launcher.place(self._reservation, pid, self._launcher.memory(self.model), threads)

    def leaving(self) -> None:
        self._launcher.leaving(self._reservation)

    def free(self) -> None:
        self._launcher.free(self._reservation)


def _pipeline(model: RepositoryModel, signatures: Sequence[Signature]) -> dict[str, Any]:
    return {
        "steps": [step.to_json() for step in model.settings.steps],
        "signatures": [signature.to_json() for signature in signatures],
        "tensors": _tensors(model),
    }


def _tied(model: RepositoryModel, signatures: Sequence[Signature]) -> tuple[Step, ...]:
    def names(signature: Signature) -> tuple[list[str], list[str]]:
        return [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]

    return pipeline_steps.tied(model.settings.steps, [names(signature) for signature in signatures]) if signatures else ()


def _tensors(model: RepositoryModel) -> dict[str, Any]:
    """What is named of a pipeline's inputs and outputs, and where: a Triton configuration names all, `model.toml` those that it says more of."""
    said = model.declared
    if said is not None and said.source != FILE:
        sides = [[tensor.name for tensor in tensors] for tensors in (said.inputs, said.outputs)]
        return {"inputs": sides[0], "outputs": sides[1], "source": said.source}
    return {"inputs": list(model.settings.inputs), "outputs": list(model.settings.outputs), "source": FILE}


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
    said = {name: getattr(settings, name) for name in names} | {"most_rows": settings.max_batch_size}
    return said if settings.batching else said | {"max_batch_size": 1}


def _named(settings: ModelSettings) -> dict[str, Any]:
    """What is said of single inputs and outputs: a name that the model has not is an error, and only its executor knows the names."""
    return {"inputs": {name: said["kind"] for name, said in settings.inputs.items()}, "labels": list(settings.labels)}


def _identity(path: Path, asked: Mapping[str, Any]) -> str:
    """What a measurement holds for: this file on this host, run as `asked`. "" where the file cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return ""
    told = (str(path.resolve()), found.st_size, found.st_mtime_ns, asked, _runtime(), os.cpu_count())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@lru_cache(maxsize=1)
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
