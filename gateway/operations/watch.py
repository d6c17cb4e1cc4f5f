"""What the worker does to deployments by itself: their statistics, how many instances they have, and sleep.

An owner who gives a range of instances leaves their number to us: one more where requests wait too long, one less where the others could
do it for a while. One who says after how long a deployment sleeps has its processes ended when nobody called it for so long.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway import clock
from gateway.operations.deployment_statistics import Collector, Look
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.deployments import RUNNING, DeploymentRecord

_log = logging.getLogger(__name__)
_FORGET_EVERY_S = 600.0
_HOLD_S = 300.0
"""How long nothing is added after the hosts had no room for it."""
_EASY = 0.5
"""Share of the time that the instances which are left may be at work, for one to go."""


@dataclass(slots=True)
class _Scaling:
    """Of one deployment: since when one less would do (None: it would not), what it was given last, until when it gets no more."""

    easy_since: float | None = None
    given: int = 0
    hold_until: float = 0.0


class Watch:
    """One for a data folder; `step` is for one thread. `seconds`: a clock that only goes forward."""

    def __init__(
        self,
        storage: Storage,
        collector: Collector,
        settings: Settings,
        nudge: Callable[[], None],
        now: clock.Clock = clock.now,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._collector = collector
        self._queue_ms = settings.scale_up_queue_ms
        self._down_after_s = settings.scale_down_after_s
        self._nudge = nudge
        self._now = now
        self._seconds = seconds
        self._looked_at: float | None = None
        self._forget_at = 0.0
        self._scaling: dict[int, _Scaling] = {}

    def step(self) -> None:
        """One look at everything."""
        moment = self._seconds()
        elapsed_s = 0.0 if self._looked_at is None else moment - self._looked_at
        self._looked_at = moment
        records = self._storage.deployments.alive()
        looks = self._collector.collect(records)
        called = {number: self._now() for number, look in looks.items() if look.new.requests or look.inside}
        if called:
            self._storage.deployments.called(called)
        changed = [self._see_to(record, looks.get(record.id), moment, elapsed_s) for record in records if _is_steady(record)]
        if any(changed):
            self._nudge()
        self._scaling = {record.id: self._scaling[record.id] for record in records if record.id in self._scaling}
        if moment >= self._forget_at:
            self._forget_at = moment + _FORGET_EVERY_S
            self._storage.deployment_statistics.forget(self._now())
            self._storage.deployment_errors.forget(self._now())

    def _see_to(self, record: DeploymentRecord, look: Look | None, moment: float, elapsed_s: float) -> bool:
        """Whether something is to be done."""
        if look is None:  # its host does not answer
            return False
        if record.max_instances is not None and elapsed_s > 0 and (wanted := self._wanted(record, look, moment, elapsed_s)):
            _log.info("deployment_scaled", extra={"deployment": record.rpc_name, "instances": wanted})
            return self._storage.deployments.scale(record, wanted, self._now())
        if record.sleep_after_s is not None and not (look.new.requests or look.inside or look.queued):
            last = max(record.last_call_at or "", record.updated_at)
            if (self._now() - clock.from_text(last)).total_seconds() >= record.sleep_after_s:
                return self._storage.deployments.lull(record, self._now())
        return False

    def _wanted(self, record: DeploymentRecord, look: Look, moment: float, elapsed_s: float) -> int:
        """How many instances there should be; 0: as many as there are."""
        low, high, now = record.min_instances or 1, record.max_instances or 1, record.instances
        scaling = self._scaling.setdefault(record.id, _Scaling())
        if scaling.given > now:  # the hosts had no room
            scaling.given, scaling.hold_until = 0, moment + _HOLD_S
        if not low <= now <= high:
            return min(max(now, low), high)
        succeeded = sum(look.new.latency)
        waited_ms = look.new.queue_ns / succeeded / 1e6 if succeeded else 0.0
        if waited_ms > self._queue_ms or look.queued > 2 * now:
            scaling.easy_since = None
            if now < high and moment >= scaling.hold_until:
                scaling.given = now + 1
                return now + 1
            return 0
        at_work = look.new.compute_ns / 1e9 / elapsed_s
        if now == low or at_work > _EASY * (now - 1) or waited_ms > self._queue_ms / 4:
            scaling.easy_since = None
            return 0
        if scaling.easy_since is None:
            scaling.easy_since = moment
        if moment - scaling.easy_since < self._down_after_s:
            return 0
        scaling.easy_since, scaling.given = None, 0
        return now - 1


def _is_steady(record: DeploymentRecord) -> bool:
    return record.state == RUNNING and record.wants_to_run and record.generation == record.observed_generation
