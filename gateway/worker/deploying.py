"""The reconciler as a part of the worker, and the watch over deployments beside it: worker 1 has them, and no other."""

import logging
from functools import partial

from gateway.context import RECONCILER, Services
from gateway.operations import golden
from gateway.operations.reconciler import Reconciler
from gateway.operations.watch import Watch
from gateway.worker.jobs import Job, Loop, Part, Repeated
from idl.codes import ServingError

NUMBER = 1
WATCH = "watch"
_LOOK_EVERY_S = 1.0
_log = logging.getLogger(__name__)


class Deploying(Repeated):
    """Looks every second, when somebody rings, and when something that was under way has ended. What is under way on a host when the
    worker stops may be left half-way: the next one goes on.
    """

    def __init__(self, services: Services) -> None:
        super().__init__(RECONCILER, "reconciler")
        check = partial(golden.replay, services.storage, services.models, services.settings)
        self._reconciler = Reconciler(services.storage, services.models, check, services.now, self.ring)

    def step(self) -> float:
        try:
            self._reconciler.step()
        except ServingError as error:
            _log.warning("reconcile_failed", extra={"code": error.code.value, "reason": error.message})
        except Exception:  # noqa: BLE001 - the next look may go well
            _log.exception("reconcile_failed")
        return _LOOK_EVERY_S


def parts(services: Services, number: int) -> list[Part]:
    """What worker `number` has of it."""
    if number != NUMBER:
        return []
    watch = Watch(services.storage, services.collector, services.settings, services.nudge, services.now)
    return [Deploying(services), Loop(Job(WATCH, services.settings.watch_interval_s, lambda _: watch.step()), services)]
