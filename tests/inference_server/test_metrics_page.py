"""What Prometheus is shown: its own parser reads it, and its counts are those of the requests made, over reloads and crashes."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from idl import board as boards
from idl.board import BUCKETS_S, Board
from idl.codes import ServingError
from idl.messages import InferRequest, Tensor
from inference_server.engine import Engine
from inference_server.gpus import Gpus
from inference_server.metrics import Metrics, ModelStats
from tests.eventually import eventually
from tests.inference_server import test_sequences, test_streams
from tests.inference_server.conftest import request
from tests.onnx_models import looping, times

PER_VERSION = {"model", "version"}
LABELS = {
    "outboard_requests": PER_VERSION | {"code"},
    "outboard_batches": PER_VERSION | {"rows"},
    "outboard_refused_requests": {"code"},
    "outboard_model_loads": {"model", "result"},
    "outboard_cache_lookups": PER_VERSION | {"result"},
    "outboard_trace_spans": {"result"},
    "outboard_executor_deaths": {"model"},
    "outboard_accepting": set(),
    "outboard_gpus": set(),
}
"""Of the families whose labels are not model and version; those of a GPU aside."""


def scrape(metrics: Metrics) -> dict[str, Metric]:
    registry = CollectorRegistry()
    registry.register(metrics)
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def counts(families: dict[str, Metric]) -> dict[tuple[str, Any], float]:
    """Everything that may only grow."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families.values()
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    found = [sample.value for family in families.values() for sample in family.samples if sample.name == name and sample.labels == labels]
    return found[0] if found else 0.0


def rounds(count: int) -> InferRequest:
    """Of the model "slow": a request says how long it takes."""
    return InferRequest("slow", (Tensor("x", "INT64", (1,), np.int64([count]).tobytes()),))


