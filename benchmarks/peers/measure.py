"""Starts what the chosen cases need, measures them in many short interleaved rounds, and ends everything."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError, SubprocessError
from typing import Any

import grpc

from benchmarks import payloads
from benchmarks.figures import Sample, best_and_median, summary
from benchmarks.loads import callers, h2load, wrk
from benchmarks.peers import contestants, environments, models, ours
from benchmarks.peers.contestants import Contestant
from benchmarks.peers.rows import LANE, ROWS_OF, THRIFT_UNIX, THRIFTPY2, TRITON_CLIENT, Case, cases, rows
from benchmarks.peers.targets import evaluate, targets
from benchmarks.processes import Cores, cpu_seconds, send
from benchmarks.workload import Workload

_IDLE_S = 2.0
_QUIET = 0.03
"""Share of one core that a contestant may use while others are measured."""
_FAILURES = (RuntimeError, OSError, SubprocessError, grpc.RpcError, KeyError, ValueError)


@dataclass(frozen=True, slots=True)
class Cell:
    """A case that is ready to be measured. `check` raises where the answer is wrong, and returns its size in bytes (gRPC only)."""

    case: Case
    rows: int
    contestant: Contestant | None
    check: Callable[[], int]
    load: Callable[[float, int], Sample]


@dataclass(frozen=True, slots=True)
class Round:
    """`cpu_us`: what the contestant's processes used for one request, in microseconds of one core."""

    sample: Sample
    cpu_us: float


