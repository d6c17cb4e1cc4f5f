"""SIGKILL of the server at any moment: no process of it is left, no shared memory, and the next start in the same folder works.

What belongs to a server is told by a word in its environment, which every process that comes from it inherits: a list made before the kill
would miss those that are being forked at that very moment.
"""

import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from inference_client import Client
from tests.eventually import eventually
from tests.inference_server.grpc_peer import core_fixture, released_fixture  # noqa: F401
from tests.onnx_models import identity, slow, times
from tests.processes import ROOT, Process, environment, start_server

MARK = "ORPHAN_TEST_MARK"
MANY = 24


def marked(word: str) -> dict[int, str]:
    """pid -> name of the living processes that have the mark; a zombie's environment is empty."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={word}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "comm").read_text().strip()
    return found


def executors(word: str) -> int:
    return sum(name.startswith("outboard:") for name in marked(word).values())


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number in range(MANY):
        times(tmp_path / "models" / f"m{number:02}" / "1" / "model.onnx", 2)
    return tmp_path / "models"


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[Callable[..., "Marked"]]:
    """Starts one over `models` in a run folder; whatever happens, nothing of it outlives the test."""
    made: list[Marked] = []

    def start(*, wait: bool = False, folder: str = "run") -> Marked:
        made.append(Marked(models, tmp_path, tmp_path / folder, f"{os.getpid()}-{len(made)}", wait))
        return made[-1]

    yield start
    left = {word: marked(word) for word in (each.word for each in made)}
    for pids in left.values():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    for each in made:
        each.process.stop(signal.SIGKILL)


class Marked:
    """A server, and how to find what it has started."""

    def __init__(self, models: Path, tmp_path: Path, run_dir: Path, word: str, wait: bool) -> None:
        self.word, self.run_dir = word, run_dir
        options = ("--run-dir", str(run_dir), "--thrift-socket", str(run_dir / "t.sock"), "--grpc-socket", str(run_dir / "g.sock"))
        self.process: Process = start_server(models, tmp_path, *options, wait=wait, **{MARK: word})

    def kill(self) -> None:
        """At this very moment; then nothing of it may be left."""
        self.process.process.kill()
        self.process.process.wait(10)
        eventually(lambda: not marked(self.word), f"orphans: {marked(self.word)}")
        if self.process.process.stdout is not None:
            self.process.process.stdout.close()


def test_killed_while_the_zygote_starts(server: Callable[..., Marked]) -> None:
    """Before the zygote has asked to die with its parent: it finds nobody at the other end of its channel."""
    for _ in range(2):
        one = server()
        eventually(lambda one=one: len(marked(one.word)) > 1, "the zygote's process is there", 30)
        assert executors(one.word) == 0
        one.kill()


def test_killed_while_the_zygote_forks_and_models_load(server: Callable[..., Marked], long: bool) -> None:
    """Executors are forked one after the other; the kill comes at the k-th, when the next one may be between its fork and its first line."""
    chance = random.Random(7)
    rounds = 60 if long else 2
    for moment in (1, *(1 + chance.randrange(MANY) for _ in range(rounds))):
        one = server()
        eventually(lambda one=one, moment=moment: executors(one.word) >= moment, f"{moment} executors", 60)
        one.kill()


def test_killed_while_a_model_loads(server: Callable[..., Marked], models: Path) -> None:
    slow(models / "endless" / "1" / "model.onnx", 10_000_000)  # its warm-up is inside native code, and stays there
    one = server()
    eventually(lambda: "outboard:endles" in marked(one.word).values(), "it is there", 60)
    endless = next(pid for pid, name in marked(one.word).items() if name == "outboard:endles")
    eventually(lambda: cpu_ticks(endless) > 20, "it runs", 60)
    one.kill()


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def shared_here() -> set[str]:
    """Inodes of shared memory that this process maps; another test's may still be among them."""
    return {line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if "/memfd:outboard" in line}


