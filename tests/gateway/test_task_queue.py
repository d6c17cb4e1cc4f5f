"""The queue of tasks: whose turn it is, who holds what, and what becomes of it when its holder dies."""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from gateway import waiters as waiters_module
from gateway.clock import now as real_now
from gateway.context import Services
from gateway.operations import task_notices, task_outcomes
from gateway.operations.tasks import Target
from gateway.storage import Storage
from gateway.storage.task_queue import Claimed, Finished, GivenBack
from gateway.storage.task_records import PREDICTION, SUCCEEDED
from gateway.types import Principal, Role
from gateway.waiters import Waiters
from gateway.worker.begun import Begun, mark_of
from idl import last_words
from idl.codes import Code, ServingError
from tests.eventually import eventually
from tests.gateway.accounts import person
from tests.gateway.conftest import SetClock

ANN, BOB = (Principal(number, name, Role.USER) for number, name in ((1, "ann"), (2, "bob")))


@pytest.fixture(autouse=True)
def people(services: Services) -> None:
    person(services, "ann")
    person(services, "bob")


def submit(services: Services, who: Principal = ANN) -> str:
    return services.tasks.submit(who, Target("m"), b"{}", "application/json").id


def claim(
    services: Services, count: int, worker: int = 1, finished: tuple[Finished, ...] = (), returned: tuple[GivenBack, ...] = ()
) -> tuple[int, list[Claimed]]:
    queue = services.storage.task_queue
    return queue.settle(finished, returned, services.now(), 86_400.0, task_notices.notice, {PREDICTION: count}, worker, 60.0)


def state(services: Services, task_id: str) -> str:
    task = services.storage.tasks.get(task_id)
    assert task is not None
    return task.state


def reap(services: Services, most: int = 3) -> tuple[int, int]:
    return services.storage.task_queue.reap(services.now(), most, lambda _: 1.0, 86_400.0, task_notices.notice)


def test_one_users_thousands_do_not_starve_anothers_one(services: Services) -> None:
    anns = [submit(services) for _ in range(200)]
    _, begun = claim(services, 50)
    assert [each.task.id for each in begun] == anns[:50]
    bobs = [submit(services, BOB) for _ in range(3)]
    _, begun = claim(services, 6)
    assert [{each.task.user_id for each in begun[place : place + 2]} for place in (0, 2, 4)] == [{1, 2}] * 3, "turn by turn"
    assert [each.task.id for each in begun if each.task.user_id == 2] == bobs
    assert all(each.user == ("ann", "bob")[each.task.user_id - 1] for each in begun)
    assert [each.task.user_id for each in claim(services, 5)[1]] == [1] * 5
    assert [each.body for each in begun] == [b"{}"] * 6


def test_several_threads_claim_each_task_once(services: Services) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: submit(services), range(300)))
        assert len(ids) == 300

        def work(worker: int) -> list[str]:
            mine: list[str] = []
            while claimed := claim(services, 7, worker)[1]:
                mine += [each.task.id for each in claimed]
            return mine

        counted = Counter(task_id for mine in pool.map(work, range(1, 9)) for task_id in mine)
    assert set(counted) == ids and set(counted.values()) == {1}
    assert services.storage.tasks.sizes() == {"queued": 0, "running": 300, "paused": 0}


def test_a_worker_that_comes_back_from_the_dead_changes_nothing(services: Services, time_of_day: SetClock) -> None:
    task_id = submit(services)
    ((first,),) = (claim(services, 1)[1],)
    time_of_day.advance(59)
    assert reap(services) == (0, 0)
    services.storage.task_queue.beat([(task_id, first.task.fence)], services.now(), 60.0)
    time_of_day.advance(59)
    assert reap(services) == (0, 0), "a heartbeat keeps it"
    time_of_day.advance(2)
    assert reap(services) == (1, 0) and claim(services, 1, 2)[1] == [], "put off for a moment"
    time_of_day.advance(1.1)
    ((second,),) = (claim(services, 1, 2)[1],)
    assert second.task.id == task_id and second.task.attempts == 2
    late = Finished(first.task, SUCCEEDED, b"late", result_type="application/json")
    assert claim(services, 0, 1, (late,))[0] == 0 and state(services, task_id) == "running"
    services.storage.task_queue.beat([(task_id, first.task.fence)], services.now(), 600.0)
    assert claim(services, 0, 1, returned=(task_outcomes.put_back(first.task),)) == (0, []) and state(services, task_id) == "running"
    right = Finished(second.task, SUCCEEDED, b"right", result_type="application/json")
    assert claim(services, 0, 2, (right, right))[0] == 1, "once"
    assert services.tasks.result(ANN, task_id).content == b"right"
    assert [event.state for event in services.tasks.events(task_id, 0)] == ["queued", "running", "queued", "running", "succeeded"]


