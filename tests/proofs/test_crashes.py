"""Executors that are killed under load: only the requests inside them fail, the others are answered, and the model is back at once."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from idl import board as boards
from idl.codes import Code, ServingError
from idl.lane_routes import LocalLane
from idl.messages import InferRequest, InferResponse
from inference_server import instance
from inference_server.engine import Engine
from inference_server.executors.process import Zygote
from inference_server.instance import Executor
from inference_server.served import ServedVersion
from tests.conftest import Record
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.proofs.models import hungry, is_own, probe, probe_request

BACK_WITHIN_S = 2.0
Ask = Callable[[InferRequest], InferResponse]


def load_probe(engine: Engine, repository: Path, rows: int = 1) -> ServedVersion:
    """The probe, after its first request; with one row a run, one request is inside at a time. No fixture: those are kept until the last of them is over."""
    probe(repository / "m" / "1" / "model.onnx")
    (repository / "m" / "model.toml").write_text(f"max_batch_size = {rows}\nmax_queue_size = 1000\nthreads = 1\n")
    engine.load_all()
    engine.model_infer(probe_request("m", 0, rounds=500))  # from here on it knows that its runs are long, and keeps the door meanwhile
    return engine._served["m"].versions[1]


@pytest.fixture
def lane(zygote: Zygote) -> Iterator[LocalLane]:
    made = LocalLane(str(zygote.run_dir), LIMIT)
    yield made
    made.close()


def executor_of(model: ServedVersion) -> Executor:
    """The living one; waits for it after a crash."""
    eventually(lambda: model.executors, "the model is back", 2 * BACK_WITHIN_S)
    return model.executors[0]


def by_lane(lane: LocalLane, engine: Engine) -> Ask:
    """As a client on this host asks: over the lane, and where that declines the server."""

    def ask(request: InferRequest) -> InferResponse:
        return lane.infer(request) or engine.model_infer(request)

    return ask


class Load:
    """Callers that go on asking inside a `with`, and what they got."""

    def __init__(self, asks: list[Ask], rounds: int) -> None:
        self.counts: Counter[str] = Counter()
        self._lock, self._stop, self._rounds = threading.Lock(), threading.Event(), rounds
        self._threads = [threading.Thread(target=self._call, args=(ask, number)) for number, ask in enumerate(asks)]
        for thread in self._threads:
            thread.start()

    def _call(self, ask: Ask, number: int) -> None:
        tag = number << 32
        while not self._stop.is_set():
            tag += 10
            request = probe_request("m", tag, rows=2, width=3, rounds=self._rounds)
            try:
                outcome = "ok" if is_own(request, ask(request)) else "another's answer"
            except ServingError as error:
                outcome = error.code.value
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
                outcome = repr(error)
            with self._lock:
                self.counts[outcome] += 1

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_hundred_kills_under_load_fail_only_what_was_inside(
    engine: Engine, repository: Path, lane: LocalLane, long: bool, figure: Record
) -> None:
    model, kills = load_probe(engine, repository), 100 if long else 15
    inside, back = 0, list[float]()
    with Load([engine.model_infer, by_lane(lane, engine)] * 4, rounds=20) as load:
        for _ in range(kills):
            executor = executor_of(model)
            eventually(lambda executor=executor: executor.board.kind("success")[0] and executor.board.cells[boards.RUNNING], "mid-request")
            os.kill(executor.pid, signal.SIGKILL)
            killed = time.monotonic()
            eventually(lambda executor=executor: executor not in model.executors, "its death is noticed")
            executor_of(model)
            back.append(time.monotonic() - killed)
            inside += executor.board.cells[boards.RUNNING]
    counts = load.counts
    figure(f"crashes: {kills} SIGKILLs under load: {dict(counts)}; back after {1000 * max(back):.0f} ms at most")
    assert set(counts) == {"ok", Code.MODEL_FAILED.value}, counts
    # the answer to a request that was just being sent is lost with the process, and it, too, was inside
    assert 0 < inside <= counts[Code.MODEL_FAILED.value] <= kills
    assert max(back) < BACK_WITHIN_S
    (statistics,) = engine.model_statistics("m", "")
    # a kill may fall between two cells of the board: a microsecond in which a request is counted and still inside
    assert abs(statistics.success.count + statistics.fail.count - counts.total() - 1) <= 1 + kills // 50
    assert engine.server_ready()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS], ids=lambda number: number.name)
def test_queued_requests_survive(engine: Engine, repository: Path, lane: LocalLane, number: signal.Signals) -> None:
    executor = executor_of(load_probe(engine, repository))
    ask, requests = by_lane(lane, engine), [probe_request("m", 1000 * place, rounds=1) for place in range(20)]
    with ThreadPoolExecutor(21) as pool:
        running = pool.submit(ask, probe_request("m", 7, rounds=20_000))
        eventually(lambda: executor.board.cells[boards.RUNNING] == 1, "it runs")
        waiting = [pool.submit(ask if place % 2 else engine.model_infer, request) for place, request in enumerate(requests)]
        eventually(lambda: executor.board.in_flight == 21, "the others wait")
        os.kill(executor.pid, number)
        with pytest.raises(ServingError) as failed:
            running.result(30)
        assert failed.value.code is Code.MODEL_FAILED
        for request, future in zip(requests, waiting, strict=True):
            assert is_own(request, future.result(30))
    (statistics,) = engine.model_statistics("m", "")
    assert (statistics.success.count, statistics.fail.count) == (21, 1)


def test_a_batch_fails_as_a_whole_and_nobody_else(engine: Engine, repository: Path) -> None:
    executor = executor_of(load_probe(engine, repository, rows=4))
    with ThreadPoolExecutor(10) as pool:
        plug = pool.submit(engine.model_infer, probe_request("m", 0, rounds=4000))
        eventually(lambda: executor.board.cells[boards.RUNNING] == 1, "it runs")
        several = [pool.submit(engine.model_infer, probe_request("m", 100 * place, rounds=3000)) for place in range(1, 7)]
        eventually(lambda: executor.board.in_flight == 7, "the others wait")
        plug.result(30)
        eventually(lambda: executor.board.cells[boards.RUNNING] == 4, "four of them are inside")
        os.kill(executor.pid, signal.SIGKILL)
        outcomes = Counter(_outcome(future) for future in several)
    assert outcomes == {"ok": 2, Code.MODEL_FAILED.value: 4}


def _outcome(future: "Future[InferResponse]") -> str:
    try:
        future.result(30)
    except ServingError as error:
        return error.code.value
    return "ok"


def test_crash_after_crash_ends_in_failed_and_readiness_tells_the_truth(
    engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_probe(engine, repository)
    monkeypatch.setattr(instance, "MOST_CRASHES", 4)
    monkeypatch.setattr(instance, "FIRST_BACK_OFF_S", 0.02)
    gaps: list[float] = []
    for _ in range(5):  # no request is answered between them
        executor = executor_of(model)
        assert engine.server_ready() and engine.model_ready("m", "")
        os.kill(executor.pid, signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda executor=executor: executor not in model.executors, "its death is noticed")
        assert not engine.model_ready("m", "1") or model.executors, "ready only while a process is there"
        if len(gaps) < 4:
            executor_of(model)
        gaps.append(time.monotonic() - killed)
    eventually(lambda: model.failure, "it is given up")
    assert gaps[1] > 0.02 and gaps[2] > 0.04 and gaps[3] > 0.08, f"each one waits longer: {gaps}"
    assert not engine.server_ready() and not engine.model_ready("m", "")
    (entry,) = engine.repository_index(False)
    assert entry.state == "UNAVAILABLE" and "died 4 times in a row" in entry.reason
    with pytest.raises(ServingError) as refused:
        engine.model_infer(probe_request("m", 1))
    assert refused.value.code is Code.NOT_READY
    engine.repository_model_load("m", {})
    assert engine.server_ready() and is_own(probe_request("m", 5), engine.model_infer(probe_request("m", 5)))


def test_out_of_memory_inside_a_model_is_named_and_takes_nothing_else(engine: Engine, repository: Path) -> None:
    import numpy as np

    from idl.messages import Tensor

    hungry(repository / "hungry" / "1" / "model.onnx")
    (repository / "hungry" / "model.toml").write_text('memory = "256MiB"\n')
    probe(repository / "m" / "1" / "model.onnx")
    engine.load_all()

    def ones(count: int) -> float:
        size = Tensor("size", "INT64", (1,), np.int64(count).tobytes())
        answer = engine.model_infer(InferRequest("hungry", (size,)))
        return float(np.frombuffer(answer.outputs[0].data, np.float32)[0])

    assert ones(1024) == 1024
    for _ in range(3):
        with pytest.raises(ServingError) as failed:
            ones(1 << 29)  # 2 GiB
        assert failed.value.code is Code.MODEL_FAILED and "memory limit" in failed.value.message, failed.value.message
        assert is_own(probe_request("m", 3), engine.model_infer(probe_request("m", 3)))
        assert ones(2048) == 2048
    assert engine.server_ready()
