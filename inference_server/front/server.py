"""gRPC with the fast front: nginx on the public addresses, the front's processes behind it, and grpcio for everything else."""

import contextlib
import errno
import logging
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGHUP, SIGQUIT, SIGTERM

from idl.trace_export import FLUSH_S
from inference_server import unix_sockets, whole_files
from inference_server.front import nginx
from inference_server.front.configuration import Configuration
from inference_server.front.keeper import Keeper, Start, only_ours
from inference_server.front.processes import FrontProcess, NginxProcess
from inference_server.tls import Certificates, Pems
from inference_server.transports.grpc_server import GrpcServer

log = logging.getLogger("outboard.server")

NGINX = "nginx"
_TLS, _CLIENT_CA = "tls.pem", "client-ca.pem"
START_TIMEOUT_S = 20.0
_MOST_FAILURES = 3
_MARGIN_S = 2.0
"""What nginx gets beyond its own time-out for calls in flight."""
_FLUSH_MARGIN_S = 1.0
_BACKLOG = 4096
_LONGEST_SOCKET_PATH = 107
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
"""HTTP/2's preface and empty settings: a server answers with settings of its own."""


class CannotStart(OSError):
    """The front cannot serve here; the message says why."""


class FrontedServer:
    """Takes the place of a GrpcServer; `behind` makes that one for an address of its own. `addresses`: "host:port" or "unix:/path".
    `folder` is its alone: what runs there when it starts is ended.

    The listening sockets are this process's: a port is refused at once where it is taken, and while nginx is started again callers
    wait in the socket's queue. While a front process is, its share goes to the others, or to grpcio where there is none.
    """

    def __init__(
        self,
        behind: Callable[[Sequence[str]], GrpcServer],
        configuration: Configuration,
        *,
        binary: str,
        folder: Path,
        addresses: Sequence[str],
        processes: int,
        drain_timeout_s: float,
        certificates: Certificates | None = None,
    ) -> None:
        self._folder = folder.absolute()
        self._behind = behind((f"unix:{self._path('grpcio')}",))
        self._configuration = configuration
        self._binary = binary
        self._addresses = tuple(addresses)
        self._fronts = tuple(f"front-{number}" for number in range(1, processes + 1))
        self._drain_timeout_s = drain_timeout_s
        self._certificates = certificates
        self._client_ca: bytes | None = None
        self._closers = contextlib.ExitStack()
        self._public: list[socket.socket] = []
        self._inherited: list[int] = []
        parts: dict[str, Start] = {name: partial(self._start_front, name) for name in self._fronts}
        self._keeper = Keeper({NGINX: self._start_nginx, **parts})
        self._stopping = threading.Lock()
        self._stopped = False

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.sock"

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports, in the order of the addresses; what a port 0 became."""
        return tuple(sock.getsockname()[1] for sock in self._public if sock.family != socket.AF_UNIX)

    def start(self) -> None:
        """Returns when nginx and every front process answer. Raises OSError for an address that cannot be had, CannotStart; then
        nothing listens."""
        try:
            self._start()
        except BaseException:
            self.stop(0)
            raise

    def _start(self) -> None:
        longest = max(len(os.fsencode(self._path(name))) for name in ("grpcio", *self._fronts))
        if longest > _LONGEST_SOCKET_PATH:
            raise CannotStart(errno.ENAMETOOLONG, f"{self._folder} is too long a path: {longest} bytes for a unix socket in it")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = only_ours(self._folder / "lock")
        self._closers.callback(os.close, lock)
        self._public = [self._closers.enter_context(listen(address)) for address in self._addresses]
        absent = self._closers.enter_context(listen(f"unix:{self._path('absent')}"))
        self._listeners = (*self._public, absent)
        self._inherited = [lock, *(sock.fileno() for sock in self._listeners)]
        if self._certificates is not None:
            self._write_pems(self._certificates.current)
            self._certificates.follow(self._renew)
        self._write_configuration()
        self._path("grpcio").unlink(missing_ok=True)
        self._behind.start()
        self._keeper.start()
        self._await(time.monotonic() + START_TIMEOUT_S)

    def _write_configuration(self) -> None:
        values = nginx.Values(
            folder=self._folder,
            listeners=self._public,
            fronts=[self._path(name) for name in self._fronts],
            absent=self._path("absent"),
            grpcio=self._path("grpcio"),
            workers=len(self._fronts),
            max_message_bytes=self._configuration.max_message_bytes,
            request_timeout_s=self._configuration.default_timeout_s,
            drain_timeout_s=self._drain_timeout_s,
            tls=self._folder / _TLS if self._certificates else None,
            client_ca=self._folder / _CLIENT_CA if self._client_ca else None,
        )
        try:
            text = nginx.render(values)
        except ValueError as error:
            raise CannotStart(errno.EINVAL, str(error)) from error
        (self._folder / "nginx.conf").write_text(text)

    def _write_pems(self, pems: Pems) -> None:
        """Key and certificate in one file that is replaced as a whole: nginx never has one without the other."""
        _write_private(self._folder / _TLS, pems.key + b"\n" + pems.certificate)
        if pems.client_ca is not None:
            _write_private(self._folder / _CLIENT_CA, pems.client_ca)
        self._client_ca = pems.client_ca

    def _renew(self, pems: Pems) -> None:
        before = self._client_ca
        try:
            self._write_pems(pems)
        except OSError as error:
            log.warning("the renewed TLS files cannot be written", extra={"fields": {"reason": error.strerror}})
            return
        if pems.client_ca != before:  # nginx reads the authorities with its configuration only
            self._keeper.send(NGINX, SIGHUP)

    def _start_nginx(self) -> NginxProcess:
        command = nginx.command(self._binary, self._folder / "nginx.conf")
        return NginxProcess(command, nginx.environ(self._listeners), self._inherited)

    def _start_front(self, name: str) -> FrontProcess:
        return FrontProcess(name, replace(self._configuration, socket=str(self._path(name))), self._inherited[:1])

    def _await(self, until: float) -> None:
        """Until everything answers. Raises CannotStart."""
        waiting = {NGINX, *self._fronts}
        while waiting:
            for name in tuple(waiting):
                if self._keeper.failures(name) >= _MOST_FAILURES or time.monotonic() > until:
                    raise CannotStart(errno.ECHILD, f"{name} does not start: {self._keeper.last_words(name) or 'no reason given'}")
                if _settings_come(self._public[0], self._certificates is not None) if name == NGINX else self._keeper.ready(name):
                    waiting.remove(name)
            self._keeper.wait_for_change(0.05)

    def stop(self, grace_s: float) -> None:
        """Accepts nothing more, lets calls in flight finish for `grace_s` seconds, then cuts them off. A second call waits for the first."""
        with self._stopping:
            if self._stopped:
                return
            for sock in self._public:
                sock.close()
            behind = threading.Thread(target=self._behind.stop, args=(grace_s,), name="grpcio-stop")
            behind.start()
            if not self._keeper.stop(NGINX, SIGQUIT, min(grace_s, self._drain_timeout_s) + _MARGIN_S if grace_s else 0.0):
                log.warning("gRPC calls cut off", extra={"fields": {"grace_s": grace_s}})
            behind.join()
            if self._configuration.trace_endpoint:
                for name in self._fronts:
                    self._keeper.stop(name, SIGTERM, FLUSH_S + _FLUSH_MARGIN_S)  # it tells what is left of traces
            self._keeper.close()
            self._closers.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._stopped = True


def listen(address: str) -> socket.socket:
    """Raises OSError, with the address in it, where it cannot be had. A socket file that nobody listens on is taken over."""
    try:
        if address.startswith("unix:"):
            return unix_sockets.listen(Path(address.removeprefix("unix:")), _BACKLOG)
        host, _, port = address.rpartition(":")
        if not port.isdecimal():
            raise OSError(errno.EINVAL, "neither host:port nor unix:/path")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"gRPC cannot listen on {address}: {error.strerror}") from error


def _write_private(path: Path, data: bytes) -> None:
    """Replaces `path` by a file that only this user may read."""
    part = whole_files.part_of(path)
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    part.replace(path)


def _settings_come(listener: socket.socket, secure: bool) -> bool:
    """Whether somebody speaks HTTP/2 on it, or TLS where it is `secure` and TCP: a caller without a certificate hears no more than that."""
    name = listener.getsockname()
    if listener.family != socket.AF_UNIX:
        name = ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0]), name[1])
    with socket.socket(listener.family) as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(name)
            if secure and listener.family != socket.AF_UNIX:
                return _shakes(probe)
            probe.sendall(_HELLO)
            return probe.recv(9)[3:4] == b"\4"
        except OSError:
            return False


def _shakes(probe: socket.socket) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is asked whether somebody is there, not who
    try:
        context.wrap_socket(probe).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    return True