def test_what_dies_three_times_has_failed_and_a_successor_takes_over_at_once(services: Services, time_of_day: SetClock) -> None:
    task_id = submit(services)
    for attempt in (1, 2, 3):
        assert claim(services, 1)[1][0].task.attempts == attempt
        assert services.storage.task_queue.take_over(2) == 0
        assert services.storage.task_queue.take_over(1) == 1, "the worker of that number begins anew"
        reap(services)
        time_of_day.advance(1.5)
    task = services.tasks.get(ANN, task_id)
    assert (task.state, task.error_code) == ("failed", "unavailable") and "3 times" in str(task.error_message)


def test_what_a_dead_worker_had_not_begun_has_had_no_run(services: Services, tmp_path: Path, time_of_day: SetClock) -> None:
    """Claimed ahead, with one that kills its worker: that one alone has failed at the third time."""
    poison, *others = [submit(services) for _ in range(10)]
    path = tmp_path / "run" / "worker-1.begun"
    for attempt in (1, 2, 3):
        worker = Begun(path, 4)
        left = worker.left
        assert left == (None if attempt == 1 else {mark_of(poison), mark_of(others[0])} if attempt == 2 else {mark_of(poison)})
        services.storage.task_queue.take_over(1, lambda task_id, left=left: left is None or mark_of(task_id) in left)  # type: ignore[misc]
        worker.forget()
        reap(services)
        time_of_day.advance(1.5)
        assert len(claim(services, 10)[1]) == 10
        worker.begin(0, poison)
        worker.begin(1, others[0])
        worker.begin(2, others[1])
        worker.end(2)
        if attempt > 1:
            worker.end(1)
    left = Begun(path, 2).left or set()
    assert Begun(path / "no folder", 2).left is None, "then every run counts"
    assert left == {mark_of(poison)}, "a place less is no reason to forget"
    services.storage.task_queue.take_over(1, lambda task_id: mark_of(task_id) in left)
    reap(services)
    tasks = [services.tasks.get(ANN, each) for each in (poison, *others)]
    assert [(task.state, task.attempts) for task in tasks] == [("failed", 3), ("queued", 1), *[("queued", 0)] * 8]


def test_cancelled_while_its_worker_is_dead(services: Services, time_of_day: SetClock) -> None:
    task_id = submit(services)
    claim(services, 1)
    assert services.tasks.cancel(ANN, task_id).state == "running"
    assert services.storage.task_queue.asked(1) == {task_id: "cancel"}
    time_of_day.advance(61)
    assert reap(services) == (0, 1) and state(services, task_id) == "cancelled"


def test_limits_expiry_results_and_history(services: Services, time_of_day: SetClock) -> None:
    services.storage.quotas.defaults = {"tasks": 3}
    first, second, third = (submit(services) for _ in range(3))
    with pytest.raises(ServingError) as full:
        submit(services)
    assert full.value.code is Code.OVERLOADED and full.value.retry_after_ms
    time_of_day.advance(1)  # else his and the first one are of the same turn and moment
    submit(services, BOB)
    (claimed,) = claim(services, 1)[1]
    assert claim(services, 0, 1, (Finished(claimed.task, SUCCEEDED, b"{}", result_type="application/json"),))[0] == 1
    submit(services)
    assert services.storage.tasks.sizes(1) == {"queued": 3, "running": 0, "paused": 0}
    time_of_day.advance(6 * 3600 + 1)
    assert services.tasks.clean() and {state(services, each) for each in (second, third)} == {"expired"}
    assert services.tasks.result(ANN, first).content == b"{}"
    time_of_day.advance(24 * 3600)
    with pytest.raises(ServingError) as gone:
        services.tasks.result(ANN, first)
    assert gone.value.code is Code.GONE, "also before anybody has tidied up"
    assert services.tasks.clean() and services.storage.tasks.body(first, "input") is None
    with pytest.raises(ServingError) as gone:
        services.tasks.retry(ANN, second)
    assert gone.value.code is Code.GONE
    time_of_day.advance(31 * 86_400)
    assert services.tasks.clean() and services.storage.tasks.get(first) is None
    assert services.storage.tasks.sizes() == {"queued": 0, "running": 0, "paused": 0}


