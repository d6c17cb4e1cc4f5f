"""Memory limits of executors: by control groups where the kernel lets us, else by looking and killing.

A control group counts what its process touched first: private memory, shared memory, cached files (these it gives up before it kills), and
what it writes into the memory that is /tmp and /dev/shm of its box. The watcher counts private memory that is resident, and those two, twenty
times a second, so a process may be over its limit for a moment; and it counts no other shared memory. It counts threads as well, where the
kernel does not (`thread_limit`). Either way the process dies by SIGKILL, alone, and `reason` says why.
"""

import contextlib
import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from inference_server.executors import sandbox
from inference_server.executors.memory_groups import MemoryGroup, MemoryGroups, Unusable, wait_until
from inference_server.reservations import in_units

log = logging.getLogger("outboard.server")

LOOK_EVERY_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")
_INODE = 1024
"""Bytes of the kernel's for each file, however empty."""
_THREADS = 17
"""Of /proc/PID/stat, counted from what follows the name (proc(5): num_threads)."""


class MemoryLimits:
    """Thread-safe; `close` is idempotent. To be made before the processes that it may have to move: see `memory_groups`.

    `by`: "auto" (control groups, else the watcher) or "watch". A failure to limit one process is logged; it is then watched.
    """

    def __init__(self, by: str = "auto") -> None:
        self._lock = threading.Lock()
        self._grouped: dict[int, MemoryGroup] = {}
        self._leaving: list[MemoryGroup] = []
        self._watch = _Watch()
        self._groups: MemoryGroups | None = None
        why = "so configured"
        if by == "auto":
            try:
                self._groups = MemoryGroups()
            except Unusable as error:
                why = str(error)
        self.means = f"control groups, version {self._groups.version}" if self._groups else f"watching: {why}"
        """For the log: how limits are kept, and why not otherwise."""

    def apply(self, pid: int, limit: int, threads: int = 0) -> None:
        """Holds a process to `limit` bytes from now on, and to as many threads by looking; 0: no limit. To be called before it loads its model."""
        if limit > 0 and self._groups is not None and self._group(self._groups, pid, limit):
            limit = 0
        if limit > 0 or threads > 0:
            self._watch.add(pid, max(0, limit), threads)

    def _group(self, groups: MemoryGroups, pid: int, limit: int) -> bool:
        try:
            group = groups.make(limit)
        except OSError as error:
            log.warning("no control group, watched instead", extra={"fields": {"pid": pid, "reason": error.strerror}})
            return False
        try:
            group.add(pid)
        except OSError as error:
            group.remove()
            if not isinstance(error, ProcessLookupError):  # gone already: whoever waits for it will notice
                log.warning("no control group, watched instead", extra={"fields": {"pid": pid, "reason": error.strerror}})
                return False
            return True
        with self._lock:
            self._grouped[pid] = group
        return True

    def reason(self, pid: int) -> str:
        """Why a process that has died was killed, "" where it was not for its memory. To be asked before `forget`."""
        with self._lock:
            group = self._grouped.get(pid)
        if why := self._watch.reason(pid):
            return why
        if group is None:
            return ""
        if not group.killed():
            return ""
        return (
            _over(group.limit) if group.at_limit() else "killed: this host, or the control group that the server is in, was out of memory"
        )

    def forget(self, pid: int) -> None:
        """The process is gone. Idempotent."""
        self._watch.remove(pid)
        with self._lock:
            if (group := self._grouped.pop(pid, None)) is not None:
                self._leaving.append(group)
            self._leaving = [each for each in self._leaving if not each.remove()]

    def close(self) -> None:
        """To be called when every process is gone; what still holds a group keeps it until a later server's start."""
        self._watch.close()
        with self._lock:
            leaving, self._leaving, self._grouped = [*self._leaving, *self._grouped.values()], [], {}
        wait_until(lambda: all(group.remove() for group in leaving))
        if self._groups is not None:
            self._groups.close()


def _over(limit: int) -> str:
    return f"killed: over its memory limit of {in_units(limit)}"


