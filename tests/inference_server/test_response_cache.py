"""Kept answers: given only for exactly the same question, counted, bounded, and gone with what gave them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from idl import board as boards
from idl import lane
from idl.board import Board
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, Tensor, TensorSpec
from inference_server.engine import Engine
from inference_server.executors.prepared import Preparer
from inference_server.executors.response_cache import OVERHEAD_BYTES, ResponseCache
from inference_server.types import Signature
from tests.eventually import eventually
from tests.inference_server.conftest import floats
from tests.onnx_models import times
from tests.python_models import python_model

COUNTING = """
number = 0
def infer(inputs, parameters):
    global number
    if parameters.get("fail"): raise ValueError("on purpose")
    number += 1
    return {"y": inputs["x"] * 0 + number, "z": inputs["x"]}
"""
TOML = """
cache = { entries = 100 }
priority_levels = 2
[inputs.x]
datatype = "FP32"
shape = [-1]
[inputs.w]
datatype = "FP32"
shape = [-1]
[outputs.y]
datatype = "FP32"
shape = [-1]
[outputs.z]
datatype = "FP32"
shape = [-1]
"""


def tensor(name: str, *values: float) -> Tensor:
    return Tensor(name, "FP32", (len(values),), np.float32(values).tobytes())


def ask(engine: Engine, *inputs: Tensor, **more: Any) -> InferResponse:
    return engine.model_infer(InferRequest("m", inputs or (tensor("x", 1), tensor("w", 2)), **more))


def number(response: InferResponse) -> float:
    """How many runs the model had when it gave this answer."""
    return floats(response)[0]


@pytest.fixture
def counting(engine: Engine, repository: Path) -> Engine:
    python_model(repository / "m", COUNTING, TOML)
    engine.repository_model_load("m", {})
    return engine


def test_only_exactly_the_same_question_gets_the_kept_answer(counting: Engine) -> None:
    assert [number(ask(counting)) for _ in range(3)] == [1, 1, 1]
    others: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((tensor("x", 2), tensor("w", 1)), {}),  # the same bytes, the names changed
        ((tensor("x", 1, 2), tensor("w")), {}),  # the same bytes, the border elsewhere
        ((tensor("x", 1), tensor("w", 2)), {"parameters": {"a": 1}}),
        ((tensor("x", 1), tensor("w", 2)), {"parameters": {"a": "1"}}),
        ((tensor("x", 1), tensor("w", 2)), {"parameters": {"a": True}}),
        ((tensor("x", 1), tensor("w", 2)), {"outputs": ("y",)}),
    ]
    for count, (inputs, more) in enumerate(others, 2):
        assert [number(ask(counting, *inputs, **more)) for _ in range(2)] == [count, count]
    assert number(ask(counting, tensor("w", 2), tensor("x", 1))) == 1, "the order of the inputs says nothing"
    assert [output.name for output in ask(counting, outputs=("z", "y")).outputs] == ["z", "y"]
    for parameters in ({"priority": 1}, {"timeout": 5_000_000}, {"priority": 2, "timeout": 1}):
        assert number(ask(counting, parameters=parameters)) == 1
    assert ask(counting, id="r-1").id == "r-1", "an id is its caller's own"


def test_hits_and_misses_are_counted(counting: Engine) -> None:
    for _ in range(5):
        ask(counting)
    with pytest.raises(ServingError):
        ask(counting, parameters={"fail": True})
    with pytest.raises(ServingError):
        ask(counting, parameters={"fail": True})
    stats = counting.model_statistics("m", "")[0]
    assert (stats.success.count, stats.inference_count, stats.execution_count) == (5, 5, 1)
    hits, hit_ns, misses, miss_ns = board(counting).cells[boards.CACHE : boards.CACHE + 4]
    assert (hits, misses) == (4, 3) and hit_ns and miss_ns
    registry = CollectorRegistry()
    registry.register(counting._metrics)
    page = generate_latest(registry).decode()
    assert 'outboard_cache_lookups_total{model="m",result="hit",version="1"} 4.0' in page
    assert 'outboard_cache_lookups_total{model="m",result="miss",version="1"} 3.0' in page
    eventually(lambda: counting._models.in_flight() == 0, "nothing is left inside")
    assert counting.model_config("m", "")["response_cache"] == {"enable": True}


def test_what_is_reloaded_answers_nothing_out_of_the_time_before(engine: Engine, repository: Path) -> None:
    for factor in (2, 3):
        times(repository / "m" / "1" / "model.onnx", factor, ("batch",))
        (repository / "m" / "model.toml").write_text("cache = {}")
        engine.repository_model_load("m", {})
        assert [floats(ask(engine, tensor("x", 1, 5))) for _ in range(2)] == [[factor, 5 * factor]] * 2
    stats = engine.model_statistics("m", "")[0]
    assert (stats.success.count, stats.execution_count) == (4, 2)


def test_it_answers_while_the_model_runs_and_with_a_full_queue(engine: Engine, repository: Path) -> None:
    code = "import time\ndef infer(inputs):\n    time.sleep(float(inputs['x'][0]))\n    return {'y': inputs['x'], 'z': inputs['x']}"
    python_model(repository / "m", code, "max_queue_size = 1\n" + TOML)
    engine.repository_model_load("m", {})
    quick, slow = (tensor("x", 0.0), tensor("w")), (tensor("x", 2.0), tensor("w", 1))
    ask(engine, tensor("x", 0.01), tensor("w"))  # from now on the model is known to be slow: the doorkeeper stands by
    ask(engine, *quick)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, engine, *slow)
        eventually(lambda: board(engine).cells[boards.RUNNING] == 1, "it runs")
        second = pool.submit(ask, engine, tensor("x", 0.0), tensor("w", 9))
        eventually(lambda: board(engine).queued == 1, "one waits")
        began = time.monotonic()
        for _ in range(20):
            ask(engine, *quick)
        assert time.monotonic() - began < 1.8 and not first.done()
        with pytest.raises(ServingError) as caught:
            ask(engine, tensor("x", 0.0), tensor("w", 8))
        assert caught.value.code is Code.OVERLOADED
        first.result(), second.result()
    eventually(lambda: engine._models.in_flight() == 0, "nothing is left inside")


def board(engine: Engine) -> Board:
    (executor,) = engine._library.route("m", "").executors
    return executor.board


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("cache = 1", "model.toml: cache = 1 is not a table"),
        ("cache = { entries = 0 }", "model.toml: cache.entries = 0 is not a whole number from 1 to 100000000"),
        ('cache = { bytes = "much" }', "model.toml: cache.bytes = 'much' is not a size such as \"2GiB\""),
        ("cache = { ttl_s = -1 }", "model.toml: cache.ttl_s = -1 is not a number of seconds above 0, at most a day"),
        ("cache = { size = 1 }", "model.toml: cache has an unknown key 'size'; known are bytes, entries, ttl_s"),
        (
            'cache = {}\n[state.h]\noutput = "hn"',
            "cache and state do not go together: the same question may have another answer the next time",
        ),
        (
            'cache = {}\n[[steps]]\nmodel = "n"',
            "cache and steps do not go together: the same question may have another answer the next time",
        ),
    ],
)
def test_settings_that_cannot_be(engine: Engine, repository: Path, toml: str, reason: str) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "model.toml").write_text(toml)
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load("m", {})
    assert (caught.value.code, caught.value.message) == (Code.INVALID_MODEL, f"model 'm': {reason}")


def test_bytes_may_be_a_number(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "model.toml").write_text("cache = { bytes = 65536 }\n")
    engine.repository_model_load("m", {})
    asked = InferRequest("m", (Tensor("x", "FP32", (1, 2), np.float32([1, 2]).tobytes()),))
    assert [floats(engine.model_infer(asked)) for _ in range(2)] == [[2, 4]] * 2
    assert engine.model_statistics("m", "")[0].cache_hit.count == 1


def test_streams_are_not_kept(engine: Engine, repository: Path) -> None:
    python_model(repository / "m", "def infer(inputs):\n    yield {'y': inputs['x'], 'z': inputs['x']}", TOML)
    with pytest.raises(ServingError, match="it has a cache and gives several answers for a request, which are not kept"):
        engine.repository_model_load("m", {})


# the cache by itself -----------------------------------------------------------------------------------------------------------------


class Time:
    now = 0

    def __call__(self) -> int:
        return self.now


def cache(clock: Time, entries: int = 100, size: int = 2**20, ttl_ns: int = 0, version: int = 1) -> ResponseCache:
    descriptor = boards.create()
    try:
        return ResponseCache("m", version, Board(descriptor, writable=True), entries=entries, size=size, ttl_ns=ttl_ns, clock=clock)
    finally:
        os.close(descriptor)


def test_the_oldest_go_first_and_bytes_are_bounded() -> None:
    kept = cache(Time(), size=10 * (OVERHEAD_BYTES + 101), entries=8)
    for index in range(100):
        kept.keep(bytes([index]), (b"h", [(0, memoryview(bytes([index]) * 100))], 100))
        kept.find(b"\0")  # asked for again and again: it stays
        assert len(kept) <= 8 and kept.bytes == len(kept) * (OVERHEAD_BYTES + 101)
    assert [index for index in range(100) if kept.find(bytes([index]))] == [0, *range(93, 100)]
    kept.keep(b"large", (b"", [(0, bytes(20 * OVERHEAD_BYTES))], 0))
    assert kept.find(b"large") is None and len(kept) == 8
    kept.keep(b"\0", (b"h", [(0, bytes(3000))], 100))
    assert kept.bytes <= 10 * (OVERHEAD_BYTES + 101) and kept.find(b"\0")


def test_an_answer_is_good_for_its_time_and_copied() -> None:
    clock = Time()
    kept, memory = cache(clock, ttl_ns=10), bytearray(b"abc")
    kept.keep(b"k", (b"h", [(0, memoryview(memory))], 3))
    memory[:] = b"xyz"
    clock.now = 9
    assert kept.find(b"k") == (b"h", [(0, b"abc")], 3)
    clock.now = 10
    assert kept.find(b"k") is None and (len(kept), kept.bytes) == (0, 0)


def test_the_key_is_of_everything_that_counts() -> None:
    specs = tuple(TensorSpec(name, "FP32", (-1, -1)) for name in "ab")
    prepare = Preparer("m", Signature("", specs, (TensorSpec("y", "FP32", (-1,)),), None), batching=False, limit=2**20)
    made = cache(Time())

    def key(of: ResponseCache, shapes: tuple[tuple[int, int], ...], data: bytes, **parameters: Any) -> bytes:
        tensors = [(name, "FP32", shape, 4 * shape[0] * shape[1]) for name, shape in zip("ab", shapes, strict=True)]
        head, offsets, size = lane.pack_head(tensors, (), parameters)
        body = bytearray(os.urandom(size))  # gaps between tensors say nothing
        at = 0
        for offset, each in zip(offsets, tensors, strict=True):
            body[offset : offset + each[3]] = data[at : at + each[3]]
            at += each[3]
        return of.key(head, prepare(head), memoryview(body))

    data = bytes(range(32))
    base = key(made, ((2, 2), (2, 2)), data)
    assert len(base) == 32 and base == key(made, ((2, 2), (2, 2)), data, priority=1) == key(cache(Time()), ((2, 2), (2, 2)), data)
    different = {
        base,
        key(made, ((1, 4), (2, 2)), data),
        key(made, ((4, 1), (2, 2)), data),
        key(made, ((1, 2), (2, 3)), data),
        key(made, ((2, 2), (2, 2)), data[::-1]),
        key(made, ((2, 2), (2, 2)), data, a=1),
        key(cache(Time(), version=2), ((2, 2), (2, 2)), data),
        *(key(made, ((2, 2), (2, 2)), bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])) for at in range(32)),
    }
    assert len(different) == 7 + 32
