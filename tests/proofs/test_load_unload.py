"""32 threads that load and unload one model, through the engine and through a server: it stays live, and nothing is left over."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from idl.codes import Code, ServingError
from idl.lane_routes import LocalLane
from idl.messages import InferRequest, InferResponse, Tensor
from inference_client import Client
from inference_server.engine import Engine
from inference_server.executors.process import Zygote
from tests.conftest import Record
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.onnx_models import times
from tests.processes import start_server
from tests.proofs.process_trees import holdings

THREADS = 32
SEED = 1969
PAUSE_S = 0.002
"""Of a caller between two calls: it is there to see, not to be load."""
EXPECTED = {"ok", Code.NOT_READY.value}
"""What a caller may be told of a model that comes and goes."""
Change = Callable[[bool], None]
"""Loads (True) or unloads the model."""


def changed_by_many(change: Change, total: int) -> Counter[str]:
    """Calls `change` so many times in all, from 32 threads; returns what went wrong."""
    wrong: Counter[str] = Counter()

    def work(seed: int) -> None:
        chance = random.Random(SEED + seed)
        for _ in range(total // THREADS):
            try:
                change(chance.random() < 0.5)
            except Exception as error:  # noqa: BLE001 - whatever it is, none was allowed
                wrong[repr(error)] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


class Asker:
    """Asks all the while, inside a `with`; the counts say what it got."""

    def __init__(self, ask: Callable[[float], float]) -> None:
        self.counts: Counter[str] = Counter()
        self._ask = ask
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0.0
        while not self._stop.wait(PAUSE_S):
            number += 1
            try:
                self.counts["ok" if self._ask(number) == 3 * number else "wrong"] += 1
            except ServingError as error:
                self.counts[error.code.value] += 1
            except Exception as error:  # noqa: BLE001
                self.counts[repr(error)] += 1

    def __enter__(self) -> "Asker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def one(number: float, timeout_s: float = 5) -> InferRequest:
    data = np.float32([[number, number]])
    return InferRequest("m", (Tensor("x", "FP32", (1, 2), data.tobytes()),), deadline=time.monotonic() + timeout_s)


def first_of(answer: InferResponse) -> float:
    return float(np.frombuffer(answer.outputs[0].data, np.float32)[0])


def test_through_the_engine(engine: Engine, zygote: Zygote, repository: Path, long: bool, figure: Record) -> None:
    total = 32_000 if long else 1_000
    times(repository / "m" / "1" / "model.onnx", 3)
    engine.load_all()
    lane = LocalLane(str(zygote.run_dir), LIMIT)
    begun = time.monotonic()
    with (
        Asker(lambda number: first_of(engine.model_infer(one(number)))) as inside,
        Asker(lambda number: first_of(lane.infer(one(number)) or engine.model_infer(one(number)))) as beside,
    ):
        wrong = changed_by_many(
            lambda load: engine.repository_model_load("m", {}) if load else engine.repository_model_unload("m", {}), total
        )
    took = time.monotonic() - begun
    lane.close()
    figure(f"load and unload: {total:,} by {THREADS} threads in {took:.0f} s, callers meanwhile {dict(inside.counts + beside.counts)}")
    assert not wrong
    assert set(inside.counts) | set(beside.counts) <= EXPECTED, (inside.counts, beside.counts)
    assert inside.counts["ok"] and beside.counts["ok"]
    engine.repository_model_load("m", {})
    assert engine.server_live() and engine.server_ready() and engine.model_ready("m", "1")
    assert first_of(engine.model_infer(one(5))) == 15
    engine.repository_model_unload("m", {})
    assert engine.in_flight() == 0
    eventually(lambda: not _published(zygote.run_dir), "every lane socket and route is gone")


def test_through_a_server(tmp_path: Path, long: bool, figure: Record) -> None:
    total = 3_200 if long else 160
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 3)
    run_dir = tmp_path / "run"
    server = start_server(tmp_path / "models", tmp_path, "--run-dir", str(run_dir))
    addresses = [f"grpc://{server['grpc']}", f"thrift://{server['thrift']}"]

    def nothing_left() -> bool:
        return not _published(run_dir) and holdings(server.process.pid).memfds == 0

    try:
        with Client(addresses[0]) as grpc, Client(addresses[1]) as thrift:
            _changed_through(grpc, thrift, total)  # makes the threads, the connections and their memory
            eventually(nothing_left, "what the last loads have replaced has gone too", every_s=0.05)
            before = holdings(server.process.pid)
            _changed_through(grpc, thrift, total)
            eventually(nothing_left, "what the last loads have replaced has gone too", every_s=0.05)
            with contextlib.suppress(AssertionError):
                eventually(lambda: not holdings(server.process.pid).over(before, THREADS + 1), "", every_s=0.05)
            assert not holdings(server.process.pid).over(before, THREADS + 1)
            grpc.load_model("m")
            assert grpc.server_live() and grpc.server_ready() and grpc.model_ready("m")
            assert thrift.infer("m", {"x": np.float32([[1, 2]])}).outputs["y"].tolist() == [[3, 6]]
        figure(f"load and unload: {2 * total:,} over gRPC and Thrift; then {holdings(server.process.pid)}")
    finally:
        assert server.stop() == 0


def _published(run_dir: Path) -> list[Path]:
    return [*run_dir.glob("*.lane"), *run_dir.glob("routes/*.json")]


def _changed_through(grpc: Client, thrift: Client, total: int) -> None:
    """Over both wires in turn, and unloaded at the end. Where the threads for slow verbs are all taken the server says so: ask again."""
    turn = iter(range(1 << 62))

    def change(load: bool) -> None:
        client = (grpc, thrift)[next(turn) % 2]
        while True:
            try:
                client.load_model("m") if load else client.unload_model("m")
                return
            except ServingError as error:
                if error.code is not Code.OVERLOADED:
                    raise
                time.sleep(error.retry_after_ms / 1000)

    with Asker(lambda number: float(thrift.infer("m", {"x": np.float32([[number, 1]])}).outputs["y"][0, 0])) as asker:
        wrong = changed_by_many(change, total)
    assert not wrong and set(asker.counts) <= EXPECTED, (wrong, asker.counts)
    grpc.unload_model("m")
