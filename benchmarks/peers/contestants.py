"""The peers, each started as its makers say, with the models of this measurement: one intra-op thread, one instance of each model.

Everything that is special about starting one of them stands here, in its function. What is not named has the peer's own default.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from benchmarks.peers import environments
from benchmarks.peers.models import BIG, Models, ServedModel, Tensor
from benchmarks.processes import Cores, free_port, pinned, running, wait_until

TRITON, MLSERVER, KSERVE, LITSERVE = "Triton", "MLServer", "KServe", "LitServe"
INSIDE = Path(__file__).parent / "inside"
_MESSAGE_BYTES = 64 * 2**20
_START_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server that answers. `grpc` is host:port, `http` a URL, "" where it does not speak it; `pids` are the roots of its processes.

    `thrift_socket`: path of a unix socket, of Outboard. `headers` go with every HTTP request. `counts`: ModelStatistics tells failures.
    """

    name: str
    pids: tuple[int, ...]
    grpc: str = ""
    http: str = ""
    thrift_socket: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    counts: bool = False


@contextmanager
def triton(folder: Path, peers: Path, models: Models, cores: Cores) -> Iterator[Contestant]:
    """Triton from the nvidia-pytriton wheel, Python backend, its dynamic batcher on where a model takes batches."""
    packages = environments.site_packages(peers / "triton")
    wheel = packages / "pytriton" / "tritonserver"
    python = folder / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", python)
    stub = wheel / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / "triton_python_backend_stub"
    shutil.copy(stub, python)
    for model in models.served:
        (folder / "models" / model.name / "1").mkdir(parents=True)
        shutil.copy(INSIDE / "triton_model.py", folder / "models" / model.name / "1" / "model.py")
        (folder / "models" / model.name / "config.pbtxt").write_text(_triton_config(model))
    http, grpc, metrics = free_port(), free_port(), free_port()
    command = [str(wheel / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    command += [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    environ = _environ(peers / "triton", LD_LIBRARY_PATH=libraries)
    with running(pinned(command, cores), log=folder / "log", environ=environ, timeout_s=60) as process:
        yield _ready(process, TRITON, grpc, http, "/v2/health/ready", folder / "log")


def _triton_config(model: ServedModel) -> str:
    def tensors(kind: str, items: tuple[Tensor, ...]) -> str:
        each = (f'{{ name: "{item.name}" data_type: TYPE_{item.datatype} {_triton_dims(item, model.max_batch > 0)} }}' for item in items)
        return f"{kind} [ {', '.join(each)} ]"

    return "\n".join(
        [
            f'name: "{model.name}"\nbackend: "python"\nmax_batch_size: {model.max_batch}',
            tensors("input", model.inputs),
            tensors("output", model.outputs),
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            *(["dynamic_batching { }"] if model.max_batch else []),
            f'parameters {{ key: "file" value: {{ string_value: "{model.file}" }} }}\n',
        ]
    )


def _triton_dims(tensor: Tensor, batched: bool) -> str:
    dims = tensor.shape[1:] if batched else tensor.shape
    return f"dims: {list(dims)}" if dims else "dims: [ 1 ] reshape: { shape: [ ] }"


@contextmanager
def mlserver(folder: Path, peers: Path, models: Models, cores: Cores) -> Iterator[Contestant]:
    """MLServer, without its pool of worker processes.

    Measured with a pool of one, its default: 0.4 to 0.7 of the requests/s on the small models, 0.6 to 1.3 on MiniLM and EfficientNet. The pool
    needs uvloop below 0.22, which the lock file therefore has.
    """
    http, grpc, metrics = free_port(), free_port(), free_port()
    for model in models.served:
        settings = {"name": model.name, "implementation": "mlserver_model.OnnxModel", "parameters": {"uri": str(model.file)}}
        _write_json(folder / model.name / "model-settings.json", settings)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0}
    _write_json(folder / "settings.json", settings | {"grpc_max_message_length": _MESSAGE_BYTES})
    command = [str(peers / "mlserver" / "bin" / "mlserver"), "start", str(folder)]
    environ = _environ(peers / "mlserver", PYTHONPATH=str(INSIDE))
    with running(pinned(command, cores), log=folder / "log", environ=environ) as process:
        yield _ready(process, MLSERVER, grpc, http, "/v2/health/ready", folder / "log")


@contextmanager
def kserve(folder: Path, peers: Path, models: Models, cores: Cores) -> Iterator[Contestant]:
    """KServe's Python server."""
    http, grpc = free_port(), free_port()
    command = [str(peers / "kserve" / "bin" / "python"), str(INSIDE / "kserve_server.py"), str(_list(folder, models.served))]
    command += ["--http_port", str(http), "--grpc_port", str(grpc)]
    for way in ("send", "receive"):
        command += [f"--grpc_max_{way}_message_length", str(_MESSAGE_BYTES)]
    with running(pinned(command, cores), log=folder / "log", environ=_environ(peers / "kserve")) as process:
        yield _ready(process, KSERVE, grpc, http, "/v2/health/ready", folder / "log")


@contextmanager
def litserve(folder: Path, peers: Path, models: Models, cores: Cores) -> Iterator[Contestant]:
    """LitServe, HTTP only; without the 16 MB model, whose numbers as JSON are nobody's use."""
    http = free_port()
    served = tuple(model for model in models.served if model.name != BIG)
    command = [str(peers / "litserve" / "bin" / "python"), str(INSIDE / "litserve_server.py"), str(_list(folder, served)), str(http)]
    with running(pinned(command, cores), log=folder / "log", environ=_environ(peers / "litserve")) as process:
        yield _ready(process, LITSERVE, 0, http, "/health", folder / "log")


Start = Callable[[Path, Path, Models, Cores], AbstractContextManager[Contestant]]
PEERS: dict[str, tuple[str, Start]] = {
    TRITON: ("triton", triton),
    MLSERVER: ("mlserver", mlserver),
    KSERVE: ("kserve", kserve),
    LITSERVE: ("litserve", litserve),
}
"""Name -> its environment, and how it starts in a new folder: `(folder, peers, models, cores)`."""


def _list(folder: Path, served: tuple[ServedModel, ...]) -> Path:
    return _write_json(folder / "models.json", [{"name": model.name, "file": str(model.file)} for model in served])


def _write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def _environ(environment: Path, **more: str) -> dict[str, str]:
    """What a peer needs of this environment, and nothing that would change how it runs."""
    return {"PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(environment), "LANG": "C.UTF-8", **more}


def _ready(process: subprocess.Popen[str], name: str, grpc: int, http: int, path: str, log: Path) -> Contestant:
    """Waits until GET `path` is answered with 200. Raises RuntimeError with the end of the log."""

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}; its log ends with:\n{log.read_text()[-4000:]}")
        connection = HTTPConnection("127.0.0.1", http, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except HTTPException:
            return False
        finally:
            connection.close()

    try:
        wait_until(answers, f"{name} ready", timeout_s=_START_TIMEOUT_S, pause_s=0.1)
    except TimeoutError as error:
        raise RuntimeError(f"{error}; its log ends with:\n{log.read_text()[-4000:]}") from error
    return Contestant(name, (process.pid,), f"127.0.0.1:{grpc}" if grpc else "", f"http://127.0.0.1:{http}", counts=name == TRITON)
