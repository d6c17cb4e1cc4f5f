"""The queue of an instance: who runs with whom, in which order, and when. Time is an argument."""

import random
import socket
from collections.abc import Iterator

import pytest

from idl.lane import LaneEnd
from inference_server.executors.batcher import Batcher, QueuePolicy
from inference_server.executors.prepared import Prepared
from inference_server.executors.requests import Connection, Waiting

MS = 1_000_000


@pytest.fixture
def connection() -> Iterator[Connection]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = LaneEnd(left, 1 << 20)
    yield Connection(end, 0)
    end.close()
    right.close()


def waiting(
    connection: Connection, number: int, *, at: int = 0, rows: int = 1, key: object = "k", priority: int = 0, deadline: int = 0
) -> Waiting:
    prepared = Prepared((), (), [], {}, 0, key, rows, priority, 0)  # type: ignore[arg-type]
    return Waiting(connection, number, memoryview(b""), prepared, at, deadline, deadline)


def taken(batcher: Batcher, now: int = 0) -> list[int]:
    return [request.sequence for request in batcher.take(now, [])]


def test_what_waits_is_taken_together_up_to_the_size(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=4))
    for number in range(6):
        assert batcher.add(waiting(connection, number, at=number))
    assert (taken(batcher), taken(batcher), taken(batcher), batcher.size) == ([0, 1, 2, 3], [4, 5], [], 0)


def test_rows_count_and_a_larger_request_runs_alone(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=4))
    for number, rows in enumerate((3, 2, 1, 9, 4)):
        batcher.add(waiting(connection, number, at=number, rows=rows))
    assert [taken(batcher) for _ in range(5)] == [[0], [1, 2], [3], [4], []]


def test_only_one_key_shares_a_run_and_the_oldest_goes_first(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=8))
    for number, key in enumerate("abacab"):
        batcher.add(waiting(connection, number, at=number, key=key))
    assert [taken(batcher) for _ in range(4)] == [[0, 2, 4], [1, 5], [3], []]


def test_without_a_key_requests_run_alone_in_their_order(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=8))
    for number, key in enumerate((None, "a", None, "a")):
        batcher.add(waiting(connection, number, at=number, key=key))
    assert [taken(batcher) for _ in range(4)] == [[0], [1, 3], [2], []]


def test_a_full_queue_says_no_and_a_caller_that_leaves_makes_room(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=8, max_queue_size=2))
    first, second = waiting(connection, 1), waiting(connection, 2)
    assert batcher.add(first) and batcher.add(second) and not batcher.add(waiting(connection, 3))
    batcher.drop(first)
    assert batcher.add(waiting(connection, 4)) and taken(batcher) == [2, 4]


@pytest.mark.parametrize("gone", [(0,), (1,), (3,), (0, 1, 2, 3), (0, 3)])
def test_whoever_leaves_nobody_else_is_harmed(connection: Connection, gone: tuple[int, ...]) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=4))
    requests = [waiting(connection, number) for number in range(4)]
    for request in requests:
        batcher.add(request)
    for number in gone:
        batcher.drop(requests[number])
    assert taken(batcher) == [number for number in range(4) if number not in gone]
    assert batcher.size == 0 and batcher.due_in(0) is None


def test_a_deadline_that_has_passed_is_not_run(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=4))
    for number, deadline in enumerate((5, 50, 0)):
        batcher.add(waiting(connection, number, deadline=deadline))
    expired: list[Waiting] = []
    assert [request.sequence for request in batcher.take(10, expired)] == [1, 2]
    assert [request.sequence for request in expired] == [0]


def test_a_delay_waits_for_more_but_not_past_a_deadline(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=3, max_delay_ns=10 * MS))
    batcher.add(waiting(connection, 0, at=0))
    assert (batcher.due_in(1 * MS), taken(batcher, 1 * MS)) == (9 * MS, [])
    batcher.add(waiting(connection, 1, at=2 * MS, deadline=5 * MS))
    assert batcher.due_in(3 * MS) == 7 * MS, "the oldest of the key decides"
    batcher.add(waiting(connection, 2, at=3 * MS))
    assert (batcher.due_in(3 * MS), taken(batcher, 3 * MS)) == (0, [0, 1, 2])
    batcher.add(waiting(connection, 3, at=20 * MS, deadline=24 * MS))
    assert batcher.due_in(20 * MS) == 4 * MS and taken(batcher, 24 * MS) == [3]


def test_preferred_sizes_end_the_wait_early_and_cut_the_batch(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=8, preferred=(2, 4), max_delay_ns=10 * MS))
    for number in range(3):
        batcher.add(waiting(connection, number, at=number))
    assert taken(batcher, 10) == [0, 1], "the largest preferred size that is there"
    assert taken(batcher, 10) == [], "one alone waits"
    assert taken(batcher, 20 * MS) == [2]


def test_a_higher_priority_goes_first_and_takes_lower_ones_along(connection: Connection) -> None:
    batcher = Batcher(QueuePolicy(max_batch_size=2, priority_levels=3, default_priority=2))
    for number, priority in enumerate((3, 0, 1, 99)):
        batcher.add(waiting(connection, number, at=number, priority=priority))
    assert [taken(batcher) for _ in range(3)] == [[2, 1], [0, 3], []], "0 is the default level, what is above the last is the last"


def test_a_hundred_thousand_random_events_lose_and_repeat_nothing(connection: Connection) -> None:
    seeded = random.Random(7)
    batcher = Batcher(QueuePolicy(max_batch_size=8, max_queue_size=64, priority_levels=2, max_delay_ns=30))
    inside: dict[int, Waiting] = {}
    refused = done = dropped = late = 0
    for now in range(100_000):
        event = seeded.random()
        if event < 0.6:
            made = waiting(
                connection,
                now,
                at=now,
                rows=seeded.randint(1, 9),
                key=seeded.choice("abc") if seeded.random() < 0.9 else None,
                priority=seeded.randint(0, 3),
                deadline=now + seeded.randint(1, 200) if seeded.random() < 0.3 else 0,
            )
            if batcher.add(made):
                inside[now] = made
            else:
                refused += 1
                assert len(inside) == 64
        elif event < 0.7 and inside:
            dropped += 1
            batcher.drop(inside.pop(seeded.choice(list(inside))))
        else:
            expired: list[Waiting] = []
            batch = batcher.take(now, expired)
            assert len({request.prepared.key for request in batch}) <= 1
            assert len(batch) <= 1 or sum(request.prepared.rows for request in batch) <= 8
            for request in (*batch, *expired):
                assert inside.pop(request.sequence) is request
            assert all(0 < request.deadline_ns < now for request in expired)
            done, late = done + len(batch), late + len(expired)
        assert batcher.size == len(inside)
    assert min(refused, done, dropped, late) > 100, "every kind of event happened"
    rest = batcher.everything()
    assert {request.sequence for request in rest} == set(inside) and batcher.size == 0
