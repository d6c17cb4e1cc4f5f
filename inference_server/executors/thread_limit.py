"""How many threads code in a box may have: a limit of the kernel's where there is one, else whoever goes over it is killed.

The kernel counts a user's threads for each user namespace since Linux 5.14, so that a limit (RLIMIT_NPROC, setrlimit(2)) that is set in a box is
the box's own. Before, it would count those of all the user's processes; and root it does not hold at all. Nothing but the standard library.
"""

import os
import resource
from functools import lru_cache

_PER_NAMESPACE = (5, 14)
MOST = 1024 + 16 * (os.cpu_count() or 1)
"""Libraries have pools of one or two threads for each core."""


def to_hold() -> int:
    """What a process in a box is to be told; 0 where the kernel would not keep it."""
    return 0 if _watched() else MOST


def to_watch() -> int:
    """How many threads of one in a box somebody has to look for; 0 where the kernel does."""
    return MOST if _watched() else 0


@lru_cache(maxsize=1)
def _watched() -> bool:
    return os.geteuid() == 0 or _version(os.uname().release) < _PER_NAMESPACE


def hold(most: int) -> None:
    """This process, from now on, and for good. 0: no limit."""
    if most:
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (wanted, wanted))


def _version(release: str) -> tuple[int, ...]:
    """Of "5.14.0-70.el9" the first two numbers; () for what has none, which is before everything."""
    numbers = release.replace("-", ".").split(".")[:2]
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else ()
