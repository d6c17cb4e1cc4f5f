"""The life of a task worker: its number, its threads, and its end after what it has begun."""

import contextlib
import fcntl
import logging
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gateway import bells
from gateway.context import Services
from gateway.worker import work
from gateway.worker.jobs import Part

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
_MARGIN_S = 2.0
"""Of the time for a drain: what ending takes after the last task was given back."""


class AlreadyRunning(RuntimeError):
    """Another worker has this number."""


@contextlib.contextmanager
def lock(run_dir: Path, number: int) -> Iterator[None]:
    """The number is this process's until the end. Raises AlreadyRunning, OSError."""
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / f"worker-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(f"task worker {number} runs already on this data folder") from None
    try:
        yield
    finally:
        os.close(descriptor)


class Worker:
    """Everything that worker `number` does, over services that stay the caller's. `stop` may be called by signal handlers."""

    def __init__(self, services: Services, number: int = 1, make: Callable[[Services, int], Sequence[Part]] = work.parts) -> None:
        self._services = services
        self._number = number
        self._make = make
        self._stopping = False
        self._asked = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._bell_path = bells.path_of(services.settings.run_dir, number)

    def stop(self) -> None:
        """Asks `run` to return, after what has begun. Takes no lock: one signal may interrupt the handler of another, as after Ctrl-C, which
        comes from the terminal and from the master."""
        asked = self._asked
        if asked >= 0:
            with contextlib.suppress(OSError):
                os.eventfd_write(asked, 1)
        self._stopping = True

    def run(self) -> None:
        """Until `stop`. The caller holds the lock of the number."""
        ear = self._listen()
        parts = {part.name: part for part in self._make(self._services, self._number)}
        for part in parts.values():
            part.start()
        _log.info("worker_ready", extra={"worker": self._number, "pid": os.getpid(), "jobs": sorted(parts)})
        try:
            while not self._stopping:
                name = self._hear(ear)
                if name in parts:
                    parts[name].ring()
        finally:
            self._drain(list(parts.values()))
            if ear is not None:
                ear.close()
            asked, self._asked = self._asked, -1
            os.close(asked)

    def _listen(self) -> bells.Ear | None:
        try:
            return bells.Ear(self._bell_path)
        except OSError as error:
            _log.warning("bell_unusable", extra={"reason": error.strerror or str(error)})
            return None

    def _hear(self, ear: bells.Ear | None) -> str:
        poll = select.poll()
        poll.register(self._asked, select.POLLIN)
        if ear is not None:
            poll.register(ear.fileno(), select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(_LOOK_EVERY_S * 1000)}
        return ear.hear(_LOOK_EVERY_S) if ear is not None and ear.fileno() in ready else ""

    def _drain(self, parts: Sequence[Part]) -> None:
        until = time.monotonic() + max(1.0, self._services.settings.drain_timeout_s - _MARGIN_S)
        for part in parts:
            part.ask_to_stop()
        left = [part.name for part in parts if not part.join(max(0.0, until - time.monotonic()))]
        _log.info("worker_stopped", extra={"worker": self._number, "unfinished": left})
