"""The Open Inference Protocol and `outboard.Control` over gRPC: decode, call, encode."""

import errno
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc

from idl.generated import inference_pb2 as pb
from inference_server import unix_sockets
from inference_server.run_time import RunTime
from inference_server.tls import Certificates, Pems
from inference_server.transports import grpc_codec as codec
from inference_server.transports.control_verbs import ControlVerbs
from inference_server.transports.grpc_calls import Call, Handlers, Receiving, Workers, serialized
from inference_server.transports.grpc_probes import OWN, Probes
from inference_server.transports.grpc_run_time import RunTimeVerbs
from inference_server.transports.grpc_stream import STREAM_INFER, StreamInfer
from inference_server.transports.guard import PUBLIC
from inference_server.transports.tensor_extensions import TensorExtensions
from inference_server.transports.tokens import Token
from inference_server.types import Inference, Operations

log = logging.getLogger("outboard.server")

_SLOW = frozenset({"RepositoryModelLoad", "RepositoryModelUnload", "PutFile", "Drain", "SetInstances", "SetLabels", "RemoveModel"})
"""Verbs that may take minutes: they have threads of their own, so that neither inference nor a health check waits behind them."""
_VALIDATE = frozenset({"Validate", "ValidateScript"})
"""Likewise, and an operator's verb does not wait behind what users try."""
_QUICK_THREADS, _SLOW_THREADS, _STREAMS = 4, 4, 16
_SWEEP_S = 1.0


class Verbs:
    """The methods of the open protocol, in the order of the IDL."""

    def __init__(self, inference: Inference, tensors: TensorExtensions) -> None:
        self._inference = inference
        self._tensors = tensors

    def server_live(self, request: Any, call: Call) -> Any:
        return pb.ServerLiveResponse(live=self._inference.server_live())

    def server_ready(self, request: Any, call: Call) -> Any:
        return pb.ServerReadyResponse(ready=self._inference.server_ready())

    def model_ready(self, request: Any, call: Call) -> Any:
        return pb.ModelReadyResponse(ready=self._inference.model_ready(request.name, request.version))

    def server_metadata(self, request: Any, call: Call) -> Any:
        return codec.server_metadata(self._inference.server_metadata())

    def model_metadata(self, request: Any, call: Call) -> Any:
        return codec.model_metadata(self._inference.model_metadata(request.name, request.version))

    def model_infer(self, request: Any, call: Call) -> Any:
        asked, finish = self._tensors.read(request, call.request_id, call.deadline, call.traceparent)
        return finish(self._inference.model_infer(asked), request.id)

    def model_config(self, request: Any, call: Call) -> Any:
        return codec.model_config(self._inference.model_config(request.name, request.version))

    def model_statistics(self, request: Any, call: Call) -> Any:
        return codec.model_statistics(self._inference.model_statistics(request.name, request.version))

    def repository_index(self, request: Any, call: Call) -> Any:
        return codec.repository_index(self._inference.repository_index(request.ready))

    def repository_model_load(self, request: Any, call: Call) -> Any:
        self._inference.repository_model_load(request.model_name, codec.parameters(request.parameters))
        return pb.RepositoryModelLoadResponse()

    def repository_model_unload(self, request: Any, call: Call) -> Any:
        self._inference.repository_model_unload(request.model_name, codec.parameters(request.parameters))
        return pb.RepositoryModelUnloadResponse()


General = Callable[[bytes, Call], bytes]
"""Answers a ModelInfer message in the ordinary way. Raises ServingError; may wait."""


class Shortcut(Protocol):
    """Answers ModelInfer where it can do so faster than grpcio's Python server."""

    def attach(self, server: grpc.Server) -> bool:
        """Before the server starts; False where it cannot."""

    def start(self) -> None:
        """After the server has started."""

    def stop(self) -> int:
        """After the server has stopped; returns how many of its calls were cut off."""


MakeShortcut = Callable[[General, Workers], Shortcut]


