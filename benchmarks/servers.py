"""The product, started for a measurement."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Cores, free_port, pinned, read_line, running

OUTBOARD = str(Path(sys.executable).with_name("outboard"))


@dataclass(frozen=True, slots=True)
class Host:
    """Where one is: `grpc` and `thrift` are host:port, `http` a URL; `pid` is the root of its processes, 0 where it was not started here.

    `run_dir`: where its unix sockets lie, None where that is not known.
    """

    grpc: str
    thrift: str
    http: str = ""
    pid: int = 0
    run_dir: Path | None = None


@contextmanager
def outboard_up(models: Path, data: Path, settings: Mapping[str, str] | None = None, cores: Cores = ()) -> Iterator[Host]:
    """Everything on one machine: nginx, gateway, model host."""
    command = [OUTBOARD, "up", "--data", str(data), "--models", str(models), "--no-demo"]
    for name in ("http", "grpc", "thrift", "metrics"):
        command += [f"--{name}-port", str(free_port())]
    log = data.with_suffix(".log")
    with running(pinned(command, cores), log=log, environ=environ(settings), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        addresses = ready_addresses(read_line(process.stdout, process, log))
        yield Host(addresses["grpc"], addresses["thrift"], addresses["http"], process.pid, data / "run")


@contextmanager
def outboard_serve(models: Path, run_dir: Path, thrift_port: int = 0) -> Iterator[subprocess.Popen[str]]:
    """The model host alone, not yet ready."""
    command = [OUTBOARD, "serve", "--models", str(models), "--run-dir", str(run_dir)]
    command += ["--grpc-port", "0", "--thrift-port", str(thrift_port), "--metrics-port", "0"]
    with running(command, log=run_dir.with_suffix(".log"), environ=environ(), stdout=subprocess.PIPE) as process:
        yield process


def ready_addresses(line: str) -> dict[str, str]:
    """What `ready http=... grpc=...` lists."""
    word, _, rest = line.partition(" ")
    if word != "ready":
        raise RuntimeError(f"instead of its addresses it printed {line!r}")
    return dict(part.split("=", 1) for part in rest.split())


def environ(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without settings that somebody left in it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOARD_")}
    return clean | dict(settings or {})


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a short name: a unix socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ob-") as folder:
        yield Path(folder)
