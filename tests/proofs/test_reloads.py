"""Reloads while callers over gRPC, Thrift and HTTP ask at half of what the machine can do: nobody is lost, nobody waits long, and memory stays.

Every reload brings a version of its own, and every answer is checked against the version that it says it comes from.
"""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from idl.codes import Code, ServingError
from inference_client import Client
from tests.conftest import Record
from tests.onnx_models import times
from tests.processes import Process, descendants, start_up, wait_until_gone
from tests.proofs.callers import Callers, Report, callers, merged
from tests.proofs.process_trees import resident_bytes

MODEL = "m"
KEPT_VERSIONS = 4
GROWTH_BYTES = 20e6
P99 = 1.5
TRIES = 3
GAP_S = 0.25
"""Between two reloads of the long form."""


@dataclass
class Repository:
    """Versions of one model, each a factor of its own; the old ones are taken away."""

    folder: Path
    last: int = 1
    chance: random.Random = field(default_factory=lambda: random.Random(5))

    def publish(self, broken: bool) -> None:
        """The next version, put there in one step as a careful copy does."""
        self.last += 1
        made = times(self.folder / ".next" / "model.onnx", self.last)
        if broken:
            data = made.read_bytes()
            half = data[: self.chance.randrange(len(data) // 10, len(data) * 8 // 10)]
            made.write_bytes(half if self.chance.random() < 0.5 else data.replace(b"Mul", b"\xffu\x00"))
        made.parent.rename(self.folder / str(self.last))
        for old in self.folder.iterdir():
            if old.name.isdigit() and int(old.name) <= self.last - KEPT_VERSIONS * 3:
                shutil.rmtree(old)


@dataclass
class Stack:
    process: Process
    repository: Repository

    @property
    def addresses(self) -> list[str]:
        return [f"grpc://{self.process['grpc']}", f"thrift://{self.process['thrift']}", self.process["http"]]

    def memory(self) -> int:
        return resident_bytes(self.process.process.pid)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("reloads")
    times(folder / "models" / MODEL / "1" / "model.onnx", 1)
    made = start_up(folder / "data", "--models", str(folder / "models"), "--no-demo")
    yield Stack(made, Repository(folder / "models" / MODEL))
    below = descendants(made.process.pid)
    assert made.stop(signal.SIGINT) == 0, made.log.read_text()
    assert not wait_until_gone(below), "processes left over"


def measured(asking: list[Callers], rates: list[float], seconds: float) -> Report:
    """Everybody's calls of so many seconds, at these rates."""
    for each, rate in zip(asking, rates, strict=True):
        each.start(rate)
    time.sleep(seconds)  # the measurement itself
    report = merged([each.stop() for each in asking])
    assert not report.failed, report.failures
    return report


def half_of_peak(asking: list[Callers], seconds: float) -> list[float]:
    """The rate of each face when all ask as fast as they are answered, halved."""
    for each in asking:
        each.start()
    time.sleep(seconds)
    reports = [each.stop() for each in asking]
    assert not merged(reports).failed, merged(reports).failures
    return [report.rate / 2 for report in reports]


class Reloads:
    """Reloads one after the other, and the memory of everything at two of them."""

    def __init__(self, stack: Stack, broken_every: int, marks: tuple[int, int], gap_s: float) -> None:
        self._stack, self._broken_every, self._marks, self._gap_s = stack, broken_every, marks, gap_s
        self.memory: list[int] = []
        self.refused = 0

    def run(self, count: int) -> None:
        with Client(f"grpc://{self._stack.process['grpc']}") as operator:
            for number in range(1, count + 1):
                broken = bool(self._broken_every) and number % self._broken_every == 0
                self._stack.repository.publish(broken)
                begun = time.monotonic()
                try:
                    operator.load_model(MODEL)
                    assert not broken, "a broken file was loaded"
                except ServingError as error:
                    assert broken and error.code is Code.INVALID_MODEL, error
                    self.refused += 1
                if number in self._marks:
                    self.memory.append(self._stack.memory())
                time.sleep(max(0.0, self._gap_s - (time.monotonic() - begun)))  # the pace itself


@pytest.mark.parametrize("broken_every", [0, 10], ids=["whole files", "every tenth file broken"])
def test_reloads_under_load(stack: Stack, broken_every: int, long: bool, figure: Record) -> None:
    count, marks, gap_s = (1000, (100, 1000), GAP_S) if long else (60, (10, 60), 0.0)
    with callers(stack.addresses, MODEL, threads=2) as asking:
        half_of_peak(asking, 1.0)  # warms everything up
        rates = half_of_peak(asking, 5.0 if long else 1.0)
        reloads = Reloads(stack, broken_every, marks, gap_s)
        for each, rate in zip(asking, rates, strict=True):
            each.start(rate)
        reloads.run(count)
        during = merged([each.stop() for each in asking])
        growth = reloads.memory[1] - reloads.memory[0]
        figure(
            f"{count} reloads, {reloads.refused} of them refused, under {during.rate:.0f} calls/s: {during.failed} of {len(during.us):,} failed; "
            f"memory {reloads.memory[0] / 1e6:.0f} -> {reloads.memory[1] / 1e6:.0f} MB"
        )
        assert not during.failed, during.failures
        assert reloads.refused == (count // broken_every if broken_every else 0)
        assert growth < GROWTH_BYTES, f"memory grew by {growth / 1e6:.1f} MB"
        if long and not broken_every:
            check_latency(stack, asking, rates, figure)
    with Client(stack.addresses[0]) as client:
        assert client.server_ready() and client.model_ready(MODEL)


def check_latency(stack: Stack, asking: list[Callers], rates: list[float], figure: Record) -> None:
    """With and without reloads in turn, on the same load; a few times, because others' load only adds to it."""
    ratios = []
    for _ in range(TRIES):
        quiet = measured(asking, rates, 30)
        for each, rate in zip(asking, rates, strict=True):
            each.start(rate)
        Reloads(stack, 0, (0, 0), GAP_S).run(round(30 / GAP_S))
        during = merged([each.stop() for each in asking])
        assert not during.failed, during.failures
        ratios.append(during.quantile(0.99) / quiet.quantile(0.99))
        figure(
            f"reloads every {GAP_S} s at {quiet.rate:.0f} calls/s, half of peak: p50 {quiet.quantile(0.5):.2f} -> {during.quantile(0.5):.2f} ms, "
            f"p99 {quiet.quantile(0.99):.2f} -> {during.quantile(0.99):.2f} ms, ratio {ratios[-1]:.2f}"
        )
        if ratios[-1] <= P99:
            return
    raise AssertionError(f"p99 with reloads, as a multiple of that without: {ratios}")
