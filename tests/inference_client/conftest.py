"""Every test here must leave no descriptor and no thread behind."""

import gc
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


def _sockets() -> dict[int, str]:
    """Descriptor -> what it is, of those that are sockets."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found[int(link.name)] = target
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    sockets, threads = _sockets(), set(threading.enumerate())
    yield
    gc.collect()
    waiting = threading.Event()
    for _ in range(500):  # grpc's core closes from threads of its own, a little later
        left = {number: name for number, name in _sockets().items() if sockets.get(number) != name}
        started = {thread for thread in threading.enumerate() if thread not in threads and not thread.daemon}
        if not left and not started:
            return
        waiting.wait(0.01)
    pytest.fail(f"left open: {left}; still running: {started}")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for a unix socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="ob-"))
    yield folder
    shutil.rmtree(folder)
