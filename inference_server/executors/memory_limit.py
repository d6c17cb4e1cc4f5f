"""Memory limits of executors: by control groups where the kernel lets us, else by looking and killing.

A control group counts what its process touched first: private memory, shared memory, cached files (these it gives up before it kills). The
watcher counts private memory that is resident, twenty times a second, so a process may be over its limit for a moment; and it counts no
shared memory. Either way the process dies by SIGKILL, alone, and `reason` says why.
"""

import contextlib
import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from inference_server.executors.memory_groups import MemoryGroup, MemoryGroups, Unusable, wait_until
from inference_server.reservations import in_units

log = logging.getLogger("outboard.server")

LOOK_EVERY_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


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

    def apply(self, pid: int, limit: int) -> None:
        """Holds a process to `limit` bytes from now on; 0: no limit. To be called before it loads its model."""
        if limit <= 0:
            return
        if self._groups is None or not self._group(self._groups, pid, limit):
            self._watch.add(pid, limit)

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
        if group is None:
            return self._watch.reason(pid)
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
    """Both descriptors are of this very process: neither can come to mean another one with the same number."""

    limit: int
    statm: int
    pidfd: int
    killed: bool = False

    def close(self) -> None:
        for descriptor in (self.statm, self.pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self.statm = self.pidfd = -1


class _Watch:
    """One thread for every process that is watched; none while there is no such process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, pid: int, limit: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return  # gone already
        try:
            statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(pidfd)
            return
        with self._lock:
            self._drop(pid)
            self._watched[pid] = _Watched(limit, statm, pidfd)
            if self._thread is None:
                self._ending = threading.Event()  # of this thread alone: the one before may not have seen its own yet
                self._thread = threading.Thread(target=self._run, args=(self._ending,), name="memory-watch", daemon=True)
                self._thread.start()

    def reason(self, pid: int) -> str:
        with self._lock:
            watched = self._watched.get(pid)
            return _over(watched.limit) if watched is not None and watched.killed else ""

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
    """Kills a process that is over its limit. The cheap count comes first; it has pages in it that are shared with the zygote."""
    if watched.killed:
        return
    try:
        _, resident, shared, *_ = os.pread(watched.statm, 200, 0).split()
        count = (int(resident) - int(shared)) * _PAGE
        if count <= watched.limit or _private_bytes(pid, count) <= watched.limit:
            return
        signal.pidfd_send_signal(watched.pidfd, signal.SIGKILL)
    except OSError:
        return  # it is on its way out
    watched.killed = True
    log.warning("executor killed", extra={"fields": {"pid": pid, "reason": _over(watched.limit)}})


def _private_bytes(pid: int, otherwise: int) -> int:
    """Resident private memory of a process that cannot be dropped and read again, in bytes; `otherwise` where that is not told."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return 1024 * int(line.split()[1])
    return otherwise
