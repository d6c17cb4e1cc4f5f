"""Whose turn it is where much is refused, cancelled or long: nobody waits for what others' tasks cannot do."""

import pytest

from gateway.context import Services
from gateway.operations import task_notices, task_outcomes
from gateway.operations.tasks import Target
from gateway.storage.task_queue import Claimed, GivenBack
from gateway.storage.task_records import PREDICTION
from gateway.types import Principal, Role
from gateway.worker import task_runner
from idl.codes import Code, ServingError
from tests.gateway.accounts import person
from tests.gateway.conftest import SetClock

ANN, BOB = (Principal(number, name, Role.USER) for number, name in ((1, "ann"), (2, "bob")))
REFUSED = ServingError(Code.DEPLOYMENT_PAUSED, "deployment 'ann.d' is paused")


@pytest.fixture(autouse=True)
def people(services: Services) -> None:
    person(services, "ann")
    person(services, "bob")


def submit(services: Services, who: Principal = ANN, count: int = 1) -> list[str]:
    return [services.tasks.submit(who, Target("m"), b"{}", "application/json").id for _ in range(count)]


def claim(services: Services, count: int, returned: tuple[GivenBack, ...] = ()) -> list[Claimed]:
    queue = services.storage.task_queue
    return queue.settle((), returned, services.now(), 86_400.0, task_notices.notice, {PREDICTION: count}, 1, 60.0)[1]


def refuse(services: Services, claimed: list[Claimed]) -> None:
    claim(services, 0, tuple(task_outcomes.wait(each.task, REFUSED) for each in claimed))


def test_what_is_put_off_waits_behind_its_user_and_not_before_others(services: Services, time_of_day: SetClock) -> None:
    submit(services, ANN, 200)
    refuse(services, claim(services, 200))
    for _ in range(3):  # all of it is due, again and again
        time_of_day.advance(60)
        bobs = submit(services, BOB, 10)
        begun = claim(services, 20)
        assert [each.task.id for each in begun if each.task.user_id == 2] == bobs, "turn by turn"
        for task_id in bobs:
            services.tasks.cancel(BOB, task_id)
        refuse(services, begun)
    assert services.storage.tasks.sizes() == {"queued": 200, "running": 0, "paused": 0}


def test_what_was_cancelled_is_not_held_against_its_user(services: Services) -> None:
    for task_id in submit(services, ANN, 500):
        services.tasks.cancel(ANN, task_id)
    submit(services, BOB, 20)
    (anns,) = submit(services, ANN)
    assert anns in [each.task.id for each in claim(services, 3)]


def test_refusals_for_hours_leave_few_events(services: Services, time_of_day: SetClock) -> None:
    (task_id,) = submit(services)
    told: list[int] = []
    for _ in range(100):
        refuse(services, claim(services, 1))
        told += [event.id for event in services.tasks.events(task_id, told[-1] if told else 0)]
        time_of_day.advance(31)
    events = services.tasks.events(task_id, 0)
    assert len(events) <= 10 and events[0].id == told[0] and [event.id for event in events[-8:]] == told[-8:]
    assert len(told) == 201, "who listens has them all"
    assert [event.state for event in events[-2:]] == ["running", "queued"]


def test_what_died_together_does_not_come_back_together() -> None:
    """One task that kills its worker each time takes not the same others with it three times."""
    first, second = ([task_runner.reap_delay(attempts) for _ in range(200)] for attempts in (1, 2))
    assert 1 <= min(first) < 2 and 4 < max(first) <= 6 and min(second) >= 2 and 8 < max(second) <= 12
    moments = sorted(first)
    assert max(sum(1 for other in moments if moment <= other < moment + 0.1) for moment in moments) < 20, "a tenth of them at most"
