"""`outboard up`: everything of the product on one machine, in the foreground.

Starts the inference server, the gateway under uWSGI and, where it is installed, nginx; prints one `ready` line on standard output when
all of it answers; ends everything it started on Ctrl-C or SIGTERM, or when a part ends by itself.
"""

import argparse
import fcntl
import http.client
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from outboard import foreground, nginx
from outboard.foreground import START_TIMEOUT_S, CannotStart, Foreground, configure_nginx, reachable
from outboard.processes import Children

PREFIX = "OUTBOARD_"
OTHERS = (
    "OUTBOARD_SERVER_",
    "OUTBOARD_GATEWAY_",
    "OUTBOARD_ADMIN_PASSWORD",
    "OUTBOARD_TOKEN",
    "OUTBOARD_CA",
    "OUTBOARD_CERTIFICATE",
    "OUTBOARD_KEY",
)
"""What may stand in the environment beside the options of `up`: the parts' own settings."""
LONGEST_SOCKET_PATH = 107
STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `up`; each is an environment variable as well. A port of 0 takes a free one."""

    data: Path
    models: Path | None
    host: str
    http_port: int
    grpc_port: int
    thrift_port: int
    metrics_port: int
    no_demo: bool
    nginx: str

    @property
    def run_dir(self) -> Path:
        return self.data / "run"

    @property
    def pushed_models(self) -> Path:
        """Outboard's own repository: what is pushed, where its owner has named none."""
        return self.data / "models"

    @property
    def demo_models(self) -> Path:
        """A repository of its own, so that it can be left out."""
        return self.data / "demo"


