"""What is remembered of requests is bounded in bytes, not only in entries: names and parameters may be long, and are the callers' to choose."""

import struct
from typing import Any

from idl import lane
from idl.messages import TensorSpec
from inference_server.executors.prepared import Preparer
from inference_server.executors.response_cache import ResponseCache
from inference_server.front import calls
from inference_server.transports import thrift_layouts
from inference_server.types import Signature

LONG = "x" * 60_000
X = (("x", "FP32", (2,), 8),)


def head(text: str) -> bytes:
    return lane.pack_head(X, (), {"note": text})[0]


def preparer() -> Preparer:
    spec = (TensorSpec("x", "FP32", (2,)),)
    return Preparer("m", Signature("onnxruntime", spec, spec, None), batching=False, limit=1 << 20)


def test_an_executor_keeps_short_ones_only() -> None:
    made = preparer()
    for number in range(20):
        assert made(head(f"{LONG}{number}")).parameters["note"].endswith(str(number))
    assert not made.kept
    assert made(head("short")) is made(head("short")) and len(made.kept) == 1


def test_the_cache_of_answers_too() -> None:
    class NoBoard:
        cells: Any = None

    made, cache = preparer(), ResponseCache("m", 1, NoBoard(), entries=10, size=1000, ttl_ns=0)  # type: ignore[arg-type]
    body = memoryview(struct.pack("=2f", 1, 2))
    long, short = head(LONG), head("short")
    assert cache.key(long, made(long), body) == cache.key(long, made(long), body) != cache.key(short, made(short), body)
    assert list(cache._heads) == [short]


def test_fronts_and_lanes_too() -> None:
    """Whoever remembers by a head, or by names: a second one like it is made anew."""
    for remembered in (calls._described, calls._lane_head, thrift_layouts.answers, lane._pack_tensors, lane._remembered):
        remembered.cache_clear()
    lane.pack_head(((LONG, "FP32", (2,), 8),), (), {})
    lane.pack_head(X, (LONG,), {})
    lane.unpack_head(head(LONG))
    assert lane._pack_tensors.cache_info().currsize == 1 and lane._remembered.cache_info().currsize == 0
