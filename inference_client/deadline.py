"""How long a call may still take."""

import time
from collections.abc import Callable

from idl.codes import Code, ServingError

Clock = Callable[[], float]
"""Seconds, never going back."""


class Deadline:
    """One moment that connecting, sending, waiting and every retry of a call share."""

    __slots__ = ("_clock", "at")

    def __init__(self, at: float, clock: Clock = time.monotonic) -> None:
        self.at = at
        self._clock = clock

    def left(self) -> float:
        """Seconds, above 0. Raises deadline_exceeded once there are none."""
        left = self.at - self._clock()
        if left <= 0:
            raise passed()
        return left

    def is_passed(self) -> bool:
        return self._clock() >= self.at


def passed() -> ServingError:
    """What a caller gets whose time ran out on this side."""
    return ServingError(Code.DEADLINE_EXCEEDED, "the model host did not answer within the time allowed")
