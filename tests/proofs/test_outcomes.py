"""Every outcome of a call over every wire: answered, refused, given up while it waits or runs, late, shut down. All state is freed each time."""

import contextlib
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from idl import board as boards
from idl.board import Board
from idl.messages import InferRequest
from tests.conftest import Record
from tests.eventually import eventually
from tests.processes import Process, descendants, start_up, wait_until_gone
from tests.proofs.models import TABLE, probe, probe_request
from tests.proofs.open_loop import rounds_for
from tests.proofs.process_trees import Holdings, everybody, holdings, shared_memory, tree
from tests.proofs.wires import WIRES, LaneWire, Pending, Wire

PLUG_S = 0.2
"""How long the model is kept busy while something else happens."""
AT_ONCE = 48
"""Calls, at most."""
AHEAD_S = 2.0
"""The same, while six calls come over six new connections."""


class Stack:
    """An `outboard up` with the probe in it, one request a run, and an eye on its executor."""

    def __init__(self, folder: Path) -> None:
        probe(folder / "models" / "m" / "1" / "model.onnx")
        (folder / "models" / "m" / "model.toml").write_text("max_batch_size = 1\nthreads = 1\n")
        self.process: Process = start_up(folder / "data", "--models", str(folder / "models"), "--no-demo")
        self.run_dir = folder / "data" / "run"
        lane = LaneWire(self.run_dir)
        self._eye = lane.connect("m")
        self.rounds_per_s = rounds_for(lambda rounds: self._eye.call(probe_request("m", 0, rounds=rounds)), 1.0)
        assert isinstance(self._eye._board, Board)
        self.board = self._eye._board

    def rounds(self, seconds: float) -> int:
        """How many take about so long."""
        return int(self.rounds_per_s * seconds)

    def counts(self) -> Counter[str]:
        """What the server has counted of the model: requests by code, and runs."""
        found: Counter[str] = Counter()
        with urllib.request.urlopen(self.process["metrics"]) as response:
            for line in response.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name.startswith('outboard_requests_total{code="') and 'model="m"' in name:
                    found[name.split('"')[1]] += int(float(value))
                elif name.startswith("outboard_executions_total{"):
                    found["runs"] += int(float(value))
        return found

    def let_go(self) -> None:
        """Of the executor, and of what it shares. Idempotent."""
        self._eye.close()
        self.board = None  # type: ignore[assignment]

    def close(self) -> None:
        self.let_go()
        below = descendants(self.process.process.pid)
        assert self.process.stop(signal.SIGINT) == 0, self.process.log.read_text()
        assert not wait_until_gone(below)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("outcomes"))
    yield made
    made.close()


class TooSlow(Exception):
    """The machine was busy elsewhere, and the model's run was over, or the call late, too soon to tell. All may be tried more slowly."""


