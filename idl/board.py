"""The board of one executor: what it counts and what it has begun, in memory that outlives it.

One memfd per model instance. The supervisor makes it and keeps it over a crash; the executor writes it, one thread; whoever attaches to
the executor gets it read-only. Every cell is an aligned 64-bit integer, so a reader never sees half a value.

The journal has one cell per lane connection: the sequence number of the last request of that connection which the executor began to
run. After a crash a caller knows from it whether its request was inside the model or only in the queue.
"""

import fcntl
import os
import struct
from bisect import bisect_left
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
"""Durations that are counted. All but "fail" are of the same requests, the successful ones, so those share one count."""
MOST_BATCH = 256
"""Batches of more rows are counted with those of this many."""
MOST_ANSWERS = 256
"""Of one request: later answers are counted with the last of these."""
CONNECTIONS = 4096

_BOUNDS_NS = [int(bound * 1e9) for bound in BUCKETS_S]
_SUMS_AT = 10  # successes; ns in all, in the queue, for input, compute, output
_SUMS = {"success": 1, "queue": 2, "input": 3, "compute": 4, "output": 5}
_FAIL_AT = 16  # failures, ns
_BUCKETS_AT = 18
_BUCKETS = len(BUCKETS_S) + 1
_TOTAL_AT, _QUEUE_AT, _COMPUTE_AT, _FAILED_AT = (_BUCKETS_AT + _BUCKETS * index for index in range(4))
_HISTOGRAMS = {"success": _TOTAL_AT, "queue": _QUEUE_AT, "compute": _COMPUTE_AT, "fail": _FAILED_AT}
_ERRORS_AT = _BUCKETS_AT + _BUCKETS * 4
_BATCHES_AT = _ERRORS_AT + len(Code)
_BATCH = 4  # executions; ns of input, compute, output
SEQUENCES = _BATCHES_AT + _BATCH * (MOST_BATCH + 1)
"""A cell: how many sequences the model keeps a state for."""
CACHE = SEQUENCES + 1
"""Four cells of the response cache: answers out of it, ns of these, looks that found nothing, ns of those."""
ANSWERS = CACHE + 4
"""A cell: how many answers of one request were counted at most."""
_JOURNAL_AT = ANSWERS + 1
_ANSWERS_AT = _JOURNAL_AT + CONNECTIONS  # last: only models that give several answers touch it
_ANSWER = 10  # given: count, ns of compute, of output; failed: the same; none left: count, ns; cancelled: count, ns
_OUTCOMES = {"success": 0, "fail": 3, "empty": 6, "cancel": 8}
SIZE = 8 * (_ANSWERS_AT + _ANSWER * MOST_ANSWERS)
_ONE_ROW_AT = 8 * (_BATCHES_AT + _BATCH)
# native, not "=": that one writes byte by byte, and a reader must never see half a value
_BEGINNING, _COUNTS, _ONE_ROW = struct.Struct("5q"), struct.Struct("15q"), struct.Struct("4q")
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

    @property
    def queued(self) -> int:
        """Requests that wait; read beside the writer, so a request that changes sides just now may be missed."""
        return max(0, self.in_flight - self.cells[RUNNING])

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
        """Of one of KINDS: how many, ns in all, then one count per bucket; nobody looks at the buckets of input and output: they are 0."""
        cells, at = self.cells, _HISTOGRAMS.get(name, 0)
        count, ns = (cells[_FAIL_AT], cells[_FAIL_AT + 1]) if name == "fail" else (cells[_SUMS_AT], cells[_SUMS_AT + _SUMS[name]])
        return [count, ns, *(cells[at : at + _BUCKETS].tolist() if at else [0] * _BUCKETS)]

    def batches(self) -> Iterator[tuple[int, int, int, int, int]]:
        """(rows, executions, input ns, compute ns, output ns), ascending."""
        cells = self.cells[_BATCHES_AT:SEQUENCES].tolist()
        for rows in range(MOST_BATCH + 1):
            count, taken, computed, given = cells[_BATCH * rows : _BATCH * (rows + 1)]
            if count:
                yield rows, count, taken, computed, given

    def succeeded(self, total: int, queue: int, taken: int, compute: int, given: int, times: int = 1) -> None:
        """One request with its durations in ns; `times` -1 takes it back."""
        cells = self.cells
        cells[_SUMS_AT] += times
        for index, ns in enumerate((total, queue, taken, compute, given), _SUMS_AT + 1):
            cells[index] += ns * times
        cells[_TOTAL_AT + bisect_left(_BOUNDS_NS, total)] += times
        cells[_QUEUE_AT + bisect_left(_BOUNDS_NS, queue)] += times
        cells[_COMPUTE_AT + bisect_left(_BOUNDS_NS, compute)] += times

    def begin_alone(self, slot: int, sequence: int, now: int, deadline: int) -> None:
        """A request that begins to run the moment it comes: accepted, in the journal, inside. `now` and `deadline` as the cells say."""
        cells = self.cells
        cells[_JOURNAL_AT + slot] = sequence
        _BEGINNING.pack_into(cells, 8 * ACCEPTED, cells[ACCEPTED] + 1, cells[FINISHED], 1, now, deadline)

    def end_alone(self, total: int, queue: int, taken: int, compute: int, given: int, now_ms: int) -> None:
        """The success of a request that ran alone, one row of it: `executed`, `succeeded` and the end of its run, in fewer steps."""
        cells = self.cells
        accepted, finished, _, _, _, _, runs, gone, gone_ns, count, t, q, i, c, o = _COUNTS.unpack_from(cells, 8 * ACCEPTED)
        _COUNTS.pack_into(
            cells,
            8 * ACCEPTED,
            accepted,
            finished + 1,
            0,
            0,
            0,
            now_ms,
            runs + 1,
            gone,
            gone_ns,
            count + 1,
            t + total,
            q + queue,
            i + taken,
            c + compute,
            o + given,
        )
        cells[_TOTAL_AT + bisect_left(_BOUNDS_NS, total)] += 1
        cells[_QUEUE_AT + bisect_left(_BOUNDS_NS, queue)] += 1
        cells[_COMPUTE_AT + bisect_left(_BOUNDS_NS, compute)] += 1
        runs, i, c, o = _ONE_ROW.unpack_from(cells, _ONE_ROW_AT)
        _ONE_ROW.pack_into(cells, _ONE_ROW_AT, runs + 1, i + taken, c + compute, o + given)

    def failed(self, code: str, ns: int) -> None:
        cells = self.cells
        cells[_CODES[code]] += 1
        cells[_FAIL_AT] += 1
        cells[_FAIL_AT + 1] += ns
        cells[_FAILED_AT + bisect_left(_BOUNDS_NS, ns)] += 1

    def executed(self, rows: int, input_ns: int, compute_ns: int, output_ns: int) -> None:
        cells, at = self.cells, _BATCHES_AT + _BATCH * min(rows, MOST_BATCH)
        cells[EXECUTIONS] += 1
        cells[at] += 1
        cells[at + 1] += input_ns
        cells[at + 2] += compute_ns
        cells[at + 3] += output_ns

    def answered(self, index: int, outcome: str, ns: int = 0, output_ns: int = 0) -> None:
        """What became of answer number `index`, from 0, of one request: "success", "fail", "empty" (there was none left) or "cancel". `ns`: to
        compute it, or to give a cancelled one up; `output_ns`: to encode one that was computed.
        """
        index = min(index, MOST_ANSWERS - 1)
        cells, at = self.cells, _ANSWERS_AT + _ANSWER * index + _OUTCOMES[outcome]
        cells[at] += 1
        cells[at + 1] += ns
        if outcome in ("success", "fail"):
            cells[at + 2] += output_ns
        cells[ANSWERS] = max(cells[ANSWERS], index + 1)

    def answers(self) -> Iterator[list[int]]:
        """Of each answer of a request, in order: given (count, ns of compute, of output), failed (the same), none left (count, ns), cancelled
        (count, ns).
        """
        for index in range(min(self.cells[ANSWERS], MOST_ANSWERS)):
            at = _ANSWERS_AT + _ANSWER * index
            yield self.cells[at : at + _ANSWER].tolist()


def create() -> int:
    """A descriptor of a fresh board. Raises OSError."""
    descriptor = os.memfd_create("outboard-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(descriptor, 0o400)  # who gets a descriptor to read from could else open it anew, to write
        os.ftruncate(descriptor, SIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_only(descriptor: int) -> int:
    """A second descriptor of a board, through which it cannot be written."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
