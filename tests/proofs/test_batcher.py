"""A million requests with marks of their own, through one batcher: every caller gets its own rows, whatever happens to its neighbours."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from idl import board as boards
from idl.codes import Code, ServingError
from idl.lane_calls import LaneAnswer
from idl.messages import InferRequest
from inference_server.engine import Engine
from inference_server.executors.process import ProcessExecutor
from tests.conftest import Record
from tests.eventually import eventually
from tests.proofs.models import TABLE, is_own, probe, probe_request
from tests.proofs.open_loop import rounds_for
from tests.proofs.swarm import Flight, Outcome, Swarm

SEED = 20261
AT_ONCE = 96
SETTINGS = "max_batch_size = 16\nmax_queue_size = 4096\nthreads = 1\n"
Start = Callable[[str], ProcessExecutor]


@pytest.fixture
def start(engine: Engine, repository: Path) -> Start:
    """Loads the probe with settings; returns its executor."""

    def load(settings: str) -> ProcessExecutor:
        probe(repository / "m" / "1" / "model.onnx")
        (repository / "m" / "model.toml").write_text(settings)
        engine.load_all()
        (served,) = engine._served["m"].versions.values()
        (executor,) = served.executors
        assert isinstance(executor, ProcessExecutor)
        assert served.loaded.queue.max_batch_size == 16, served.loaded.tuning.reason
        return executor

    return load


@pytest.fixture
def swarm_to() -> Iterator[Callable[[ProcessExecutor], Swarm]]:
    made: list[Swarm] = []

    def to(executor: ProcessExecutor) -> Swarm:
        made.append(Swarm(str(executor.path)))
        return made[-1]

    yield to
    for swarm in made:
        swarm.close()


class Traffic:
    """Seeded requests, each with numbers that no other one has, and what became of them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._next_tag = 1
        self.counts: Counter[str] = Counter()

    def request(self) -> InferRequest:
        chance = self._random
        rows, width = chance.choice((1, 1, 1, 1, 2, 3, 5)), chance.choice((1, 1, 1, 4, 31))
        index = TABLE + 7 if chance.random() < 0.01 else chance.randrange(TABLE)
        tag, self._next_tag = self._next_tag, self._next_tag + rows * width
        return probe_request("m", tag, rows=rows, width=width, index=index)

    def cancel(self, swarm: Swarm) -> None:
        """Now and then one that is on its way."""
        if self._random.random() < 0.005:
            swarm.cancel(self._random.choice(swarm.flights))
            self.counts["cancelled"] += 1

    def landed(self, flight: Flight, outcome: Outcome) -> None:
        bad = bytes(flight.request.inputs[1].data[:8]) == (TABLE + 7).to_bytes(8, "little")
        if isinstance(outcome, LaneAnswer):
            assert not bad and is_own(flight.request, outcome.outputs), f"request {flight.number} got {outcome.outputs}"
            self.counts["ok"] += 1
        else:
            assert bad and isinstance(outcome, ServingError) and outcome.code in (Code.INVALID_INPUT, Code.MODEL_FAILED), outcome
            self.counts["bad"] += 1


def test_every_caller_gets_its_own_rows(start: Start, swarm_to: Callable[[ProcessExecutor], Swarm], long: bool, figure: Record) -> None:
    executor = start(SETTINGS)
    swarm, traffic, total = swarm_to(executor), Traffic(SEED), 1_000_000 if long else 20_000
    sent = 0
    while sent < total or len(swarm):
        while sent < total and len(swarm) < AT_ONCE:
            sent += 1
            swarm.send(sent, traffic.request())
            traffic.cancel(swarm)
        for flight, outcome in swarm.outcomes(10.0):
            traffic.landed(flight, outcome)
    counts, board = traffic.counts, executor.board
    assert counts.total() == total and min(counts.values()) > total // 1000, counts
    eventually(lambda: board.in_flight == 0, "accepted == finished")
    batches = {rows: runs for rows, runs, *_ in board.batches()}
    shared = sum(runs for rows, runs in batches.items() if rows > 5)  # more rows than any request has alone
    figure(f"batcher: {total:,} requests {dict(counts)}, runs by rows {batches}")
    assert shared > board.cells[boards.EXECUTIONS] / 4, f"batches really form: {batches}"
    success, errors = board.kind("success")[0], dict(board.errors())
    # a cancelled one may have been answered at that very moment, or have hung up before the executor knew of its connection
    assert 0 <= success - counts["ok"] <= counts["cancelled"]
    assert total - counts["cancelled"] <= success + sum(errors.values()) <= total
    assert set(errors) == {Code.INVALID_INPUT.value, Code.CANCELLED.value}


@pytest.mark.parametrize("place", [0, 7, 15], ids=["first", "middle", "last"])
@pytest.mark.parametrize("how", ["gone while it waits", "gone while it runs", "bad"])
def test_one_of_a_batch_never_harms_its_neighbours(
    start: Start, swarm_to: Callable[[ProcessExecutor], Swarm], place: int, how: str
) -> None:
    executor = start(SETTINGS)
    board, swarm = executor.board, swarm_to(executor)

    def ask(rounds: int) -> None:
        swarm.send(-1, probe_request("m", 0, rounds=rounds))
        swarm.all_outcomes()

    rounds = rounds_for(ask, 0.3)  # and from here on it knows that its runs are long
    before = Counter({rows: runs for rows, runs, *_ in board.batches()})
    swarm.send(-1, probe_request("m", 0, rounds=rounds))
    eventually(lambda: board.cells[boards.RUNNING] == 1, "the model is busy")
    flights = [
        swarm.send(
            number, probe_request("m", 100 * number, index=TABLE if how == "bad" and number == place else number, rounds=rounds // 6)
        )
        for number in range(16)
    ]
    eventually(lambda: board.in_flight == 17, "16 wait")
    if how == "gone while it waits":
        swarm.cancel(flights[place])
        eventually(lambda: board.in_flight == 16, "its place is free at once")
    if how == "gone while it runs":
        eventually(lambda: board.cells[boards.RUNNING] == 16, "all of them are inside")
        swarm.cancel(flights[place])
    outcomes = {flight.number: (flight, outcome) for flight, outcome in swarm.all_outcomes()}
    assert set(outcomes) == {-1, *range(16)} - ({place} if how != "bad" else set())
    for number, (flight, outcome) in outcomes.items():
        if how == "bad" and number == place:
            assert isinstance(outcome, ServingError) and outcome.code is Code.INVALID_INPUT, outcome
        else:
            assert isinstance(outcome, LaneAnswer) and is_own(flight.request, outcome.outputs), outcome
    eventually(lambda: board.in_flight == 0, "accepted == finished")
    rows = Counter({rows: runs for rows, runs, *_ in board.batches()}) - before
    assert rows == {"gone while it waits": {1: 1, 15: 1}, "gone while it runs": {1: 1, 16: 1}, "bad": {1: 16}}[how]
    assert dict(board.errors()) == {Code.INVALID_INPUT.value if how == "bad" else Code.CANCELLED.value: 1}
