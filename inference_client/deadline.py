"""How long a call may still take."""

import select
import time
from collections.abc import Callable

from idl.codes import Code, ServingError

Clock = Callable[[], float]
"""Seconds, never going back."""


class Deadline:
    """One moment that connecting, sending, waiting and every retry of a call share.

    `at` infinite: never. `watch`: a descriptor whose hang-up means that nobody waits for the answer any more; -1: none.
    """

    __slots__ = ("_clock", "at", "watch")

    def __init__(self, at: float, clock: Clock = time.monotonic, watch: int = -1) -> None:
        self.at = at
        self._clock = clock
        self.watch = watch

    def left(self) -> float:
        """Seconds, above 0. Raises deadline_exceeded once there are none."""
        left = self.at - self._clock()
        if left <= 0:
            raise passed()
        return left

    def left_or_none(self) -> float | None:
        """As `left`; None where there is no deadline."""
        return None if self.at == float("inf") else self.left()

    def is_passed(self) -> bool:
        return self._clock() >= self.at

    def wait_for(self, descriptor: int) -> None:
        """Until `descriptor` can be read. Raises deadline_exceeded, and cancelled once the watched one is hung up."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if self.watch >= 0:
            poll.register(self.watch, select.POLLRDHUP)
        ready = poll.poll(self.left() * 1000)
        if not ready:
            raise passed()
        if all(found != descriptor for found, _ in ready):
            raise ServingError(Code.CANCELLED, "the caller has gone")


def passed() -> ServingError:
    """What a caller gets whose time ran out on this side."""
    return ServingError(Code.DEADLINE_EXCEEDED, "the model host did not answer within the time allowed")
