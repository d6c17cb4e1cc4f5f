"""Why a model host: the demo model inside four Flask workers, beside four thin workers and one model host."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import control, payloads
from benchmarks.figures import Sample, percentile, summary
from benchmarks.inprocess import server
from benchmarks.loads import wrk
from benchmarks.loads.steady import Answer, steady
from benchmarks.processes import memory
from benchmarks.repository import add_version, make_demo
from benchmarks.servers import Host, outboard_up, scratch
from benchmarks.start import by_role
from benchmarks.workload import Workload

WORKERS = 4
CONCURRENCY = 16
_BEFORE_S = 1.0
_AFTER_S = 2.0
INPROCESS, OUTBOARD = "model in each worker", "Outboard"


def measure(rounds: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    with scratch() as folder:
        load = make_demo(folder / "models")
        thin = {"OUTBOARD_GATEWAY_PROCESSES": str(WORKERS)}
        say(f"starting {WORKERS} workers with the model in each, and {WORKERS} thin workers with a model host")
        with server.application(folder / "app", load, WORKERS) as app, outboard_up(folder / "models", folder / "data", thin) as host:
            payloads.check_photograph(host.http, load)
            at_rest = _memory(app, host)
            loaded = _load(app, host, load, folder, rounds, seconds, say)
            after = _memory(app, host)
            changes = _changes(app, host, load, folder, say)
    return {
        "workers": WORKERS,
        "concurrency": CONCURRENCY,
        "memory_at_rest": at_rest,
        "memory_after": after,
        "load": loaded,
        "change": changes,
    }


def _memory(app: server.Application, host: Host) -> dict[str, Any]:
    return {
        INPROCESS: by_role([item for pid in app.pids for item in memory(pid)]),
        OUTBOARD: by_role(memory(host.pid)),
    }


def _load(
    app: server.Application, host: Host, load: Workload, folder: Path, rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    body = folder / "photograph"
    body.write_bytes(payloads.photograph(load).body)
    targets = {INPROCESS: (app.http, payloads.photograph(load, server.PATH)), OUTBOARD: (host.http, payloads.photograph(load))}
    samples: dict[str, list[Sample]] = {name: [] for name in targets}
    for number in range(rounds):
        for name, (base, request) in targets.items():
            say(f"round {number + 1} of {rounds}: {name}, {CONCURRENCY} photographs at once")
            samples[name].append(wrk.load(base + request.path, body, request.headers, CONCURRENCY, seconds))
    return {name: summary(found) for name, found in samples.items()}


def _changes(app: server.Application, host: Host, load: Workload, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The same file as a new version each time, under steady load; what callers saw of it."""
    models = load.file.parents[2]
    inprocess, ours = payloads.photograph(load, server.PATH), payloads.photograph(load)
    body = folder / "photograph"
    found = []
    for number, (name, base, request, change) in enumerate(
        [
            (f"{INPROCESS}, all reloaded", app.http, inprocess, lambda file: app.change(file, b"w")),
            (f"{INPROCESS}, reloaded one by one", app.http, inprocess, lambda file: app.change(file, b"c")),
            (OUTBOARD, host.http, ours, lambda _: control.load_model(host.grpc, load.model)),
        ],
        start=2,
    ):
        say(f"a change of model under load: {name}")
        add_version(models, load.model, number)
        found.append({"what": name, **_watch(base, request, body, models / load.model / str(number) / "model.onnx", change)})
    return found


def _watch(base: str, request: payloads.HttpRequest, body: Path, file: Path, change: Callable[[Path], None]) -> dict[str, Any]:
    version = file.parent.name
    with steady(base, request, body) as answers:
        time.sleep(_BEFORE_S)
        begin = time.monotonic()
        change(file)
        called = time.monotonic() - begin
        control.wait_for_version(base, request, version)
        time.sleep(_AFTER_S)
    return {"call_s": called, **changed(answers, begin, version)}


def changed(answers: Sequence[Answer], begin: float, version: str) -> dict[str, Any]:
    """What callers saw before and from the change on: failures, latencies (ms), how long old answers came, the longest silence (s)."""
    before, after = [item for item in answers if item.end < begin], [item for item in answers if item.end >= begin]
    ends = sorted([begin, *(item.end for item in after if item.status == 200)])
    old = [item.end - begin for item in after if item.status == 200 and item.version != version]
    new = [item.end - begin for item in after if item.version == version]
    return {
        "answers": len(after),
        "failed": sum(item.status != 200 for item in after),
        "before_p99_ms": percentile(sorted(item.latency_ms for item in before), 0.99),
        "p99_ms": percentile(sorted(item.latency_ms for item in after), 0.99),
        "max_ms": max(item.latency_ms for item in after),
        "longest_silence_s": max(later - earlier for earlier, later in pairwise(ends)),
        "first_new_s": min(new),
        "last_old_s": max(old, default=0.0),
    }
