"""Calls to a host on this machine: inference over its local lane, everything else, and what the lane declines, over RPC.

A server puts a link beside each of its unix sockets: `<socket>.lane`, its run folder, where the lanes are. No link, or no right to open
it: RPC. What became of a request that the lane took is always known, so nothing is asked twice.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from idl.codes import ServingError
from idl.lane_calls import known
from idl.lane_routes import LocalLane, response
from idl.messages import InferRequest, InferResponse
from idl.traces import INTERNAL, Asked, Tracer
from inference_client.channel import Channel, RawAnswers, Verb, closed
from inference_client.deadline import Clock, Deadline
from inference_client.lane_arrays import LaneArrays
from inference_client.result import InferResult
from inference_client.traced_answers import TracedAnswers

Q = TypeVar("Q")
R = TypeVar("R")

LOOK_EVERY_S = 1.0
"""How often it is asked whether the link is there, and leads where it led before."""
IDLE_S = 30.0
"""How long a lane connection may rest before it is closed, which gives its memory back on both sides."""
Place = tuple[int, int]


class LaneChannel:
    """Thread-safe. `max_message_bytes` bounds an answer's tensors; the server says what bounds a request's. Owns `rpc`."""

    def __init__(self, socket_path: str, rpc: Channel, max_message_bytes: int, clock: Clock, tracer: Tracer | None = None) -> None:
        self._folder = f"{socket_path}.lane"
        self._rpc = rpc
        self._max_bytes = max_message_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._lane: LocalLane | None = None
        self._place: Place | None = None
        self._next_look = float("-inf")
        self._closed = False
        self._arrays = LaneArrays()
        self._tracer = tracer

    def infer_arrays(
        self, model: str, version: str, inputs: Mapping[str, Any], outputs: Sequence[str], request_id: str, at: float
    ) -> InferResult | None:
        """None where the longer way is to be taken: nothing has run. `at`: the deadline. Raises ServingError."""
        now = self._clock()
        lane = self._lane if now < self._next_look else self._look()
        if lane is None or now >= at:
            return None
        return self._arrays.infer(lane, model, version, inputs, outputs, request_id, at)

    def call(self, verb: Verb[Q, R], request: Q, deadline: Deadline) -> R:
        if isinstance(request, InferRequest):
            lane = self._lane if self._clock() < self._next_look else self._look()
            if lane is not None:
                asked = request if request.deadline == deadline.at else replace(request, deadline=deadline.at)
                deadline.left()
                answer = (
                    lane.infer(asked, deadline.watch) if self._tracer is None else self._traced(self._tracer, lane, asked, deadline.watch)
                )
                if answer is not None:
                    return answer  # type: ignore[return-value]
        return self._rpc.call(verb, request, deadline)

    def _traced(self, tracer: Tracer, lane: LocalLane, request: InferRequest, watch: int) -> InferResponse | None:
        """Tells of the model's queue and run: no server does, where the lane is taken."""
        trace = tracer.below(request.traceparent)
        if trace is None:
            return lane.infer(request, watch)
        begun = time.monotonic_ns()
        try:
            found = lane.answer(replace(request, traced=True), watch)
        except ServingError as error:
            asked = Asked(request.model_name, request.model_version, request.id)
            times, steps = known(error)
            tracer.inference(trace, asked, time.monotonic_ns() - begun, times, error.code.value, INTERNAL, steps)
            raise
        if found is None:
            return None
        version, answer = found
        took = (answer.queue_ns, answer.input_ns, answer.compute_ns, answer.output_ns)
        asked = Asked(request.model_name, version, request.id)
        tracer.inference(trace, asked, time.monotonic_ns() - begun, took, kind=INTERNAL, steps=answer.steps)
        return response(request, version, answer)

    def stream(self, request: InferRequest, deadline: Deadline) -> RawAnswers:
        lane = self._lane if self._clock() < self._next_look else self._look()
        asked = request if deadline.at == float("inf") else replace(request, deadline=deadline.at)
        asked = asked if self._tracer is None else replace(asked, traced=True)
        found = lane.stream(asked, deadline.watch) if lane is not None else None
        if found is None:
            return self._rpc.stream(request, deadline)
        trace = None if self._tracer is None else self._tracer.below(request.traceparent)
        return found if self._tracer is None or trace is None else TracedAnswers(self._tracer, trace, found, asked)

    def _look(self) -> LocalLane | None:
        """Follows the link anew, and closes what has been idle for long."""
        found = place(self._folder)
        now = self._clock()
        with self._lock:
            if self._closed:
                raise closed()
            self._next_look = now + LOOK_EVERY_S
            old = None
            if found != self._place:
                old, self._place = self._lane, found
                self._lane = LocalLane(self._folder, self._max_bytes) if found is not None else None
            lane = self._lane
        if old is not None:
            old.close()
        if lane is not None:
            lane.trim(now - IDLE_S)
        return lane

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._next_look = float("-inf")
            lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()
        self._rpc.close()

    def abandon(self) -> None:
        self._lane = None  # the last reference to the child's copies of its sockets: they are closed, the parent's stay
        self._rpc.abandon()


def place(folder: str) -> Place | None:
    """What the link leads to, None where it leads nowhere for us."""
    try:
        found = Path(folder).stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if os.access(folder, os.X_OK) else None