class GrpcServer:
    """A gRPC server on several addresses, "host:port" or "unix:/path". `threads` bounds the inference calls that run at once,
    `waiting` those that wait for one: more are refused with overloaded. A stream of inferences has a thread of its own while it is open:
    at most `max_streams`, and none whose client says nothing for `stream_idle_timeout_s`.

    `certificates`: those of the TCP addresses, which speak TLS then. A call without a deadline gets `default_timeout_s`, and so does the wait for a call's message. A message of more than
    `max_message_bytes` is refused by gRPC's core itself (RESOURCE_EXHAUSTED, without our metadata).
    """

    def __init__(
        self,
        inference: Inference,
        operations: Operations,
        *,
        addresses: Sequence[str],
        max_message_bytes: int,
        threads: int,
        token: str,
        default_timeout_s: float,
        token_file: str = "",
        waiting: int = 1024,
        max_streams: int = 256,
        stream_idle_timeout_s: float = 600.0,
        shortcut: MakeShortcut | None = None,
        run_time: RunTime | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        run_time = run_time or RunTime()
        tensors = TensorExtensions(inference, run_time.memory, max_message_bytes)
        self._addresses = tuple(addresses)
        self._infer = Workers("grpc-infer", threads, waiting)
        self._quick = Workers("grpc-quick", _QUICK_THREADS, waiting)
        self._slow = Workers("grpc-slow", _SLOW_THREADS, _SLOW_THREADS)
        self._validating = Workers("grpc-validate", _SLOW_THREADS, _SLOW_THREADS)
        self._streams = Workers("grpc-stream", _STREAMS, 0)
        self._stream_infers = Workers("grpc-stream-infer", max_streams, 0)
        self._between = Receiving(stream_idle_timeout_s)
        self._token = Token(token, token_file)
        self._stream_infer = StreamInfer(inference, tensors, self._between, max_message_bytes, self._token)
        self._receiving = Receiving(default_timeout_s)
        self._probes = Probes(inference, self._receiving)
        self._handlers = Handlers(
            self._token, self._receiving, default_timeout_s=default_timeout_s, max_message_bytes=max_message_bytes, refusing=self._quick
        )
        self._verbs = Verbs(inference, tensors)
        self._max_message_bytes = max_message_bytes
        self._register(self._verbs, RunTimeVerbs(inference, run_time), ControlVerbs(operations))
        self._server = grpc.server(self._infer.executor, handlers=(self._handlers,), options=_options(max_message_bytes))
        self._shortcut = shortcut(self._answer, self._infer) if shortcut is not None else None
        if self._shortcut is not None and not self._shortcut.attach(self._server):
            log.warning("this release of grpcio has no fast way for ModelInfer", extra={"fields": {"grpcio": grpc.__version__}})
            self._shortcut = None
        self._certificates = certificates
        self._ports: tuple[int, ...] = ()
        self._ending = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="grpc-sweep", daemon=True)
        self._stopping = threading.Lock()
        self._started = self._stopped = False

    def _register(self, *verbs: Verbs | RunTimeVerbs | ControlVerbs) -> None:
        for service in OWN:
            for method in service.methods:
                if method.server_streaming:
                    self._handlers.add_stream(STREAM_INFER, self._stream_infer, self._stream_infers, public=False)
                    continue
                self._handlers.add(method, _verb(verbs, method.name), self._workers(method.name), public=method.name in PUBLIC)
        self._probes.add_to(self._handlers, self._quick, self._streams)

    def _workers(self, method: str) -> Workers:
        if method in _SLOW:
            return self._slow
        return self._validating if method in _VALIDATE else self._infer if method == "ModelInfer" else self._quick

    def _answer(self, message: bytes, call: Call) -> bytes:
        request = codec.parse(pb.ModelInferRequest, message)
        self._token.check(call.token, "ModelInfer", request.model_name)  # who has read it before us may not know the model
        return serialized(self._verbs.model_infer(request, call), self._max_message_bytes)

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports, in the order of the addresses; what a port 0 became."""
        return self._ports

    def start(self) -> None:
        """Listens and serves. Raises OSError, with the address in it, where one cannot be had; then nothing listens."""
        for address in self._addresses:
            _check_free(address)
        try:
            bound = [(address, self._bind(address)) for address in self._addresses]
        except RuntimeError as error:
            self.stop(0)
            raise OSError(errno.EADDRINUSE, f"gRPC cannot listen: {error}") from error
        self._ports = tuple(port for address, port in bound if not address.startswith("unix:"))
        self._server.start()
        if self._shortcut is not None:
            self._shortcut.start()
        self._sweeper.start()
        self._started = True

    def _bind(self, address: str) -> int:
        if self._certificates is None or address.startswith("unix:"):
            return int(self._server.add_insecure_port(address))
        return int(self._server.add_secure_port(address, _credentials(self._certificates)))

    def stop(self, grace_s: float) -> None:
        """Accepts nothing more, lets calls in flight finish for `grace_s` seconds, then cancels them. A second call waits for the first."""
        with self._stopping:
            if self._stopped:
                return
            if not self._started:
                self._server.start()  # grpcio gives a bound port back only where the server has run
            finished = self._server.stop(grace_s)
            self._probes.close()
            finished.wait()
            self._ending.set()
            running = self._shortcut.stop() if self._shortcut is not None else 0
            pools = (self._infer, self._quick, self._slow, self._validating, self._streams, self._stream_infers)
            running += sum(workers.close() for workers in pools)
            if running:
                log.warning("gRPC calls cut off", extra={"fields": {"running": running, "grace_s": grace_s}})
            if self._started:
                self._sweeper.join()
            self._stopped = True

    def _sweep(self) -> None:
        while not self._ending.wait(_SWEEP_S):
            self._receiving.sweep(time.monotonic())
            self._between.sweep(time.monotonic())


def _verb(verbs: Sequence[Verbs | RunTimeVerbs | ControlVerbs], method: str) -> Callable[[Any, Call], Any]:
    """`ModelInfer` -> the bound method `model_infer` of whichever has it."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
    verb: Callable[[Any, Call], Any] = getattr(next(each for each in verbs if hasattr(each, name)), name)
    return verb


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """For each handshake what is in force then."""

    def made(pems: Pems) -> Any:
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], root_certificates=pems.client_ca)

    known = certificates.current

    def renewed() -> Any:
        nonlocal known
        current = certificates.current
        if current is known:
            return None
        known = current
        return made(current)

    return grpc.dynamic_ssl_server_credentials(made(known), renewed, require_client_authentication=known.client_ca is not None)


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # on by default: a second server would take the same port in silence
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_concurrent_streams", 1024),
        ("grpc.keepalive_time_ms", 60_000),  # finds peers that vanished without a word
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # what clients' own keepalive may do
    ]


def _check_free(address: str) -> None:
    """Raises OSError with the real reason where `address` cannot be bound.

    grpcio says only that it failed; and a unix socket that another server listens on it removes and takes.
    """
    if address.startswith("unix:"):
        try:
            unix_sockets.free(Path(address.removeprefix("unix:")))
        except OSError as error:
            raise OSError(error.errno, f"gRPC cannot listen on {address}: {error.strerror}") from error
        return
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise OSError(errno.EINVAL, f"gRPC cannot listen on {address!r}: neither host:port nor unix:/path")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise OSError(error.errno, f"gRPC cannot listen on {address}: {error.strerror}") from error