@dataclass(slots=True)
class _Watched:
    """All descriptors are of this very process: none can come to mean another one with the same number. `written`: where it writes memory."""

    limit: int
    threads: int
    pidfd: int
    statm: int
    stat: int
    written: tuple[int, ...]
    why: str = ""

    def close(self) -> None:
        for descriptor in (self.statm, self.stat, self.pidfd, *self.written):
            if descriptor >= 0:
                os.close(descriptor)
        self.statm = self.stat = self.pidfd = -1
        self.written = ()


def _watched(pid: int, limit: int, threads: int) -> _Watched | None:
    """None where it has gone already."""
    with contextlib.ExitStack() as closing:

        def opened(path: str, flags: int = os.O_RDONLY) -> int:
            found = os.open(path, flags | os.O_CLOEXEC)
            closing.callback(os.close, found)
            return found

        try:
            pidfd = os.pidfd_open(pid)
            closing.callback(os.close, pidfd)
            statm, stat = opened(f"/proc/{pid}/statm"), opened(f"/proc/{pid}/stat")
        except OSError:
            return None
        written = []
        for folder in sandbox.WRITABLE if limit else ():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/root/{folder}").stat().st_dev != Path(f"/{folder}").stat().st_dev:  # its own, not the host's
                    written.append(opened(f"/proc/{pid}/root/{folder}", os.O_PATH | os.O_DIRECTORY))
        closing.pop_all()
        return _Watched(limit, threads, pidfd, statm, stat, tuple(written))


class _Watch:
    """One thread for every process that is watched; none while there is no such process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, pid: int, limit: int, threads: int) -> None:
        if (made := _watched(pid, limit, threads)) is None:
            return
        with self._lock:
            self._drop(pid)
            self._watched[pid] = made
            if self._thread is None:
                self._ending = threading.Event()  # of this thread alone: the one before may not have seen its own yet
                self._thread = threading.Thread(target=self._run, args=(self._ending,), name="memory-watch", daemon=True)
                self._thread.start()

    def reason(self, pid: int) -> str:
        with self._lock:
            watched = self._watched.get(pid)
            return watched.why if watched is not None else ""

    def remove(self, *pids: int) -> None:
        ended: threading.Thread | None = None
        with self._lock:
            for pid in pids:
                self._drop(pid)
            if not self._watched:
                self._ending.set()
                ended, self._thread = self._thread, None
        if ended is not None:
            ended.join()

    def _drop(self, pid: int) -> None:
        if (watched := self._watched.pop(pid, None)) is not None:
            watched.close()

    def close(self) -> None:
        self.remove(*list(self._watched))

    def _run(self, ending: threading.Event) -> None:
        while not ending.wait(LOOK_EVERY_S):
            with self._lock:
                for pid, watched in self._watched.items():
                    _look(pid, watched)


def _look(pid: int, watched: _Watched) -> None:
    """Kills a process that is over its limits."""
    if watched.why:
        return
    try:
        if not (why := _too_many(watched) or _too_much(pid, watched)):
            return
        signal.pidfd_send_signal(watched.pidfd, signal.SIGKILL)
    except OSError:
        return  # it is on its way out
    watched.why = why
    log.warning("executor killed", extra={"fields": {"pid": pid, "reason": why}})


def _too_many(watched: _Watched) -> str:
    if not watched.threads:
        return ""
    count = int(os.pread(watched.stat, 2000, 0).rpartition(b")")[2].split()[_THREADS])
    return f"killed: over its limit of {watched.threads} threads" if count > watched.threads else ""


def _too_much(pid: int, watched: _Watched) -> str:
    """The cheap count comes first; it has pages in it that are shared with the zygote."""
    if not watched.limit:
        return ""
    written = sum(map(_written, watched.written))
    _, resident, shared, *_ = os.pread(watched.statm, 200, 0).split()
    count = (int(resident) - int(shared)) * _PAGE
    if count + written <= watched.limit or _private_bytes(pid, count) + written <= watched.limit:
        return ""
    return _over(watched.limit)


def _written(folder: int) -> int:
    """Bytes of memory that the files of a tmpfs have."""
    found = os.fstatvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize + (found.f_files - found.f_ffree) * _INODE


def _private_bytes(pid: int, otherwise: int) -> int:
    """Resident private memory of a process that cannot be dropped and read again, in bytes; `otherwise` where that is not told."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return 1024 * int(line.split()[1])
    return otherwise
