"""What a process and everything below it hold: memory, descriptors, threads, shared memory."""

import contextlib
import os
import re
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.processes import alive, descendants

_ESTABLISHED = "01"  # and not one whose other end has gone: that one should be closed
_UNIX_LISTENING = "00010000"  # the flag of a socket that accepts
_MEMFD = re.compile(r"[0-9a-f]{2,}:[0-9a-f]{2,} (\d+) +/memfd:")


def tree(pid: int) -> set[int]:
    """`pid` and every living process below it."""
    return alive({pid} | descendants(pid))


def resident_bytes(pid: int, samples: int = 5) -> int:
    """Memory of the whole tree, pages that several share counted once (proportional set size); the median of a second's samples."""
    found = []
    for sample in range(samples):
        if sample:
            time.sleep(1 / samples)  # a sample, not a wait for anything
        found.append(sum(_proportional(each) for each in tree(pid)))
    return int(statistics.median(found))


def _proportional(pid: int) -> int:
    return _rollup(pid, "Pss:")


def private_bytes(pid: int) -> int:
    """Memory that would come back if this process ended."""
    return _rollup(pid, "Private_")


def _rollup(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(field))
    return 0


@dataclass(frozen=True, slots=True)
class Holdings:
    """Counts over a tree. `connections` are those that are kept for the next call, and no `descriptors`: as many of them are open as calls
    were made at once of late, which is the callers' doing (and nginx's, whose processes are left out).
    """

    processes: int
    threads: int
    descriptors: int
    memfds: int
    connections: int

    def over(self, before: "Holdings", at_once: int) -> str:
        """What is more than before, as text; "" where nothing is. Of connections there may be as many more as calls were made `at_once`."""
        more = {
            name: (getattr(before, name), getattr(self, name))
            for name in self.__slots__
            if getattr(self, name) > getattr(before, name) + (at_once if name == "connections" else 0)
        }
        return ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in more.items())


def holdings(pid: int) -> Holdings:
    """Of a tree at this moment."""
    pids = tree(pid)
    kept = _kept_connections()
    open_ = [entry for pid in pids for entry in _descriptors(pid)]
    connections = sum(entry in kept for entry in open_)
    return Holdings(len(pids), sum(map(_threads, pids)), len(open_) - connections, len(shared_memory(pids)), connections)


def _threads(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def _descriptors(pid: int) -> list[str]:
    """What each of them is, as proc(5) calls it; none of nginx's."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text() == "nginx\n":
            return []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found.append(str(entry.readlink()))
    return found


def _kept_connections() -> set[str]:
    """What /proc/PID/fd calls the machine's TCP connections, and what was accepted from the nginx that fronts gRPC. proc(5), unix(7)."""
    found = set()
    for table in ("tcp", "tcp6"):
        file = Path(f"/proc/net/{table}")
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            fields = line.split()
            if fields[3] == _ESTABLISHED:
                found.add(f"socket:[{fields[9]}]")
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and "/grpc-front/" in fields[7] and fields[3] != _UNIX_LISTENING:
            found.add(f"socket:[{fields[6]}]")
    return found


def shared_memory(pids: Iterable[int]) -> set[int]:
    """The inodes of the memfds that these processes map or hold open."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found |= {int(inode) for inode in _MEMFD.findall(Path(f"/proc/{pid}/maps").read_text())}
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(entry.readlink()).startswith("/memfd:"):
                        found.add(entry.stat().st_ino)
    return found


def everybody() -> set[int]:
    """Every process that this one may look at."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}
