"""Runs tasks: one thread keeps the books, which claims, ends and gives back in one transaction for all of them; others make the predictions.

While a transaction becomes durable the predictions go on, and what they finish meanwhile is in the next one.
"""

import logging
import queue
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from gateway.context import Services
from gateway.operations import calls, task_notices, task_outcomes, tasks
from gateway.operations.calls import Room
from gateway.operations.deployment_errors import TASK
from gateway.storage.task_queue import Claimed, Finished, GivenBack
from gateway.storage.task_records import BATCH, FAILED, PREDICTION, SUCCEEDED
from gateway.worker.batch_run import BatchRun
from gateway.worker.begun import Begun, mark_of
from idl.codes import Code, ServingError

_log = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0
"""How often the queue is looked at without a ring."""
_REAP_EVERY_S = 5.0
_DATABASE_PAUSE_S = 0.5
_QUICK_S = 0.05
"""Predictions that take no longer than that on average are claimed ahead, so that no thread waits for a transaction."""
BATCH_TURN_S = 30.0
"""How long a batch may go on while somebody else's waits for a place."""
YIELD = "yield"
JSON = "application/json"


def begun_path(folder: Path, number: int) -> Path:
    """Where worker `number` says what it runs."""
    return folder / f"worker-{number}.begun"


def reap_delay(attempts: int) -> float:
    """Seconds after which a task is begun again whose worker has died with it. They lie apart: what one of them did to the worker is not done
    to the same others once more."""
    return 2.0 ** (min(attempts, 6) - 1) * random.uniform(1.0, 6.0)