class Made:
    """Requests by outcome, as their callers saw them."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.seen = engine, Counter[tuple[str, str]]()

    def ask(self, model: str, values: object, **more: Any) -> str:
        try:
            self.engine.model_infer(rounds(values) if isinstance(values, int) else request(model, values, **more))
            code = "ok"
        except ServingError as error:
            code = error.code.value
        self.seen[model, code] += 1
        return code

    def all_of(self, families: dict[str, Metric]) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for sample in families["outboard_requests"].samples:
            found[sample.labels["model"], sample.labels["code"]] += int(sample.value)
        return +found


def test_counts_are_those_of_the_requests_and_never_fall(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 3)
    looping(repository / "slow" / "1" / "model.onnx")
    engine.load_all()
    made, metrics, before = Made(engine), engine._metrics, {}

    def look() -> dict[str, Metric]:
        nonlocal before
        families = scrape(metrics)
        now = counts(families)
        assert {key: (old, now.get(key)) for key, old in before.items() if now.get(key, -1) < old} == {}, "counts that fell"
        assert made.all_of(families) == made.seen
        before = now
        return families

    for number in range(5):
        made.ask("m", [[number, 1.0]])
    made.ask("m", [[1.0, 2.0]], name="wrong")
    look()
    times(repository / "m" / "2" / "model.onnx", 4)
    engine.repository_model_load("m", {})  # version 1 goes, version 2 comes
    made.ask("m", [[1.0, 2.0]])
    families = look()
    assert value(families, "outboard_request_seconds_count", model="m", version="1") == 5, "of a version that has gone as well"
    assert value(families, "outboard_model_loads_total", model="m", result="ok") == 2

    engine.repository_model_load("m", {"version": "1"})
    served = next(iter(engine._served["m"].versions.values()))
    first = served.executors[0]
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: served.executors and served.executors[0] is not first, "it comes back")
    made.ask("m", [[1.0, 2.0]])

    inside = threading.Thread(target=made.ask, args=("slow", 10**12))
    inside.start()
    (executor,) = engine._served["slow"].versions[1].executors
    eventually(lambda: executor.board.cells[boards.RUNNING] == 1, "it runs")
    assert value(scrape(metrics), "outboard_in_flight_requests", model="slow", version="1") == 1
    os.kill(executor.pid, signal.SIGKILL)
    inside.join()
    assert made.seen["slow", "model_failed"] == 1
    back = "outboard_executor_restarts_total"
    eventually(
        lambda: value(scrape(metrics), back, model="slow", version="1") == 1, "it comes back, and what was inside is counted by then"
    )
    families = look()
    for model in ("m", "slow"):
        assert value(families, "outboard_executor_deaths_total", model=model) == 1
        assert value(families, "outboard_executor_restarts_total", model=model, version="1") == 1


def test_types_labels_units_and_buckets(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 3)
    engine.load_all()
    made = Made(engine)
    made.ask("m", [[1.0, 2.0]])
    made.ask("m", [[1.0, 2.0]], name="wrong")
    made.ask("nobody", [[1.0, 2.0]])
    for name, family in scrape(engine._metrics).items():
        assert family.type in ("counter", "gauge", "histogram") and family.documentation, name
        for sample in family.samples:
            gpu = {"gpu", "name"} if name.startswith("outboard_gpu_") else None
            assert set(sample.labels) - {"le"} == (gpu or LABELS.get(name, PER_VERSION)), sample
            assert (family.type == "counter") == sample.name.endswith("_total"), "Prometheus' naming of counters"
        if family.type == "histogram":
            assert name.endswith("_seconds")
            buckets = [(sample.labels["le"], sample.value) for sample in family.samples if sample.name.endswith("_bucket")]
            assert [bound for bound, _ in buckets] == [*map(str, BUCKETS_S), "+Inf"]
            assert [count for _, count in buckets] == sorted(count for _, count in buckets) and buckets[-1][1] == 1
            assert 0 <= value({name: family}, f"{name}_sum", model="m", version="1") < 10


def test_the_queue_is_what_waits(engine: Engine, repository: Path) -> None:
    looping(repository / "slow" / "1" / "model.onnx")
    engine.load_all()
    assert Made(engine).ask("slow", 30_000) == "ok"  # from now on it is known to take long, and somebody keeps the door meanwhile
    (executor,) = engine._served["slow"].versions[1].executors
    asked = [threading.Thread(target=Made(engine).ask, args=("slow", count)) for count in (200_000, 1, 1)]
    asked[0].start()
    eventually(lambda: executor.board.cells[boards.RUNNING] == 1, "it runs, and goes on while the others come")
    for thread in asked[1:]:
        thread.start()

    def waits() -> float:
        return value(scrape(engine._metrics), "outboard_queued_requests", model="slow", version="1")

    eventually(lambda: waits() == 2, "one runs, two wait")
    for thread in asked:
        thread.join()


def test_streams_and_sequences(engine: Engine, repository: Path) -> None:
    test_sequences.load(engine, repository)

    def gauge(name: str) -> float:
        return value(scrape(engine._metrics), name, model="m", version="1")

    for number in (1, 2):
        test_sequences.ask(engine, (1, 2), number, start=True)
    eventually(lambda: gauge("outboard_sequences") == 2, "two are kept")
    test_sequences.ask(engine, (1, 2), 1, end=True)
    eventually(lambda: gauge("outboard_sequences") == 1, "one has ended")
    assert scrape(engine._metrics)["outboard_streams"].samples == [], "it gives one answer for a request"


def test_streams_under_way(engine: Engine, repository: Path) -> None:
    test_streams.load(engine, repository)
    stream = engine.model_stream(test_streams.asked(1000))
    assert stream.next() is not None

    def under_way() -> float:
        return value(scrape(engine._metrics), "outboard_streams", model="m", version="1")

    eventually(lambda: under_way() == 1, "its reader has not taken all")
    stream.close()
    eventually(lambda: under_way() == 0, "it was given up")


def test_a_success_that_is_taken_back_does_not_lower_what_was_published() -> None:
    stats, descriptor = ModelStats("m", "1"), boards.create()
    try:
        board = Board(descriptor, writable=True)
        stats.attach(board)
        board.succeeded(2_000_000, 0, 0, 1_000_000, 0)
        assert stats.snapshot().successes == 1
        board.succeeded(2_000_000, 0, 0, 1_000_000, 0, -1)
        now = stats.snapshot()
        assert now.successes == 1 and now.histograms["success"][0][-1] == ("+Inf", 1.0)
        assert stats.tally().kinds["success"][0] == 0, "statistics over RPC say what is"
        board.succeeded(2_000_000, 0, 0, 1_000_000, 0)
        assert stats.snapshot().successes == 1
    finally:
        os.close(descriptor)


def nvml(**missing: int) -> Any:
    """NVML's functions as a library of two GPUs has them; `missing`: function -> what it returns instead of an answer."""

    def answering(set_to: Callable[..., None]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            set_to(*[getattr(argument, "_obj", argument) for argument in arguments])
            return 0

        return call

    def count(out: Any) -> None:
        out.value = 2

    def handle(index: Any, out: Any) -> None:
        out.value = index.value + 1

    def name(of: Any, out: Any, _size: Any) -> None:
        out.value = f"GPU {of.value}".encode()

    def use(_of: Any, out: Any) -> None:
        out.gpu = 25

    def memory(of: Any, out: Any) -> None:
        out.total, out.used = 8 << 30, of.value << 20

    def power(_of: Any, out: Any) -> None:
        out.value = 70_500

    def temperature(_of: Any, _sensor: Any, out: Any) -> None:
        out.value = 41

    functions: dict[str, Callable[..., int]] = {
        "nvmlInit_v2": lambda: 0,
        "nvmlDeviceGetCount_v2": answering(count),
        "nvmlDeviceGetHandleByIndex_v2": answering(handle),
        "nvmlDeviceGetName": answering(name),
        "nvmlDeviceGetUtilizationRates": answering(use),
        "nvmlDeviceGetMemoryInfo": answering(memory),
        "nvmlDeviceGetPowerUsage": answering(power),
        "nvmlDeviceGetTemperature": answering(temperature),
    }
    return SimpleNamespace(**{name: (lambda *_, code=missing[name]: code) if name in missing else made for name, made in functions.items()})


def families_of(gpus: Gpus) -> dict[str, dict[tuple[str, ...], float]]:
    return {family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples} for family in gpus.collect()}


