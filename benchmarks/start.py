"""How long a model host takes to its first answer, and what server and gateway hold while nobody calls."""

import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import payloads
from benchmarks.figures import best_and_median
from benchmarks.loads.thrift_frames import is_success
from benchmarks.processes import Resident, free_port, memory, wait_until
from benchmarks.repository import make_tiny
from benchmarks.servers import outboard_serve, outboard_up, scratch
from benchmarks.workload import Workload


def measure(starts: int, say: Callable[[str], None]) -> dict[str, Any]:
    with scratch() as folder:
        load = make_tiny(folder / "models")
        seconds = []
        for number in range(starts):
            say(f"start {number + 1} of {starts}: outboard serve with the tiny model")
            port = free_port()
            begin = time.perf_counter()
            with outboard_serve(folder / "models", folder / f"run{number}", port) as process:
                wait_until(partial(is_answered, port, load, process), "the first answer")
                seconds.append(time.perf_counter() - begin)
                server = memory(process.pid)
        say("outboard up with the tiny model, at rest")
        with outboard_up(folder / "models", folder / "data") as host:
            payloads.check_v2(host.http, load)
            whole = memory(host.pid)
    return {"serve_to_first_answer_s": best_and_median(seconds), "starts_s": seconds, "serve": by_role(server), "up": by_role(whole)}


def is_answered(port: int, load: Workload, process: subprocess.Popen[str]) -> bool:
    """One request over Thrift; False while the model is not ready, OSError while nobody listens."""
    if process.poll() is not None:
        raise RuntimeError(f"the server ended with {process.returncode}")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection, connection.makefile("rb") as stream:
        connection.sendall(payloads.thrift_frame(load))
        size = stream.read(4)
        return is_success(size + stream.read(int.from_bytes(size, "big")))


_ROLES = (
    ("nginx", "nginx"),
    ("uwsgi", "uWSGI"),
    ("executors.zygote", "zygote and executors"),
    ("inference_server", "model host"),
    (" serve", "model host"),
    (" up ", "supervisor"),
)


def role(process: Resident) -> str:
    """What a process is for; executors are forks of the zygote and keep its command line."""
    return next((name for mark, name in _ROLES if mark in process.command), process.command.split(" ")[0])


def by_role(processes: list[Resident]) -> dict[str, Any]:
    """Proportional set sizes in bytes, added up for each role."""
    found: dict[str, Any] = {}
    for process in processes:
        entry = found.setdefault(role(process), {"processes": 0, "pss": 0})
        entry["processes"] += 1
        entry["pss"] += process.pss
    return found