@pytest.mark.parametrize(
    ("error", "attempts", "is_over", "left"),
    [
        (ServingError(Code.INVALID_INPUT, "x"), 1, True, 1),
        (ServingError(Code.MODEL_FAILED, "the model raised"), 1, True, 1),
        (ServingError(Code.MODEL_FAILED, last_words.message("m", "")), 1, False, 1),
        (ServingError(Code.MODEL_FAILED, last_words.message("m", "")), 3, True, 3),
        (ServingError(Code.UNAVAILABLE, "the connection broke"), 2, False, 2),
        (ServingError(Code.UNAVAILABLE, "the model host cannot be reached: refused"), 3, False, 2),
        (ServingError(Code.OVERLOADED, "full"), 1, False, 0),
        (ServingError(Code.NOT_READY, "starts"), 3, False, 2),
        (ServingError(Code.DEPLOYMENT_PAUSED, "paused"), 1, False, 0),
        (ServingError(Code.INSUFFICIENT_CAPACITY, "the disk is full"), 1, False, 0),
        (ServingError(Code.DEADLINE_EXCEEDED, "too long"), 1, True, 1),
    ],
)
def test_what_becomes_of_a_run_that_failed(services: Services, error: ServingError, attempts: int, is_over: bool, left: int) -> None:
    submit(services)

    task = replace(claim(services, 1)[1][0].task, attempts=attempts)
    outcome = task_outcomes.judge(task, error, 3)
    assert isinstance(outcome, Finished) is is_over
    if isinstance(outcome, GivenBack):
        assert outcome.attempts == left and 0 < outcome.delay_s <= 30


def test_hundreds_wait_in_one_thread(services: Services) -> None:

    waiters = Waiters(services.storage.task_marks, 200)
    ids = [submit(services) for _ in range(3)]

    class Watch:
        def __init__(self, task_id: str, until: float) -> None:
            self.task_id, self.until = task_id, until

        def step(self, *, is_late: bool, is_idle: bool) -> tuple[bytes, bool]:
            over = is_late or state(services, self.task_id) == "cancelled"
            return (b"late" if is_late else b"over") if over else b"", over

    before, pairs, watches = threading.active_count(), [], [Watch(ids[number % 3], time.monotonic() + 60) for number in range(200)]
    for watch in watches:
        ours, theirs = socket.socketpair()
        waiters.take(theirs.detach(), watch)
        pairs.append(ours)
    assert threading.active_count() <= before + 1
    with pytest.raises(ServingError):
        waiters.take(0, Watch(ids[0], 0))
    for watch in watches[2::3]:
        watch.until = time.monotonic() + 0.3  # and not before all are there
    services.tasks.cancel(ANN, ids[0])
    pairs[1].close()  # a caller that goes
    for number, ours in enumerate(pairs):
        if number % 3 != 1:
            ours.settimeout(10)
            assert ours.recv(100) == (b"late" if number % 3 else b"over") and ours.recv(1) == b""
    eventually(lambda: waiters._count == 66, "who goes is forgotten")
    waiters.close()
    assert pairs[4].recv(1) == b""
    for ours in pairs:
        ours.close()


def test_a_caller_who_does_not_read_holds_no_place_for_ever(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters_module, "LINGER_S", 1.0)
    waiters, task_id, size = Waiters(services.storage.task_marks, 2), submit(services), 8 << 20

    class Watch:
        def __init__(self) -> None:
            self.task_id, self.until = task_id, time.monotonic()

        def step(self, *, is_late: bool, is_idle: bool) -> tuple[bytes, bool]:
            return b"x" * size, True

    pairs = [socket.socketpair() for _ in range(2)]
    for _, theirs in pairs:
        waiters.take(theirs.detach(), Watch())
    silent, reads = pairs[0][0], pairs[1][0]
    reads.settimeout(10)
    got = 0
    while piece := reads.recv(1 << 20):
        got += len(piece)
    assert got == size, "who reads has all of it"
    eventually(lambda: waiters._count == 0, "the other one is let go")
    waiters.close()
    for sock in (silent, reads):
        sock.close()


def test_a_database_that_is_locked_for_long_keeps_what_is_over(services: Services, tmp_path: Path) -> None:
    """The bookkeeper's transaction fails as a whole: nothing of it is there, and it works once the lock is gone."""

    busy = Storage(services.settings.state_dir, busy_timeout_s=0.05)
    task_id = submit(services)
    (claimed,) = claim(services, 1)[1]
    end = Finished(claimed.task, SUCCEEDED, b"{}", result_type="application/json")
    arguments = (real_now() + timedelta(0), 86_400.0, task_notices.notice, {PREDICTION: 1}, 1, 60.0)
    with services.storage.database.write(), pytest.raises(ServingError) as locked:
        busy.task_queue.settle([end], [], *arguments)
    assert locked.value.code is Code.UNAVAILABLE and state(services, task_id) == "running"
    assert busy.task_queue.settle([end], [], *arguments)[0] == 1 and state(services, task_id) == "succeeded"
    busy.close()
