"""A thousand tiny models at once: what each costs, how fast the last one loads, and how fast any of them answers."""

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from idl.messages import InferRequest, Tensor
from inference_server.engine import Engine
from tests.conftest import Record
from tests.onnx_models import times
from tests.processes import alive
from tests.proofs.process_trees import private_bytes

PRIVATE_BYTES = 6e6
LOAD_S, LOAD_BESIDE_OTHERS_S = 0.020, 0.2
AS_FAST, AS_FAST_BESIDE_OTHERS = 1.5, 5.0
"""Latency among all the others, as a multiple of that alone. The second ones are for the short form, beside whatever else runs here."""
TRIES = 3
X = np.float32([[1, 2]]).tobytes()


def ask(engine: Engine, name: str) -> float:
    """Seconds of one call, checked."""
    begun = time.perf_counter()
    answer = engine.model_infer(InferRequest(name, (Tensor("x", "FP32", (1, 2), X),)))
    took = time.perf_counter() - begun
    assert answer.outputs[0].data == np.float32([[3, 6]]).tobytes()
    return took


def median_us(engine: Engine, name: str) -> float:
    for _ in range(20):
        ask(engine, name)
    return 1e6 * statistics.median(ask(engine, name) for _ in range(300))


def best_of(tries: int, measure: Callable[[], float]) -> float:
    """The least of a few: what others do on this machine only adds to it."""
    return min(measure() for _ in range(tries))


def executors(engine: Engine) -> dict[str, int]:
    """Model -> pid of its process."""
    return {name: model.versions[1].executors[0].pid for name, model in engine._served.items()}


def test_a_thousand_models_at_once(engine: Engine, repository: Path, long: bool, figure: Record) -> None:
    count = 1000 if long else 60
    names = [f"m{number:04}" for number in range(count)]
    for name in names[:-1]:
        times(repository / name / "1" / "model.onnx", 3)
    engine.repository_model_load(names[0], {})
    alone_us = best_of(TRIES, lambda: median_us(engine, names[0]))
    begun = time.monotonic()
    engine.load_all()
    loaded_s = time.monotonic() - begun
    assert engine.server_ready() and len(engine.repository_index(True)) == count - 1
    last = names[-1]
    times(repository / last / "1" / "model.onnx", 3)

    def load_last() -> float:
        begun = time.monotonic()
        engine.repository_model_load(last, {})
        return time.monotonic() - begun

    load_s, as_fast = (LOAD_S, AS_FAST) if long else (LOAD_BESIDE_OTHERS_S, AS_FAST_BESIDE_OTHERS)
    last_s = [load_last()]
    while min(last_s) > load_s and len(last_s) < TRIES:
        engine.repository_model_unload(last, {})
        last_s.append(load_last())
    private = {name: private_bytes(pid) for name, pid in executors(engine).items()}
    own = (repository / last / "1" / "model.onnx").stat().st_size
    chosen = [names[0], last, *random.Random(3).sample(names, 8)]
    among_us = {name: best_of(2 * TRIES, lambda name=name: median_us(engine, name)) for name in chosen}
    first_us = 1e6 * statistics.median(ask(engine, name) for name in random.Random(4).sample(names, min(count, 200)))
    figure(
        f"{count} tiny models: loaded in {loaded_s:.1f} s; private {statistics.median(private.values()) / 1e6:.2f} MB each (most "
        f"{max(private.values()) / 1e6:.2f} MB), the model's file {own} bytes; the last one loaded in {1000 * last_s[-1]:.1f} ms"
        f" ({[round(1000 * s, 1) for s in last_s]}); {alone_us:.0f} us alone, {min(among_us.values()):.0f} to {max(among_us.values()):.0f} us among all,"
        f" {first_us:.0f} us the first call in a while"
    )
    assert len(private) == count and 0 < max(private.values()) - own < PRIVATE_BYTES
    assert min(last_s) < load_s, last_s
    assert max(among_us.values()) < as_fast * alone_us, (alone_us, among_us)


def test_unloading_them_all_leaves_the_machine_as_it_was(engine: Engine, repository: Path, long: bool) -> None:
    for number in range(200 if long else 20):
        times(repository / f"m{number:04}" / "1" / "model.onnx", 3)
    engine.load_all()
    pids = executors(engine)
    for name in pids:
        engine.repository_model_unload(name, {})
    assert not alive(set(pids.values()))
    assert not engine.repository_index(True) and engine.in_flight() == 0
