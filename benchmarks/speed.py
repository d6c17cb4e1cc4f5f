"""Requests per second and latencies of every way in, beside onnxruntime called directly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import payloads
from benchmarks.figures import Sample, summary
from benchmarks.loads import callers, h2load, thrift_frames, wrk
from benchmarks.servers import Host
from benchmarks.workload import Workload

CONCURRENCIES = (1, 16)


@dataclass(frozen=True, slots=True)
class Case:
    """`load(seconds)` measures once."""

    model: str
    path: str
    generator: str
    concurrency: int
    load: Callable[[float], Sample]

    @property
    def description(self) -> str:
        return f"{self.model}, {self.path}, {self.generator}, {self.concurrency} at once"


def cases(host: Host, loads: Sequence[Workload], folder: Path) -> list[Case]:
    """Every case, after one request on each path whose answer was compared with onnxruntime's. `folder` takes the request bodies."""
    found: list[Case] = []
    for load in loads:
        check(host, load)
        for concurrency in CONCURRENCIES:
            found += _cases(host, load, folder, concurrency)
    return found


def check(host: Host, load: Workload) -> None:
    payloads.check_grpc(host.grpc, load)
    payloads.check_thrift(host.thrift, load)
    if host.http:
        payloads.check_v2(host.http, load)
        if load.image:
            payloads.check_photograph(host.http, load)


def _cases(host: Host, load: Workload, folder: Path, concurrency: int) -> list[Case]:
    case = partial(Case, load.model, concurrency=concurrency)
    message = _file(folder / f"{load.model}.grpc", payloads.grpc_message(load))
    frame = _file(folder / f"{load.model}.thrift", payloads.thrift_frame(load))
    workload = callers.write_workload(folder / f"{load.model}.workload", load)
    found = [
        case("onnxruntime itself", callers.NAME, load=partial(callers.load, "onnxruntime", "0", workload, concurrency)),
        case("gRPC", h2load.NAME, load=partial(_grpc, host.grpc, load.model, message, concurrency)),
        case("Thrift", thrift_frames.NAME, load=partial(thrift_frames.load, host.thrift, frame, concurrency)),
    ]
    for path, kind, target in _python_clients(host) if concurrency == 1 else ():
        found.append(case(path, kind, load=partial(callers.load, kind, target, workload, concurrency)))
    for path, request in _http_requests(load) if host.http else ():
        body = _file(folder / f"{load.model}.{len(request.path)}.{len(request.body)}", request.body)
        found.append(case(path, wrk.NAME, load=partial(wrk.load, host.http + request.path, body, request.headers, concurrency)))
    return found


def _python_clients(host: Host) -> list[tuple[str, str, str]]:
    """One caller at a time: several Python threads would measure themselves."""
    found = [
        ("gRPC", "tritonclient.grpc", host.grpc),
        ("gRPC", "inference_client", f"grpc://{host.grpc}"),
        ("Thrift", "inference_client", f"thrift://{host.thrift}"),
    ]
    if host.run_dir:
        found.append(("Thrift, unix socket", "inference_client", f"thrift+unix://{host.run_dir / 'thrift.sock'}"))
    return found


def _http_requests(load: Workload) -> list[tuple[str, payloads.HttpRequest]]:
    if load.image:
        return [("HTTP /v1, a photograph", payloads.photograph(load)), ("HTTP /v2, binary", payloads.v2_binary(load))]
    return [("HTTP /v2, JSON", payloads.v2_json(load)), ("HTTP /v2, binary", payloads.v2_binary(load))]


def _grpc(address: str, model: str, message: Path, concurrency: int, seconds: float) -> Sample:
    before = payloads.failures(address, model)
    measured = h2load.load(address, payloads.GRPC_METHOD, message, concurrency, seconds)
    # what was under way when the time was up is cancelled, and counted as failed
    failed = max(0, payloads.failures(address, model) - before - concurrency)
    return Sample(measured.requests, measured.seconds, measured.p50_ms, measured.p99_ms, measured.max_ms, measured.errors + failed)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def measure(every: Sequence[Case], rounds: int, seconds: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Short rounds over all cases in turn, so that a slow minute of the machine meets every case."""
    samples: dict[int, list[Sample]] = {index: [] for index in range(len(every))}
    for number in range(rounds):
        for index, case in enumerate(every):
            say(f"round {number + 1} of {rounds}: {case.description}")
            samples[index].append(case.load(seconds))
    return [
        {"model": case.model, "path": case.path, "generator": case.generator, "concurrency": case.concurrency, **summary(samples[index])}
        for index, case in enumerate(every)
    ]