class Bench:
    """One wire to the stack, and what may happen to a call over it. Each method says which counts it must add, or raises `TooSlow`.
    `plug_s`: how long the model is kept busy.
    """

    def __init__(self, stack: Stack, wire: Wire) -> None:
        self._stack, self._wire, self._board, self._tag = stack, wire, stack.board, 0
        self.plug_s = PLUG_S

    def _request(self, seconds: float = 0.0, index: int = 3) -> InferRequest:
        self._tag += 100
        return probe_request("m", self._tag, rows=2, width=5, index=index, rounds=self._stack.rounds(seconds) if seconds else 0)

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """The model runs something meanwhile, and that is answered."""
        plug = self._wire.send(self._request(self.plug_s))
        try:
            if not self._soon(self._runs):
                raise TooSlow
            yield
        finally:
            assert plug.result() == "ok"

    def _runs(self) -> bool:
        return bool(self._board.cells[boards.RUNNING] == 1)

    def _soon(self, condition: Callable[[], bool]) -> bool:
        """Whether it comes to hold in a third of the time for which the model is kept busy."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > self.plug_s / 3:
                return False
            time.sleep(0.001)
        return True

    def _late(self, pending: Pending, came: Callable[[], bool]) -> None:
        """It is late, but not before it `came` so far."""
        in_time = self._soon(came)
        result = pending.result()
        if result == "ok" or not in_time:
            raise TooSlow
        assert result == "deadline_exceeded"

    def many_at_once(self) -> None:
        for _ in range(3):
            assert {pending.result() for pending in [self._wire.send(self._request(0.005)) for _ in range(AT_ONCE)]} == {"ok"}

    def ok(self) -> dict[str, int]:
        assert self._wire.send(self._request()).result() == "ok"
        return {"ok": 1, "runs": 1}

    def error(self) -> dict[str, int]:
        assert self._wire.send(self._request(index=TABLE)).result() == "invalid_input"
        return {"invalid_input": 1}

    def given_up_while_it_waits(self) -> dict[str, int]:
        with self._busy():
            pending = self._wire.send(self._request())
            waits = self._soon(lambda: self._board.in_flight == 2)
            pending.hang_up()
            free_while_it_runs = self._soon(lambda: self._board.in_flight == 1) and self._runs()
            if not (waits and free_while_it_runs):
                raise TooSlow
        return {"ok": 1, "cancelled": 1, "runs": 1}

    def given_up_while_it_runs(self) -> dict[str, int]:
        pending = self._wire.send(self._request(self.plug_s))
        runs = self._soon(self._runs)
        pending.hang_up()
        if not (runs and self._runs()):
            raise TooSlow
        return {"cancelled": 1, "runs": 1}

    def late_while_it_waits(self) -> dict[str, int]:
        with self._busy():
            self._late(self._wire.send(self._request(), timeout_s=self.plug_s / 3), lambda: self._board.in_flight == 2)
        return {"ok": 1, "deadline_exceeded": 1, "runs": 1}

    def late_while_it_runs(self) -> dict[str, int]:
        self._late(self._wire.send(self._request(self.plug_s), timeout_s=self.plug_s / 3), self._runs)
        return {"deadline_exceeded": 1, "runs": 1}


OUTCOMES: dict[str, Callable[[Bench], dict[str, int]]] = {
    name: getattr(Bench, name)
    for name in ("ok", "error", "given_up_while_it_waits", "given_up_while_it_runs", "late_while_it_waits", "late_while_it_runs")
}


def still(stack: Stack) -> bool:
    """Whether the counts stay as they are for a while."""
    before = stack.counts()
    time.sleep(0.3)
    return stack.counts() == before


def done(stack: Stack, bench: Bench, name: str, happen: Callable[[Bench], dict[str, int]]) -> tuple[Counter[str], Counter[str]]:
    """What was counted before it happened, and what must be counted after."""
    for patience in (1, 4, 16):
        counted, bench.plug_s, added = stack.counts(), PLUG_S * patience, None
        with contextlib.suppress(TooSlow):
            added = happen(bench)
        eventually(lambda: stack.board.in_flight == 0, f"{name}: accepted == finished")
        if added is not None:
            return counted, counted + Counter(added)
        eventually(lambda: still(stack), "what came too late is counted")
    raise AssertionError(f"{name}: the model's run was always over before, or the call late, or its place not free while the model ran")


@pytest.mark.parametrize("wire", WIRES)
def test_every_outcome_frees_all_state(stack: Stack, wire: str, long: bool, figure: Record) -> None:
    sending = WIRES[wire](stack.process, stack.run_dir)
    bench = Bench(stack, sending)
    before: Holdings | None = None
    try:
        bench.many_at_once()  # whatever is made once and kept, in every process of the way, is made now
        for _ in range(20 if long else 2):
            for name, happen in OUTCOMES.items():
                counted, expected = done(stack, bench, name, happen)
                with contextlib.suppress(AssertionError):
                    eventually(lambda expected=expected: stack.counts() == expected, name, 2)
                assert stack.counts() - counted == expected - counted, name
            before = before or holdings(stack.process.process.pid)
    finally:
        sending.close()
    with contextlib.suppress(AssertionError):
        eventually(lambda: not holdings(stack.process.process.pid).over(before, AT_ONCE), "")
    now = holdings(stack.process.process.pid)
    figure(f"outcomes over {wire}: {now}")
    assert not now.over(before, AT_ONCE), now.over(before, AT_ONCE)


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """One that the test ends by itself."""
    made = Stack(tmp_path)
    below = tree(made.process.process.pid)
    yield made
    made.process.stop(signal.SIGKILL)
    made.let_go()
    assert not wait_until_gone(below), "processes left over"


def on_their_way(stack: Stack) -> tuple[list[Pending], list[Wire]]:
    """One request that runs and, behind it, one over every wire."""
    wires = [make(stack.process, stack.run_dir) for make in WIRES.values()]
    sent = [wires[-1].send(probe_request("m", 1, rounds=stack.rounds(AHEAD_S)))]
    eventually(lambda: stack.board.cells[boards.RUNNING] == 1, "the model is busy")
    sent += [wire.send(probe_request("m", 1000 * number, rows=3)) for number, wire in enumerate(wires)]
    eventually(lambda: stack.board.in_flight == 1 + len(wires), "all of them are inside")
    return sent, wires


def test_a_stop_answers_everybody_who_is_inside(own_stack: Stack) -> None:
    sent, wires = on_their_way(own_stack)
    shared = shared_memory(tree(own_stack.process.process.pid))
    own_stack.process.process.send_signal(signal.SIGTERM)
    assert [pending.result() for pending in sent] == ["ok"] * len(sent)
    for wire in wires:
        wire.close()
    assert own_stack.process.process.wait(60) == 0
    own_stack.let_go()
    assert not [path for path in own_stack.run_dir.rglob("*") if path.is_socket()]
    assert shared and not shared & shared_memory(everybody())


def test_a_second_signal_ends_every_call_at_once_and_says_no_untruth(own_stack: Stack) -> None:
    sent, wires = on_their_way(own_stack)
    shared, begun = shared_memory(tree(own_stack.process.process.pid)), time.monotonic()
    own_stack.process.process.send_signal(signal.SIGTERM)
    eventually(lambda: own_stack.process.process.poll() is not None or _signalled_again(own_stack), "it ends", 10)
    results = [pending.result() for pending in sent]
    assert time.monotonic() - begun < 20
    allowed = {"ok", "connection lost", "unavailable", "not_ready", "model_failed", "UNAVAILABLE", "CANCELLED", "executor gone, ran: True"}
    assert set(results) <= allowed | {"executor gone, ran: False", "HTTP 502", "HTTP 504"}, results
    for wire in wires:
        wire.close()
    assert own_stack.process.stop() == 130
    own_stack.let_go()
    eventually(lambda: not shared & shared_memory(everybody()), "no shared memory is left")


def _signalled_again(stack: Stack) -> bool:
    stack.process.process.send_signal(signal.SIGTERM)
    return False
