"""Engines and servers for the proofs. Whatever a proof starts must be gone after it."""

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

import pytest

from inference_server.executors.process import Watcher, Zygote
from tests.engines import engine_fixture, repository_fixture, started_once  # noqa: F401
from tests.eventually import eventually
from tests.processes import alive, descendants
from tests.proofs.process_trees import shared_memory

zygote, watcher = started_once("package")


@pytest.fixture(autouse=True)
def nothing_left_over(zygote: Zygote, watcher: Watcher) -> Iterator[None]:
    """No thread, descriptor, executor, shared memory or lane socket outlives the proof that made it."""
    before = _held(zygote)
    yield
    gc.collect()
    with contextlib.suppress(AssertionError):
        eventually(lambda: not _more(_held(zygote), before), "left over")
    left = _more(_held(zygote), before)
    assert not left, left


def _held(zygote: Zygote) -> dict[str, set[str]]:
    threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("ThreadPool")}
    return {
        "threads": threads,
        "descriptors": {str(number) for number in range(len(os.listdir("/proc/self/fd")))},
        "executors": set(map(str, alive(descendants(zygote._process.pid)))),
        "shared memory": set(map(str, shared_memory([os.getpid()]))),
        "sockets": {path.name for path in zygote.run_dir.glob("*.lane")},
        "routes": {path.name for path in zygote.run_dir.glob("routes/*.json")},
    }


def _more(now: dict[str, set[str]], before: dict[str, set[str]]) -> dict[str, set[str]]:
    return {what: now[what] - before[what] for what in now if now[what] - before[what]}
