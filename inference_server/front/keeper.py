"""Keeps the front's processes: started, watched, started again when they end, and left behind by no end of the server."""

import contextlib
import fcntl
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

log = logging.getLogger("outboard.server")

LEAST_DELAY_S, MOST_DELAY_S = 0.05, 5.0
WELL_S = 10.0
"""A process that has lived so long was well: its next start comes at once again."""
ASK_EVERY_S = 1.0
_KILL_TIMEOUT_S = 5.0


class Started(Protocol):
    """A running process that leads a process group of its own, so that what it has started ends with it."""

    process: subprocess.Popen[bytes]
    channel: int
    """A descriptor to be read from."""
    ready: bool
    last_words: str

    def read(self) -> None:
        """`channel` is readable."""

    def tick(self, now: float) -> None:
        """About once a second, with the time (monotonic seconds)."""

    def close(self) -> None:
        """After the process has ended."""


Start = Callable[[], Started]


@dataclass(slots=True)
class _Part:
    name: str
    start: Start
    running: Started | None = None
    pidfd: int = -1
    began: float = 0.0
    delay_s: float = 0.0
    due: float | None = 0.0
    """When it is to be started; None: never again."""
    failures: int = 0
    """Ends in a row, each soon after its start."""
    last_words: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set where it is not started again."""


class Keeper:
    """One thread starts the parts and keeps them running. The parent-death signal follows that thread, so it lives until `close`."""

    def __init__(self, parts: Mapping[str, Start]) -> None:
        self._parts = {name: _Part(name, start) for name, start in parts.items()}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False
        self._closed = False
        self._requests: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="grpc-front", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ready(self, name: str) -> bool:
        """What the process itself says."""
        running = self._parts[name].running
        return running is not None and running.ready

    def failures(self, name: str) -> int:
        return self._parts[name].failures

    def last_words(self, name: str) -> str:
        """What it said before it ended."""
        return self._parts[name].last_words

    def wait_for_change(self, timeout_s: float) -> None:
        """Until a process says something or ends."""
        with self._changed:
            self._changed.wait(timeout_s)

    def stop(self, name: str, number: signal.Signals, timeout_s: float) -> bool:
        """Asks a process to end, for good. Whether it did in time."""
        part = self._parts[name]

        def ask() -> None:
            part.due = None
            if part.running is None:
                part.ended.set()
            else:
                part.running.process.send_signal(number)

        if not self._thread.is_alive():
            return True
        self._requests.append(ask)
        os.eventfd_write(self._wake, 1)
        return part.ended.wait(timeout_s)

    def send(self, name: str, number: signal.Signals) -> None:
        """A signal to a process, where it runs."""
        part = self._parts[name]

        def send() -> None:
            if part.running is not None:
                part.running.process.send_signal(number)

        self._requests.append(send)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Kills what still runs. Idempotent."""
        if self._closed:
            return
        self._closed = self._closing = True
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        os.close(self._wake)

    # in the thread ---------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asked = 0.0
        while not self._closing:
            now = time.monotonic()
            for part in self._parts.values():
                if part.running is None and part.due is not None and now >= part.due:
                    self._start(part, now)
            if now >= asked + ASK_EVERY_S:
                asked = now
                for part in self._parts.values():
                    if part.running is not None:
                        part.running.tick(now)
            self._wait(now, asked + ASK_EVERY_S)
        for part in self._parts.values():
            part.due = None
            if part.running is not None:
                part.running.process.kill()
                self._reap(part, part.running)

    def _wait(self, now: float, until: float) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for part in self._parts.values():
            if part.running is not None:
                poll.register(part.pidfd, select.POLLIN)
                poll.register(part.running.channel, select.POLLIN)
            elif part.due is not None:
                until = min(until, part.due)
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, until - now) * 1000)}
        for part in self._parts.values():
            if part.running is not None and part.running.channel in ready:
                part.running.read()
            if part.running is not None and part.pidfd in ready:
                self._reap(part, part.running)
        if self._wake in ready:
            os.eventfd_read(self._wake)
            requests, self._requests = self._requests, []
            for request in requests:
                request()
        with self._changed:
            self._changed.notify_all()

    def _start(self, part: _Part, now: float) -> None:
        part.delay_s = min(MOST_DELAY_S, max(LEAST_DELAY_S, 2 * part.delay_s))
        part.began = now
        try:
            part.running = part.start()
            part.pidfd = os.pidfd_open(part.running.process.pid)
        except OSError as error:
            part.last_words = f"it cannot be started: {error.strerror}"
            if part.running is not None:
                part.running.process.kill()
                self._reap(part, part.running)
            else:
                self._ended(part, None)

    def _reap(self, part: _Part, running: Started) -> None:
        with contextlib.suppress(ChildProcessError):  # whoever stops it may have looked at its status first
            os.waitid(os.P_PID, running.process.pid, os.WEXITED | os.WNOWAIT)
        # until it is reaped, its number and its group's are nobody else's; nginx's workers outlive a killed master, and keep its port
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        status = running.process.wait()
        running.read()
        part.last_words = running.last_words
        running.close()
        if part.pidfd >= 0:
            os.close(part.pidfd)
        part.running, part.pidfd = None, -1
        self._ended(part, status)

    def _ended(self, part: _Part, status: int | None) -> None:
        if part.due is None:
            part.ended.set()
            return
        now = time.monotonic()
        if now - part.began > WELL_S:
            part.delay_s, part.failures = 0.0, 0
        part.failures += 1
        part.due = now + part.delay_s
        fields = {"process": part.name, "status": status, "reason": part.last_words, "again_in_s": part.delay_s}
        log.warning("a process of the gRPC front ended and is started again", extra={"fields": fields})


def only_ours(path: Path) -> int:
    """A descriptor of the lock file `path`; every process that inherits it holds the lock as well, whatever becomes of this one.

    What an earlier server left holds it: those processes are ended. The caller has made sure that no other server uses the folder.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + _KILL_TIMEOUT_S
    while time.monotonic() < until:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            for pid in _holders(descriptor):
                log.warning("a process of an earlier server is ended", extra={"fields": {"pid": pid}})
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
    os.close(descriptor)
    raise OSError(f"{path} is held by a process that cannot be ended")


def _holders(descriptor: int) -> list[int]:
    """The processes, besides this one, that have the file open, as far as this user may see."""
    wanted = os.fstat(descriptor)
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if any(_same(path, wanted) for path in (folder / "fd").iterdir()):
                    found.append(int(folder.name))
    return found


def _same(path: Path, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), wanted)
    return False
