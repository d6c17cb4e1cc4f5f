"""What this machine has: cores, memory, disk, as far as this process may use them."""

import os
import shutil
from pathlib import Path

from inference_server import control_groups
from inference_server.control_groups import field, number


def cores() -> tuple[int, ...]:
    """The numbers of the cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cpus() -> float:
    """How many cores' time this process may use: its affinity, within the quota of its control groups."""
    least = float(len(cores()))
    group = control_groups.own("cpu")
    for folder in group.levels() if group else ():
        quota, period = _bandwidth(folder)
        if quota and period and quota > 0:
            least = min(least, quota / period)
    return least


def _bandwidth(folder: Path) -> tuple[int | None, int | None]:
    """(microseconds, of how many): version 1's two files or version 2's one."""
    if (folder / "cpu.cfs_quota_us").exists():
        return number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota), int(period)
    except (OSError, ValueError):  # the top group has no such file; "max" is no number
        return None, None


def memory() -> tuple[int, int]:
    """(all, available) bytes, within the limits of this process's control groups. Cached files count as available, as the kernel has it."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, rest = line.partition(":")
        values[key] = int(rest.split()[0]) * 1024
    total, available = values["MemTotal"], values["MemAvailable"]
    group = control_groups.own("memory")
    for folder in group.levels() if group else ():
        limit, used, cached = _memory_of(folder)
        if limit is not None and limit < values["MemTotal"]:
            total, available = min(total, limit), min(available, max(0, limit - used + cached))
    return total, available


def _memory_of(folder: Path) -> tuple[int | None, int, int]:
    """(limit, used, of that cached files) of one group, bytes; version 1's names or version 2's."""
    if (folder / "memory.limit_in_bytes").exists():
        limit, used, key = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    else:
        limit, used, key = "memory.max", "memory.current", "inactive_file"
    return number(folder / limit), number(folder / used) or 0, field(folder / "memory.stat", key)


def disk_available(path: Path) -> int:
    """Free bytes where `path` is, or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
