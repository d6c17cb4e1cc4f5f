"""The board of one executor: what it counts and what it has begun, in memory that outlives it.

One memfd per model instance. The supervisor makes it and keeps it over a crash; the executor writes it, one thread; whoever attaches to
the executor gets it read-only. Every cell is an aligned 64-bit integer, so a reader never sees half a value.

The journal has one cell per lane connection: the sequence number of the last request of that connection which the executor began to
run. After a crash a caller knows from it whether its request was inside the model or only in the queue.
"""

import bisect
import fcntl
import os
from collections.abc import Iterator, Sequence

from idl.codes import Code
from idl.shared_cells import map_cells

STATE, ACCEPTED, FINISHED, RUNNING, RUNNING_SINCE, RUNNING_DEADLINE, LAST_INFERENCE, EXECUTIONS, CANCELLED, CANCELLED_NS = range(10)
"""Cells. RUNNING: requests inside the model now; RUNNING_SINCE and _DEADLINE in ns of CLOCK_MONOTONIC, 0 for none; LAST_INFERENCE in ms
since the epoch."""
LOADING, READY, LEAVING = 0, 1, 2
"""What STATE says."""

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histograms, in seconds; a last bucket takes what is above."""
KINDS = ("success", "fail", "queue", "input", "compute", "output")
MOST_BATCH = 256
"""Batches of more rows are counted with those of this many."""
CONNECTIONS = 4096

_BOUNDS_NS = [int(bound * 1e9) for bound in BUCKETS_S]
_KIND = 2 + len(BUCKETS_S) + 1  # count, ns, buckets
_KINDS_AT = 16
_QUEUE_AT, _INPUT_AT, _COMPUTE_AT, _OUTPUT_AT = (_KINDS_AT + _KIND * index for index in range(2, 6))
_ERRORS_AT = _KINDS_AT + _KIND * len(KINDS)
_BATCHES_AT = _ERRORS_AT + len(Code)
_BATCH = 4  # executions; ns of input, compute, output
_JOURNAL_AT = _BATCHES_AT + _BATCH * (MOST_BATCH + 1)
SIZE = 8 * (_JOURNAL_AT + CONNECTIONS)
_CODES = {code.value: _ERRORS_AT + index for index, code in enumerate(Code)}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Board:
    """A mapping of one, given back when the last reference goes. `writable` for its executor."""

    __slots__ = ("cells",)

    def __init__(self, descriptor: int, *, writable: bool) -> None:
        """Maps `descriptor`, which stays the caller's. Raises OSError or ValueError where it is not a board."""
        if os.fstat(descriptor).st_size != SIZE:
            raise ValueError("not a board")
        if not writable and fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK == 0:
            raise ValueError("the board could shrink under its readers")
        self.cells = map_cells(descriptor, SIZE // 8, writable=writable)

    @property
    def in_flight(self) -> int:
        """Requests in its queue or in the model."""
        return self.cells[ACCEPTED] - self.cells[FINISHED]

    def began(self, slot: int) -> int:
        """The sequence number of the last request of connection `slot` that began to run."""
        return self.cells[_JOURNAL_AT + slot]

    def begin(self, slot: int, sequence: int) -> None:
        self.cells[_JOURNAL_AT + slot] = sequence

    def errors(self) -> Iterator[tuple[str, int]]:
        """(code, how many), those that happened."""
        for code, cell in _CODES.items():
            if count := self.cells[cell]:
                yield code, count

    def kind(self, name: str) -> Sequence[int]:
        """Of "success", "queue", ...: how many, ns in all, then one count per bucket."""
        at = _KINDS_AT + _KIND * KINDS.index(name)
        return self.cells[at : at + _KIND].tolist()

    def batches(self) -> Iterator[tuple[int, int, int, int, int]]:
        """(rows, executions, input ns, compute ns, output ns), ascending."""
        cells = self.cells[_BATCHES_AT:_JOURNAL_AT].tolist()
        for rows in range(MOST_BATCH + 1):
            count, taken, computed, given = cells[_BATCH * rows : _BATCH * (rows + 1)]
            if count:
                yield rows, count, taken, computed, given

    def succeeded(self, total: int, queue: int, taken: int, compute: int, given: int, times: int = 1) -> None:
        """One request with its durations in ns; `times` -1 takes it back. Input and output have no buckets: nobody looks at them."""
        cells = self.cells
        for at, ns in ((_KINDS_AT, total), (_QUEUE_AT, queue), (_COMPUTE_AT, compute)):
            cells[at] += times
            cells[at + 1] += ns * times
            cells[at + 2 + bisect.bisect_left(_BOUNDS_NS, ns)] += times
        cells[_INPUT_AT] += times
        cells[_INPUT_AT + 1] += taken * times
        cells[_OUTPUT_AT] += times
        cells[_OUTPUT_AT + 1] += given * times

    def failed(self, code: str, ns: int) -> None:
        cells, at = self.cells, _KINDS_AT + _KIND
        cells[_CODES[code]] += 1
        cells[at] += 1
        cells[at + 1] += ns
        cells[at + 2 + bisect.bisect_left(_BOUNDS_NS, ns)] += 1

    def executed(self, rows: int, input_ns: int, compute_ns: int, output_ns: int) -> None:
        cells, at = self.cells, _BATCHES_AT + _BATCH * min(rows, MOST_BATCH)
        cells[EXECUTIONS] += 1
        cells[at] += 1
        cells[at + 1] += input_ns
        cells[at + 2] += compute_ns
        cells[at + 3] += output_ns


def create() -> int:
    """A descriptor of a fresh board. Raises OSError."""
    descriptor = os.memfd_create("outboard-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, SIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_only(descriptor: int) -> int:
    """A second descriptor of a board, through which it cannot be written."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