def test_gpus_as_their_driver_says() -> None:
    assert families_of(Gpus(nvml())) == {
        "outboard_gpus": {(): 2},
        "outboard_gpu_utilization_ratio": {("0", "GPU 1"): 0.25, ("1", "GPU 2"): 0.25},
        "outboard_gpu_memory_used_bytes": {("0", "GPU 1"): 1 << 20, ("1", "GPU 2"): 2 << 20},
        "outboard_gpu_memory_total_bytes": {("0", "GPU 1"): 8 << 30, ("1", "GPU 2"): 8 << 30},
        "outboard_gpu_power_watts": {("0", "GPU 1"): 70.5, ("1", "GPU 2"): 70.5},
        "outboard_gpu_temperature_celsius": {("0", "GPU 1"): 41, ("1", "GPU 2"): 41},
    }


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    told = families_of(Gpus(nvml(nvmlDeviceGetUtilizationRates=3, nvmlDeviceGetPowerUsage=3)))
    assert told["outboard_gpu_utilization_ratio"] == {} == told["outboard_gpu_power_watts"]
    assert len(told["outboard_gpu_memory_used_bytes"]) == 2
    for library in ("libno-such-driver.so.1", nvml(nvmlInit_v2=9), nvml(nvmlDeviceGetCount_v2=1)):
        told = families_of(Gpus(library))
        assert told.pop("outboard_gpus") == {(): 0}
        assert len(told) == 5 and not any(told.values()), "no driver: families without samples"