def test_killed_under_load_it_leaves_no_shared_memory_and_the_next_start_works(server: Callable[..., Marked], models: Path) -> None:
    identity(models / "big" / "1" / "model.onnx")
    slow(models / "slow" / "1" / "model.onnx", 200)
    one = server(wait=True)
    before = shared_here()
    stopping, ended, answered = threading.Event(), [], threading.Semaphore(0)

    def call(address: str, model: str, value: np.ndarray) -> None:
        with Client(address, timeout_s=20) as client:
            while not stopping.is_set():
                try:
                    client.infer(model, {"x": value})
                    answered.release()
                except ServingError as error:
                    ended.append(error.code)
                    return

    large, tiny, one_value = np.zeros(300_000, np.float32), np.ones((1, 2), np.float32), np.float32([1])
    addresses = [f"{kind}+unix://{one.run_dir / f'{kind[0]}.sock'}" for kind in ("grpc", "thrift")]
    work = [(address, model, value) for address in addresses for model, value in (("big", large), ("m01", tiny), ("slow", one_value))]
    callers = [threading.Thread(target=call, args=each) for each in work]
    for caller in callers:
        caller.start()
    for _ in range(100):
        assert answered.acquire(timeout=30)
    mapped = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in marked(one.word))
    assert "/memfd:" in mapped and "/dev/shm/" not in mapped, "shared memory has no name that could outlive its processes"
    one.kill()
    stopping.set()
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    assert set(ended) <= {Code.UNAVAILABLE, Code.MODEL_FAILED, Code.INTERNAL}, ended
    gc.collect()
    assert not shared_here() - before, "what callers had of it"
    left = {path.name for path in one.run_dir.rglob("*") if path.is_socket()}
    assert "t.sock" in left, "a killed server leaves its sockets' files"
    if "g.sock" not in left:  # nginx, where it heard of the end in time, has removed its own: the next start shall meet one nevertheless
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(one.run_dir / "g.sock"))

    again = server(wait=True)
    for address in addresses:
        with Client(address) as client:
            assert client.infer("m01", {"x": tiny}).outputs["y"].tolist() == [[2, 2]]
    sockets = {path for path in one.run_dir.rglob("*.lane") if path.is_socket()}
    assert len(sockets) == MANY + 2, "one for each executor that lives"
    assert again.process.stop() == 0
    assert not [path for path in one.run_dir.rglob("*") if path.is_socket()]
    assert not marked(again.word)


def test_killed_zygote_and_server_at_once(server: Callable[..., Marked]) -> None:
    one = server(wait=True)
    (zygote,) = (pid for pid, name in marked(one.word).items() if name == "outboard-zygote")
    assert executors(one.word) == MANY
    os.kill(zygote, signal.SIGKILL)
    one.kill()


def test_whoever_dies_first_the_forked_child_ends(tmp_path: Path) -> None:
    """The zygote alone, forked at every step by a supervisor that is gone: the child reads the end of its control socket and leaves."""
    script = """
import array, json, os, signal, socket, subprocess, sys
from idl import board
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
command = [sys.executable, "-m", "inference_server.executors.zygote", str(theirs.fileno()), str(os.getpid())]
zygote = subprocess.Popen(command, pass_fds=[theirs.fileno()])
theirs.close()
for number in range(8):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{sys.argv[1]}/{number}")
    control, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = array.array("i", [listener.fileno(), child_end.fileno(), board.create()])
    asked = json.dumps({"name": "outboard:x", "memory_limit": 1 << 20}).encode()
    ours.sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, told)])
print("asked", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    word = f"{os.getpid()}-alone"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=environment(**{MARK: word}), stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None and supervisor.stdout.readline() == "asked\n"
    assert supervisor.wait(10) == -signal.SIGKILL
    supervisor.stdout.close()
    began = time.monotonic()
    eventually(lambda: not marked(word), f"left after {time.monotonic() - began:.1f} s: {marked(word)}", 30)


def test_a_parent_that_is_gone_before_its_child_can_be_told_of_it() -> None:
    """The signal of a parent's death comes once: who asks for it too late looks for the parent."""
    script = """
import os, sys
from inference_server.executors.becoming import be_an_executor
be_an_executor("x", os.getppid() + int(sys.argv[1]))
print("lives")
"""
    for other, said in ((0, "lives\n"), (1, "")):
        done = subprocess.run([sys.executable, "-c", script, str(other)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.returncode) == (said, int(not said))
