"""Processes that a measurement starts: free ports, waiting, ending, and what a tree of them holds in memory."""

import ctypes
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MIB = 2**20
Cores = tuple[int, ...]
"""Numbers of cores that processes may use; empty: all."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)
_MARK = "BENCHMARK_PROCESS"


@dataclass(frozen=True, slots=True)
class Resident:
    """One process: `pss` counts a page that n processes share as 1/n of it. Bytes."""

    pid: int
    command: str
    pss: int
    private: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pinned(command: list[str], cores: Cores) -> list[str]:
    """The command, started so that it and all that it starts use only these cores."""
    return ["taskset", "-c", ",".join(map(str, cores)), *command] if cores else command


def _end_with_us() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def running(
    command: list[str], *, log: Path, environ: Mapping[str, str] | None = None, stdout: int | None = None, timeout_s: float = 30
) -> Iterator[subprocess.Popen[str]]:
    """A process that is asked to end with SIGTERM and, past `timeout_s`, made to, with all that it started.

    What it logs goes to the file `log`. It gets SIGTERM as well when this process dies.
    """
    # what outlives its parent becomes our child, so that it is found below; what did so long before has the mark in its environment
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    mark = uuid.uuid4().hex
    with log.open("a") as errors:
        process = subprocess.Popen(
            command,
            env={**(os.environ if environ is None else environ), _MARK: mark},
            stdout=stdout or errors,
            stderr=errors,
            text=True,
            start_new_session=True,
            preexec_fn=_end_with_us,  # noqa: PLW1509  one thread starts processes here, and nothing may run before it is told
        )
    try:
        yield process
    finally:
        left = set(tree(process.pid))
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # what is no descendant of ours any more ended long ago, and its number may be another's
        ours = set(tree(os.getpid())) - {process.pid, os.getpid()}
        send([pid for pid in ours if pid in left or _has_mark(pid, mark)], signal.SIGKILL)
        if process.stdout:
            process.stdout.close()


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def send(roots: Iterable[int], number: int) -> None:
    """The signal to these processes and all their descendants; one that ended meanwhile is passed over."""
    for pid in [pid for root in roots for pid in tree(root)]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def read_line(stream: IO[str], process: subprocess.Popen[str], log: Path) -> str:
    """The next line of a process's output; where it ended without one, its log is in the error."""
    line = stream.readline()
    if not line:
        process.wait(10)
        raise RuntimeError(f"{process.args!r} ended with {process.returncode} before it was ready:\n{log.read_text()[-4000:]}")
    return line


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = 30, pause_s: float = 0.002) -> float:
    """Seconds until `done`; tries again on OSError. Raises TimeoutError."""
    start = time.perf_counter()
    while time.perf_counter() - start < timeout_s:
        try:
            if done():
                return time.perf_counter() - start
        except OSError:
            pass
        time.sleep(pause_s)
    raise TimeoutError(f"{what}: not within {timeout_s} s")


def tree(root: int) -> list[int]:
    """The process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += sorted(children.get(pid, []))
    return found


def _parent(entry: Path) -> int | None:
    try:
        # the name in parentheses may hold anything, so fields are counted from its end
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def memory(root: int) -> list[Resident]:
    """What each process of the tree holds; one that ended meanwhile is left out."""
    found = []
    for pid in tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        found.append(Resident(pid, command, sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"]))
    return found


def cpu_seconds(root: int) -> float:
    """What the processes of the tree used so far, in seconds of one core; what has ended counts where its parent waited for it."""
    used = 0
    for pid in tree(root):
        try:
            used += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
    return used / _TICKS
