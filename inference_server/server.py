"""One server process: wires every part to the others, serves until a signal, drains."""

import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, start_http_server

from idl import last_words
from idl.traces import Tracer
from inference_server import host, logs, run_folders, tracing, unix_sockets
from inference_server.engine import Engine
from inference_server.executors.memory_limit import MemoryLimits
from inference_server.executors.process import Watcher, Zygote
from inference_server.front.choice import GrpcFront
from inference_server.front.configuration import Configuration
from inference_server.front.thrift_lane import ThriftLane
from inference_server.launcher import Launcher
from inference_server.library import Library
from inference_server.listeners import bracketed, tcp_listener, unix_listener
from inference_server.log_settings import LogSettings
from inference_server.metrics import Metrics
from inference_server.near_models import NearModels
from inference_server.repository import Repository
from inference_server.repository_poll import RepositoryPoll
from inference_server.reservations import Reservations
from inference_server.routing import RoutePublisher, attach_beside, detach_beside
from inference_server.run_time import RunTime
from inference_server.served_models import ServedModels
from inference_server.settings import Settings
from inference_server.shared_memory import SharedMemory
from inference_server.spool import Spool
from inference_server.tls import Certificates, TlsFiles
from inference_server.trace_settings import TraceSettings, started_with
from inference_server.transports.framed_tls import TlsSocket
from inference_server.transports.grpc_server import GrpcServer, MakeShortcut
from inference_server.transports.thrift_server import ThriftServer
from inference_server.user_models import TRIALS, UserModels
from inference_server.validation.validations import ValidationLimits, Validations

log = logging.getLogger("outboard.server")

HANG_WATCH_S = 1.0
TRIM_TURNS = 5
LAST_WORDS_S = 10.0
"""How long it can be read what an executor died of; callers want to know within a moment."""
LONGEST_FIRST_WAIT_S = 30.0
"""The `ready` line waits for one more look at files that were still changing at the start, where looks are no further apart than this."""


