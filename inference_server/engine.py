"""The owner of loaded models: the verbs of the protocol and of control, behind one lock.

What serves is an immutable table, replaced whole: a request reads one pointer, a reload swaps it, and the version that is no longer in
it drains beside. Loads of one model run one after the other; loads of different models side by side.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from idl.codes import ServingError
from idl.lane_calls import Answered
from idl.lane_routes import response, split
from idl.messages import (
    Capacity,
    HostModel,
    InferRequest,
    InferResponse,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
)
from inference_server import errors, host
from inference_server.metrics import Gauges, Metrics
from inference_server.model_config import model_config
from inference_server.repository import Repository, RepositoryModel
from inference_server.reservations import Reservation, Reservations
from inference_server.routing import RoutePublisher
from inference_server.served import Closing, ServedVersion
from inference_server.types import FileHeader, StoredFile

log = logging.getLogger("outboard.server")

SERVER_NAME = "outboard"
EXTENSIONS = ("model_repository", "model_configuration", "statistics", "binary_tensor_data")
IDLE_LANE_S = 30.0


class Starter(Protocol):
    """What loads versions. `start` returns one that is ready, or raises ServingError; `replaces`: reservations whose place it takes."""

    def start(self, model: RepositoryModel, number: int, instances: int, replaces: Collection[Reservation]) -> ServedVersion: ...

    def holding(self, name: str) -> Collection[Reservation]: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What serves of one model. `default`: (version, weight) of the requests that name none; `labels`: other names of versions."""

    versions: Mapping[int, ServedVersion]
    default: tuple[tuple[int, int], ...]
    labels: Mapping[str, int] = field(default_factory=dict)

    def choose(self, version: str) -> ServedVersion | None:
        """Of a number, a label, or "" for the default."""
        if not version:
            if len(self.default) == 1:
                return self.versions.get(self.default[0][0])
            version = split([(str(number), weight) for number, weight in self.default])
        if version in self.labels:
            return self.versions.get(self.labels[version])
        return self.versions.get(int(version)) if version.isascii() and version.isdigit() and len(version) < 19 else None


