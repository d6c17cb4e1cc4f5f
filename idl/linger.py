"""Looking for a moment before going to sleep: waking up on another core takes longer than a small model's run.

It costs a core's time, so it is done only where what is waited for has lately come at once, and it makes way for whoever wants the core.
"""

import os
from collections.abc import Callable
from time import monotonic_ns
from typing import TypeVar

Found = TypeVar("Found")

LOOK_NS = 300_000
"""How long is looked."""
QUICK_NS = 400_000
"""A wait asleep that took no longer, being woken included, may be one that looking would have met."""
DISTURBED_NS = 100_000
"""One look takes two microseconds, and making way for the one that is waited for some tens: after more, somebody else wanted the core."""
ENOUGH, MOST = 2, 16
"""Quick waits in a row before it is tried, and how many of them count."""
LEAST_AWAY, MOST_AWAY = 4, 1024
"""Quick waits asleep after it was disturbed, each time in turn twice as many."""


class Linger:
    """One waiter's. A thread that uses it beside another costs both a look, no more. With a single core for this process it never looks."""

    __slots__ = ("_away", "_streak")

    def __init__(self, cores: int | None = None) -> None:
        """`cores`: that this process may run on; None: those of now."""
        many = (len(os.sched_getaffinity(0)) if cores is None else cores) > 1
        self._streak: float = 0 if many else float("-inf")
        self._away = LEAST_AWAY

    @property
    def worth(self) -> bool:
        """Whether it will look the next time."""
        return self._streak >= ENOUGH

    def wait(self, look: Callable[[], Found], sleep: Callable[[], Found]) -> Found:
        """What `look` finds (anything true) within the moment, else what `sleep` waits for."""
        begun = monotonic_ns()
        found = self._look(look, begun) if self._streak >= ENOUGH else None
        if not found:
            found = sleep()
        if monotonic_ns() - begun > QUICK_NS:
            self._streak = min(self._streak, 0)
        elif self._streak < MOST:
            self._streak += 1
        else:
            self._away = LEAST_AWAY
        return found

    def _look(self, look: Callable[[], Found], last: int) -> Found | None:
        until = last + LOOK_NS
        while True:
            found = look()
            if found:
                return found
            os.sched_yield()
            now = monotonic_ns()
            if now - last > DISTURBED_NS:
                self._streak = -self._away
                self._away = min(2 * self._away, MOST_AWAY)
                return None
            if now > until:
                self._streak = 0
                return None
            last = now
