"""The watch for executors that hang, on real boards; time is an argument."""

import os
from collections.abc import Iterator

import pytest

from idl.board import RUNNING_DEADLINE, RUNNING_SINCE, Board, create
from inference_server.executors.hang_watch import HangWatch

S = 10**9


@pytest.fixture
def board() -> Iterator[Board]:
    descriptor = create()
    made = Board(descriptor, writable=True)
    os.close(descriptor)
    yield made


def run(board: Board, since_s: float, deadline_s: float) -> None:
    board.cells[RUNNING_SINCE], board.cells[RUNNING_DEADLINE] = int(since_s * S), int(deadline_s * S)


def test_a_run_far_past_its_deadline_hangs_when_it_is_seen_twice(board: Board) -> None:
    watch = HangWatch(10)
    run(board, 100, 105)
    assert [watch.step(now * S, {7: board}) for now in (104, 106, 115, 116, 117)] == [[], [], [], [], [7]]


def test_another_run_begins_the_count_anew(board: Board) -> None:
    watch = HangWatch(10)
    run(board, 100, 105)
    assert watch.step(116 * S, {7: board}) == []
    run(board, 116.5, 105)  # the next run's start with the deadline of the one before: seen between two writes
    assert watch.step(117 * S, {7: board}) == []
    run(board, 116.5, 121)
    assert watch.step(118 * S, {7: board}) == []
    run(board, 0, 0)
    assert [watch.step(now * S, {7: board}) for now in (140, 150)] == [[], []]


def test_without_a_deadline_or_a_grace_nothing_hangs(board: Board) -> None:
    run(board, 100, 0)
    assert [HangWatch(10).step(now * S, {7: board}) for now in (10_000, 10_001)] == [[], []]
    watch = HangWatch(0)
    run(board, 100, 105)
    assert [watch.step(now * S, {7: board}) for now in (10_000, 10_001)] == [[], []]


def test_each_executor_is_judged_by_itself_and_those_that_left_are_forgotten(board: Board) -> None:
    descriptor = create()
    other = Board(descriptor, writable=True)
    os.close(descriptor)
    watch = HangWatch(0.5)
    run(board, 1, 2)
    run(other, 1, 50)
    assert watch.step(3 * S, {7: board, 8: other}) == []
    assert watch.step(4 * S, {8: other}) == []
    assert watch.step(5 * S, {7: board, 8: other}) == [], "a new process with the number of one that left"
    assert watch.step(6 * S, {7: board, 8: other}) == [7]
