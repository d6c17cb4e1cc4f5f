"""The reconciler as a part of the worker, and the watch over deployments beside it: worker 1 has them, and no other."""

import logging
import threading
from functools import partial

from gateway.context import RECONCILER, Services
from gateway.operations import golden
from gateway.operations.reconciler import Reconciler
from gateway.operations.watch import Watch
from gateway.worker.jobs import Job, Loop, Part
from idl.codes import ServingError

NUMBER = 1
WATCH = "watch"
_LOOK_EVERY_S = 1.0
_log = logging.getLogger(__name__)


class Deploying:
    """Looks every second, when somebody rings, and when something that was under way has ended."""

    name = RECONCILER

    def __init__(self, services: Services) -> None:
        check = partial(golden.replay, services.storage, services.models, services.settings)
        self._wake = threading.Event()
        self._reconciler = Reconciler(services.storage, services.models, check, services.now, self._wake.set)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        self._wake.set()

    def ask_to_stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        """What is under way on a host may be left half-way: the next worker goes on."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self._reconciler.step()
            except ServingError as error:
                _log.warning("reconcile_failed", extra={"code": error.code.value, "reason": error.message})
            except Exception:  # noqa: BLE001 - the next look may go well
                _log.exception("reconcile_failed")
            if not self._stopping:
                self._wake.wait(_LOOK_EVERY_S)


def parts(services: Services, number: int) -> list[Part]:
    """What worker `number` has of it."""
    if number != NUMBER:
        return []
    watch = Watch(services.storage, services.collector, services.settings, services.nudge, services.now)
    return [Deploying(services), Loop(Job(WATCH, services.settings.watch_interval_s, lambda _: watch.step()), services)]
