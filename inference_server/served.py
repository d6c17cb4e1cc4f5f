"""One loaded version of a model: its instances, which of them a request goes to, and its way out."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from idl import affinity, last_words
from idl.codes import Code, ServingError
from idl.lane_calls import Answered, ExecutorGone, LaneAnswer, Moved
from idl.messages import InferRequest
from inference_server import errors
from inference_server.executors.process import Loaded
from inference_server.instance import Berth, Executor, Instance
from inference_server.metrics import ModelStats
from inference_server.pipeline_steps import Step
from inference_server.repository_model import RepositoryModel
from inference_server.types import Batching, Signature

LONGEST_WAIT_S = 2.0
"""How long a request that finds no process waits for one that is starting again."""
SURVIVORS_WAIT_S = 120.0
"""The same for one that had been queued in a process that died: it was promised an answer. Its own deadline ends the wait as well."""

Reserve = Callable[[int], Sequence[Berth]]


class Closing(Exception):
    """This version takes no new requests: ask for the route again."""


class ServedVersion:
    """Thread-safe. `reserve(count)` gives places for as many instances, or raises ServingError; so does the constructor where the model
    cannot be loaded. `steps`: of a pipeline, with every tensor named.
    """

    def __init__(
        self, model: RepositoryModel, version: int, reserve: Reserve, stats: ModelStats, instances: int = 1, steps: Sequence[Step] = ()
    ) -> None:
        self.name, self.model, self.version, self.stats = model.name, model, version, stats
        self.steps = tuple(steps)
        self.fingerprint = model.fingerprint(version)  # before it is loaded: what changes meanwhile is a change
        self._reserve = reserve
        self._changed = threading.Condition()
        self._resizing = threading.Lock()
        self._in_flight = 0
        self._closing = False
        self._watching = False
        self._instances: tuple[Instance, ...] = ()
        self.on_death: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        self._executors: tuple[Executor, ...] = ()
        if model.spooled is not None:
            model.spooled.keep()
        self._released = False
        try:
            self._instances = self._make(instances)
        except BaseException:
            self._release()
            raise
        self.loaded: Loaded = self._instances[0].loaded
        self.signature: Signature = self.loaded.signature
        self.providers = self.loaded.providers
        self._look()

    @property
    def batching(self) -> Batching:
        """What was decided about it."""
        queue, tuning = self.loaded.queue, self.loaded.tuning
        return Batching(
            queue.max_batch_size,
            queue.preferred,
            queue.max_delay_ns // 1000,
            queue.max_queue_size,
            queue.priority_levels,
            queue.default_priority,
            queue.default_timeout_ns // 1000,
            tuning.reason,
        )

    def _release(self) -> None:
        """The files that came in a request are no longer needed."""
        with self._changed:
            spooled = None if self._released else self.model.spooled
            self._released = True
        if spooled is not None:
            spooled.release()

    def _make(self, count: int) -> tuple[Instance, ...]:
        """As many more instances, all or none."""
        berths = self._reserve(count)
        made: list[Instance] = []
        try:
            for berth in berths:
                made.append(Instance(f"{self.name}/{self.version}", berth, self.stats, self._look, self._death))
        except BaseException:
            for berth in berths[len(made) :]:
                berth.free()
            self._end(made, 0.0)
            raise
        return tuple(made)

    def _death(self) -> None:
        self.on_death()  # set after the instances were made

    def _look(self) -> None:
        """Which instances take requests has changed."""
        with self._changed:
            found = [executor for instance in self._instances if (executor := instance.executor) is not None]
            self._executors = tuple(found)
            self._changed.notify_all()
        self.on_change()

    def watch(self) -> None:
        """From now on a death is noticed and mended. Not before the version is wanted: a failed load needs no mending."""
        self._watching = True
        for instance in self._instances:
            instance.watch()

    @property
    def ready(self) -> bool:
        return bool(self._executors) and not self._closing

    @property
    def failure(self) -> str:
        """Why no instance comes back; "" while one may."""
        return next((instance.failure for instance in self._instances if instance.failure), "") if not self._executors else ""

    @property
    def instances(self) -> int:
        """Those that take requests."""
        return len(self._executors)

    @property
    def executors(self) -> tuple[Executor, ...]:
        return self._executors

    @property
    def in_flight(self) -> int:
        """Requests inside, whoever asked."""
        return max(self._in_flight, sum(executor.outstanding for executor in self._executors))

    def lanes(self) -> Sequence[Path]:
        """The sockets of the instances that take requests."""
        return () if self._closing else [executor.path for executor in self._executors]

    def memory_bytes(self) -> int:
        return sum(instance.memory_bytes() for instance in self._instances)

    @property
    def size(self) -> int:
        """How many instances there should be, those that are starting again included."""
        return len(self._instances)

    def call(self, request: InferRequest) -> LaneAnswer:
        """Raises Closing when this version is on its way out, else ServingError; Answered is what an executor has counted."""
        self.enter()
        try:
            return self._call(request)
        finally:
            self.leave()

    def enter(self) -> None:
        """One more request is inside, until `leave`. Raises Closing."""
        with self._changed:
            if self._closing:
                raise Closing
            self._in_flight += 1

    def leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            if self._closing and not self._in_flight:
                self._changed.notify_all()

    def _call(self, request: InferRequest) -> LaneAnswer:
        give_up = 0.0
        while True:
            executor = self.pick(request, give_up)
            try:
                return executor.call(request)
            except Moved:
                pass
            except ExecutorGone as gone:
                if gone.ran:
                    raise Answered(Code.MODEL_FAILED, last_words.message(request.model_name, executor.why())) from gone
            give_up = time.monotonic() + SURVIVORS_WAIT_S
            self.gone(executor)

    def pick(self, request: InferRequest, give_up: float = 0.0) -> Executor:
        """The instance that has its sequence, else the one with the fewest requests; where none is there, it is waited for, until `give_up` or
        for a moment. Raises ServingError, Closing.
        """
        executors = self._executors or self._wait(give_up or time.monotonic() + LONGEST_WAIT_S, request.deadline)
        if len(executors) == 1:
            return executors[0]
        if sequence := affinity.of(request.parameters):
            return affinity.choose([(str(executor.path), executor) for executor in executors], sequence)
        return min(executors, key=_outstanding)

    def _wait(self, give_up: float, deadline: float | None) -> tuple[Executor, ...]:
        """A dead executor is back in milliseconds: what arrives meanwhile waits a moment for it, within its own deadline."""
        now = time.monotonic()
        longest = max(0.0, min(give_up, deadline if deadline is not None else give_up) - now)
        with self._changed:
            self._changed.wait_for(lambda: self._executors or self._closing or self.failure, longest)
            if self._closing:
                raise Closing
        if not self._executors:
            if deadline is not None and time.monotonic() > deadline:
                raise errors.deadline_exceeded("the deadline passed while the model's process was starting again")
            raise errors.not_ready(f"model {self.name!r} version {self.version}: {self.failure or 'its process is starting again'}")
        return self._executors

    def gone(self, executor: Executor) -> None:
        """Waits until the list no longer names an executor that is dead or on its way out: its death is noticed in a moment."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or executor not in self._executors, LONGEST_WAIT_S)
            if self._closing:
                raise Closing
            if executor in self._executors:
                raise errors.not_ready(f"model {self.name!r} version {self.version}: its process does not answer")

    def resize(self, count: int) -> None:
        """Starts or ends instances until there are `count`; no request is dropped. Raises ServingError, then nothing has changed."""
        with self._resizing:
            if self._closing:
                raise errors.not_ready(f"model {self.name!r} version {self.version} is on its way out")
            fresh = self._make(count - len(self._instances)) if count > len(self._instances) else ()
            surplus = self._instances[count:]
            self._instances = (*self._instances[:count], *fresh)
            self._look()
            if self._watching:
                for instance in fresh:
                    instance.watch()
            self._end(surplus, LONGEST_WAIT_S * 15)

    def trim(self, idle_since: float) -> None:
        for instance in self._instances:
            instance.trim(idle_since)

    def close(self, drain_s: float) -> bool:
        """Takes no new requests, waits up to `drain_s` for those inside, ends the processes. True when all of them finished."""
        deadline = time.monotonic() + drain_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.on_change()
        drained = self._end(self._instances, drain_s)
        self._release()
        with self._changed:
            finished = self._changed.wait_for(lambda: not self._in_flight, max(0.0, deadline - time.monotonic()))
            self._instances = self._executors = ()  # they know us: as a cycle their boards would stay until the collector comes by
        return finished and drained

    @staticmethod
    def _end(instances: Sequence[Instance], drain_s: float) -> bool:
        deadline = time.monotonic() + drain_s
        leaving = [(instance, instance.leave()) for instance in instances]
        drained = True
        for instance, executor in leaving:
            if executor is not None and drain_s > 0:
                drained &= executor.left(deadline - time.monotonic())
            instance.end(executor)
        return drained


def _outstanding(executor: Executor) -> int:
    return executor.outstanding


def resize_all(versions: Sequence[ServedVersion], count: int) -> None:
    """Resizes each. Raises ServingError where one is refused; then all have as many instances as before."""
    done: list[tuple[ServedVersion, int]] = []
    try:
        for served in versions:
            before = served.size
            served.resize(count)
            done.append((served, before))
    except ServingError:
        for served, before in done:
            with contextlib.suppress(ServingError):  # on its way out meanwhile
                served.resize(before)
        raise
