"""The queue of one model instance, and which requests of it run together. No clock of its own: time is an argument, in nanoseconds.

Only requests of one key (same inputs, types and sizes beyond the first, same wanted outputs) share a run. A higher priority always goes
first; within a level the oldest request decides which key is next. A caller that goes away leaves its place at once.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from inference_server.executors.requests import Waiting

_FEW = 64
EXPIRE_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """`max_batch_size` and `preferred`: rows of one run; `max_queue_size`: requests; priorities are 1 (first) to `priority_levels`.

    `most_rows`: of one request, 0 for any number; only an owner says it.
    """

    max_batch_size: int = 1
    preferred: tuple[int, ...] = ()
    max_delay_ns: int = 0
    max_queue_size: int = 256
    priority_levels: int = 0
    default_priority: int = 0
    default_timeout_ns: int = 0
    most_rows: int = 0


class Batcher:
    """Not thread-safe. `size`: requests that wait."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.size = 0
        self._expire_ns = 0
        self._gone = 0
        """Of those in the queue, at least how many nobody waits for."""
        self._levels: list[dict[Hashable, deque[Waiting]]] = [{} for _ in range(max(1, policy.priority_levels))]
        self._delays = policy.max_delay_ns > 0 and policy.max_batch_size > 1
        self._plain = policy.max_batch_size <= 1 and not policy.priority_levels
        """One queue, one request a run: nothing to decide."""

    def add(self, request: Waiting, free: int = 0) -> bool:
        """False where the queue is full. `free`: so many of those that are in it wait for their turn only, and do not count."""
        if self.size >= self.policy.max_queue_size + free:
            return False
        level = self._levels[self._level(request.prepared.priority)]
        waiting = level.get(request.prepared.key)
        if waiting is None:
            level[request.prepared.key] = deque((request,))
        else:
            waiting.append(request)
        self.size += 1
        return True

    def _level(self, priority: int) -> int:
        levels = self.policy.priority_levels
        if not levels:
            return 0
        return min(priority or self.policy.default_priority or (levels + 1) // 2, levels) - 1

    def drop(self, request: Waiting) -> None:
        """Its caller has gone. To be called once, for a request that waits. Its memory is let go of at once, its place before long."""
        request.gone = True
        request.body = memoryview(b"")
        self.size -= 1
        self._gone += 1
        if self._gone > self.size + _FEW:
            self._sweep()

    def _sweep(self) -> None:
        """Takes those out whose callers have gone."""
        self._gone = 0
        for level in self._levels:
            for key, waiting in list(level.items()):
                left = deque(request for request in waiting if not request.gone)
                if left:
                    level[key] = left
                else:
                    del level[key]

    def due_in(self, now_ns: int) -> int | None:
        """Nanoseconds until `take` has something to give; None while nothing waits."""
        if not self._delays:
            return 0 if self.size else None
        soonest: int | None = None
        for index, key, head in self._heads():
            wait = self._wait(index, key, head, now_ns)
            if wait <= 0:
                return 0
            soonest = wait if soonest is None else min(soonest, wait)
        return soonest

    def take(self, now_ns: int, expired: list[Waiting]) -> list[Waiting]:
        """The requests of the next run, empty while none is due. Those whose deadline has passed go to `expired` instead."""
        if not self.size:
            return []
        if self._plain:
            return self._collect_plain(now_ns, expired)
        for index, key, head in self._heads():
            if self._wait(index, key, head, now_ns) <= 0:
                batch = self._collect(index, key, now_ns, expired)
                if batch:
                    return batch
        return []

    def expire(self, now_ns: int, expired: list[Waiting]) -> list[Waiting]:
        """As `take` while nothing may run: those whose deadline has passed go to `expired`, and none is given. Looks at all of them once in
        EXPIRE_NS.
        """
        if not self.size or now_ns < self._expire_ns:
            return []
        self._expire_ns = now_ns + EXPIRE_NS
        for level in self._levels:
            for key, waiting in list(level.items()):
                late = [request for request in waiting if not request.gone and request.expires_ns and now_ns > request.expires_ns]
                if late:
                    expired += late
                    known = set(map(id, late))
                    left = deque(request for request in waiting if id(request) not in known)
                    self.size -= len(late)
                    if left:
                        level[key] = left
                    else:
                        del level[key]
        return []

    def everything(self) -> list[Waiting]:
        """Empties the queue."""
        waiting = [request for level in self._levels for queue in level.values() for request in queue if not request.gone]
        self._levels = [{} for _ in self._levels]
        self.size = 0
        return waiting

    def _heads(self) -> Iterator[tuple[int, Hashable, Waiting]]:
        """(level, key, oldest request) in the order in which they should run."""
        for index, level in enumerate(self._levels):
            if not level:
                continue
            if len(level) == 1:  # nearly always
                ((key, waiting),) = level.items()
                if (head := _first(waiting)) is None:
                    del level[key]
                else:
                    yield index, key, head
                continue
            heads = [(key, _first(waiting)) for key, waiting in level.items()]
            for key, head in heads:
                if head is None:
                    del level[key]
            for key, head in sorted(((key, head) for key, head in heads if head), key=_arrival):
                yield index, key, head

    def _wait(self, index: int, key: Hashable, head: Waiting, now_ns: int) -> int:
        """How long this key should wait for more requests."""
        policy = self.policy
        if not policy.max_delay_ns or policy.max_batch_size <= 1 or head.prepared.key is None:
            return 0
        left = head.arrived_ns + policy.max_delay_ns - now_ns
        if head.expires_ns:
            left = min(left, head.expires_ns - now_ns)
        if left <= 0:
            return 0
        enough = min(policy.preferred) if policy.preferred else policy.max_batch_size
        return 0 if self._rows(index, key, enough) >= enough else left

    def _rows(self, index: int, key: Hashable, enough: int) -> int:
        rows = 0
        for level in self._levels[index:]:
            for request in level.get(key, ()):
                if not request.gone:
                    rows += request.prepared.rows
                if rows >= enough:
                    return rows
        return rows

    def _collect(self, index: int, key: Hashable, now_ns: int, expired: list[Waiting]) -> list[Waiting]:
        batch: list[Waiting] = []
        rows, limit = 0, self._limit(index, key)
        for level in self._levels[index:]:
            waiting = level.get(key)
            while waiting:
                request = waiting[0]
                if request.gone:
                    waiting.popleft()
                    continue
                if batch and rows + request.prepared.rows > limit:
                    return batch
                waiting.popleft()
                self.size -= 1
                if request.expires_ns and now_ns > request.expires_ns:
                    expired.append(request)
                    continue
                batch.append(request)
                rows += request.prepared.rows
                if key is None:
                    break
            if waiting is not None and not waiting:
                del level[key]
            if batch and (key is None or rows >= limit):
                break
        return batch

    def _collect_plain(self, now_ns: int, expired: list[Waiting]) -> list[Waiting]:
        waiting = self._levels[0].get(None)
        while waiting:
            request = waiting.popleft()
            if request.gone:
                continue
            self.size -= 1
            if request.expires_ns and now_ns > request.expires_ns:
                expired.append(request)
                continue
            return [request]
        return []

    def _limit(self, index: int, key: Hashable) -> int:
        """Most rows of the next run: the largest preferred size that is there, else all that the model takes."""
        policy = self.policy
        if not policy.preferred or policy.max_batch_size <= 1:
            return policy.max_batch_size
        rows = self._rows(index, key, policy.max_batch_size)
        return max((size for size in policy.preferred if size <= rows), default=policy.max_batch_size)


def _first(waiting: deque[Waiting]) -> Waiting | None:
    while waiting:
        if not waiting[0].gone:
            return waiting[0]
        waiting.popleft()
    return None


def _arrival(entry: tuple[Hashable, Waiting]) -> int:
    return entry[1].arrived_ns
