"""Outboard, started for this measurement: the model host alone with one front or another, and the full path in its two layouts."""

import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.peers.contestants import Contestant
from benchmarks.peers.models import EFFICIENTNET, MINILM, TINY, Models
from benchmarks.processes import Cores, free_port, pinned, read_line, running, wait_until
from benchmarks.servers import OUTBOARD, environ, outboard_up, ready_addresses
from gateway.settings import Settings
from outboard import nginx

PRIVATE, TWO_INSTANCES = f"{TINY}-private", f"{EFFICIENTNET}-two-instances"
UNBATCHED = {MINILM: f"{MINILM}-unbatched", EFFICIENTNET: f"{EFFICIENTNET}-unbatched"}
VARIANTS = {
    PRIVATE: (TINY, "public = false\n"),
    TWO_INSTANCES: (EFFICIENTNET, "instances = 2\n"),
    **{name: (model, "max_batch_size = 1\n") for model, name in UNBATCHED.items()},
}
"""Name -> the model whose file it serves, and its model.toml."""
ONE_HOST, TWO_HOSTS = "Outboard, one host", "Outboard, two hosts"
_PASSWORD = "correct horse battery staple"
_SERVER = {"OUTBOARD_SERVER_MODEL_THREADS": "1"}
_GATEWAY = {"OUTBOARD_GATEWAY_ADMIN_PASSWORD": _PASSWORD, "OUTBOARD_GATEWAY_ACCESS_TOKEN_TTL_S": "86400"}


def front(kind: str) -> str:
    """The contestant's name for a value of `--grpc-front`; "" is today's default."""
    return f"Outboard, {kind} front" if kind else "Outboard"


@contextmanager
def serve(folder: Path, models: Models, cores: Cores, kind: str) -> Iterator[Contestant]:
    """The model host alone; `kind` is given to `--grpc-front`."""
    sock = folder / "thrift.sock"
    command = [OUTBOARD, "serve", "--models", str(_repository(folder, models)), "--run-dir", str(folder / "run")]
    command += ["--grpc-port", "0", "--thrift-port", "0", "--metrics-port", "0", "--thrift-socket", str(sock)]
    command += ["--grpc-front", kind] if kind else []
    log = folder / "log"
    with running(pinned(command, cores), log=log, environ=environ(_SERVER), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        addresses = ready_addresses(read_line(process.stdout, process, log))
        yield Contestant(front(kind), (process.pid,), addresses["grpc"], thrift_socket=sock, counts=True)


@contextmanager
def one_host(folder: Path, models: Models, cores: Cores) -> Iterator[Contestant]:
    """`outboard up`: nginx, uWSGI, and the local lane to the models."""
    settings = _SERVER | _GATEWAY
    settings["OUTBOARD_ADMIN_PASSWORD"] = settings.pop("OUTBOARD_GATEWAY_ADMIN_PASSWORD")
    with outboard_up(_repository(folder, models), folder / "data", settings, cores) as host:
        assert host.run_dir is not None
        sock = host.run_dir / "thrift.sock"
        yield Contestant(ONE_HOST, (host.pid,), host.grpc, host.http, sock, _signed_in(host.http), counts=True)


@contextmanager
def two_hosts(folder: Path, models: Models, cores: Cores) -> Iterator[Contestant]:
    """The parts as on two hosts, each started by itself, with Thrift over TCP between them."""
    binary = nginx.find()
    if binary is None:
        raise RuntimeError("nginx is missing; on Debian or Ubuntu: apt-get install nginx")
    log, data, port = folder / "log", folder / "data", free_port()
    command = [OUTBOARD, "serve", "--models", str(_repository(folder, models)), "--run-dir", str(folder / "run")]
    command += ["--grpc-port", "-1", "--thrift-port", "0", "--metrics-port", "0"]
    (data / "run").mkdir(parents=True)
    with ExitStack() as stack:
        server = stack.enter_context(running(pinned(command, cores), log=log, environ=environ(_SERVER), stdout=subprocess.PIPE))
        assert server.stdout is not None
        thrift = ready_addresses(read_line(server.stdout, server, log))["thrift"]
        settings = {
            "OUTBOARD_GATEWAY_DATA_DIR": str(data),
            "OUTBOARD_GATEWAY_MODEL_HOSTS": f"thrift://{thrift}",
            "OUTBOARD_GATEWAY_SOCKET": str(data / "run" / "gateway.sock"),
        }
        everything = environ(_GATEWAY | settings)
        gateway = stack.enter_context(running(pinned([OUTBOARD, "gateway"], cores), log=log, environ=everything))
        configuration = folder / "nginx.conf"
        configuration.write_text(nginx.render("http", nginx.for_gateway(Settings.from_env(everything), data / "run", f"127.0.0.1:{port}")))
        web = stack.enter_context(running(pinned(nginx.command(binary, configuration), cores), log=log))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _status(url) == 200, "the gateway", pause_s=0.05)
        yield Contestant(TWO_HOSTS, (server.pid, gateway.pid, web.pid), "", url, headers=_signed_in(url))


def plain_socket(contestant: Contestant) -> Path:
    """The Thrift socket under another name, beside which no local lane is announced: what is called there is Thrift."""
    assert contestant.thrift_socket is not None
    alias = contestant.thrift_socket.with_name("t.sock")
    if not alias.is_symlink():
        alias.symlink_to(contestant.thrift_socket)
    return alias


def _repository(folder: Path, models: Models) -> Path:
    """One of its own for each start, as a server may keep what it measured there. The files are links."""
    target = folder / "models"
    shutil.copytree(models.folder, target, copy_function=os.link)
    for name, (source, settings) in VARIANTS.items():
        (target / name / "1").mkdir(parents=True)
        os.link(models.folder / source / "1" / "model.onnx", target / name / "1" / "model.onnx")
        (target / name / "model.toml").write_text(settings)
    return target


def _connection(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)


def _status(url: str) -> int:
    connection = _connection(url)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except http.client.HTTPException:
        return 0
    finally:
        connection.close()


def _signed_in(url: str) -> dict[str, str]:
    connection = _connection(url)
    try:
        body = json.dumps({"username": "admin", "password": _PASSWORD})
        connection.request("POST", "/v1/tokens", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return {"Authorization": f"Bearer {answer['access_token']}"}
