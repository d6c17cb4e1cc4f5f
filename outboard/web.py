"""`outboard web`: the gateway under uWSGI with nginx in front, in the foreground; the models are elsewhere.

What a web host or a container runs. Both log to standard error. They end together: on SIGTERM or SIGINT nginx first, which finishes what
it has, then the gateway; and where one of them ends by itself.
"""

import argparse
import http.client
import ipaddress
import os
import signal
import socket
import ssl
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gateway.settings import PREFIX, Settings, SettingsError
from outboard import foreground, nginx
from outboard.foreground import START_TIMEOUT_S, CannotStart, Foreground, configure_nginx, reachable
from outboard.processes import Children

STOP_MARGIN_S = 10.0
"""What a part gets beyond the time for requests in flight before it is killed."""
_TOO_LATE = f"nothing answers after {START_TIMEOUT_S:.0f} s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What nginx needs to know; everything else is the gateway's own environment."""
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="where nginx listens (default 127.0.0.1:8080)")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="serve HTTPS with this certificate")
    parser.add_argument("--certificate-key", type=Path, metavar="FILE", help="the certificate's key")
    parser.add_argument("--redirect-listen", default="", metavar="HOST:PORT", help="with a certificate: a port that sends callers to HTTPS")
    parser.add_argument(
        "--metrics-from",
        action="append",
        metavar="NETWORK",
        help="an address or network that may ask for /metrics, besides this machine's own",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 after a stop that was asked for, 1 where something failed, 2 for settings that cannot be used."""
    try:
        settings, values = _values(arguments, os.environ)
    except (SettingsError, ValueError) as error:
        print(f"outboard web: {error}", file=sys.stderr)
        return 2
    return foreground.run("web", Web(settings, values))


def _values(arguments: argparse.Namespace, environ: Mapping[str, str]) -> tuple[Settings, nginx.Values]:
    if bool(arguments.certificate) != bool(arguments.certificate_key):
        raise ValueError("--certificate and --certificate-key belong together")
    if arguments.redirect_listen and not arguments.certificate:
        raise ValueError("--redirect-listen needs a certificate: there is no HTTPS to send callers to")
    for listen in filter(None, (arguments.listen, arguments.redirect_listen)):
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ValueError(f"{listen!r} is not HOST:PORT")
    for network in arguments.metrics_from or ():
        ipaddress.ip_network(network)  # raises ValueError, which names it
    settings = Settings.from_env(environ)
    socket_path = settings.socket or str(settings.run_dir / "gateway.sock")
    scheme = "https" if arguments.certificate else "http"
    host, _, port = arguments.listen.rpartition(":")
    settings = replace(settings, socket=socket_path, public_url=settings.public_url or f"{scheme}://{reachable(host)}:{port}")
    values = replace(
        nginx.for_gateway(settings, settings.run_dir, arguments.listen),
        certificate=arguments.certificate,
        certificate_key=arguments.certificate_key,
        redirect_listen=arguments.redirect_listen,
    )
    return settings, replace(values, metrics_allow=(*values.metrics_allow, *(arguments.metrics_from or ())))


class Web(Foreground):
    """One run of both."""

    def __init__(self, settings: Settings, values: nginx.Values) -> None:
        super().__init__(Children(None))
        self._settings = settings
        self._values = values

    def run(self) -> int:
        binary = nginx.find()
        if binary is None:
            raise CannotStart("nginx is not installed")
        try:
            self._settings.run_dir.mkdir(parents=True, exist_ok=True)
            if self._somebody_listens():
                raise CannotStart(f"another gateway listens on {self._settings.socket_path}")
            for listen in filter(None, (self._values.listen, self._values.redirect_listen)):
                _check_port(listen)
            self._start(binary)
            return self._watch()
        except OSError as error:
            raise CannotStart(str(error)) from error
        finally:
            self._children.stop(self._settings.drain_timeout_s + STOP_MARGIN_S)

    def _start(self, binary: str) -> None:
        kind = "tls" if self._values.certificate else "http"
        configuration = configure_nginx(binary, self._settings.run_dir / "nginx.conf", lambda: nginx.render(kind, self._values))
        environ = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)} | self._settings.to_env()
        self._children.start("gateway", [sys.executable, "-P", "-m", "gateway"], environ)
        self._wait(self._somebody_listens, _TOO_LATE)
        if self._stop.is_set():
            return
        clean = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOARD_")}
        self._children.start("nginx", nginx.command(binary, configuration), clean, stop_signal=signal.SIGQUIT)
        self._wait(self._answers, _TOO_LATE)
        if not self._stop.is_set():
            print(f"ready http={self._settings.public_url}", flush=True)

    def _somebody_listens(self) -> bool:
        """On the gateway's socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self._settings.socket_path)) == 0

    def _answers(self) -> bool:
        """Whether a worker answers through nginx. Before one does, a stop would have to wait for the workers' start."""
        host, port = _address(self._values.listen)
        if self._values.certificate:
            context = ssl._create_unverified_context()  # to ourselves, by address; the certificate names the site
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _address(listen: str) -> tuple[str, int]:
    """Where this machine reaches what listens there."""
    host, _, port = listen.rpartition(":")
    return reachable(host).strip("[]"), int(port)


def _check_port(listen: str) -> None:
    """nginx's own check passes over a port that somebody has."""
    host, _, port = listen.rpartition(":")
    try:
        socket.create_server((host.strip("[]"), int(port)), family=socket.AF_INET6 if host.startswith("[") else socket.AF_INET).close()
    except OSError as error:
        raise CannotStart(f"{listen} for nginx: {error.strerror}") from error
