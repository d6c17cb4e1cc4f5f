"""Control groups with a memory limit for single processes, under the group that the server itself is in.

Version 1: a group beside the server's other children. Version 2 lets a group have either processes or children with limits: the server
first moves itself and its own processes into a child (a leaf), which it may only where nobody else is in its group. Groups carry the
server's pid and start time in their names, so that a later server removes what a killed one left, and never a living one's.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inference_server import control_groups
from inference_server.control_groups import ControlGroup, field, number

_PREFIX = "outboard-"
_LEAF = "server"
LONGEST_EXIT_S = 1.0
_AT_ONCE = 4 * 2**20
"""Bytes that a process may ask for in one step: so near below its limit it was when it was refused more."""


class Unusable(Exception):
    """Control groups cannot be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """The group of one process, with a limit in bytes."""

    version: int
    folder: Path
    limit: int

    def add(self, pid: int) -> None:
        """Moves a process in, with all its threads; what it had touched before stays counted where it was. Raises OSError."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def killed(self) -> bool:
        """Whether the kernel has killed a process of it for want of memory, whoever's limit it was."""
        return field(self.folder / ("memory.oom_control" if self.version == 1 else "memory.events"), "oom_kill") > 0

    def at_limit(self) -> bool:
        """Whether its own limit was ever reached, and not only that of a group above or the host's memory."""
        if self.version == 1:  # memory.failcnt would say it, but stays 0 on recent kernels
            return (number(self.folder / "memory.max_usage_in_bytes") or 0) + _AT_ONCE >= self.limit
        return field(self.folder / "memory.events", "oom") > 0

    def remove(self) -> bool:
        """False while a process of it is still on its way out."""
        return _removed(self.folder)


class MemoryGroups:
    """Makes groups and removes them. Raises Unusable where the kernel, the mount or the group's other processes do not allow it."""

    def __init__(self) -> None:
        found = control_groups.own("memory")
        if found is None:
            raise Unusable("this process is in no control group that counts memory")
        self._group: ControlGroup = found
        self._me = f"{os.getpid()}-{started(os.getpid())}"
        self._numbers = itertools.count(1)
        self._leaf: Path | None = None
        self.version = found.version
        remove_left_overs(found.folder)
        try:
            self._prepare()
        except OSError as error:
            self.close()
            raise Unusable(f"the control group of this process cannot be changed: {error.strerror}") from error

    def _prepare(self) -> None:
        if self.version == 1:
            self.make(1 << 30).remove()  # a try: may groups be made, and limits be set?
            return
        folder = self._group.folder
        if "memory" not in (folder / "cgroup.controllers").read_text().split():
            raise Unusable("the memory controller is not on for the control group of this process")
        if not delegated(folder):
            raise Unusable("systemd has not delegated the control group of this process: the unit needs Delegate=memory")
        if (folder / "cgroup.type").exists():  # all have it but the top one of the machine, which may have both
            self._leave(folder)
        (folder / "cgroup.subtree_control").write_text("+memory")
        self.make(1 << 30).remove()

    def _leave(self, folder: Path) -> None:
        """Moves this process, and those that it has started, out of `folder` into a leaf. Raises Unusable where others are in there."""
        own = {os.getpid(), *descendants(os.getpid())}
        if others := _processes(folder) - own:
            raise Unusable(f"{len(others)} processes that are not this server's are in its control group")
        self._leaf = folder / f"{_PREFIX}{self._me}-{_LEAF}"
        self._leaf.mkdir(exist_ok=True)
        while inside := _processes(folder):  # again for what was forked meanwhile
            for pid in inside:
                with contextlib.suppress(ProcessLookupError):
                    (self._leaf / "cgroup.procs").write_text(str(pid))

    def make(self, limit: int) -> MemoryGroup:
        """An empty group with a limit in bytes; what it holds is not swapped. Raises OSError."""
        folder = self._group.folder / f"{_PREFIX}{self._me}-{next(self._numbers)}"
        folder.mkdir()
        group = MemoryGroup(self.version, folder, limit)
        try:
            limiting, *others = _settings(self.version, limit)
            (folder / limiting[0]).write_text(str(limiting[1]))
            for name, value in others:
                if (folder / name).exists():  # it is not where the kernel does not count swap
                    (folder / name).write_text(str(value))
        except OSError:
            group.remove()
            raise
        return group

    def close(self) -> None:
        """Goes back to where it was, so that nothing of this server's is left. Idempotent; groups that are in use must be gone before."""
        if self._leaf is None:
            return
        leaf, self._leaf = self._leaf, None
        with contextlib.suppress(OSError):
            (self._group.folder / "cgroup.subtree_control").write_text("-memory")
            for pid in _processes(leaf):
                with contextlib.suppress(ProcessLookupError):
                    (self._group.folder / "cgroup.procs").write_text(str(pid))
            wait_until(lambda: _removed(leaf))


def delegated(folder: Path, systemd: Path = Path("/run/systemd/system")) -> bool:
    """Whether the group is this process's to change: systemd, where it runs, marks those that it leaves alone (systemd's "Control Group APIs
    and Delegation"); in another it would undo our limits at its next reload.
    """
    if not systemd.is_dir():
        return True
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def wait_until(is_so: Callable[[], bool]) -> None:
    """Looks again for a moment: a process that has ended may be counted in its group a little longer."""
    give_up = time.monotonic() + LONGEST_EXIT_S
    while not is_so() and time.monotonic() < give_up:
        time.sleep(0.005)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _settings(version: int, limit: int) -> tuple[tuple[str, int], ...]:
    if version == 1:  # in this order: with swap it may not be less than without
        return ("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", limit), ("memory.swappiness", 0)
    return ("memory.max", limit), ("memory.swap.max", 0)


def remove_left_overs(folder: Path) -> None:
    """Removes the groups of servers that have ended. A process in one, should there be any, keeps it."""
    for left_over in folder.glob(f"{_PREFIX}*-*-*"):
        pid, began = left_over.name.removeprefix(_PREFIX).split("-")[:2]
        if pid.isdigit() and started(int(pid)) != began:
            with contextlib.suppress(OSError):
                left_over.rmdir()


def started(pid: int) -> str:
    """When a process began, in clock ticks since the boot: with its number the name of that very process. "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _processes(folder: Path) -> set[int]:
    return set(map(int, (folder / "cgroup.procs").read_text().split()))


def descendants(pid: int) -> set[int]:
    """What a process has started, and what that has, of those that are there."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found |= {child} | descendants(child)
    return found
