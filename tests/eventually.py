"""Waiting for what another thread or process is about to do."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    """Looks until `condition` holds; fails, saying `what`, when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)
