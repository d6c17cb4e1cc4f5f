"""How the gateway's processes wake its task workers: a datagram with a job's name, to a socket of each worker in the run folder.

A ring that nobody hears is lost, and nothing with it: every job also looks by itself now and then.
"""

import contextlib
import socket
import threading
import time
from pathlib import Path

_SUFFIX = ".bell"
_LOOK_EVERY_S = 2.0
_MOST_BYTES = 64


def path_of(folder: Path, number: int) -> Path:
    """The socket of worker `number`."""
    return folder / f"worker-{number}{_SUFFIX}"


class Bell:
    """The ringing side. Thread-safe; opens nothing before the first ring, and belongs to the process that made it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._workers: list[str] = []
        self._look_at = 0.0

    def ring(self, job: str) -> None:
        """Wakes `job` of every worker. Never waits, and never fails: who is not there looks when it comes."""
        data = job.encode()
        for path in self._known():
            with contextlib.suppress(OSError):  # it has ended, or has rings enough waiting
                self._open().sendto(data, socket.MSG_DONTWAIT, path)

    def _known(self) -> list[str]:
        now = time.monotonic()
        if now >= self._look_at or not self._workers:
            self._look_at = now + _LOOK_EVERY_S
            self._workers = [str(path) for path in self._folder.glob(f"worker-*{_SUFFIX}")]
        return self._workers

    def _open(self) -> socket.socket:
        with self._lock:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            return self._socket

    def close(self) -> None:
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()


class Ear:
    """The hearing side, of one worker, which holds the lock of its number: what lies at `path` is of a dead one."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, also for a path that is too long for a socket."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            path.chmod(0o600)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when somebody rings."""
        return self._socket.fileno()

    def hear(self, timeout_s: float) -> str:
        """The job that somebody rings for; "" where nobody does in that time."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(_MOST_BYTES).decode(errors="replace")
        except TimeoutError:
            return ""

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)