_DEFAULTS: dict[str, str] = {
    "data": "./data",
    "models": "",
    "host": "127.0.0.1",
    "http_port": "8080",
    "grpc_port": "8001",
    "thrift_port": "9090",
    "metrics_port": "8002",
    "no_demo": "",
    "nginx": "auto",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of DIR, ports and host; what is not given comes from OUTBOARD_<NAME>, else the default."""
    parser.add_argument("--data", metavar="DIR", help="where all state lies (default ./data)")
    parser.add_argument("--models", metavar="DIR", help="a model repository of yours, served besides the demo")
    parser.add_argument("--host", help="the address to listen on (default 127.0.0.1)")
    for name in ("http", "grpc", "thrift", "metrics"):
        parser.add_argument(f"--{name}-port", metavar="PORT", type=int, help=f"default {_DEFAULTS[f'{name}_port']}; 0: a free one")
    parser.add_argument("--no-demo", action="store_const", const="1", help="do not prepare and serve the demo model")
    parser.add_argument("--nginx", metavar="auto|off|PATH", help="the web server in front; off: uWSGI's own HTTP port (default auto)")


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 after a stop that was asked for, 1 where something failed, 2 for options that cannot be used."""
    try:
        options = _options(arguments, os.environ)
    except ValueError as error:
        print(f"outboard up: {error}", file=sys.stderr)
        return 2
    return foreground.run("up", Up(options))


def _options(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Options:
    known = {PREFIX + name.upper(): name for name in _DEFAULTS}
    values = dict(_DEFAULTS)
    for key, text in environ.items():
        if key in known:
            values[known[key]] = text
        elif key.startswith(PREFIX) and not key.startswith(OTHERS):
            raise ValueError(f"{key} is not a setting; known are {', '.join(sorted(known))}")
    values |= {name: str(given) for name in _DEFAULTS if (given := getattr(arguments, name)) is not None}
    ports = {}
    for name in ("http_port", "grpc_port", "thrift_port", "metrics_port"):
        if not values[name].isdecimal() or int(values[name]) > 65535:
            raise ValueError(f"{name.replace('_', ' ')} {values[name]!r} is not a port")
        ports[name] = int(values[name])
    models = Path(values["models"]).absolute() if values["models"] else None
    if models and not models.is_dir():
        raise ValueError(f"--models {models} is not a folder")
    no_demo = {"": False, "0": False, "false": False, "1": True, "true": True}.get(values["no_demo"].lower())
    if no_demo is None:
        raise ValueError(f"OUTBOARD_NO_DEMO = {values['no_demo']!r} is neither 1 nor 0")
    return Options(Path(values["data"]).absolute(), models, values["host"], **ports, no_demo=no_demo, nginx=values["nginx"])


class Up(Foreground):
    """One run of everything."""

    def __init__(self, options: Options) -> None:
        super().__init__(Children(options.data / "logs"))
        self._options = options
        self._server_ready = threading.Event()
        self._addresses: dict[str, str] = {}
        self._not_served = 0

    def run(self) -> int:
        self._prepare_folders()
        lock = self._lock()
        try:
            self._start()
            if not self._stop.is_set():
                print(self._ready_line(), flush=True)
            return self._watch()
        finally:
            self._children.stop(STOP_TIMEOUT_S)
            lock.close()

    def _prepare_folders(self) -> None:
        options = self._options
        longest = len(os.fsencode(options.run_dir / "x10000000.lane"))
        if longest > LONGEST_SOCKET_PATH:
            raise CannotStart(
                f"--data {options.data}: unix sockets lie in its folder run/, and their paths would have {longest} bytes of the "
                f"{LONGEST_SOCKET_PATH} that a socket's path may have; choose a shorter folder"
            )
        try:
            for folder in (options.run_dir, options.pushed_models, options.data / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
            options.run_dir.chmod(0o700)
        except OSError as error:
            raise CannotStart(f"--data {options.data}: {error.strerror}") from error

    def _lock(self) -> IO[str]:
        file = (self._options.run_dir / "up.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise CannotStart(f"another `outboard up` runs on {self._options.data}") from None
        return file

    def _start(self) -> None:
        self._prepare_demo()
        self._start_server()
        self._start_web()
        self._await("the model server", self._server_ready.is_set)
        self._await("the gateway", self._gateway_answers)
        if self._not_served:
            self._warn_of_failed_models()

    def _prepare_demo(self) -> None:
        from outboard import demo

        options = self._options
        try:
            demo.move(options.pushed_models, options.demo_models)  # where earlier releases had it
        except OSError as error:
            raise CannotStart(
                f"the demo model in {options.pushed_models} cannot be moved to {options.demo_models}: {error.strerror}"
            ) from error
        if options.no_demo:
            return
        if not (options.demo_models / demo.NAME / "1" / "model.onnx").exists():
            print("outboard up: preparing the demo model (once)", file=sys.stderr)
        try:
            demo.prepare(options.demo_models)
        except demo.DemoError as error:
            raise CannotStart(f"the demo model cannot be prepared: {error}; --no-demo goes without it") from error
        self._prepare_dialogue()

    def _prepare_dialogue(self) -> None:
        """The other half of the demo, which is left out where its packages are not there."""
        from outboard import demo, demo_dialogue

        try:
            demo_dialogue.prepare(self._options.demo_models)
        except (demo.DemoError, OSError) as error:
            print(f"outboard up: the dialogue is left out: {error}", file=sys.stderr)

    def _start_server(self) -> None:
        options = self._options
        # the gateway is told where it is before the server has said so
        self._metrics_port = options.metrics_port or _claim_port(options.host, 0, "metrics")
        self._rpc_ports = {
            "grpc": options.grpc_port or _claim_port(options.host, 0, "gRPC"),
            "thrift": options.thrift_port or _claim_port(options.host, 0, "Thrift"),
        }
        roots = [options.models, options.pushed_models, None if options.no_demo else options.demo_models]
        ours = {
            "MODELS": os.pathsep.join(str(root) for root in roots if root),
            "PUSH_DIR": str(options.models or options.pushed_models),
            "USER_MODELS": str(options.data / "user-models"),
            "RUN_DIR": str(options.run_dir),
            "HOST": options.host,
            "GRPC_PORT": str(self._rpc_ports["grpc"]),
            "THRIFT_PORT": str(self._rpc_ports["thrift"]),
            "METRICS_PORT": str(self._metrics_port),
            "GRPC_SOCKET": str(options.run_dir / "grpc.sock"),
            "THRIFT_SOCKET": str(options.run_dir / "thrift.sock"),
        }
        environ = _with_settings("OUTBOARD_SERVER_", ours)
        if environ.get("OUTBOARD_SERVER_TOKEN_FILE") and not _token():
            raise CannotStart("OUTBOARD_SERVER_TOKEN_FILE needs OUTBOARD_SERVER_TOKEN as well: the gateway has to show a token")
        self._children.start(
            "server", [sys.executable, "-P", "-m", "inference_server"], environ, on_output=self._server_said, on_message=_tell
        )

    def _server_said(self, line: str) -> None:
        if line.startswith("ready "):
            said = dict(pair.split("=", 1) for pair in line.split()[1:])
            self._not_served = int(said.pop("not_served", "0"))
            self._addresses |= said
            self._server_ready.set()

    def _start_web(self) -> None:
        options = self._options
        binary = nginx.find() if options.nginx == "auto" else "" if options.nginx == "off" else options.nginx
        port = _claim_port(options.host, options.http_port)
        self._http = (options.host, port)
        url = f"http://{_bracketed(options.host)}:{port}"
        self._addresses["http"] = url
        ours = {
            "DATA_DIR": str(options.data),
            "MODEL_HOSTS": f"thrift+unix://{options.run_dir / 'thrift.sock'}",
            "MODEL_HOST_METRICS": f"http://{_bracketed(reachable(options.host))}:{self._metrics_port}/metrics",
            "MODEL_HOST_TOKEN": _token(),
            "ADMIN_PASSWORD": os.environ.get("OUTBOARD_ADMIN_PASSWORD", ""),
            **({} if "OUTBOARD_GATEWAY_PUBLIC_URL" in os.environ else {"PUBLIC_URL": url}),
            **self._public_rpc(),
            "HTTP_HOST": options.host,
            "HTTP_PORT": str(port),
            **({"SOCKET": str(options.run_dir / "gateway.sock")} if binary else {}),
        }
        environ = _with_settings("OUTBOARD_GATEWAY_", ours)
        self._children.start("gateway", [sys.executable, "-P", "-m", "gateway"], environ, on_message=_tell)
        if binary:
            self._start_nginx(binary)
        where = "nginx" if binary else f"uWSGI's own HTTP port (nginx is {'off' if options.nginx == 'off' else 'not installed'})"
        print(f"outboard up: HTTP is served by {where}; logs are in {options.data / 'logs'}", file=sys.stderr)

    def _public_rpc(self) -> dict[str, str]:
        """Where people reach the model host, for the snippets on pages; what is set for it goes before."""
        secure = "s" if os.environ.get("OUTBOARD_SERVER_TLS_CERTIFICATE") else ""
        found = {
            f"PUBLIC_{name.upper()}": f"{name}{secure}://{_bracketed(self._options.host)}:{port}" for name, port in self._rpc_ports.items()
        }
        return {name: value for name, value in found.items() if f"OUTBOARD_GATEWAY_{name}" not in os.environ}

    def _start_nginx(self, binary: str) -> None:
        host, port = self._http
        listen = f"{_bracketed(host)}:{port}"
        configuration = configure_nginx(
            binary, self._options.run_dir / "nginx.conf", lambda: nginx.render("http", nginx.for_up(self._options.data, listen, os.environ))
        )
        self._children.start("nginx", nginx.command(binary, configuration), os.environ, stop_signal=signal.SIGQUIT)

    def _await(self, what: str, answers: Callable[[], bool]) -> None:
        self._wait(answers, f"{what} does not answer after {START_TIMEOUT_S:.0f} s; see {self._options.data / 'logs'}")

    def _gateway_answers(self) -> bool:
        try:
            return self._get("/livez")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _get(self, path: str) -> tuple[int, bytes]:
        host, port = self._http
        connection = http.client.HTTPConnection(reachable(host), port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _warn_of_failed_models(self) -> None:
        """A model that cannot be loaded keeps nobody from using the others, but is not passed over in silence."""
        from inference_client import Client, ServingError
        from inference_server.near_models import near_models

        if self._stop.is_set():
            return
        try:
            with Client(f"thrift+unix://{self._options.run_dir / 'thrift.sock'}", token=_token()) as client:
                failed = [index for index in client.repository_index() if index.state == "UNAVAILABLE" and index.reason != "not loaded"]
        except ServingError as error:
            raise CannotStart(f"the model server does not answer: {error.message}") from error
        for index in failed:
            print(f"outboard up: not served: {index.name} version {index.version or '?'}: {index.reason}", file=sys.stderr)
        for root in filter(None, (self._options.models, self._options.pushed_models)):
            for near in near_models(root):
                print(f"outboard up: not served: {near.where}: not a model: {near.why}", file=sys.stderr)

    def _ready_line(self) -> str:
        return "ready " + " ".join(f"{name}={self._addresses.get(name, '')}" for name in ("http", "grpc", "thrift", "metrics"))


def _with_settings(prefix: str, ours: Mapping[str, str]) -> dict[str, str]:
    """This environment with a part's settings. Raises CannotStart for one that is given there and that `up` decides itself."""
    for key in ours:
        if prefix + key in os.environ:
            raise CannotStart(f"{prefix}{key} is decided by `outboard up` itself; use its own options and variables instead")
    return {**os.environ, **{prefix + key: value for key, value in ours.items()}}


def _token() -> str:
    """What the gateway sends: of two tokens the first."""
    return os.environ.get("OUTBOARD_SERVER_TOKEN", "").partition(",")[0].strip()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _claim_port(host: str, port: int, what: str = "HTTP") -> int:
    """`port`, or a free one for 0. Raises CannotStart where somebody has it: what answers there must be ours."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            return int(sock.getsockname()[1])
    except OSError as error:
        raise CannotStart(f"port {port} of {host} for {what}: {error.strerror}") from error
