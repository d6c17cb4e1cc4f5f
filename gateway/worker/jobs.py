"""What a worker does again and again: a job has a name, says how often, and is a function over the process's services."""

import abc
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.context import Services
from idl.codes import ServingError

_log = logging.getLogger(__name__)
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Job:
    """`run` is called every `every_s` seconds, and when somebody rings for `name` (`services.bell.ring`); never twice at a time within a
    worker. It returns something true where there is more to do at once. What it raises is logged, and it is tried again later."""

    name: str
    every_s: float
    run: Callable[[Services], object]


class Part(Protocol):
    """What the worker owns: something with threads of its own."""

    name: str

    def start(self) -> None: ...

    def ring(self) -> None:
        """There is something to do."""
        ...

    def ask_to_stop(self) -> None:
        """Begins nothing new."""
        ...

    def join(self, timeout_s: float) -> bool:
        """True where it has ended in that time."""
        ...


class Repeated(abc.ABC):
    """A part that takes a step again and again, in a thread of its own."""

    def __init__(self, name: str, thread: str) -> None:
        self.name = name
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=thread, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        self._wake.set()

    def ask_to_stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            pause_s = self.step()
            if pause_s > 0 and not self._stopping:
                self._wake.wait(pause_s)

    @abc.abstractmethod
    def step(self) -> float:
        """Does it once. Returns the seconds until the next time that nobody needs to ring for. Raises nothing."""


class Loop(Repeated):
    """A job in a thread of its own."""

    def __init__(self, job: Job, services: Services) -> None:
        super().__init__(job.name, f"job-{job.name}")
        self._job = job
        self._services = services
        self._failures = 0

    def step(self) -> float:
        try:
            more = self._job.run(self._services)
        except ServingError as error:
            _log.warning("job_failed", extra={"job": self.name, "code": error.code.value, "reason": error.message})
        except Exception:  # noqa: BLE001 - the next time it may work, and the other jobs go on
            _log.exception("job_failed", extra={"job": self.name})
        else:
            self._failures = 0
            return 0.0 if more else self._job.every_s
        self._failures += 1
        return max(self._job.every_s, min(LONGEST_PAUSE_S, 2.0 ** min(self._failures, 10) / 2))