@dataclass(slots=True)
class Held:
    """A task that is this worker's. `hang_up` ends its call."""

    claimed: Claimed
    ours: socket.socket
    theirs: socket.socket
    asked: str = ""
    outcome: Finished | GivenBack | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    begun_at: float = field(default_factory=time.monotonic)
    batch: BatchRun | None = None

    def hang_up(self) -> None:
        self.stop.set()
        self.ours.close()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class TaskRunner:
    """A `Part` of worker `number`."""

    name = tasks.JOB

    def __init__(self, services: Services, number: int) -> None:
        self._services = services
        self._number = number
        self._room = Room(services.settings, services.storage, services.models, services.deployed)
        self._changed = threading.Condition()
        self._held: dict[str, Held] = {}
        self._over: list[Held] = []
        self._rung = True
        self._stopping = False
        self._host_is_gone = False
        self._seconds = 1.0
        self._work: queue.SimpleQueue[Held | None] = queue.SimpleQueue()
        self._done = threading.Event()
        count = services.settings.task_threads
        self._begun: Begun | None = None
        self._batch_places = [count + place for place in range(services.settings.batches_at_once)]
        self._threads = [threading.Thread(target=self._predict, args=[place], name=f"task-{place}", daemon=True) for place in range(count)]
        self._books = threading.Thread(target=self._keep_books, name="tasks", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="tasks-heartbeat", daemon=True)

    # the part ----------------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        for thread in (*self._threads, self._heart, self._books):
            thread.start()

    def ring(self) -> None:
        with self._changed:
            self._rung = True
            self._changed.notify()

    def ask_to_stop(self) -> None:
        """Batches stop where they are, predictions may end."""
        with self._changed:
            self._stopping = self._rung = True
            for held in self._held.values():
                if held.claimed.task.kind == BATCH:
                    held.hang_up()
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        """What is still under way after most of that time is taken back from the model host and given to the next worker."""
        if not self._done.wait(timeout_s * 0.8):
            with self._changed:
                for held in self._held.values():
                    held.hang_up()
            self._done.wait(timeout_s * 0.2)
        for _ in self._threads:
            self._work.put(None)
        for thread in (*self._threads, self._heart):
            thread.join(0.1)
        return self._done.is_set()

    # the books ---------------------------------------------------------------------------------------------------------------------------

    def _keep_books(self) -> None:
        pause_s, reap_at, taken_over = 0.0, 0.0, False
        while True:
            with self._changed:
                if not (self._over or self._rung):
                    self._changed.wait(pause_s)
                if self._stopping and not self._held:
                    break
                over, self._over = self._over, []
                rung, self._rung = self._rung, False
            try:
                if not taken_over:
                    self._take_over()
                    taken_over = True
                if time.monotonic() >= reap_at:
                    self._reap()
                    reap_at = time.monotonic() + _REAP_EVERY_S
                if rung or not over:
                    self._hear()
                    self._share_batches()
                pause_s = self._settle(over)
            except Exception as error:  # noqa: BLE001 - whatever it is: what is over is not forgotten
                if not isinstance(error, ServingError):
                    _log.exception("tasks_not_settled")
                with self._changed:
                    self._over = over + self._over
                    pause_s = _DATABASE_PAUSE_S
                    self._changed.wait_for(lambda: False, pause_s)  # a ring does not mend it
        self._done.set()

    def _take_over(self) -> None:
        settings = self._services.settings
        self._begun = begun = Begun(begun_path(settings.run_dir, self._number), settings.task_threads + settings.batches_at_once)
        left = begun.left
        self._services.storage.task_queue.take_over(self._number, lambda task_id: left is None or mark_of(task_id) in left)
        begun.forget()

    def _settle(self, over: list[Held]) -> float:
        """Returns the seconds to wait for a ring."""
        claims = self._claims(len(over))
        if not over and not any(claims.values()):
            return LOOK_EVERY_S
        settings, queue_ = self._services.settings, self._services.storage.task_queue
        outcomes = [held.outcome for held in over]
        finished = [outcome for outcome in outcomes if isinstance(outcome, Finished)]
        returned = [outcome for outcome in outcomes if isinstance(outcome, GivenBack)]
        _, claimed = queue_.settle(
            finished,
            returned,
            self._services.now(),
            settings.task_result_ttl_s,
            task_notices.notice,
            claims,
            self._number,
            settings.task_lease_s,
        )
        with self._changed:
            for held in over:
                self._held.pop(held.claimed.task.id, None)
                held.close()
            for each in claimed:
                self._held[each.task.id] = Held(each, *socket.socketpair())
        for each in claimed:
            self._begin(self._held[each.task.id])
        if finished:
            self._services.bell.ring(task_notices.JOB)
            for end in finished:
                self._count(end)
        if claimed:
            return LOOK_EVERY_S if len(claimed) < sum(claims.values()) else 0.0
        due_s = queue_.due_in(self._services.now())
        return LOOK_EVERY_S if due_s is None else min(LOOK_EVERY_S, max(0.01, due_s))

    def _claims(self, ending: int) -> dict[str, int]:
        """How many more are wanted of each kind."""
        if self._stopping or not self._host_is_back():
            return {}
        settings = self._services.settings
        with self._changed:
            ending_ids = len(self._held) - ending
            batches = sum(held.claimed.task.kind == BATCH and held.outcome is None for held in self._held.values())
        room = settings.task_threads * (3 if self._seconds < _QUICK_S else 1)
        return {PREDICTION: max(0, room - (ending_ids - batches)), BATCH: max(0, settings.batches_at_once - batches)}

    def _host_is_back(self) -> bool:
        """Nothing is begun while no model host can be reached: each would only be put off."""
        if self._host_is_gone:
            try:
                self._services.models.server_live()
            except ServingError:
                return False
            self._host_is_gone = False
        return True

    def _begin(self, held: Held) -> None:
        if held.claimed.task.kind == PREDICTION:
            self._work.put(held)
            return
        threading.Thread(target=self._run, args=(held, self._batch), name="batch", daemon=True).start()

    def _hear(self) -> None:
        """Ends what somebody wants to be ended."""
        with self._changed:
            if not self._held:
                return
        for task_id, asked in self._services.storage.task_queue.asked(self._number).items():
            with self._changed:
                held = self._held.get(task_id)
                if held is not None and not held.asked:
                    held.asked = asked
                    held.hang_up()

    def _share_batches(self) -> None:
        """Where all places for batches are taken and a user waits who has none, the batch that has run longest goes behind its user's others.
        It goes on later where it was; one that has not answered a row yet is left alone."""
        with self._changed:
            running = [held for held in self._held.values() if held.claimed.task.kind == BATCH and held.outcome is None]
        if self._stopping or len(running) < self._services.settings.batches_at_once or any(held.asked for held in running):
            return
        longest = min(running, key=lambda held: held.begun_at)
        if time.monotonic() - longest.begun_at < BATCH_TURN_S or longest.batch is None or not longest.batch.gets_on:
            return
        if self._services.storage.task_queue.others_wait(BATCH, {held.claimed.task.user_id for held in running}):
            longest.asked = YIELD
            longest.hang_up()

    def _reap(self) -> None:
        settings = self._services.settings
        back, over = self._services.storage.task_queue.reap(
            self._services.now(), settings.task_attempts, reap_delay, settings.task_result_ttl_s, task_notices.notice
        )
        if back or over:
            _log.warning("tasks_without_worker", extra={"given_back": back, "ended": over})
            self._services.bell.ring(task_notices.JOB)

    def _beat(self) -> None:
        """Leases are kept while there is anything to keep, also of what is over and cannot be written yet."""
        settings = self._services.settings
        while not self._done.wait(settings.task_heartbeat_s):
            with self._changed:
                held = [(each.claimed.task.id, each.claimed.task.fence) for each in self._held.values()]
            if not held:
                continue
            try:
                self._services.storage.task_queue.beat(held, self._services.now(), settings.task_lease_s)
            except ServingError as error:
                _log.warning("heartbeat_failed", extra={"reason": error.message})

    # predictions -------------------------------------------------------------------------------------------------------------------------

    def _predict(self, place: int) -> None:
        while (held := self._work.get()) is not None:
            started = time.monotonic()
            assert self._begun is not None, "nothing is claimed before"
            self._begun.begin(place, held.claimed.task.id)
            self._run(held, self._prediction)
            self._begun.end(place)
            self._seconds += (time.monotonic() - started - self._seconds) * 0.1

    def _run(self, held: Held, make: Callable[[Held], Finished | GivenBack]) -> None:
        task = held.claimed.task
        try:
            outcome = make(held)
        except ServingError as error:
            outcome = self._judge(held, error)
        except Exception:  # noqa: BLE001 - the task is owed an end
            _log.exception("task_failed", extra={"task": task.id})
            outcome = task_outcomes.failed(task, Code.INTERNAL, f"the worker made a mistake; its log names it {task.id}")
        if isinstance(outcome, Finished) and outcome.state == FAILED and task.deployment_id is not None:
            failure = ServingError(Code(outcome.error_code or Code.INTERNAL), outcome.error_message or "")
            self._services.deployed.errors.note(task.deployment_id, task.id, TASK, failure)
        with self._changed:
            held.outcome = outcome
            self._over.append(held)
            self._changed.notify()

    def _judge(self, held: Held, error: ServingError) -> Finished | GivenBack:
        task = held.claimed.task
        if held.asked == "cancel" and error.code is Code.CANCELLED:
            return task_outcomes.cancelled(task)
        if error.code is Code.CANCELLED and held.stop.is_set():
            return task_outcomes.put_back(task, behind=held.asked == YIELD)
        if task_outcomes.is_unreachable(error):
            self._host_is_gone = True
        return task_outcomes.judge(task, error, self._services.settings.task_attempts)

    def _prediction(self, held: Held) -> Finished:
        if held.stop.is_set():
            raise ServingError(Code.CANCELLED, "it was asked to end")
        return self._succeeded(held, calls.run(self._room, held.claimed, held.theirs.fileno()), JSON)

    def _succeeded(self, held: Held, result: bytes, content_type: str) -> Finished:
        if len(result) <= tasks.INLINE_BYTES:
            return Finished(held.claimed.task, SUCCEEDED, result, result_type=content_type)
        sha256, _ = self._services.storage.blobs.put([result], self._services.now())
        return Finished(held.claimed.task, SUCCEEDED, result_sha256=sha256, result_type=content_type)

    def _batch(self, held: Held) -> Finished | GivenBack:
        count = partial(self._services.metrics.count, "row")
        begun, task_id = self._begun, held.claimed.task.id
        assert begun is not None, "nothing is claimed before"
        with self._changed:
            place = self._batch_places.pop()

        def asks(is_asking: bool) -> None:
            if is_asking:
                begun.begin(place, task_id)
            else:
                begun.end(place)

        held.batch = run = BatchRun(self._room, self._services.now, held.claimed, held.theirs.fileno(), held.stop, count, asks)
        try:
            return run.run()
        finally:
            held.claimed = replace(held.claimed, task=run.task)
            begun.end(place)
            with self._changed:
                self._batch_places.append(place)

    def _count(self, finished: Finished) -> None:
        self._services.metrics.count("task", finished.task.kind, finished.state)
