"""Looking before sleeping, with a clock that the test winds."""

import os
from collections.abc import Callable
from itertools import pairwise

import pytest

from idl import linger
from idl.linger import DISTURBED_NS, ENOUGH, LEAST_AWAY, LOOK_NS, MOST, QUICK_NS, Linger


class World:
    """What is waited for comes `after_ns`; each look takes `look_ns`, being woken `wake_ns`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.after_ns, self.look_ns, self.wake_ns = 0, 20_000, 2_000, 60_000
        self.looks = self.sleeps = 0
        self._due = 0
        monkeypatch.setattr(linger, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(os, "sched_yield", lambda: None)

    def look(self) -> str | None:
        self.looks += 1
        self.now += self.look_ns
        return "found" if self.now >= self._due else None

    def sleep(self) -> str:
        self.sleeps += 1
        self.now = max(self.now, self._due) + self.wake_ns
        return "woken"

    def wait(self, waiter: Linger, times: int = 1) -> str | None:
        found = None
        for _ in range(times):
            self._due = self.now + self.after_ns
            found = waiter.wait(self.look, self.sleep)
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_what_comes_at_once_is_looked_for_after_a_few_times(world: World) -> None:
    waiter = Linger(cores=2)
    assert world.wait(waiter, ENOUGH) == "woken" and not world.looks and waiter.worth
    assert world.wait(waiter, 5) == "found" and world.sleeps == ENOUGH


def test_what_takes_long_is_slept_for(world: World) -> None:
    waiter, world.after_ns = Linger(cores=2), QUICK_NS + 1
    assert world.wait(waiter, 50) == "woken" and not world.looks


def test_a_look_in_vain_ends_in_time_and_is_not_repeated(world: World) -> None:
    waiter = Linger(cores=2)
    world.wait(waiter, ENOUGH + 3)
    world.after_ns = 50 * LOOK_NS
    begun, looks = world.now, world.looks
    assert world.wait(waiter) == "woken" and world.now - begun == world.after_ns + world.wake_ns
    assert (world.looks - looks) * world.look_ns <= LOOK_NS + 2 * world.look_ns
    looks = world.looks
    assert world.wait(waiter, 20) == "woken" and world.looks == looks


def test_who_wants_the_core_gets_it_longer_each_time(world: World) -> None:
    waiter, aways = Linger(cores=2), []
    world.wait(waiter, ENOUGH)
    world.after_ns, world.look_ns = 150_000, DISTURBED_NS + 1
    for _ in range(4):
        assert world.wait(waiter) == "woken"  # looked once, was disturbed, and slept
        looks, asleep = world.looks, 0
        while not waiter.worth:
            world.wait(waiter)
            asleep += 1
        assert world.looks == looks
        aways.append(asleep)
    assert aways[0] >= LEAST_AWAY and all(later >= earlier * 3 // 2 for earlier, later in pairwise(aways)), aways


def test_after_a_good_while_a_disturbance_counts_little_again(world: World) -> None:
    def asleep_after_a_disturbance() -> int:
        world.look_ns = DISTURBED_NS + 1
        world.after_ns = 150_000
        world.wait(waiter)
        world.look_ns, world.after_ns, count = 2_000, 20_000, 0
        while not waiter.worth:
            world.wait(waiter)
            count += 1
        return count

    waiter = Linger(cores=2)
    world.wait(waiter, ENOUGH)
    first, _, third = [asleep_after_a_disturbance() for _ in range(3)]
    world.wait(waiter, 2 * MOST)
    assert first < third and asleep_after_a_disturbance() == first


def test_a_single_core_is_never_kept(world: World) -> None:
    waiter = Linger(cores=1)
    assert world.wait(waiter, 100) == "woken" and not world.looks and not waiter.worth


def test_the_cores_are_those_of_the_process(world: World) -> None:
    cores: Callable[[int], set[int]] = os.sched_getaffinity
    assert world.wait(Linger(), 100) == ("found" if len(cores(0)) > 1 else "woken")
