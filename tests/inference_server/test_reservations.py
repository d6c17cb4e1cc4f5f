"""Reservations: what fits and what is refused, who gets which cores, and where real processes then run."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from idl.codes import Code, ServingError
from inference_server import host
from inference_server.reservations import Reservation, Reservations, bind, in_units

GIB = 2**30


def four(*, kept: int = 0, threads: int = 0) -> Reservations:
    return Reservations(range(4), 4.0, 8 * GIB + kept, kept=kept, default_threads=threads)


def one(ledger: Reservations, model: str, cpus: float, memory: int = 0) -> Reservation:
    (made,) = ledger.reserve(model, "1", cpus, memory)
    return made


def refusal(ledger: Reservations, model: str, cpus: float, memory: int = 0, **options: object) -> str:
    before = ledger.totals()
    with pytest.raises(ServingError) as caught:
        ledger.reserve(model, "1", cpus, memory, **options)  # type: ignore[arg-type]
    assert caught.value.code is Code.INSUFFICIENT_CAPACITY
    assert ledger.totals() == before, "a refusal reserves nothing"
    return caught.value.message


# cores -----------------------------------------------------------------------------------------------------------------------------


def test_whole_cores_are_exclusive_and_fractions_share_one() -> None:
    ledger = four()
    assert one(ledger, "whole", 1).cores == (0,)
    assert one(ledger, "half", 0.5).cores == (1,)
    assert one(ledger, "quarter", 0.25).cores == (1,), "it fits beside the half"
    assert one(ledger, "most", 0.75).cores == (2,), "it does not"
    assert one(ledger, "little", 0.25).cores == (1,), "the fullest core that has room"
    assert one(ledger, "free", 0).cores == (3,), "what nobody has reserved"
    assert one(ledger, "last", 1.25).cores == (2, 3)
    assert one(ledger, "free", 0).cores == (0, 1, 2, 3), "nothing is left: all of them"
    assert ledger.totals().cpus_free == 0


def test_what_fits_in_sum_only_is_spread_over_the_cores_that_nobody_has_whole() -> None:
    ledger = Reservations(range(3), 3.0, GIB)
    assert one(ledger, "a", 1).cores == (0,)
    assert one(ledger, "b", 0.6).cores == (1,)
    assert one(ledger, "c", 0.6).cores == (2,)
    assert one(ledger, "d", 0.8).cores == (1, 2)


@pytest.mark.parametrize(("cpus", "threads"), [(0.1, 1), (0.5, 1), (1, 1), (1.4, 1), (1.5, 2), (2.5, 3), (4, 4)])
def test_threads_are_the_reserved_cores_rounded(cpus: float, threads: int) -> None:
    assert one(four(threads=9), "m", cpus).threads == threads


def test_without_reserved_cores_threads_are_as_configured_or_as_many_as_the_rest() -> None:
    assert one(four(threads=3), "m", 0).threads == 3
    ledger = four()
    assert one(ledger, "m", 0).threads == 0, "the runtime's own choice, as every core is there"
    one(ledger, "a", 1)
    assert one(ledger, "m", 0).threads == 3


def test_cores_come_back_and_instances_multiply() -> None:
    ledger = four()
    three = ledger.reserve("m", "1", 1, GIB, instances=3)
    assert [each.cores for each in three] == [(0,), (1,), (2,)]
    assert ledger.held("m", "1") == (3.0, 3 * GIB)
    assert ledger.totals().cpus_free == 1 and ledger.totals().memory_free == 5 * GIB
    ledger.release(three[1])
    ledger.release(three[1])
    assert ledger.totals().cpus_free == 2
    assert one(ledger, "n", 1).cores == (1,)


# admission -------------------------------------------------------------------------------------------------------------------------


def test_a_refusal_says_what_was_asked_what_is_free_and_who_holds_the_rest() -> None:
    ledger = four(kept=GIB)
    ledger.reserve("big", "7", 1.5, 3 * GIB, instances=2)
    one(ledger, "small", 0.5, GIB)
    assert refusal(ledger, "m", 1, instances=2) == (
        "model 'm' version 1 asks for 2 x 1 cpus; 0.5 of 4 are free: 'big' version 7 holds 3, 'small' version 1 holds 0.5"
    )
    assert refusal(ledger, "m", 0, GIB + GIB // 2) == (
        "model 'm' version 1 asks for 1.5 GiB of memory; 1 GiB of 8 GiB are free (1 GiB more are kept for the server): "
        "'big' version 7 holds 6 GiB, 'small' version 1 holds 1 GiB"
    )
    assert refusal(four(), "m", 4.5) == "model 'm' version 1 asks for 4.5 cpus; 4 of 4 are free"


def test_of_many_holders_the_largest_are_named() -> None:
    ledger = Reservations(range(8), 8.0, GIB)
    for number in range(1, 7):
        one(ledger, f"m{number}", number / 4)
    said = refusal(ledger, "late", 4)
    assert "'m6' version 1 holds 1.5, 'm5' version 1 holds 1.25, 'm4' version 1 holds 1, 'm3' version 1 holds 0.75, 2 more" in said


def test_a_quota_of_time_counts_and_not_only_cores() -> None:
    ledger = Reservations(range(4), 1.5, GIB)
    one(ledger, "a", 1)
    assert "0.5 of 1.5 are free" in refusal(ledger, "b", 1)
    one(ledger, "b", 0.5)


def test_tenths_that_do_not_add_up_exactly_fit() -> None:
    ledger = Reservations([0], 1.0, GIB)
    for _ in range(10):
        assert one(ledger, "m", 0.1).cores == (0,)
    refusal(ledger, "m", 0.1)


def test_nothing_reserved_is_never_refused() -> None:
    ledger = four()
    one(ledger, "all", 4, 8 * GIB)
    assert one(ledger, "m", 0).cores == (0, 1, 2, 3)


# reloads ---------------------------------------------------------------------------------------------------------------------------


def test_a_reload_overlaps_its_own_cores_but_not_its_memory() -> None:
    ledger = four()
    old = ledger.reserve("m", "1", 2, 3 * GIB)
    one(ledger, "other", 2)
    new = ledger.reserve("m", "2", 2, 3 * GIB, replaces=old)
    assert new[0].cores == old[0].cores
    assert ledger.totals().cpus_reserved == 4, "the two count once"
    refusal(ledger, "third", 0.5)
    ledger.retire(*old)
    ledger.release(*old)
    assert ledger.totals().cpus_reserved == 4
    assert ledger.held("m", "1") == (0, 0)
    assert "2 GiB of 8 GiB are free" in refusal(four_with(5 * GIB, 1 * GIB), "m", 0, 3 * GIB)


def test_a_reload_in_several_steps_takes_over_no_more_than_there_was() -> None:
    """Two versions of a model are reserved one after the other, both in the place of what serves."""
    ledger = four()
    old = ledger.reserve("m", "1", 1, 0)
    first = ledger.reserve("m", "1", 1, 0, replaces=old)
    assert ledger.totals().cpus_reserved == 1 and first[0].cores == old[0].cores
    second = ledger.reserve("m", "2", 1, 0, replaces=old)
    assert ledger.totals().cpus_reserved == 2 and second[0].cores != first[0].cores
    assert "2 of 4 are free" in refusal(ledger, "m", 2.5, replaces=old)
    ledger.retire(*old)
    assert ledger.totals().cpus_reserved == 2
    ledger.release(*first)
    assert ledger.totals().cpus_reserved == 1


def four_with(*sizes: int) -> Reservations:
    ledger = four()
    for size in sizes:
        one(ledger, "m", 0, size)
    return ledger


def test_a_reload_that_fails_leaves_the_old_as_it_was() -> None:
    ledger = four()
    old = ledger.reserve("m", "1", 1, GIB)
    new = ledger.reserve("m", "2", 3, GIB, replaces=old)
    assert ledger.totals().cpus_reserved == 3
    ledger.release(*new)
    assert ledger.totals().cpus_reserved == 1
    assert ledger.held("m", "1") == (1, GIB)
    assert "1 more" not in refusal(ledger, "m", 5, replaces=old)


def test_a_reload_to_fewer_cores_frees_them_only_when_the_old_has_left() -> None:
    ledger = four()
    old = ledger.reserve("m", "1", 4, 0)
    new = ledger.reserve("m", "2", 1, 0, replaces=old)
    refusal(ledger, "n", 1)
    ledger.retire(*old)
    assert ledger.totals().cpus_free == 3
    assert one(ledger, "n", 1).cores != new[0].cores


def test_what_drains_gives_its_cores_at_once_and_its_memory_at_its_end() -> None:
    ledger = four()
    leaving = one(ledger, "m", 4, 8 * GIB)
    ledger.retire(leaving)
    assert ledger.totals().cpus_free == 4 and ledger.totals().memory_free == 0
    assert one(ledger, "n", 1).cores == (0,)
    refusal(ledger, "n", 0, 1)
    ledger.release(leaving)
    one(ledger, "n", 0, GIB)


# a long random life ----------------------------------------------------------------------------------------------------------------


def test_no_order_of_events_promises_more_than_there_is_or_loses_any() -> None:
    chance = random.Random(20)
    ledger = four()
    held: list[Reservation] = []
    for _ in range(3000):
        if held and chance.random() < 0.5:
            leaving = held.pop(chance.randrange(len(held)))
            if chance.random() < 0.5:
                ledger.retire(leaving)
            ledger.release(leaving)
        else:
            try:
                cpus = chance.choice([0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2])
                held += ledger.reserve("m", "1", cpus, chance.randrange(2 * GIB), instances=chance.choice([1, 1, 2]))
            except ServingError:
                pass
        totals = ledger.totals()
        assert totals.cpus_reserved == pytest.approx(sum(each.cpus for each in held)) and totals.cpus_reserved < 4 + 1e-6
        assert totals.memory_reserved == sum(each.memory for each in held) and totals.memory_free >= 0
        whole = [each.cores[0] for each in held if each.cpus == 1 and len(each.cores) == 1]
        assert len(set(whole)) == len(whole), "a whole core has one owner"
    ledger.release(*held)
    assert ledger.totals().cpus_free == 4 and ledger.totals().memory_free == 8 * GIB


def test_threads_that_ask_at_once_get_what_there_is_and_no_more() -> None:
    ledger = four()
    got: list[Reservation] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        for _ in range(50):
            try:
                got.extend(ledger.reserve("m", "1", 0.5, GIB // 2))
            except ServingError:
                return

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(got) == 8 and ledger.totals().cpus_free == 0


# real processes --------------------------------------------------------------------------------------------------------------------

THREADED = """
import sys, threading
for line in sys.stdin:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    print("started", flush=True)
"""


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    made = [subprocess.Popen([sys.executable, "-c", THREADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in made:
        more_threads(process)
    yield made
    for process in made:
        process.kill()
        process.communicate()


def more_threads(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("more\n")
    process.stdin.flush()
    assert process.stdout.readline() == "started\n"


def affinities(process: "subprocess.Popen[str]") -> list[set[int]]:
    return [os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{process.pid}/task")]


@pytest.mark.skipif(len(host.cores()) < 2, reason="this machine has one core")
def test_processes_run_on_their_cores_and_the_others_make_room(processes: list["subprocess.Popen[str]"]) -> None:
    first, second, *_ = cores = host.cores()
    ledger = Reservations(cores[:2], 2.0, GIB)
    free, reserved = one(ledger, "free", 0), one(ledger, "reserved", 1)
    bound, roaming = processes
    ledger.place(reserved, bound.pid)
    more_threads(bound)
    assert affinities(bound) == [{first}] * 3, "threads that are there, and those that come"
    ledger.place(free, roaming.pid)
    assert affinities(roaming) == [{second}] * 2
    ledger.release(reserved)
    assert affinities(roaming) == [{first, second}] * 2, "what was given back is everybody's"
    again = one(ledger, "reserved", 2)
    assert affinities(roaming) == [{first, second}] * 2 and again.cores == (first, second), "nothing is left: all of them"
    ledger.unplace(roaming.pid)
    ledger.release(again)
    one(ledger, "reserved", 1)
    assert affinities(roaming) == [{first, second}] * 2, "its number may be somebody else's by now"


def test_a_process_that_is_gone_is_passed_over(processes: list["subprocess.Popen[str]"]) -> None:
    gone = processes[0]
    gone.kill()
    gone.wait()
    ledger = Reservations(host.cores(), host.cpus(), GIB)
    ledger.place(one(ledger, "m", 0.5), gone.pid)
    with pytest.raises(OSError):
        bind(gone.pid, host.cores())


@pytest.mark.parametrize(
    ("size", "text"), [(1023, "1023 bytes"), (1024, "1 KiB"), (3 * 2**29, "1.5 GiB"), (10**9, "953.67 MiB"), (2**41, "2 TiB")]
)
def test_sizes_are_said_in_units(size: int, text: str) -> None:
    assert in_units(size) == text
