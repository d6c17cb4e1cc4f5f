"""What is measured: each row with its layout, load, models and contestants. Which process does it, `measure` says."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from benchmarks.peers.contestants import KSERVE, LITSERVE, MLSERVER, TRITON
from benchmarks.peers.models import BIG, DIGITS, EFFICIENTNET, MINILM, TINY
from benchmarks.peers.ours import ONE_HOST, PRIVATE, TWO_HOSTS, TWO_INSTANCES, UNBATCHED, front

DIGITS_256 = f"{DIGITS}, 256 rows"
ROWS_OF = {DIGITS_256: (DIGITS, 256)}
"""Name of a request -> its model and how many rows it carries, where that is not the model's own one request."""
LOOP_BATCHES = {DIGITS: (16, 256, 1024), MINILM: (1, 8, 16, 32), EFFICIENTNET: (1, 2, 8)}
LANE, THRIFT_UNIX, THRIFTPY2, TRITON_CLIENT = (
    "inference_client, local lane",
    "inference_client, Thrift on a unix socket",
    "thriftpy2 on a unix socket",
    "Triton, its own gRPC client",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which of the two cores (0 and 1 of those that there are) the servers and the load may use."""

    text: str
    servers: tuple[int, ...]
    load: tuple[int, ...]


ALONE = Layout("on the server's core", (0,), (0,))
APART = Layout("server on one core, load on the other", (0,), (1,))
TOGETHER = Layout("server and caller on one core", (0,), (0,))
BOTH = Layout("server and load on both cores", (0, 1), (0, 1))
ALONE_BOTH = Layout("one thread, both cores free", (0, 1), (0, 1))


@dataclass(frozen=True, slots=True)
class Row:
    """`load`: h2load, wrk, python or loop. `at_once`: calls in flight, `streams` of them on each gRPC connection.

    `seconds` multiplies the seconds of a round, for requests that take long.
    """

    key: str
    title: str
    layout: Layout
    load: str
    at_once: int
    requests: tuple[str, ...]
    contestants: tuple[str, ...]
    streams: int = 4
    seconds: int = 1

    @property
    def is_latency(self) -> bool:
        return self.at_once == 1 and self.load != "loop"


@dataclass(frozen=True, slots=True)
class Case:
    """One contestant with one request of one row."""

    row: Row
    request: str
    contestant: str

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.row.key, self.request, self.contestant)

    @property
    def server(self) -> str:
        """The contestant's process that is asked; "" for a loop, which asks none."""
        if self.row.load == "loop":
            return ""
        return {TRITON_CLIENT: TRITON}.get(self.contestant, self.contestant)


def rows(fronts: Sequence[str]) -> tuple[Row, ...]:
    """`fronts`: the values of `--grpc-front` that are measured; "" is the default one."""
    ours = tuple(front(kind) for kind in fronts)
    speakers = (*ours, TRITON, KSERVE, MLSERVER)
    clients = (LANE, THRIFT_UNIX, THRIFTPY2, TRITON_CLIENT)
    webs = (ONE_HOST, TWO_HOSTS, TRITON, MLSERVER, KSERVE, LITSERVE)
    return (
        Row("grpc", "gRPC, 16 calls at once", APART, "h2load", 16, (TINY, DIGITS, DIGITS_256), speakers),
        Row("grpc-saturated", "gRPC, 32 calls at once", APART, "h2load", 32, (MINILM, EFFICIENTNET), speakers, streams=8),
        Row("grpc-unbatched", "the same without batching", APART, "h2load", 32, tuple(UNBATCHED.values()), ours, streams=8),
        *_loops("loop", ALONE),
        Row("grpc-latency", "gRPC, one call at a time", APART, "h2load", 1, (TINY,), speakers),
        Row("grpc-16MB", "gRPC, 16 MB there and back, one call at a time", APART, "h2load", 1, (BIG,), (*ours, TRITON, KSERVE), seconds=2),
        Row("clients", "Python clients, numpy in and out, one call at a time", TOGETHER, "python", 1, (TINY,), clients),
        Row("clients-both", "Python clients, numpy in and out, one call at a time", BOTH, "python", 1, (TINY,), clients),
        Row("http", "HTTP, JSON, 16 at once", BOTH, "wrk", 16, (TINY, DIGITS, MINILM), webs),
        Row("http-private", "HTTP, JSON, a private model with a token", BOTH, "wrk", 16, (PRIVATE,), (ONE_HOST, TWO_HOSTS)),
        Row("grpc-both", "gRPC, 32 calls at once", BOTH, "h2load", 32, (DIGITS_256, MINILM, EFFICIENTNET), (*ours, TRITON), streams=8),
        Row("grpc-unbatched-both", "the same without batching", BOTH, "h2load", 32, tuple(UNBATCHED.values()), ours, streams=8),
        *_loops("loop-both", ALONE_BOTH),
        Row("instances", "gRPC, 16 calls at once", BOTH, "h2load", 16, (EFFICIENTNET, TWO_INSTANCES), (ONE_HOST,)),
    )


def _loops(key: str, layout: Layout) -> list[Row]:
    """session.run with one thread over and over: its requests are numbers of rows, its contestants models."""
    return [
        Row(key, "a loop of session.run", layout, "loop", 1, tuple(map(str, batches)), (model,)) for model, batches in LOOP_BATCHES.items()
    ]


def cases(every: Sequence[Row], only: Sequence[str]) -> list[Case]:
    """`only`: patterns `ROW/MODEL/CONTESTANT`, each part with * and ?, parts left out match all; none: everything."""
    found = [Case(row, request, contestant) for row in every for request in row.requests for contestant in row.contestants]
    return [case for case in found if not only or any(_matches(case.key, pattern) for pattern in only)]


def _matches(key: tuple[str, str, str], pattern: str) -> bool:
    return all(fnmatchcase(part.lower(), wanted.lower()) for part, wanted in zip(key, pattern.split("/"), strict=False))
