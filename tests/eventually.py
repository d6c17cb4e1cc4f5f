"""Waiting for what another thread or process is about to do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], what: str, within_s: float = 10.0, every_s: float = 0.001) -> T:
    """Looks until `condition` holds, and gives what it gave; fails, saying `what`, when it does not in time. `every_s`: between two looks;
    a request is no look at a variable.
    """
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(every_s)
    return found