class Engine:
    """Satisfies `types.Inference` and `types.Operations`. Thread-safe; `close` is idempotent.

    Sizes are bytes, times seconds.
    """

    def __init__(
        self,
        repository: Repository,
        starter: Starter,
        metrics: Metrics,
        routes: RoutePublisher,
        reservations: Reservations,
        *,
        version: str,
        drain_timeout_s: float,
    ) -> None:
        self._repository = repository
        self._starter = starter
        self._reservations = reservations
        self._metrics = metrics
        self._routes = routes
        self._version = version
        self._drain_timeout_s = drain_timeout_s
        self._lock = threading.Lock()
        self._served: Mapping[str, ServedModel] = {}
        self._loading_locks: dict[str, threading.Lock] = {}
        self._loading: set[tuple[str, int]] = set()
        self._leaving: set[ServedVersion] = set()
        self._publishing = threading.Lock()
        self._instances: dict[str, int] = {}
        """Model -> instances, where an operator has changed what its settings say."""
        self._failures: dict[str, dict[int, str]] = {}
        """Model -> version -> why its last load failed; version 0 where it failed before a version was chosen."""
        self._wanted: frozenset[str] = frozenset()
        """Models that this server should serve: those of the repository at its start, and what was loaded since, less what was unloaded."""
        self._started = False
        self._draining = False
        metrics.gauges = self._gauges

    # health ----------------------------------------------------------------------------------------------------------------------

    def server_live(self) -> bool:
        return True

    def server_ready(self) -> bool:
        """Everything that should be loaded is ready, and requests are taken."""
        served = self._served
        all_ready = all(version.ready for model in served.values() for version in model.versions.values())
        return self._started and not self._draining and all_ready and all(name in served for name in self._wanted)

    def model_ready(self, name: str, version: str) -> bool:
        try:
            return not self._draining and self._route(name, version).ready
        except ServingError:
            return False

    # metadata --------------------------------------------------------------------------------------------------------------------

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata(SERVER_NAME, self._version, EXTENSIONS)

    def model_metadata(self, name: str, version: str) -> ModelMetadata:
        served = self._served  # one table for both: an unload may come between
        signature = self._route(name, version).signature
        versions = tuple(str(number) for number in sorted(served[name].versions)) if name in served else ()
        return ModelMetadata(name, versions, signature.platform, signature.inputs, signature.outputs)

    # inference -------------------------------------------------------------------------------------------------------------------

    def model_infer(self, request: InferRequest) -> InferResponse:
        """Blocks until the answer. Raises ServingError; the request's id stands in the error and in the log."""
        begun = time.monotonic_ns()
        served: ServedVersion | None = None
        try:
            if self._draining:
                raise errors.not_ready("the server is draining")
            if request.deadline is not None and time.monotonic() > request.deadline:
                raise errors.deadline_exceeded("the deadline had passed when the request arrived")
            while True:
                served = self._route(request.model_name, request.model_version)
                try:
                    answer = served.call(request)
                    break
                except Closing:
                    continue  # swapped out between the look-up and the call: the table has its successor, or nothing
        except ServingError as error:
            error.request_id = error.request_id or request.id
            self._count_failure(request, served, error, time.monotonic_ns() - begun)
            raise
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request", extra={"fields": _request_fields(request, served.stats.version, "ok", time.monotonic_ns() - begun)})
        return response(request, served.stats.version, answer)

    def _route(self, name: str, version: str) -> ServedVersion:
        model = self._served.get(name)
        if model is None:
            raise self._why_not(name)
        served = model.choose(version)
        if served is None:
            raise self._why_not(name, version)
        return served

    def _why_not(self, name: str, version: str = "") -> ServingError:
        """The refusal for what does not serve: never heard of, failed, or not loaded."""
        model = self._repository.read(name)
        if model is None:
            return errors.model_not_found(_short(name))
        if version and version not in map(str, model.versions):
            return errors.version_not_found(name, _short(version))
        failures = self._failures.get(name, {})
        failure = failures.get(int(version) if version else max(failures, default=0), "")
        what = f"model {name!r}" + (f" version {version}" if version else "")
        if any(loading == name for loading, _ in self._loading):
            return errors.not_ready(f"{what} is loading")
        return errors.not_ready(f"{what} failed to load: {failure}" if failure else f"{what} is not loaded")

    def _count_failure(self, request: InferRequest, served: ServedVersion | None, error: ServingError, total_ns: int) -> None:
        if served is None:
            model = self._served.get(request.model_name)
            served = model.choose(request.model_version) if model is not None else None
        if served is None:
            self._metrics.refused(error.code.value)
        elif not isinstance(error, Answered):  # else the executor has counted it
            served.stats.failed(error.code.value, total_ns)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request", extra={"fields": _request_fields(request, request.model_version, error.code.value, total_ns)})

    # configuration and statistics ------------------------------------------------------------------------------------------------

    def model_config(self, name: str, version: str) -> dict[str, Any]:
        served = self._route(name, version)
        return model_config(name, served.settings, served.signature, served.providers)

    def model_statistics(self, name: str, version: str) -> tuple[ModelStatistics, ...]:
        """Of one version, of every loaded version of a model, or of all. Raises as a request to that model would."""
        if name:
            self._route(name, version)
        wanted = [
            served
            for model_name, model in sorted(self._served.items())
            for number, served in sorted(model.versions.items())
            if (not name or model_name == name) and (not version or str(number) == version)
        ]
        return tuple(served.stats.statistics() for served in wanted)

    # repository ------------------------------------------------------------------------------------------------------------------

    def repository_index(self, ready: bool) -> tuple[ModelIndex, ...]:
        served = self._served
        found: list[ModelIndex] = []
        for name in sorted({*self._repository.names(), *served}):
            model = self._repository.read(name)
            loaded = served[name].versions if name in served else {}
            for version in sorted({*(model.versions if model else ()), *loaded}):
                found.append(ModelIndex(name, str(version), *self._state(name, version, loaded.get(version))))
            if not loaded and (model is None or not model.versions):
                found.append(ModelIndex(name, "", "UNAVAILABLE", model.problem if model else "gone from the repository"))
        return tuple(index for index in found if index.state == "READY" or not ready)

    def _state(self, name: str, version: int, served: ServedVersion | None) -> tuple[str, str]:
        if served is not None:
            return (
                ("READY", "") if served.ready and not self._draining else ("UNAVAILABLE", served.failure or "its process is starting again")
            )
        if (name, version) in self._loading:
            return "LOADING", ""
        if any(leaving.name == name and leaving.version == version for leaving in tuple(self._leaving)):
            return "UNLOADING", ""
        failures = self._failures.get(name, {})
        return "UNAVAILABLE", failures.get(version) or failures.get(0) or "not loaded"

    def repository_model_load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Loads or reloads what the repository holds now. Parameter `version`: exactly that one, also after a restart, until the next load.

        The versions are loaded and warm beside the old ones before the swap; where one fails, nothing changes. Raises invalid_input
        (a parameter), unsupported, model_not_found, version_not_found, invalid_model, not_ready (the server is closing).
        """
        with self._loading_lock(name):
            model = self._existing(name)
            self._load(model, _wanted_versions(model, parameters))
            if not self._repository.pin(model, int(parameters.get("version", 0))):
                log.warning("the version that serves cannot be remembered over a restart", extra={"fields": {"model": name}})

    def _first_load(self, name: str) -> None:
        """What a start loads. Where the newest version cannot be loaded, the newest that can: a start serves what the last load left."""
        with self._loading_lock(name):
            model = self._existing(name)
            for wanted in model.candidates():
                with contextlib.suppress(ServingError):  # logged, counted and kept in the index by the load itself
                    self._load(model, wanted)
                    break

    def _existing(self, name: str) -> RepositoryModel:
        model = self._repository.read(name)
        if model is None:
            raise errors.model_not_found(_short(name))
        return model

    def _load(self, model: RepositoryModel, wanted: tuple[int, ...]) -> None:
        name = model.name
        try:
            if model.problem or not wanted:
                raise errors.invalid_model(name, model.problem or "its version policy chooses none of its versions")
            fresh = self._start_all(model, wanted)
        except ServingError as error:
            reason = error.message.removeprefix(f"model {name!r}: ")
            self._failures.setdefault(name, {}).update(dict.fromkeys(wanted or (0,), reason))
            self._metrics.loaded(name, "failed")
            fields = {"model": name, "versions": wanted, "code": error.code.value, "reason": error.message}
            log.warning("load failed", extra={"fields": fields})
            raise
        for old in self._swap(name, ServedModel(fresh, ((max(fresh), 1),))):
            threading.Thread(target=self._retire, args=(old,), name=f"retire-{name}", daemon=True).start()
        self._metrics.loaded(name, "ok")
        log.info("loaded", extra={"fields": {"model": name, "versions": wanted, "unused_settings": list(getattr(model, "unused", ()))}})

    def _start_all(self, model: RepositoryModel, versions: tuple[int, ...]) -> dict[int, ServedVersion]:
        fresh: dict[int, ServedVersion] = {}
        keys = {(model.name, version) for version in versions}
        instances = self._instances.get(model.name, model.settings.instances)
        replaces = self._starter.holding(model.name)
        with self._lock:
            self._loading |= keys
        try:
            for version in versions:
                fresh[version] = self._starter.start(model, version, instances, replaces)
            return fresh
        except BaseException:
            for served in fresh.values():
                served.close(0.0)
            raise
        finally:
            with self._lock:
                self._loading -= keys

    def _swap(self, name: str, model: ServedModel | None) -> list[ServedVersion]:
        """Puts `model` into the table, or takes `name` out; returns what stood there before, to be retired."""
        with self._lock:
            old = self._served.get(name)
            table = {key: value for key, value in self._served.items() if key != name}
            if model is not None:
                table[name] = model
                self._wanted |= {name}
                for version in (0, *model.versions):
                    self._failures.get(name, {}).pop(version, None)
            self._served = table
            leaving = list(old.versions.values()) if old else []
            self._leaving.update(leaving)
        for served in model.versions.values() if model else ():
            served.on_death = lambda: self._metrics.died(name)
            served.on_change = lambda: self._publish(name)
            served.watch()
        self._publish(name)
        return leaving

    def _publish(self, name: str) -> None:
        """Tells callers on this host where a model is served now."""
        with self._publishing:
            model = self._served.get(name)
            if model is None:
                self._routes.withdraw(name)
                return
            lanes = {number: served.lanes() for number, served in model.versions.items()}
            self._routes.publish(name, lanes, model.labels, model.default)

    def _retire(self, served: ServedVersion) -> None:
        drained = False
        try:
            drained = served.close(self._drain_timeout_s)
        finally:
            with self._lock:
                self._leaving.discard(served)
        log.info("unloaded", extra={"fields": {"model": served.name, "version": served.version, "drained": drained}})

    def repository_model_unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Returns when the requests inside have finished (or the drain time-out passed) and its processes are gone."""
        with self._loading_lock(name):
            model = self._served.get(name)
            self._wanted -= {name}
            self._instances.pop(name, None)
            self._failures.pop(name, None)
            if model is None:
                if self._repository.read(name) is None:
                    raise errors.model_not_found(_short(name))
                return
            for served in self._swap(name, None):
                self._retire(served)

    def _loading_lock(self, name: str) -> threading.Lock:
        with self._lock:
            return self._loading_locks.setdefault(name, threading.Lock())

    def set_instances(self, name: str, version: str, count: int) -> None:
        """Of one version, or of every one that serves; returns when they take requests. Kept over reloads, until an unload."""
        if not 1 <= count <= 1024:
            raise errors.invalid_input(f"{count} instances are not a whole number from 1 to 1024")
        with self._loading_lock(name):
            chosen = [self._route(name, version)] if version else None
            if chosen is None:
                self._route(name, "")
                chosen = list(self._served[name].versions.values())
                self._instances[name] = count
            for served in chosen:
                served.resize(count)
            log.info("instances", extra={"fields": {"model": name, "version": version, "count": count}})

    def set_labels(self, name: str, labels: Mapping[str, int], canary_percent: int) -> None:
        """What the labels mean from now on, all of them; nothing is loaded, so it is done at once."""
        with self._loading_lock(name):
            self._route(name, "")
            raise errors.unsupported("labels cannot be set")

    # control ---------------------------------------------------------------------------------------------------------------------

    def put_file(self, header: FileHeader, chunks: Iterator[bytes]) -> StoredFile:
        stored = self._repository.put_file(header, chunks)
        log.info(
            "file stored",
            extra={"fields": {"model": header.model_name, "version": header.version, "file": header.file_name, "size": stored.size}},
        )
        return stored

    def capacity(self) -> Capacity:
        total, available = host.memory()
        versions = [served for model in self._served.values() for served in model.versions.values()]
        providers = tuple(sorted({provider for served in versions for provider in served.providers}))
        totals = self._reservations.totals()
        return Capacity(
            host.cpus(),
            total,
            available,
            host.disk_available(self._repository.push_root),
            providers,
            tuple(self._host_model(served) for served in versions),
            totals.cpus_reserved,
            totals.cpus_free,
            totals.memory_reserved,
            totals.memory_free,
        )

    def _host_model(self, served: ServedVersion) -> HostModel:
        state = "READY" if served.ready else "UNAVAILABLE"
        cpus, memory = self._reservations.held(served.name, served.stats.version)
        return HostModel(
            served.name,
            served.stats.version,
            state,
            served.memory_bytes(),
            served.in_flight,
            cpus,
            memory,
            served.instances,
            served.failure,
        )

    def drain(self, resume: bool, timeout_s: float) -> tuple[bool, int]:
        self._draining = not resume
        self._routes.accepting(resume)
        log.info("taking requests again" if resume else "draining")
        deadline = time.monotonic() + timeout_s
        while not resume and self.in_flight() and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        return self.in_flight() == 0, self.in_flight()

    def in_flight(self) -> int:
        """Requests inside the server, those in versions on their way out included."""
        serving = [version for model in self._served.values() for version in model.versions.values()]
        return sum(version.in_flight for version in (*serving, *tuple(self._leaving)))

    # life ------------------------------------------------------------------------------------------------------------------------

    def load_all(self) -> None:
        """Loads every model of the repository; a model that fails is logged and named by the index, and the others serve."""

        names = self._repository.names()
        self._wanted |= frozenset(names)
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="load") as pool:
            list(pool.map(self._first_load, names))
        self._started = True
        self._routes.accepting(not self._draining)

    def trim(self) -> None:
        """Gives idle memory of the lanes back; to be called every few seconds."""
        for model in self._served.values():
            for served in model.versions.values():
                served.trim(time.monotonic() - IDLE_LANE_S)

    def close(self) -> None:
        """Ends every executor; the requests inside fail. Drain first."""
        self._draining = True
        with self._lock:
            versions = [version for model in self._served.values() for version in model.versions.values()] + list(self._leaving)
            self._served = {}
        self._routes.close()
        for served in versions:
            served.close(0.0)

    def _gauges(self) -> Gauges:
        versions = {(s.name, s.stats.version): s for model in self._served.values() for s in model.versions.values()}
        return Gauges(
            {key: served.ready for key, served in versions.items()},
            {key: served.in_flight for key, served in versions.items()},
            {key: served.memory_bytes() for key, served in versions.items()},
            {key: served.instances for key, served in versions.items()},
            not self._draining,
        )


def _wanted_versions(model: RepositoryModel, parameters: Mapping[str, Any]) -> tuple[int, ...]:
    for key in parameters:
        if key == "config" or key.startswith("file:"):
            raise errors.unsupported(f"load parameter {_short(key)!r} is not supported")
        if key != "version":
            raise errors.invalid_input(f"load parameter {_short(key)!r} is not known")
    if "version" not in parameters:
        return model.settings.version_policy.choose(model.versions)
    asked = str(parameters["version"])
    if asked not in map(str, model.versions):
        raise errors.version_not_found(model.name, _short(asked))
    return (int(asked),)


def _short(text: str) -> str:
    return text if len(text) <= 128 else text[:128] + "..."


def _request_fields(request: InferRequest, version: str, code: str, total_ns: int) -> dict[str, Any]:
    fields = {
        "model": _short(request.model_name),
        "version": _short(version),
        "request_id": request.id,
        "code": code,
        "ms": round(total_ns / 1e6, 3),
    }
    return fields | ({"traceparent": request.traceparent} if request.traceparent else {})
