"""What Outboard wants to reach beside its peers, as ratios of figures of one run, and what it reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.contestants import MLSERVER, TRITON
from benchmarks.peers.models import BIG, DIGITS, EFFICIENTNET, MINILM, TINY
from benchmarks.peers.ours import ONE_HOST, PRIVATE, TWO_HOSTS, TWO_INSTANCES, UNBATCHED, front
from benchmarks.peers.rows import DIGITS_256, LANE, LOOP_BATCHES, THRIFT_UNIX, TRITON_CLIENT

Key = tuple[str, str, str]
Results = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """`ours` over `theirs` (the best of several): a rate of at least `factor`, a latency of at most that.

    `measure`: requests_per_s, rows_per_s or p50_ms.
    """

    text: str
    ours: Key
    theirs: tuple[Key, ...]
    measure: str
    factor: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Ratios of the best rounds and of the medians. `met` goes by the best rounds: other work on the machine only ever slows down."""

    text: str
    target: str
    best: float
    median: float
    met: bool


def targets(fronts: Sequence[str]) -> list[Target]:
    found = []
    for kind in fronts:
        found += _of_front(kind or "default", front(kind))
    for key, where in (("clients", "one core"), ("clients-both", "both cores")):
        triton = ((key, TINY, TRITON_CLIENT),)
        found += [
            Target(f"local lane / Triton's own gRPC client, Python, {where}", (key, TINY, LANE), triton, "p50_ms", 0.1),
            Target(f"Thrift on a unix socket / Triton's own gRPC client, Python, {where}", (key, TINY, THRIFT_UNIX), triton, "p50_ms", 0.3),
        ]
    found += [
        Target(f"HTTP, tiny, {ours} / {theirs} directly", ("http", TINY, ours), (("http", TINY, theirs),), "requests_per_s", factor)
        for ours, theirs, factor in ((ONE_HOST, TRITON, 0.9), (ONE_HOST, MLSERVER, 4.0), (TWO_HOSTS, MLSERVER, 1.7))
    ]
    found += [
        Target(
            f"HTTP, {ours}: private with a token / public", ("http-private", PRIVATE, ours), (("http", TINY, ours),), "requests_per_s", 0.9
        )
        for ours in (ONE_HOST, TWO_HOSTS)
    ]
    one, two = ("instances", EFFICIENTNET, ONE_HOST), ("instances", TWO_INSTANCES, ONE_HOST)
    return [*found, Target("EfficientNet, 2 instances / 1 instance, both cores", two, (one,), "requests_per_s", 1.8)]


def _of_front(kind: str, ours: str) -> list[Target]:
    tiny, latency = ("grpc", TINY, ours), ("grpc-latency", TINY, ours)
    found = [
        Target(f"gRPC, tiny, {kind} front / Triton", tiny, (("grpc", TINY, TRITON),), "requests_per_s", 1.3 if kind == "grpcio" else 2.2),
        Target(f"gRPC latency, {kind} front / Triton", latency, (("grpc-latency", TINY, TRITON),), "p50_ms", 1.0),
        Target(f"gRPC, digits, one row, {kind} front / tiny model", ("grpc", DIGITS, ours), (tiny,), "requests_per_s", 0.9),
    ]
    if kind != "grpcio":
        found.append(Target(f"gRPC, tiny, {kind} front / MLServer", tiny, (("grpc", TINY, MLSERVER),), "requests_per_s", 5.0))
    for where, text in (("", "one core"), ("-both", "both cores")):
        wide = ("grpc" + where, DIGITS_256, ours)
        found.append(Target(f"gRPC, digits, 256 rows, {kind} front / session.run, {text}", wide, _loop(where, DIGITS), "rows_per_s", 0.9))
        for model, factor in ((MINILM, 0.95), (EFFICIENTNET, 0.97)):
            batched = (f"grpc{where or '-saturated'}", model, ours)
            alone = ("grpc-unbatched" + where, UNBATCHED[model], ours)
            found += [
                Target(f"gRPC, {model}, {kind} front / session.run, {text}", batched, _loop(where, model), "rows_per_s", factor),
                Target(f"gRPC, {model}, {kind} front: batching / not batching, {text}", batched, (alone,), "requests_per_s", 1.0),
            ]
    big = ("grpc-16MB", BIG, ours)
    return [*found, Target(f"gRPC, 16 MB there and back, {kind} front / Triton", big, (("grpc-16MB", BIG, TRITON),), "p50_ms", 1.0)]


def _loop(where: str, model: str) -> tuple[Key, ...]:
    return tuple(("loop" + where, str(batch), model) for batch in LOOP_BATCHES[model])


def evaluate(wanted: Sequence[Target], results: Results) -> list[Outcome]:
    """Of the targets whose figures are all there: a contestant that did not run, or failed, has none."""
    found = []
    for target in wanted:
        if any(key not in results or target.measure not in results[key] for key in (target.ours, *target.theirs)):
            continue
        lower = target.measure == "p50_ms"
        choose = min if lower else max
        best, median = (
            results[target.ours][target.measure][which] / choose(results[key][target.measure][which] for key in target.theirs)
            for which in ("best", "median")
        )
        met = best <= target.factor if lower else best >= target.factor
        found.append(Outcome(target.text, f"{'≤' if lower else '≥'} {target.factor:g}", best, median, met))
    return found
