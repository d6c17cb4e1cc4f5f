"""What batch size suits a model: found by running it, once, when it is loaded.

Requests may share a run only where that changes no answer. Whether it does is seen by running different rows alone and together and
comparing; a model that fails, mixes rows, keeps the batch on another axis or answers differently each time is never batched. Then the
time for each row is measured at growing sizes, and the size taken is the smallest one that is nearly as fast as the best.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from idl.codes import ServingError
from idl.messages import TensorSpec
from idl.tensors import DTYPES, Array
from inference_server.types import Signature

SIZES = (1, 2, 4, 8, 16, 32, 64)
BUDGET_NS = 1_000_000_000
"""What measuring may cost; what has not been measured by then is not used."""
NEARLY = 1.01
"""A size whose row takes no longer than this, as a part of the best, is as good as the best: smaller ones answer sooner."""
WORSE = 1.1
"""A size whose row takes this much longer than the best ends the search; a little longer may be noise."""
WORTH = 0.95
"""Time for a row, as a part of that of a single one, from which on a batch is worth its name."""
QUEUE_NS = 500_000_000
LEAST_QUEUE, MOST_QUEUE = 64, 4096
_OPEN_SIZES = (16, 1, 64, 224)
_ROUNDS = 5
_ENOUGH_NS, _LONG_NS = 20_000_000, 100_000_000

Run = Callable[[dict[str, Array], list[str]], list[Array]]
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was found. `max_batch_size` 1: no batching, and `reason` says why; `row_ns`: time for one row at each size measured."""

    max_batch_size: int
    reason: str
    row_ns: Mapping[int, int]
    max_queue_size: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"row_ns": {str(size): ns for size, ns in self.row_ns.items()}}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Tuning":
        """Raises KeyError, TypeError or ValueError for what `to_json` did not make."""
        row_ns = {int(size): int(ns) for size, ns in said["row_ns"].items()}
        return cls(int(said["max_batch_size"]), str(said["reason"]), row_ns, int(said["max_queue_size"]))


def tune(
    run: Run, signature: Signature, wanted: int | None, samples: Mapping[str, Array] | None = None, clock: Clock = time.monotonic_ns
) -> Tuning:
    """`wanted`: the owner's max_batch_size, None to find one. `samples`: inputs of real shapes, where there are any.

    `clock`: nanoseconds; that of this thread's own time on a core, where it does all the work, is not misled by what else the host does, such as
    loading other models.
    """
    names = [spec.name for spec in signature.outputs]
    found = _single(run, signature, names, samples, clock)
    if found is None:
        return _unbatched("no input of the server's own making runs on it, so batching cannot be checked", {})
    single_ns, make = found
    times = {1: single_ns}
    if wanted is not None and wanted <= 1:
        return _unbatched("its owner has turned it off", times)
    if signature.batch_axis is None:
        return _unbatched("the first dimension is not open on every input and output", times)
    try:
        reason = _why_not(run, names, make)
    except ServingError as error:
        reason = f"it fails on two rows at once: {error.message}"
    if reason:
        return _unbatched(reason, times)
    if wanted is not None:
        return Tuning(wanted, "", times, _queue(single_ns))
    times |= _measure(run, names, make, single_ns, clock)
    best = min(times.values())
    size = min(size for size, ns in times.items() if ns <= best * NEARLY)
    if size == 1 or times[size] > single_ns * WORTH:
        return _unbatched("it is not faster for several rows at once", times)
    return Tuning(size, "", times, _queue(times[size]))


def _unbatched(reason: str, times: Mapping[int, int]) -> Tuning:
    return Tuning(1, reason, times, _queue(times.get(1, QUEUE_NS)))


