"""One loaded version of a model: its executor, the requests inside it, and what happens when the executor dies."""

import logging
import threading
import time
from collections.abc import Callable

from idl.lane_calls import LaneAnswer
from idl.messages import InferRequest
from inference_server import errors
from inference_server.executors.process import ProcessExecutor
from inference_server.metrics import ModelStats
from inference_server.model_settings import ModelSettings
from inference_server.types import Signature

log = logging.getLogger("outboard.server")

FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 30.0
LONGEST_WAIT_S = 2.0
MOST_CRASHES = 8
"""Consecutive deaths, with no answered request between them, after which a version is `failed` and not started again."""


class Closing(Exception):
    """This version takes no new requests: ask for the route again."""


class ServedVersion:
    """Thread-safe. `start` makes an executor of this version; it raises ServingError where the model cannot be loaded."""

    def __init__(self, name: str, version: int, settings: ModelSettings, start: Callable[[], ProcessExecutor], stats: ModelStats) -> None:
        self.name, self.version, self.settings, self.stats = name, version, settings, stats
        self._start = start
        self._changed = threading.Condition()
        self._in_flight = 0
        self._closing = False
        self._crashes = 0
        self.failure = ""
        self.on_death: Callable[[], None] = lambda: None
        self._executor: ProcessExecutor | None = start()
        self.signature: Signature = self._executor.signature
        self.providers = self._executor.providers

    def watch(self) -> None:
        """From now on a death of the executor is noticed and mended. Not before the version is wanted: a failed load needs no mending."""
        if self._executor is not None:
            self._executor.watch(self._died)

    @property
    def ready(self) -> bool:
        return self._executor is not None and not self._closing

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def memory_bytes(self) -> int:
        executor = self._executor
        return executor.memory_bytes() if executor is not None else 0

    def call(self, request: InferRequest) -> LaneAnswer:
        """Raises Closing when this version is on its way out, else ServingError."""
        with self._changed:
            if self._closing:
                raise Closing
            self._in_flight += 1
            executor = self._executor or self._wait_for_executor(request.deadline)
        try:
            if executor is None:
                raise errors.not_ready(f"model {self.name!r} version {self.version}: {self.failure or 'its process is starting again'}")
            answer = executor.call(request)
            self._crashes = 0
            return answer
        finally:
            with self._changed:
                self._in_flight -= 1
                if self._closing and not self._in_flight:
                    self._changed.notify_all()

    def _wait_for_executor(self, deadline: float | None) -> ProcessExecutor | None:
        """A dead executor is back in milliseconds: what arrives meanwhile waits a moment for it, within its own deadline."""
        longest = LONGEST_WAIT_S if deadline is None else min(LONGEST_WAIT_S, max(0.0, deadline - time.monotonic()))
        self._changed.wait_for(lambda: self._executor is not None or self._closing or self.failure != "", longest)
        return self._executor

    def trim(self, idle_since: float) -> None:
        executor = self._executor
        if executor is not None:
            executor.trim(idle_since)

    def close(self, drain_s: float) -> bool:
        """Takes no new requests, waits up to `drain_s` for those inside, ends the process. True when all of them finished."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            drained = self._changed.wait_for(lambda: not self._in_flight, drain_s)
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.close()
        return drained

    def _died(self) -> None:
        with self._changed:
            if self._closing or self._executor is None:
                return
            executor, self._executor = self._executor, None
            self._changed.notify_all()
        self.on_death()
        threading.Thread(target=self._mend, args=(executor,), name=f"mend-{self.name}", daemon=True).start()

    def _mend(self, dead: ProcessExecutor) -> None:
        """Starts the executor again, waiting longer after each consecutive crash; gives up after MOST_CRASHES."""
        dead.close()
        while True:
            with self._changed:
                self._crashes += 1
                self._changed.notify_all()
            log.warning("executor died", extra={"fields": {"model": self.name, "version": self.version, "crashes": self._crashes}})
            if self._crashes > MOST_CRASHES:
                with self._changed:
                    self.failure = f"its process died {MOST_CRASHES} times in a row; load it again"
                    self._changed.notify_all()
                log.error("model failed", extra={"fields": {"model": self.name, "version": self.version, "reason": self.failure}})
                return
            with self._changed:
                wait = min(FIRST_BACK_OFF_S * 2 ** (self._crashes - 1), LONGEST_BACK_OFF_S) if self._crashes > 1 else 0.0
                if self._changed.wait_for(lambda: self._closing, wait):
                    return
            try:
                fresh = self._start()
            except Exception as error:  # noqa: BLE001 - whatever it is, giving up here would leave the model dead
                log.warning("executor not started", extra={"fields": {"model": self.name, "reason": str(error)}})
                continue
            break
        with self._changed:
            if not self._closing:
                self._executor = fresh
            self._changed.notify_all()
        if self._executor is not fresh:
            fresh.close()
            return
        log.info("executor back", extra={"fields": {"model": self.name, "version": self.version}})
        fresh.watch(self._died)
