"""What this machine has: cores, memory, disk, as far as this process may use them."""

import contextlib
import os
import shutil
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpus() -> float:
    """Cores that this process may run on."""
    return float(len(os.sched_getaffinity(0)))


def memory() -> tuple[int, int]:
    """(all, available) bytes, within the control group's limit where there is one (version 2 and 1)."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, rest = line.partition(":")
        values[key] = int(rest.split()[0]) * 1024
    total, available = values["MemTotal"], values["MemAvailable"]
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            most = int((_CGROUP / limit).read_text())
            if most < total:
                total, available = most, min(available, max(0, most - int((_CGROUP / used).read_text())))
    return total, available


def disk_available(path: Path) -> int:
    """Free bytes where `path` is, or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
