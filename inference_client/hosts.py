"""Which host takes the next call: round robin over those that can be reached."""

import logging
import threading
from collections.abc import Collection, Sequence

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0


class Hosts:
    """Health of a fixed list of hosts, called by their index. Time is an argument, in seconds that never go back."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._lock = threading.Lock()
        self._turn = 0
        self._backoff = [0.0] * len(self._names)
        """Seconds that the host is set aside for; 0: it is well."""
        self._due = [0.0] * len(self._names)
        self._probed = [False] * len(self._names)
        """One caller is trying whether a host that was due answers again."""

    def pick(self, now: float, tried: Collection[int] = (), *, well: bool = False) -> int | None:
        """The host whose turn it is, of those not in `tried`; where all of them are set aside, the one due soonest, but with `well` none of
        those. None: none is left.

        A host that is due again is lent to this one caller: the others go past it until it has answered or its next time has come.
        """
        with self._lock:
            chosen = self._first_due(now, tried)
            if chosen is None:
                rest = [index for index in range(len(self._names)) if index not in tried and not well]
                return min(rest, key=self._due.__getitem__) if rest else None
            if not tried:  # a second trial of the same call takes nobody's turn
                self._turn = (chosen + 1) % len(self._names)
            if self._backoff[chosen]:
                self._due[chosen] = now + self._backoff[chosen]
                self._probed[chosen] = True
            return chosen

    def _first_due(self, now: float, tried: Collection[int]) -> int | None:
        count = len(self._names)
        for step in range(count):
            index = (self._turn + step) % count
            if index not in tried and (not self._backoff[index] or self._due[index] <= now):
                return index
        return None

    def failed(self, index: int, now: float, reason: str) -> None:
        """The host could not be reached: it is set aside, after a failed trial for twice as long as before."""
        with self._lock:
            if self._backoff[index] and not self._probed[index]:
                return  # one of several calls that failed together: known already
            self._backoff[index] = backoff = min(self._backoff[index] * 2 or FIRST_BACKOFF_S, LAST_BACKOFF_S)
            self._due[index] = now + backoff
            self._probed[index] = False
        log.warning("model host %s is set aside for %.1f s: %s", self._names[index], backoff, reason)

    def answered(self, index: int) -> None:
        """The host can be reached."""
        if self._backoff[index]:
            with self._lock:
                self._backoff[index] = self._due[index] = 0.0
                self._probed[index] = False
            log.info("model host %s answers again", self._names[index])
