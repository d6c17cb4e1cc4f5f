"""One instance of a loaded version: its executor, and what happens when that dies."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from idl import last_words
from idl.board import Board
from idl.lane_calls import LaneAnswer
from idl.lane_streams import LaneStream
from idl.messages import InferRequest
from inference_server.executors.process import Loaded
from inference_server.metrics import ModelStats

log = logging.getLogger("outboard.server")

FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 30.0
MOST_CRASHES = 8
"""Consecutive deaths, with no answered request between them, after which an instance is `failed` and not started again."""


class Executor(Protocol):
    """A running model, in a process of its own or not. `leave` and `left` let it finish what it has; `close` ends it."""

    path: Path
    pid: int
    board: Board
    loaded: Loaded

    @property
    def outstanding(self) -> int: ...

    def call(self, request: InferRequest) -> LaneAnswer: ...

    def stream(self, request: InferRequest, watch: int) -> LaneStream: ...

    def watch(self, on_death: Callable[[], None]) -> None: ...

    def leave(self) -> None: ...

    def left(self, timeout_s: float) -> bool: ...

    def why(self) -> str: ...

    def kill(self) -> None: ...

    def memory_bytes(self) -> int: ...

    def trim(self, idle_since: float) -> None: ...

    def close(self) -> None: ...


class Berth(Protocol):
    """What is kept for one instance over crashes: where and how its executor runs.

    `start` makes an executor, or raises ServingError; `leaving`: it takes no new requests; `free`: it is over.
    """

    def start(self) -> Executor: ...

    def leaving(self) -> None: ...

    def free(self) -> None: ...


class Instance:
    """Thread-safe. Raises ServingError where the model cannot be loaded. `changed` is called, without a lock held, whenever `executor` or
    `failure` has changed; `died` once for each crash.
    """

    def __init__(self, label: str, berth: Berth, stats: ModelStats, changed: Callable[[], None], died: Callable[[], None]) -> None:
        self._label, self._berth, self._stats, self._changed, self._died = label, berth, stats, changed, died
        self._lock = threading.Condition()
        self._closing = False
        self._crashes = 0
        self.failure = ""
        self.executor: Executor | None = self._started()
        self.loaded = self.executor.loaded

    def _started(self) -> Executor:
        executor = self._berth.start()
        self._stats.attach(executor.board)
        return executor

    def watch(self) -> None:
        """From now on a death is noticed and mended. Not before the version is wanted: a failed load needs no mending."""
        executor = self.executor
        if executor is not None:
            executor.watch(self._on_death)

    def memory_bytes(self) -> int:
        executor = self.executor
        return executor.memory_bytes() if executor is not None else 0

    def trim(self, idle_since: float) -> None:
        executor = self.executor
        if executor is not None:
            executor.trim(idle_since)

    def leave(self) -> Executor | None:
        """Takes no new requests; returns the executor that is to finish what it has. A second call returns None."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
            executor, self.executor = self.executor, None
        self._berth.leaving()
        if executor is not None:
            executor.leave()
        return executor

    def end(self, executor: Executor | None) -> None:
        """Ends what `leave` returned, and gives its place back."""
        if executor is not None:
            executor.close()
            self._stats.absorb(executor.board)
        self._berth.free()

    def _on_death(self) -> None:
        with self._lock:
            if self._closing or self.executor is None:
                return
            executor, self.executor = self.executor, None
        threading.Thread(target=self._mend, args=(executor,), name=f"mend-{self._label}", daemon=True).start()

    def _bury(self, dead: Executor) -> None:
        """Counts its end, and says what it died of."""
        answered = dead.board.kind("success")[0]
        dead.close()
        inside = self._stats.absorb(dead.board)
        self._crashes = 1 if answered else self._crashes + 1
        why = dead.why()
        last_words.write(dead.path, why)
        fields = {"model": self._label, "pid": dead.pid, "crashes": self._crashes, "requests_inside": inside, "reason": why}
        log.warning("executor died", extra={"fields": fields})

    def _mend(self, dead: Executor) -> None:
        """Starts the executor again, waiting longer after each consecutive crash; gives up after MOST_CRASHES."""
        self._changed()
        self._died()
        self._bury(dead)
        begun = time.monotonic()
        while self._crashes <= MOST_CRASHES:
            wait = min(FIRST_BACK_OFF_S * 2 ** (self._crashes - 1), LONGEST_BACK_OFF_S) if self._crashes > 1 else 0.0
            with self._lock:
                if self._lock.wait_for(lambda: self._closing, wait):
                    return  # `end` has given the place back
            try:
                fresh = self._started()
            except Exception as error:  # noqa: BLE001 - whatever it is, giving up here would leave the model dead
                log.warning("executor not started", extra={"fields": {"model": self._label, "reason": str(error)}})
                self._crashes += 1
                continue
            self._take(fresh, begun)
            return
        self.failure = f"its process died {MOST_CRASHES} times in a row{_because(dead)}; load it again"
        log.error("model failed", extra={"fields": {"model": self._label, "reason": self.failure}})
        self._changed()

    def _take(self, fresh: Executor, begun: float) -> None:
        with self._lock:
            wanted = not self._closing
            if wanted:
                self.executor = fresh
                fresh.watch(self._on_death)
        if not wanted:
            fresh.close()
            self._stats.absorb(fresh.board)
            return
        self._stats.restarted()
        log.info("executor back", extra={"fields": {"model": self._label, "seconds": round(time.monotonic() - begun, 3)}})
        self._changed()


def _because(dead: Executor) -> str:
    why = dead.why()
    return f" (the last one was {why})" if why else ""