class Server:
    """Everything of one server process; must be made and served in the main thread. `output` gets the `ready` line."""

    def __init__(self, settings: Settings, run_dir: Path, output: IO[str]) -> None:
        self._settings = settings
        self._output = output
        run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._guard = run_folders.lock(run_dir)
        self._stopping = threading.Event()
        self._sockets: dict[Path, unix_sockets.Identity | None] = {}
        self._closers = contextlib.ExitStack()
        self._certificates = _certificates(settings)
        try:
            self._listeners = self._listen()
            self.metrics = Metrics()
            self._start_executors()
            logs.forget(run_dir)
            self._run_time = self._make_run_time()
            self.engine = self._make_engine()
            self._tracer = self.engine.tracer = self._make_tracer()
            self.metrics.spans = tracing.counts(run_dir)
            self._lanes = self._configure_lanes()
            self._grpc = self._make_grpc_front()
            self._thrift = self._make_thrift_server()
        except BaseException:
            self._closers.close()
            raise

    def _start_executors(self) -> None:
        """The zygote, what makes executors of it and watches them, and where callers find them."""
        settings = self._settings
        # before the zygote: it may move this process into a group of its own
        self._limits = limits = MemoryLimits(settings.memory_limits)
        self._closers.callback(limits.close)
        log.info("memory limits", extra={"fields": {"by": limits.means}})
        self._reservations = Reservations(
            host.cores(), host.cpus(), host.memory()[0], kept=settings.kept_memory_bytes, default_threads=settings.model_threads
        )
        zygote = Zygote(self._run_dir, settings.max_message_bytes)
        self._closers.callback(zygote.close)
        watcher = Watcher()
        self._closers.callback(watcher.close)
        self._launcher = Launcher(settings, self.metrics, zygote, watcher, self._reservations, limits)
        self._closers.callback(self._launcher.close)
        self._routes = RoutePublisher(self._run_dir, settings.max_message_bytes)
        self._closers.callback(self._routes.close)

    def _make_run_time(self) -> RunTime:
        """What callers may set while the server runs."""
        settings = self._settings
        traces = tracing.published(self._run_dir, settings.trace_endpoint)
        if traces is not None:
            self._closers.callback(traces.close)
        return RunTime(
            SharedMemory(enabled=settings.shared_memory),
            TraceSettings(started_with(bool(settings.trace_endpoint), settings.trace_rate), traces),
            LogSettings(partial(logs.publish, self._run_dir)),
        )

    def _make_engine(self) -> Engine:
        settings = self._settings
        served = ServedModels(self.metrics, self._routes, settings.drain_timeout_s)
        users = UserModels(settings.user_models.absolute()) if settings.user_models else None
        repository = Repository(settings.models, settings.push_dir, users)
        self._near_models = NearModels(settings.models)
        spool = Spool(self._run_dir, settings.max_message_bytes)
        self._closers.callback(spool.close)
        self._poll = RepositoryPoll(repository) if settings.model_control == "poll" else None
        self._library = Library(repository, self._launcher, served, self.metrics, spool, self._poll)
        made = Engine(
            self._library,
            served,
            self.metrics,
            self._routes,
            self._reservations,
            version=_version(),
            run_time=self._run_time,
            validations=self._validations(repository),
        )
        self._closers.callback(made.close)
        return made

    def _make_tracer(self) -> Tracer | None:
        made = tracing.tracer(self._run_dir, "server", self._settings.trace_endpoint, self._settings.trace_rate)
        if made is not None:
            self._closers.callback(made.close)
        return made

    def _configure_lanes(self) -> Configuration:
        """What every front that asks executors over their lanes is told."""
        settings = self._settings
        return Configuration(
            run_dir=str(self._run_dir),
            token=settings.token,
            token_file=_text(settings.token_file),
            max_message_bytes=settings.max_message_bytes,
            default_timeout_s=settings.request_timeout_s,
            log_level=settings.log_level,
            trace_endpoint=settings.trace_endpoint,
            trace_rate=settings.trace_rate,
        )

    def _make_grpc_front(self) -> GrpcFront:
        settings = self._settings
        return GrpcFront(
            settings.grpc_front,
            self._grpc_server,
            self._lanes,
            addresses=self._grpc_addresses(),
            processes=settings.grpc_front_processes,
            drain_timeout_s=settings.drain_timeout_s,
            tracer=self._tracer,
            certificates=self._certificates,
        )

    def _make_thrift_server(self) -> ThriftServer:
        settings, certificates = self._settings, self._certificates
        return ThriftServer(
            self.engine,
            self.engine,
            listeners=self._listeners,
            max_frame_bytes=settings.max_message_bytes,
            threads=settings.thrift_threads,
            token=settings.token,
            token_file=_text(settings.token_file),
            default_timeout_s=settings.request_timeout_s,
            idle_timeout_s=settings.thrift_idle_timeout_s,
            max_connections=settings.max_connections,
            shortcut=partial(ThriftLane, self._lanes, tracer=self._tracer),
            run_time=self._run_time,
            tls=None if certificates is None else lambda: certificates.current.context,
        )

    def _validations(self, repository: Repository) -> Validations | None:
        """Their files lie where models do: temporary ones may be in memory."""
        said = self._settings
        if not said.validations:
            return None
        root = repository.users.root / TRIALS if repository.users is not None else self._run_dir / "trials"
        bounds = ValidationLimits(said.validations, said.validation_max_bytes, said.validation_timeout_s, said.validation_memory_bytes)
        made = Validations(root.absolute(), self._limits, bounds, lambda: self._reservations.totals().memory_free)
        self._closers.callback(made.close)
        return made

    def _grpc_server(self, addresses: Sequence[str], shortcut: MakeShortcut | None) -> GrpcServer:
        settings = self._settings
        return GrpcServer(
            self.engine,
            self.engine,
            addresses=addresses,
            max_message_bytes=settings.max_message_bytes,
            threads=settings.grpc_threads,
            token=settings.token,
            token_file=_text(settings.token_file),
            default_timeout_s=settings.request_timeout_s,
            shortcut=shortcut,
            run_time=self._run_time,
            certificates=self._certificates,
        )

    def _grpc_addresses(self) -> list[str]:
        made = [f"{bracketed(self._settings.host)}:{self._settings.grpc_port}"] if self._settings.grpc_port >= 0 else []
        if path := self._settings.grpc_socket:
            made.append(f"unix:{path}")
        return made

    def _listen(self) -> list[socket.socket]:
        made = []
        if self._settings.thrift_port >= 0:
            made.append(tcp_listener(self._settings.host, self._settings.thrift_port))
        if path := self._settings.thrift_socket:
            made.append(unix_listener(path))
        for sock in made:
            self._closers.callback(sock.close)
        return made

    def serve(self) -> int:
        """Until a signal: then drains and returns 0. A second signal ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        with self._closers:
            self._grpc.start()
            if self._settings.grpc_socket:
                self._settings.grpc_socket.chmod(0o660)  # as the Thrift one; grpcio leaves it to the umask
            self._thrift.start()
            for path in self._unix_sockets():
                attach_beside(path, self._run_dir)
                self._sockets[path] = unix_sockets.identity(path)
            addresses = {"grpc": self._grpc_address(), "thrift": self._thrift_address(), "metrics": self._serve_metrics()}
            log.info("listening", extra={"fields": addresses})
            loader = threading.Thread(target=self._load, args=(addresses,), name="first-load", daemon=True)
            loader.start()
            turns = 0
            while not self._stopping.wait(HANG_WATCH_S):
                self._launcher.end_hung(time.monotonic_ns())
                if self._certificates is not None:
                    self._certificates.look()
                turns += 1
                if turns % TRIM_TURNS == 0:
                    self.engine.trim()
                    last_words.forget(self._run_dir, LAST_WORDS_S)
            self._drain()
        return 0

    def _load(self, addresses: dict[str, str]) -> None:
        self.engine.load_all(time.time_ns() - int(self._settings.poll_interval_s * 1e9))
        self._tell_near_models(at_once=self._poll is None)
        if self._poll is not None and self._poll.waiting and self._settings.poll_interval_s <= LONGEST_FIRST_WAIT_S:
            self._follow_once()  # what was copied just before the start is served when we say that we are ready
        gc.collect()
        gc.freeze()  # what is there now stays: the collector need not walk it in the middle of a request
        log.info("ready" if self.engine.server_ready() else "not ready: see the index", extra={"fields": addresses})
        if not self._stopping.is_set():
            said = [f"{name}={address}" for name, address in addresses.items() if address]
            if not_served := self._not_served():
                said.append(f"not_served={not_served}")
            print("ready", *said, file=self._output, flush=True)
        while self._poll is not None and not self._stopping.is_set():
            self._follow_once()

    def _not_served(self) -> int:
        """How many versions cannot be loaded, and folders are nearly models."""
        failed = [entry for entry in self.engine.repository_index(False) if entry.state == "UNAVAILABLE" and entry.reason != "not loaded"]
        return len(failed) + self._near_models.count

    def _follow_once(self) -> None:
        """Waits for the time of the next look at the repositories, and does what follows from it."""
        if not self._stopping.wait(self._settings.poll_interval_s):
            self._library.poll()
            self._tell_near_models(at_once=False)

    def _tell_near_models(self, *, at_once: bool) -> None:
        for near in self._near_models.fresh(at_once=at_once):
            log.warning("not a model", extra={"fields": {"folder": near.where, "reason": near.why}})

    def _on_signal(self, number: int, _: object) -> None:
        if self._stopping.is_set():
            os._exit(130)  # executors end with the zygote, and that with us
        self._stopping.set()

    def _drain(self) -> None:
        grace = self._settings.drain_timeout_s
        self.engine.drain(resume=False, timeout_s=0)
        stops = [threading.Thread(target=transport.stop, args=(grace,), daemon=True) for transport in (self._grpc, self._thrift)]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        for path, ours in self._sockets.items():
            if ours is not None and unix_sockets.identity(path) == ours:  # else another server has it by now
                detach_beside(path)
                path.unlink(missing_ok=True)
        log.info("stopped", extra={"fields": {"in_flight": self.engine.in_flight()}})

    def _unix_sockets(self) -> list[Path]:
        return [path for path in (self._settings.grpc_socket, self._settings.thrift_socket) if path]

    def _serve_metrics(self) -> str:
        if self._settings.metrics_port < 0:
            return ""
        registry = CollectorRegistry()
        for collector in (ProcessCollector, GCCollector):
            collector(registry=registry)
        registry.register(self.metrics)
        server, _ = start_http_server(self._settings.metrics_port, self._settings.host, registry)
        self._closers.callback(server.server_close)
        self._closers.callback(server.shutdown)
        return f"http://{bracketed(self._settings.host)}:{server.server_address[1]}/metrics"

    def _grpc_address(self) -> str:
        ports = self._grpc.ports
        return f"{bracketed(self._settings.host)}:{ports[0]}" if ports else ""

    def _thrift_address(self) -> str:
        tcp = [sock for sock in self._listeners if sock.family != socket.AF_UNIX]
        return f"{bracketed(self._settings.host)}:{tcp[0].getsockname()[1]}" if tcp else ""


def _certificates(settings: Settings) -> Certificates | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca), TlsSocket)


def _text(path: Path | None) -> str:
    return str(path.absolute()) if path else ""


def _version() -> str:
    try:
        return version("outboard")
    except PackageNotFoundError:
        return "0"
