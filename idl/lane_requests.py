"""One request's way from an event loop to an executor and back: to another one where it certainly has not run, given up at its deadline,
taken back when its caller goes.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from idl import last_words
from idl.codes import Code, ServingError
from idl.lane import Frame, LaneError
from idl.lane_calls import REPLY_GRACE_S, ExecutorGone, Moved
from idl.lane_loop import Failure, Lane, Lanes
from idl.lane_routes import Route, Routes

TRIES = 4


class Packed:
    """A request as the lane takes it: what `lane.pack_head` or `lane.pack_request` made, and whom it is for."""

    __slots__ = ("head", "model", "parts", "sequence", "size", "version")

    def __init__(self, model: str, version: str, head: bytes, parts: Sequence[tuple[int, Any]], size: int, sequence: str = "") -> None:
        """`sequence`: see `idl.affinity`."""
        self.model = model
        self.version = version
        self.head = head
        self.parts = parts
        self.size = size
        self.sequence = sequence

    def fits(self, limit: int) -> bool:
        """Whether its tensors have at most `limit` bytes; `size` counts the gaps between them as well."""
        return self.size <= limit or sum(len(data) for _, data in self.parts) <= limit


class Dead(NamedTuple):
    """`path`: the executor's socket; `until`: monotonic seconds."""

    request: "Request"
    path: str
    until: float


class Requests:
    """Those of one loop that are under way."""

    def __init__(self, routes: Routes, lanes: Lanes) -> None:
        self.routes = routes
        self.lanes = lanes
        self.running: set[Request] = set()
        self.dead: list[Dead] = []
        """Those that were inside an executor when it died, until it is known of what."""

    def sweep(self, now: float) -> None:
        """Gives up those that should have been answered before `now` (monotonic seconds), and ends those whose executor died."""
        for request in [request for request in self.running if now > request.deadline + REPLY_GRACE_S]:
            request.give_up()
        if self.dead:
            waiting, self.dead = self.dead, []
            for each in waiting:
                why = last_words.read(each.path)
                if why is None and now < each.until:
                    self.dead.append(each)
                else:
                    each.request.died(why or "")


class Request(ABC):
    """Satisfies `lane_loop.Waiting`. One of `_answer`, `_end` and `_decline` is called, once, unless it is cancelled."""

    __slots__ = ("_is_told", "_lane", "_left", "_packed", "_requests", "_route", "_tries", "_window", "deadline")

    def __init__(self, requests: Requests, packed: Packed, deadline: float, window: int = 0) -> None:
        """`deadline`: monotonic seconds. `window`: see `lane.INFER`; with one it is a `lane_loop.Streaming` as well."""
        self._window = window
        self.deadline = deadline
        self._requests = requests
        self._packed = packed
        self._tries = 0
        self._left = False
        self._is_told: bool | None = None
        """Whether it is traced, once that is decided."""
        self._lane: Lane | None = None
        self._route: Route | None = None

    @abstractmethod
    def _answer(self, lane: Lane, frame: Frame) -> None:
        """What the executor gave; `lane` is to be given back once the frame's body is not needed any more."""

    @abstractmethod
    def _end(self, error: ServingError) -> None: ...

    @abstractmethod
    def _decline(self) -> None:
        """It was not sent, and there is no answer here: the server refuses it in its own words, and counts it."""

    def _is_traced(self) -> bool:
        """Decides whether somebody is told of it; asked once, when it is about to be sent."""
        return False

    def ask(self) -> bool:
        """Sends it to an executor; False where it was declined."""
        requests, packed = self._requests, self._packed
        while self._tries < TRIES:
            self._tries += 1
            route = requests.routes.find(packed.model, packed.version)
            if route is None or not route.sockets or not packed.fits(route.limit):
                break
            if self._is_told is None:
                self._is_told = self._is_traced()
            try:
                lane = requests.lanes.take(route, packed.sequence)
                lane.ask(self, self.deadline, packed.head, packed.parts, packed.size, self._window, self._is_told)
            except ExecutorGone:
                continue  # it has just gone: the routes know, or will
            except (ServingError, LaneError, OSError):
                break
            self._route, self._lane = route, lane
            requests.running.add(self)
            return True
        self._decline()
        return False

    def answered(self, lane: Lane, frame: Frame) -> None:
        self._requests.running.discard(self)
        self._lane = None
        self._answer(lane, frame)

    def failed(self, error: Failure) -> None:
        self._requests.running.discard(self)
        self._lane = None
        if self._left:
            return
        if isinstance(error, Moved) or (isinstance(error, ExecutorGone) and not error.ran):
            self.ask()
        elif isinstance(error, ServingError):
            self._end(error)
        elif isinstance(error, ExecutorGone):
            self._requests.dead.append(Dead(self, error.path, time.monotonic() + last_words.WAIT_S))
        else:
            self._end(ServingError(Code.INTERNAL, f"the lane to model {self._packed.model!r} broke: {error}"))

    def died(self, why: str) -> None:
        """Its executor did, with it inside."""
        if not self._left:
            self._end(ServingError(Code.MODEL_FAILED, last_words.message(self._packed.model, why)))

    def give_up(self) -> None:
        """Past its deadline: what still waits is not run, and the caller is told."""
        self.leave()
        self._end(ServingError(Code.DEADLINE_EXCEEDED, f"model {self._packed.model!r} did not answer before the deadline"))

    def leave(self) -> None:
        """Nobody waits for it any more: it is not run where it has not begun."""
        self._left = True
        self._requests.running.discard(self)
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()