class Bench:
    """One run. `peers`: where the environments are; `folder`: a new one with a short name, for everything else."""

    def __init__(self, folder: Path, peers: Path, fronts: Sequence[str], say: Callable[[str], None]) -> None:
        self._folder, self._peers, self._fronts, self._say = folder, peers.absolute(), tuple(fronts), say
        self._models = models.make(folder / "models", self._peers, say)
        self._loads = dict(self._models.loads)
        for name, (model, number) in ROWS_OF.items():
            self._loads[name] = models.batch(self._loads[model], number)
        for name, (model, _) in ours.VARIANTS.items():
            self._loads[name] = renamed(self._loads[model], name)

    def run(self, only: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
        """Figures of every case, and the ratios to the targets. Layouts come one after the other, all cases of one in turn."""
        wanted = cases(rows(self._fronts), only)
        if not wanted:
            raise ValueError(f"nothing matches {', '.join(only)}")
        found: list[dict[str, Any]] = []
        idle: dict[str, float] = {}
        for servers in dict.fromkeys(case.row.layout.servers for case in wanted):
            part = [case for case in wanted if case.row.layout.servers == servers]
            with ExitStack() as stack:
                running = self._start(stack, part)
                shares = self._idle(running)
                idle |= {f"{name} ({'one core' if len(servers) == 1 else 'both cores'})": share for name, share in shares.items()}
                restless = [running[name] for name, share in shares.items() if share > _QUIET]
                found += self._measure([self._cell(case, running) for case in part], rounds, seconds, restless)
        results = {(entry["row"], entry["request"], entry["contestant"]): entry for entry in found}
        return {
            "rows": found,
            "targets": [asdict(outcome) for outcome in evaluate(targets(self._fronts), results)],
            "versions": {name: environments.versions(environment) for name, (environment, _) in contestants.PEERS.items()},
            "idle_cores": idle,
        }

    def _start(self, stack: ExitStack, part: Sequence[Case]) -> dict[str, Contestant]:
        """The servers that the cases need, one after the other, so that none starts, or tunes itself, beside another's start."""
        cores = real_cores(part[0].row.layout.servers)
        found: dict[str, Contestant] = {}
        for name in dict.fromkeys(self._server(case) for case in part if case.server):
            folder = self._folder / f"{len(cores)}{len(found)}"
            folder.mkdir()
            self._say(f"starting {name} on core {', '.join(map(str, cores))}")
            if name in contestants.PEERS:
                environment, start = contestants.PEERS[name]
                environments.ensure(self._peers, environment, self._say)
                found[name] = stack.enter_context(start(folder, self._peers, self._models, cores))
            elif name in _FULL_PATH:
                found[name] = stack.enter_context(_FULL_PATH[name](folder, self._models, cores))
            else:
                kind = next(kind for kind in self._fronts if ours.front(kind) == name)
                found[name] = stack.enter_context(ours.serve(folder, self._models, cores, kind))
        return found

    def _server(self, case: Case) -> str:
        """The Python clients of ours ask whichever server of ours runs in their layout anyway."""
        if case.contestant in (LANE, THRIFT_UNIX, THRIFTPY2):
            return ours.ONE_HOST if len(case.row.layout.servers) > 1 else ours.front(self._fronts[-1])
        return case.server

    def _cell(self, case: Case, running: Mapping[str, Contestant]) -> Cell:
        cores = real_cores(case.row.layout.load)
        if case.row.load == "loop":
            load = models.batch(self._loads[case.contestant], int(case.request))
            # where a server would compute
            return self._loop(case, load, real_cores(case.row.layout.servers))
        load, contestant = self._loads[case.request], running[self._server(case)]
        make = {"h2load": self._grpc, "wrk": self._http, "python": self._client}[case.row.load]
        return make(case, load, contestant, cores)

    def _grpc(self, case: Case, load: Workload, contestant: Contestant, cores: Cores) -> Cell:
        body = self._file(load.model, "grpc", payloads.grpc_message(load), load.rows)
        row = case.row

        def measure(seconds: float, answer_bytes: int) -> Sample:
            before = payloads.failures(contestant.grpc, load.model) if contestant.counts else 0
            found = h2load.load(
                contestant.grpc,
                payloads.GRPC_METHOD,
                body,
                row.at_once,
                seconds,
                streams=row.streams,
                cores=cores,
                answer_bytes=answer_bytes,
            )
            failed = payloads.failures(contestant.grpc, load.model) - before if contestant.counts else 0
            # what was under way when the time was up is cancelled, and may be counted as failed
            if failed > row.at_once:
                raise RuntimeError(f"the server itself counted {failed} failures")
            return found

        return Cell(case, self._rows(load), contestant, partial(payloads.check_grpc, contestant.grpc, load), measure)

    def _http(self, case: Case, load: Workload, contestant: Contestant, cores: Cores) -> Cell:
        request = payloads.v2_json(load)
        extra = contestant.headers if load.model == ours.PRIVATE else {}
        body = self._file(load.model, "json", request.body)

        def check() -> int:
            payloads.check_v2_json(contestant.http, load, extra)
            return 0

        def measure(seconds: float, _: int) -> Sample:
            return wrk.load(contestant.http + request.path, body, request.headers | dict(extra), case.row.at_once, seconds, cores=cores)

        return Cell(case, self._rows(load), contestant, check, measure)

    def _client(self, case: Case, load: Workload, contestant: Contestant, cores: Cores) -> Cell:
        kind, target = {
            LANE: lambda: ("inference_client", f"thrift+unix://{contestant.thrift_socket}"),
            THRIFT_UNIX: lambda: ("inference_client", f"thrift+unix://{ours.plain_socket(contestant)}"),
            THRIFTPY2: lambda: ("thriftpy2", str(ours.plain_socket(contestant))),
            TRITON_CLIENT: lambda: ("tritonclient.grpc", contestant.grpc),
        }[case.contestant]()
        return self._called(case, load, kind, target, contestant, cores, partial(payloads.check_grpc, contestant.grpc, load))

    def _loop(self, case: Case, load: Workload, cores: Cores) -> Cell:
        return self._called(case, load, "onnxruntime", "1", None, cores, lambda: 0)

    def _called(
        self, case: Case, load: Workload, kind: str, target: str, contestant: Contestant | None, cores: Cores, check: Callable[[], int]
    ) -> Cell:
        path = callers.write_workload(self._folder / f"{load.model}.{load.rows}.workload", load)
        return Cell(case, self._rows(load), contestant, check, lambda seconds, _: callers.load(kind, target, path, 1, seconds, cores=cores))

    def _rows(self, load: Workload) -> int:
        """Of one request; 1 where the model takes no batches and its first axis means something else."""
        batched = {model.file for model in self._models.served if model.max_batch}
        return load.rows if load.file in batched else 1

    def _file(self, model: str, kind: str, content: bytes, number: int = 1) -> Path:
        path = self._folder / f"{model}.{number}.{kind}"
        path.write_bytes(content)
        return path

    def _measure(self, cells: Sequence[Cell], rounds: int, seconds: float, restless: Sequence[Contestant]) -> list[dict[str, Any]]:
        """`restless`: contestants that work while nobody asks; each is stopped while others are measured."""
        done: list[list[Round]] = [[] for _ in cells]
        failures: list[list[str]] = [[] for _ in cells]
        for number in range(rounds):
            for index, cell in enumerate(cells):
                self._say(f"round {number + 1} of {rounds}: {' / '.join(cell.case.key)}")
                try:
                    with _stopped([each for each in restless if each is not cell.contestant]):
                        done[index].append(_one(cell, seconds * cell.case.row.seconds))
                except _FAILURES as error:
                    failures[index].append(_reason(error))
                    self._say(f"  failed: {failures[index][-1]}")
        return [_entry(cell, done[index], failures[index]) for index, cell in enumerate(cells)]

    def _idle(self, running: Mapping[str, Contestant]) -> dict[str, float]:
        """The share of one core that each uses while nobody asks it."""
        before = {name: _cpu(contestant) for name, contestant in running.items()}
        time.sleep(_IDLE_S)
        return {name: (_cpu(contestant) - before[name]) / _IDLE_S for name, contestant in running.items()}


_FULL_PATH = {ours.ONE_HOST: ours.one_host, ours.TWO_HOSTS: ours.two_hosts}


def real_cores(wanted: Cores) -> Cores:
    """The machine's first and second core that this process may use, for 0 and 1. Raises RuntimeError where there is but one."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise RuntimeError("two cores are needed: one for the servers and one for the load")
    return tuple(allowed[number] for number in wanted)


def renamed(load: Workload, model: str) -> Workload:
    return Workload(model, load.file, load.inputs, load.output, load.expected, load.image, load.tolerance)


def _one(cell: Cell, seconds: float) -> Round:
    """One round: a right answer before, the load, a right answer after. A round with one failure is none: refusals are quick."""
    answer_bytes = cell.check()
    before = _cpu(cell.contestant)
    found = cell.load(seconds, answer_bytes)
    used = _cpu(cell.contestant) - before
    if found.errors:
        raise RuntimeError(f"{found.errors} requests failed, {found.requests} were answered")
    cell.check()
    return Round(found, used / max(1, found.requests) * 1e6)


@contextmanager
def _stopped(contestants: Sequence[Contestant]) -> Iterator[None]:
    try:
        for each in contestants:
            send(each.pids, signal.SIGSTOP)
        yield
    finally:
        for each in contestants:
            send(each.pids, signal.SIGCONT)


def _entry(cell: Cell, done: Sequence[Round], failures: Sequence[str]) -> dict[str, Any]:
    row, request, contestant = cell.case.key
    entry: dict[str, Any] = {"row": row, "title": cell.case.row.title, "layout": cell.case.row.layout.text}
    entry |= {"request": request, "contestant": contestant, "latency": cell.case.row.is_latency, "failed_rounds": list(failures)}
    if done:
        entry |= summary([item.sample for item in done])
        entry["rows_per_s"] = best_and_median([item.sample.rate * cell.rows for item in done], max)
        entry["cpu_us"] = best_and_median([item.cpu_us for item in done])
    return entry


def _cpu(contestant: Contestant | None) -> float:
    return sum(map(cpu_seconds, contestant.pids)) if contestant else 0.0


def _reason(error: BaseException) -> str:
    text = error.stderr if isinstance(error, CalledProcessError) and error.stderr else str(error)
    return f"{type(error).__name__}: {str(text).strip()[-500:]}"
