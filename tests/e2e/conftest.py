"""Real processes: the inference server alone, and everything together as `outboard up` starts it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from inference_client import Client
from outboard.__main__ import main

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 90.0


@dataclass
class Process:
    """A part started by a test: its addresses from the `ready` line, and its process."""

    process: subprocess.Popen[str]
    log: Path
    addresses: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.addresses[name]

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        if self.process.stdout:
            self.process.stdout.close()
        return code


def environment(**extra: str) -> dict[str, str]:
    """This environment without any setting of ours."""
    return {key: value for key, value in os.environ.items() if not key.startswith("OUTBOARD_")} | extra


def start(command: list[str], log: Path, *, wait: bool = True, **env: str) -> Process:
    """Starts a command of ours; with `wait`, returns when it has printed its `ready` line."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=output, text=True, env=environment(**env), cwd=ROOT
        )
    made = Process(process, log)
    if not wait:
        return made
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready "):
        made.stop(signal.SIGKILL)
        raise AssertionError(f"{command}: said {line!r}; its log:\n{log.read_text()}")
    made.addresses = dict(pair.split("=", 1) for pair in line.split()[1:])
    return made


def start_server(models: Path, tmp_path: Path, *options: str, wait: bool = True, **env: str) -> Process:
    ports = ["--grpc-port", "0", "--thrift-port", "0", "--metrics-port", "0"]
    return start(["inference_server", "--models", str(models), *ports, *options], tmp_path / "server.log", wait=wait, **env)


def start_up(data: Path, *options: str, wait: bool = True, **env: str) -> Process:
    data.mkdir(parents=True, exist_ok=True)
    ports = [word for name in ("http", "grpc", "thrift", "metrics") for word in (f"--{name}-port", "0")]
    return start(["outboard", "up", "--data", str(data), *ports, *options], data / "up.log", wait=wait, **env)


def descendants(pid: int) -> set[int]:
    """Every process below `pid`."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found |= {child} | descendants(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run, or still hold their files: a zombie does neither once its last thread has gone."""
    living = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z" or fields[17] != "1":
                living.add(pid)
    return living


def wait_until_gone(pids: set[int], seconds: float = 10) -> set[int]:
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive(pids)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Everything, with the demo model and a few tiny ones, as a new user would start it."""
    from tests.onnx_models import identity, times

    folder = tmp_path_factory.mktemp("stack")
    models = folder / "models"
    times(models / "triple" / "1" / "model.onnx", 3)
    times(models / "reloaded" / "1" / "model.onnx", 3)
    identity(models / "text" / "1" / "model.onnx", 8)
    made = start_up(folder / "data", "--models", str(models), OUTBOARD_ADMIN_PASSWORD="correct horse battery")
    yield made
    below = descendants(made.process.pid)
    assert made.stop(signal.SIGINT) == 0, made.log.read_text()
    assert not wait_until_gone(below), "processes left over"


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips where a program is not installed, but in CI that is an error."""
    import shutil

    missing = [name for name in programs if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing and os.environ.get("CI") == "true":
        raise RuntimeError(f"not installed, and CI=true: {', '.join(missing)}")
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


# what tests of `outboard models` use beside a `server` of their own -------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def repository(server: Process) -> Path:
    return server.log.parent / "models"


@pytest.fixture
def client(server: Process) -> Iterator[Client]:
    with Client(server["grpc"]) as made:
        yield made


@pytest.fixture
def outboard(server: Process, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `outboard models ...` here: (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["models", *map(str, arguments), "--host", server["grpc"]])
        return code, *capsys.readouterr()

    return run