def _queue(row_ns: int) -> int:
    """As many requests as half a second's work, within reason: who waits longer is better told at once."""
    return max(LEAST_QUEUE, min(MOST_QUEUE, QUEUE_NS // max(1, row_ns)))


Make = Callable[[int, int], dict[str, Array]]
"""(rows, seed) -> inputs."""


def _single(run: Run, signature: Signature, names: list[str], samples: Mapping[str, Array] | None, clock: Clock) -> tuple[int, Make] | None:
    """The time of a run of one row, and what makes inputs that the model takes."""
    for make in makers(signature, samples):
        try:
            inputs, begun = make(1, 0), clock()
            run(inputs, names)
            took = clock() - begun
            return took if took > _LONG_NS else _time(lambda inputs=inputs: run(inputs, names), clock), make  # type: ignore[misc]
        except ServingError:
            continue
    return None


def makers(signature: Signature, samples: Mapping[str, Array] | None = None) -> Iterator[Make]:
    """What makes inputs that fit the signature, of several kinds: a model may take one and not another."""
    if samples is not None and set(samples) == {spec.name for spec in signature.inputs}:
        yield lambda rows, seed: {name: _repeated(array, rows, seed) for name, array in samples.items()}
    for size in _OPEN_SIZES if any(-1 in spec.shape[1:] for spec in signature.inputs) else (1,):
        for low, high in ((1, 3), (0, 2), (0, 1)):

            def make(rows: int, seed: int, size: int = size, low: int = low, high: int = high) -> dict[str, Array]:
                random = np.random.default_rng(seed)
                return {spec.name: _random(spec, rows, size, low, high, random) for spec in signature.inputs}

            yield make


def _repeated(array: Array, rows: int, seed: int) -> Array:
    """The sample's own rows, each request starting at another one."""
    if not array.ndim or not len(array):
        return array
    return array[(np.arange(rows) + seed) % len(array)]


def _random(spec: TensorSpec, rows: int, size: int, low: int, high: int, random: np.random.Generator) -> Array:
    shape = [size if dimension < 0 else dimension for dimension in spec.shape]
    if spec.shape and spec.shape[0] < 0:
        shape[0] = rows
    if spec.datatype == "BYTES":
        values = np.empty(int(np.prod(shape)), object)
        values[:] = [b"a" * int(length) for length in random.integers(low, high, values.size)]
        return values.reshape(shape)
    if spec.datatype == "BF16":
        return (random.standard_normal(shape).astype("<f4").view("<u4") >> 16).astype("<u2")
    dtype = DTYPES[spec.datatype]
    return random.standard_normal(shape).astype(dtype) if dtype.kind == "f" else random.integers(low, high, shape).astype(dtype)


def _why_not(run: Run, names: list[str], make: Make) -> str:
    """Why requests may not share a run; "" where they may."""
    rows = [make(1, seed) for seed in range(3)]
    alone = [run(row, names) for row in rows]
    if not _same(run(rows[0], names), alone[0], names)[0]:
        return "the same input gives different answers"
    together = _together(run, names, rows)
    for name, array in zip(names, together, strict=True):
        if not array.ndim or array.shape[0] != len(rows):
            return f"output {name!r} has shape {list(array.shape)} for {len(rows)} rows: its rows cannot be told apart"
    for index, expected in enumerate(alone):
        same, which = _same([array[index : index + 1] for array in together], expected, names)
        if not same:
            return f"output {which!r} of a row depends on the other rows of its batch"
    return ""


def _together(run: Run, names: list[str], rows: list[dict[str, Array]]) -> list[Array]:
    """As the batcher does it: putting the rows together is part of the price."""
    return run({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, names)


def _same(got: list[Array], expected: list[Array], names: list[str]) -> tuple[bool, str]:
    """Equal but for the rounding that another order of the same sums brings."""
    for name, left, right in zip(names, got, expected, strict=True):
        if left.shape != right.shape:
            return False, name
        if left.dtype.kind == "f":
            scale = float(np.nanmax(np.abs(right), initial=0.0, where=np.isfinite(right))) if right.size else 0.0
            loose = 2e-2 if left.dtype.itemsize == 2 else 1e-3
            if not np.allclose(left, right, rtol=loose, atol=loose * max(scale, 1e-6), equal_nan=True):
                return False, name
        elif not np.array_equal(left, right):
            return False, name
    return True, ""


def _measure(run: Run, names: list[str], make: Make, single_ns: int, clock: Clock) -> dict[int, int]:
    """Time for a row at sizes above 1, until growing no longer helps or the budget is spent."""
    begun, times, best = clock(), {}, single_ns
    for size in SIZES[1:]:
        if clock() - begun + 2 * size * best > BUDGET_NS:
            break
        rows = [make(1, seed) for seed in range(size)]
        try:
            _together(run, names, rows)
            times[size] = _time(lambda rows=rows: _together(run, names, rows), clock) // size  # type: ignore[misc]
        except ServingError:
            break
        if size >= 4 and times[size] > best * WORSE:
            break
        best = min(best, times[size])
    return times


def _time(call: Callable[[], object], clock: Clock) -> int:
    """Nanoseconds of the fastest of a few calls: three at least, but for long ones."""
    best, begun = 1 << 62, clock()
    for done in range(1, _ROUNDS + 1):
        start = clock()
        call()
        now = clock()
        best = min(best, now - start)
        if now - begun > (_ENOUGH_NS if done > 2 else _LONG_NS):
            break
    return best
