"""The verbs of the protocol and of control, over what the library has loaded."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from idl.board import RUNNING, SEQUENCES
from idl.codes import ServingError
from idl.lane_calls import Answered, known
from idl.lane_routes import response
from idl.messages import (
    Capacity,
    HostModel,
    InferRequest,
    InferResponse,
    MemoryUsage,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ScriptReport,
    ServerMetadata,
    Validation,
)
from idl.traces import NOTHING, Asked, Trace, Tracer
from inference_server import errors, host
from inference_server.engine_stream import EngineStream
from inference_server.executors.script_checks import ScriptChecks
from inference_server.library import Library
from inference_server.metrics import Gauges, Metrics, VersionGauges
from inference_server.model_config import model_config, properties
from inference_server.reservations import Reservations
from inference_server.routing import RoutePublisher
from inference_server.run_time import RunTime
from inference_server.served import Closing, ServedVersion
from inference_server.served_models import ServedModel, ServedModels
from inference_server.served_stream import ServedStream
from inference_server.types import FileHeader, StoredFile
from inference_server.validation.validations import Validations

log = logging.getLogger("outboard.server")

SERVER_NAME = "outboard"
EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "statistics",
    "binary_tensor_data",
    "classification",
    "sequence",
    "schedule_policy",
    "parameters",
    "logging",
)
"""Those that are always there; docs/protocol.md says what each does. `RunTime.extensions` has those that depend on settings."""
IDLE_LANE_S = 30.0


class Engine:
    """Satisfies `types.Inference` and `types.Operations`. Thread-safe; `close` is idempotent.

    Sizes are bytes, times seconds.
    """

    def __init__(
        self,
        library: Library,
        served: ServedModels,
        metrics: Metrics,
        routes: RoutePublisher,
        reservations: Reservations,
        *,
        version: str,
        run_time: RunTime | None = None,
        validations: Validations | None = None,
    ) -> None:
        self._library = library
        self._models = served
        self._reservations = reservations
        self._metrics = metrics
        self._routes = routes
        self._version = version
        self._run_time = run_time or RunTime()
        self._validations = validations
        self._scripts = ScriptChecks()
        self._started = False
        self._draining = False
        self.tracer: Tracer | None = None
        """Who is told of requests; None: nobody."""
        metrics.gauges = self._gauges

    @property
    def _served(self) -> Mapping[str, ServedModel]:
        """What serves now."""
        return self._models.table

    # health ----------------------------------------------------------------------------------------------------------------------

    def server_live(self) -> bool:
        return True

    def server_ready(self) -> bool:
        """Everything that should be loaded is ready, and requests are taken."""
        all_ready = all(version.ready or version.model.user for version in self._models.versions())
        return self._started and not self._draining and all_ready and self._library.complete

    def model_ready(self, name: str, version: str) -> bool:
        try:
            served = self._library.route(name, version)
            return not self._draining and served.ready and not self._library.pipelines.why_not(served)
        except ServingError:
            return False

    # metadata --------------------------------------------------------------------------------------------------------------------

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata(SERVER_NAME, self._version, (*EXTENSIONS, *self._run_time.extensions()))

    def model_metadata(self, name: str, version: str) -> ModelMetadata:
        model = self._served.get(name)  # one look for all of it: an unload may come between
        served = self._library.route(name, version)
        signature = served.signature
        versions = tuple(str(number) for number in sorted(model.versions)) if model else ()
        default, labels = (model.default, model.labels) if model else ((), None)
        told = properties(served.batching, served.instances, default, labels, signature, served.loaded.sandbox)
        return ModelMetadata(name, versions, signature.platform, signature.inputs, signature.outputs, told)

    # inference -------------------------------------------------------------------------------------------------------------------

    def model_infer(self, request: InferRequest) -> InferResponse:
        """Blocks until the answer. Raises ServingError; the request's id stands in the error and in the log."""
        begun = time.monotonic_ns()
        served: ServedVersion | None = None
        trace = self.enter(request)
        asked = request if trace is None else replace(request, traced=True)
        try:
            self._check_taken(request)
            while True:
                served = self._library.route(request.model_name, request.model_version)
                try:
                    answer = served.call(asked)
                    break
                except Closing:
                    continue  # swapped out between the look-up and the call: the table has its successor, or nothing
        except ServingError as error:
            self.count_failure(request, served, error, begun)
            if trace is not None:
                times, steps = known(error)
                self.trace(trace, request, served, begun, times, error.code.value, steps)
            raise
        if trace is not None:
            times = (answer.queue_ns, answer.input_ns, answer.compute_ns, answer.output_ns)
            self.trace(trace, request, served, begun, times, steps=answer.steps)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request", extra={"fields": _request_fields(request, served.stats.version, "ok", time.monotonic_ns() - begun)})
        return response(request, served.stats.version, answer)

    def model_stream(self, request: InferRequest, watch: int = -1) -> EngineStream:
        """Several answers to one request; what goes wrong is raised where they are asked for."""
        return EngineStream(self, request, watch)

    def begin_stream(self, request: InferRequest, watch: int) -> ServedStream:
        """Raises ServingError."""
        while True:
            self._check_taken(request)
            try:
                return ServedStream(self._library.route(request.model_name, request.model_version), request, watch)
            except Closing:
                continue

    def enter(self, request: InferRequest) -> Trace | None:
        """The span of a request that has come; None where nobody is told of it."""
        return None if self.tracer is None else self.tracer.enter(request.traceparent, request.model_name)

    def trace(
        self,
        trace: Trace,
        request: InferRequest,
        served: ServedVersion | None,
        begun_ns: int,
        times: Sequence[int] = (),
        error: str = "",
        steps: Sequence[str] = (),
        more: Mapping[str, int] = NOTHING,
    ) -> None:
        """Tells of a request that has just ended; `begun_ns` as in `count_failure`, the rest as in `Tracer.inference`."""
        if self.tracer is not None:
            asked = Asked(request.model_name, served.stats.version if served else request.model_version, request.id)
            self.tracer.inference(trace, asked, time.monotonic_ns() - begun_ns, times, error, steps=steps, more=more)

    def _check_taken(self, request: InferRequest) -> None:
        if self._draining:
            raise errors.not_ready("the server is draining")
        if request.deadline is not None and time.monotonic() > request.deadline:
            raise errors.deadline_exceeded("the deadline had passed when the request arrived")

    def count_failure(self, request: InferRequest, served: ServedVersion | None, error: ServingError, begun_ns: int) -> None:
        """`begun_ns`: when the request arrived, of the monotonic clock."""
        error.request_id = error.request_id or request.id
        total_ns = time.monotonic_ns() - begun_ns
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
        model = self._served.get(name)
        served = self._library.route(name, version)
        settings = replace(served.model.settings, steps=served.steps)
        if model is not None:  # which versions are loaded can change without a load
            settings = replace(settings, version_policy=model.model.settings.version_policy)
        described = replace(served.model, settings=settings)
        return model_config(described, served.signature, served.providers, served.batching, served.instances)

    def model_statistics(self, name: str, version: str) -> tuple[ModelStatistics, ...]:
        """Of one version, of every loaded version of a model, or of all. Raises as a request to that model would."""
        wanted = self._models.versions()
        if name:
            chosen = self._library.route(name, version)
            wanted = [chosen] if version else [served for served in wanted if served.name == name]
        return tuple(_statistics(served) for served in sorted(wanted, key=lambda served: (served.name, served.version)))

    # repository ------------------------------------------------------------------------------------------------------------------

    def repository_index(self, ready: bool) -> tuple[ModelIndex, ...]:
        entries = [self._drained(entry) for entry in self._library.index()]
        return tuple(entry for entry in entries if entry.state == "READY" or not ready)

    def _drained(self, entry: ModelIndex) -> ModelIndex:
        if entry.state == "READY" and self._draining:
            return replace(entry, state="UNAVAILABLE", reason="the server is draining")
        return entry

    def repository_model_load(self, name: str, parameters: Mapping[str, Any]) -> None:
        self._library.load(name, parameters)

    def repository_model_unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        self._library.unload(name, parameters)

    def set_instances(self, name: str, version: str, count: int) -> None:
        self._library.set_instances(name, version, count)

    def set_labels(self, name: str, labels: Mapping[str, int], canary_percent: int) -> None:
        self._library.set_labels(name, labels, canary_percent)

    # control ---------------------------------------------------------------------------------------------------------------------

    def put_file(self, header: FileHeader, chunks: Iterator[bytes]) -> StoredFile:
        stored = self._library.repository.put_file(header, chunks)
        log.info(
            "file stored",
            extra={"fields": {"model": header.model_name, "version": header.version, "file": header.file_name, "size": stored.size}},
        )
        return stored

    def remove_model(self, name: str, version: int) -> bool:
        return self._library.remove(name, version)

    def validate(self, parts: Iterator[FileHeader | bytes], deadline: float, active: Callable[[], bool]) -> Validation:
        """See `Validations.validate`."""
        if self._validations is None:
            raise errors.unsupported("this server validates no models (OUTBOARD_SERVER_VALIDATIONS)")
        return self._validations.validate(parts, deadline, active)

    def capacity(self) -> Capacity:
        total, available = host.memory()
        versions = self._models.versions()
        providers = tuple(sorted({provider for served in versions for provider in served.providers}))
        totals = self._reservations.totals()
        return Capacity(
            host.cpus(),
            total,
            available,
            host.disk_available(self._library.repository.push_root),
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

    def validate_script(self, source: bytes) -> ScriptReport:
        return self._scripts.check(source)

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
        return self._models.in_flight()

    # life ------------------------------------------------------------------------------------------------------------------------

    def load_all(self, unchanged_since_ns: int = 0) -> None:
        """What a start loads: see `Library.load_all`."""
        self._library.load_all(unchanged_since_ns)
        self._started = True
        self._routes.accepting(not self._draining)

    def trim(self) -> None:
        """Gives idle memory of the lanes back; to be called every few seconds."""
        for served in self._models.versions():
            served.trim(time.monotonic() - IDLE_LANE_S)

    def close(self) -> None:
        """Ends every executor; the requests inside fail. Drain first."""
        self._draining = True
        self._models.close()

    def _gauges(self) -> Gauges:
        return Gauges({(served.name, served.stats.version): _gauges(served) for served in self._models.versions()}, not self._draining)


def _gauges(served: ServedVersion) -> VersionGauges:
    boards = [executor.board for executor in served.executors]
    streams, sequences = served.signature.streams, bool(served.model.settings.state)
    return VersionGauges(
        served.ready,
        served.in_flight,
        sum(board.queued for board in boards),
        served.memory_bytes(),
        served.instances,
        sum(board.cells[RUNNING] for board in boards) if streams else None,
        sum(board.cells[SEQUENCES] for board in boards) if sequences else None,
    )


def _statistics(served: ServedVersion) -> ModelStatistics:
    return replace(served.stats.statistics(), memory=(MemoryUsage("CPU", 0, served.memory_bytes()),))


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
