"""An event loop's connections to executors: any number of requests at once, and no thread for any of them."""

import logging
import os
from collections.abc import Sequence
from typing import Any, Protocol

from idl import affinity
from idl.codes import ServingError
from idl.event_loop import Loop
from idl.lane import PART, Frame, LaneError
from idl.lane_calls import ExecutorGone, LaneConnection, Moved
from idl.lane_pool import LanePool
from idl.lane_routes import Route

log = logging.getLogger("outboard")

_PARTS_AT_ONCE = 64
"""Of one stream, before the others have their turn."""
Failure = ServingError | Moved | ExecutorGone | LaneError


class Waiting(Protocol):
    """Who waits for an executor. `answered` may keep the lane for as long as it needs the frame's body; then it gives it back."""

    def answered(self, lane: "Lane", frame: Frame) -> None: ...

    def failed(self, error: Failure) -> None: ...


class Streaming(Waiting, Protocol):
    """Who waits for several answers. `answered` is called with the END, or with the only one."""

    def part(self, lane: "Lane", frame: Frame) -> None:
        """One of them; its bytes hold until this returns."""

    def paused(self, lane: "Lane") -> None:
        """There are no more for now: what was given can be passed on, and `lane.taken` be told."""


class Lane:
    """One connection to an executor; lent to one request at a time."""

    __slots__ = ("_connection", "_group", "_loop", "_window", "descriptor", "waiting")

    def __init__(self, group: "Group", loop: Loop) -> None:
        """Raises as LaneConnection does."""
        self._group = group
        self._loop = loop
        self._connection: LaneConnection = group.pool.take()
        self.descriptor = self._connection.fileno()
        os.set_blocking(self.descriptor, False)  # an event may be of an earlier owner of the number
        self.waiting: Waiting | None = None
        self._window = 0
        loop.add(self.descriptor, self._readable)

    def ask(
        self,
        waiting: Any,
        deadline: float | None,
        head: bytes,
        parts: Sequence[tuple[int, Any]],
        size: int,
        window: int = 0,
        traced: bool = False,
    ) -> None:
        """`waiting` will be told; with a `window`, as one that is Streaming. Raises as LaneConnection.send_packed does; the lane is then as good as before, or closed."""
        self.waiting = waiting
        self._window = window
        try:
            self._connection.send_packed(deadline, head, parts, size, window, traced)
        except ServingError:
            self.waiting = None
            self.give_back()
            raise
        except BaseException:
            self.close()
            raise

    def taken(self, parts: int) -> None:
        """Of a stream: so many were passed on in all."""
        try:
            self._connection.taken(parts)
        except ExecutorGone:
            return  # what it last sent can still be read, and then its end

    def _parts(self, waiting: Streaming) -> None:
        """Reads a stream's answers. Raises as `receive_part`."""
        for _ in range(_PARTS_AT_ONCE):
            try:
                frame = self._connection.receive_part()
            except BlockingIOError:
                break
            if frame is None:
                continue
            if frame.kind != PART:
                self._window, self.waiting = 0, None
                waiting.answered(self, frame)
                return
            waiting.part(self, frame)
            if self.waiting is not waiting:  # given up meanwhile
                return
        waiting.paused(self)

    def _readable(self, events: int) -> None:
        try:
            self._read()
        except Exception:  # whoever waits has made a mistake: that costs this request, and no other one of the loop
            log.exception("an answer could not be passed on")
            waiting, self.waiting = self.waiting, None
            self.close()
            if waiting is not None:
                waiting.failed(LaneError("the answer could not be passed on"))

    def _read(self) -> None:
        try:
            if self._window and self.waiting is not None:
                self._parts(self.waiting)  # type: ignore[arg-type]
                return
            frame = self._connection.receive_frame()
        except BlockingIOError:
            return
        except (ServingError, Moved) as error:
            failure: Failure = error
            waiting, self.waiting, self._window = self.waiting, None, 0
            self.give_back()
        except (ExecutorGone, LaneError) as error:
            failure = error
            waiting, self.waiting = self.waiting, None
            self.close()
        except OSError as error:  # this process is short of something
            failure = LaneError(error.strerror or type(error).__name__)
            waiting, self.waiting = self.waiting, None
            self.close()
        else:
            if frame is None:
                return
            waiting, self.waiting = self.waiting, None
            if waiting is None:  # an answer that nobody asked for
                self.close()
            else:
                waiting.answered(self, frame)
            return
        if waiting is not None:
            waiting.failed(failure)

    def give_back(self) -> None:
        """For the next request."""
        self._group.idle.append(self)

    def close(self) -> None:
        """The executor does not run what still waits in its queue. Idempotent."""
        self.waiting, self._window = None, 0
        if self.descriptor >= 0:
            self._loop.remove(self.descriptor)
            self.descriptor = -1
            self._group.drop(self, self._connection)

    def idle_since(self, moment: float) -> bool:
        return self._connection.last_used < moment


class Group:
    """The lanes to one instance. `groups`: where it stands under its path, and goes from with its last lane: the executor has ended, or
    nobody has asked it for long; either way its board is let go of."""

    __slots__ = ("_groups", "idle", "open", "pool")

    def __init__(self, path: str, memory_limit: int, groups: dict[str, "Group"]) -> None:
        self.pool = LanePool(path, memory_limit)
        """Counts what is outstanding; the idle lanes are here, where an event of theirs is seen."""
        self._groups = groups
        self.idle: list[Lane] = []
        self.open = 0

    def take(self, loop: Loop) -> Lane:
        """Raises as LaneConnection does."""
        if self.idle:
            return self.idle.pop()
        try:
            lane = Lane(self, loop)
        except BaseException:
            self._leave()
            raise
        self.open += 1
        return lane

    def drop(self, lane: Lane, connection: LaneConnection) -> None:
        if lane in self.idle:
            self.idle.remove(lane)
        self.open -= 1
        self.pool.drop(connection)
        self._leave()

    def _leave(self) -> None:
        if not self.open and self._groups.get(self.pool.path) is self:
            del self._groups[self.pool.path]
            self.pool.close()


class Lanes:
    """Lanes to every instance that routes name. `memory_limit`: most bytes of tensors in an answer."""

    def __init__(self, loop: Loop, memory_limit: int) -> None:
        self._loop = loop
        self._memory_limit = memory_limit
        self._groups: dict[str, Group] = {}

    def take(self, route: Route, sequence: str = "") -> Lane:
        """A lane to the instance of `route` that has the sequence, else to the one with the fewest requests outstanding. Raises ExecutorGone where none of them is there, and what
        `LaneConnection` does."""
        sockets = route.sockets
        if len(sockets) == 1:
            return self._group(sockets[0]).take(self._loop)
        if sequence:
            return self._group(affinity.choose([(path, path) for path in sockets], sequence)).take(self._loop)
        refused: Exception = ExecutorGone(ran=False)
        for group in sorted(map(self._group, sockets), key=_outstanding):
            try:
                return group.take(self._loop)
            except ExecutorGone:
                continue
            except ServingError as error:
                refused = error
        raise refused

    def _group(self, path: str) -> Group:
        group = self._groups.get(path)
        if group is None:
            group = self._groups[path] = Group(path, self._memory_limit, self._groups)
        return group

    def trim(self, idle_since: float) -> None:
        """Closes what was last used before `idle_since` (monotonic seconds)."""
        for group in list(self._groups.values()):
            for lane in [lane for lane in group.idle if lane.idle_since(idle_since)]:
                lane.close()


def _outstanding(group: Group) -> int:
    return group.pool.outstanding
