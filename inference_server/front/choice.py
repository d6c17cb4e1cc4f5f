"""Which server answers the gRPC port: the one that `grpc_front` names, or the best that there is."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from idl.traces import Tracer
from inference_server.front import nginx
from inference_server.front.configuration import Configuration
from inference_server.front.direct import Direct
from inference_server.front.server import CannotStart, FrontedServer
from inference_server.tls import Certificates
from inference_server.transports.grpc_server import GrpcServer, MakeShortcut

log = logging.getLogger("outboard.server")

KINDS = ("auto", "nginx", "grpcio")
_MOST_PROCESSES = 4
_CORES_PER_PROCESS = 4


Plain = Callable[[Sequence[str], MakeShortcut | None], GrpcServer]
"""Makes the grpcio server for addresses."""


class GrpcFront:
    """gRPC on `addresses` ("host:port" or "unix:/path"). `kind`: nginx, grpcio, or auto, which is nginx where that works.

    `processes` of the front; 0: as many as measuring says. `folder` takes nginx's files and sockets.
    """

    def __init__(
        self,
        kind: str,
        plain: Plain,
        configuration: Configuration,
        *,
        addresses: Sequence[str],
        processes: int,
        drain_timeout_s: float,
        folder: Path | None = None,
        tracer: Tracer | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._kind = kind
        self._tracer = tracer
        self._plain = plain
        self._configuration = configuration
        self._addresses = tuple(addresses)
        self._processes = processes or default_processes()
        self._drain_timeout_s = drain_timeout_s
        self._certificates = certificates
        self._folder = folder or Path(configuration.run_dir) / "grpc-front"
        self._serving: GrpcServer | FrontedServer | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports, in the order of the addresses; what a port 0 became."""
        return self._serving.ports if self._serving is not None else ()

    def start(self) -> None:
        """Raises OSError, with the address in it, where one cannot be had; CannotStart where nginx was asked for and does not serve."""
        binary = nginx.find() if self._kind != "grpcio" and self._addresses else None
        if binary is None:
            if self._kind == "nginx" and self._addresses:
                raise CannotStart(None, "nginx is not installed: install it, or serve with --grpc-front grpcio")
            self._start_plain("chosen" if self._kind == "grpcio" else "nginx is not installed")
            return
        self._serving = fronted = FrontedServer(
            lambda addresses: self._plain(addresses, None),
            self._configuration,
            binary=binary,
            folder=self._folder,
            addresses=self._addresses,
            processes=self._processes,
            drain_timeout_s=self._drain_timeout_s,
            certificates=self._certificates,
        )
        try:
            fronted.start()
            log.info("gRPC is served", extra={"fields": {"front": "nginx", "program": binary, "processes": self._processes}})
        except CannotStart as error:
            if self._kind == "nginx":
                raise
            self._start_plain(str(error.strerror))

    def _start_plain(self, reason: str) -> None:
        self._serving = plain = self._plain(self._addresses, partial(Direct, self._configuration, tracer=self._tracer))
        try:
            plain.start()
        except BaseException:
            plain.stop(0)
            raise
        log.info("gRPC is served", extra={"fields": {"front": "grpcio", "reason": reason}})

    def stop(self, grace_s: float) -> None:
        """Accepts nothing more, lets calls in flight finish for `grace_s` seconds, then cuts them off."""
        if self._serving is not None:
            self._serving.stop(grace_s)


def default_processes() -> int:
    """One for every four cores: it keeps nginx on one core and executors on two busy. A second one on two cores gained nothing."""
    return max(1, min(_MOST_PROCESSES, len(os.sched_getaffinity(0)) // _CORES_PER_PROCESS))
