"""Minutes of everything at once, with callers that are killed and callers in a hurry: memory stays, and what the server counts is what they saw."""

import random
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from idl.codes import Code
from inference_client import Client
from tests.conftest import Record
from tests.eventually import eventually
from tests.processes import Process, descendants, start_up, wait_until_gone
from tests.proofs.models import probe
from tests.proofs.process_trees import holdings, resident_bytes
from tests.proofs.soakers import THREADS, Soaker

GROWTH_BYTES, GROWTH_WHILE_WARMING_BYTES = 20e6, 40e6
"""Of everything, from the first quarter on; the short form is over before every process has seen every kind of call."""
SEED = 8
EXACT = ("steady", "busy")
"""Models whose callers wait for every answer: their ledgers must say what the server says."""
SETTINGS = {
    "steady": "max_batch_size = 8\nmax_queue_size = 1000\nthreads = 1\n",
    "busy": "max_batch_size = 1\nmax_queue_size = 4\nthreads = 1\n",
    "hasty": "max_batch_size = 4\nmax_queue_size = 1000\nthreads = 1\n",
    "crashing": "max_batch_size = 4\nmax_queue_size = 1000\nthreads = 1\n",
}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Process]:
    for name, settings in SETTINGS.items():
        probe(tmp_path / "models" / name / "1" / "model.onnx")
        (tmp_path / "models" / name / "model.toml").write_text(settings)
    made = start_up(tmp_path / "data", "--models", str(tmp_path / "models"), "--no-demo")
    yield made
    below = descendants(made.process.pid)
    assert made.stop(signal.SIGINT) == 0, made.log.read_text()
    assert not wait_until_gone(below), "processes left over"


def counted(up: Process) -> dict[str, Counter[str]]:
    """Model -> what the server has counted of it: requests by code."""
    found: dict[str, Counter[str]] = {name: Counter() for name in SETTINGS}
    with urllib.request.urlopen(up["metrics"]) as response:
        for line in response.read().decode().splitlines():
            if line.startswith("outboard_requests_total{"):
                labels = dict(pair.split("=") for pair in line[line.index("{") + 1 : line.index("}")].replace('"', "").split(","))
                found[labels["model"]][labels["code"]] += int(float(line.rpartition(" ")[2]))
    return found


def in_flight(up: Process) -> float:
    with urllib.request.urlopen(up["metrics"]) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("outboard_in_flight_requests{"))


def test_a_soak(up: Process, tmp_path: Path, long: bool, figure: Record, pytestconfig: pytest.Config) -> None:
    seconds = float(pytestconfig.getoption("--soak-s")) if long else 12.0
    run_dir, chance = tmp_path / "data" / "run", random.Random(SEED)
    addresses = [f"grpc://{up['grpc']}", f"thrift://{up['thrift']}", up["http"], f"thrift+unix://{run_dir / 'thrift.sock'}"]
    steady = [Soaker(address, tmp_path / f"steady{n}", (*EXACT, "hasty"), n) for n, address in enumerate(addresses)]
    crashed: list[Soaker] = []
    crashing = [Soaker(address, tmp_path / f"crashing{n}", ("crashing",), 10 + n) for n, address in enumerate(addresses)]
    begun, early = time.monotonic(), 0
    with Client(addresses[0]) as operator:
        while (elapsed := time.monotonic() - begun) < seconds:
            time.sleep(min(1.0, seconds / 20))  # the pace of the crashes
            place = chance.randrange(len(crashing))
            crashing[place].kill()
            crashed.append(crashing[place])
            number = 10 + len(addresses) + len(crashed)
            crashing[place] = Soaker(addresses[place], tmp_path / f"crashing{number}", ("crashing",), number)
            if len(crashed) % 5 == 0:
                operator.load_model("steady")  # statistics go on over reloads
            if not early and elapsed > seconds / 4:
                early = resident_bytes(up.process.pid)
    late = resident_bytes(up.process.pid)
    said = [soaker.stop() for soaker in (*steady, *crashing)]
    eventually(lambda: in_flight(up) == 0, "nothing is left inside")
    server = counted(up)
    mine = {name: sum((soaker.ledger.counts(name) for soaker in steady), Counter()) for name in (*EXACT, "hasty")}
    killed = sum((soaker.ledger.counts("crashing") for soaker in (*crashed, *crashing)), Counter())
    total = sum(counts["begun"] for counts in (*mine.values(), killed))
    figure(
        f"soak of {seconds:.0f} s: {total:,} calls, {len(crashed)} clients killed; memory {early / 1e6:.0f} -> {late / 1e6:.0f} MB; "
        f"server { ({name: dict(counts) for name, counts in server.items()}) }; clients { ({name: dict(counts) for name, counts in mine.items()}) }"
        f", {holdings(up.process.pid)}"
    )
    for soaker in (*steady, *crashing, *crashed):
        soaker.ledger.close()
    assert not any(said), said
    for name in EXACT:
        codes = Counter({code: count for code, count in mine[name].items() if code != "begun"})
        assert codes.total() == mine[name]["begun"] and +codes == +server[name], name
    check_hasty(mine["hasty"], server["hasty"])
    check_killed(killed, server["crashing"], THREADS * len(crashed))
    assert late - early < (GROWTH_BYTES if long else GROWTH_WHILE_WARMING_BYTES), f"memory grew by {(late - early) / 1e6:.1f} MB"


def check_hasty(mine: Counter[str], server: Counter[str]) -> None:
    """Whoever gives up first, each call is counted at most once, and nobody was answered whom the server did not count."""
    late = {Code.DEADLINE_EXCEEDED.value, Code.CANCELLED.value}
    assert not mine["else"] and mine[Code.DEADLINE_EXCEEDED.value], "some of them were too late"
    assert set(+server) <= {"ok", Code.INVALID_INPUT.value} | late, server
    assert server["ok"] >= mine["ok"] and server[Code.INVALID_INPUT.value] >= mine[Code.INVALID_INPUT.value]
    assert (
        mine.total() - mine["begun"] == mine["begun"]
        and mine["begun"] - mine[Code.DEADLINE_EXCEEDED.value] <= server.total() <= mine["begun"]
    )


def check_killed(mine: Counter[str], server: Counter[str], most_inside: int) -> None:
    """A killed client cannot say what became of the calls that it was in; there are no others."""
    told = mine.total() - mine["begun"]
    assert not mine["else"] and told <= mine["begun"] <= told + most_inside
    assert told <= server.total() <= mine["begun"]
    assert set(+server) <= {"ok", Code.INVALID_INPUT.value, Code.DEADLINE_EXCEEDED.value, Code.CANCELLED.value}
    assert server["ok"] >= mine["ok"] and server[Code.INVALID_INPUT.value] >= mine[Code.INVALID_INPUT.value]
