"""Processes of ours, started and stopped by tests: the inference server alone, everything together; and what any process has."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                for child in map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()):
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


def command(pid: int) -> bytes:
    """What a process was started as; b"" of one that has gone meanwhile."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def executors(pid: int, model: str) -> set[int]:
    """The processes below `pid` that run a model."""
    found = set()
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{each}/comm").read_text().strip() == f"outboard:{model}"[:15]:
                found.add(each)
    assert found, model
    return found


@contextlib.contextmanager
def stopped(pids: set[int]) -> Iterator[None]:
    """While these stand still: what they are at is not over before the test has done its part."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def wait_until_gone(pids: set[int], seconds: float = 10) -> set[int]:
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive(pids)


def resident(pids: Iterable[int]) -> int:
    """Bytes of memory that these processes have, each with what it shares; one that has gone has none."""
    found = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found += int((Path(f"/proc/{pid}/statm").read_text().split() or ["0", "0"])[1])
    return found * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int | str = "self") -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def free_port() -> int:
    """A TCP port of this machine that nobody had a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
