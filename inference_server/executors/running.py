"""One run of the model for one request or several, from their tensors to their answers."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from idl import board as boards
from idl import lane
from idl.board import Board
from idl.codes import ServingError
from idl.tensors import Array
from inference_server import errors
from inference_server.executors.counting import Counts, Times
from inference_server.executors.door import Door
from inference_server.executors.merging import Encoded, Heads, NotSplittable, Results, decode, merge
from inference_server.executors.prepared import Prepared
from inference_server.executors.requests import Waiting
from inference_server.types import Answer, Signature

LONG_RUN_NS = 2_000_000
"""From this on the doorkeeper is worth its hand-over."""
SURPRISING_NS, WARY_RUNS = 20_000_000, 1000
"""A model that once ran this long may do so again: for so many runs the doorkeeper stands by, however short they usually are."""


class Backend(Protocol):
    """A loaded model: what it takes and gives, and one run of it.

    One that reads a request's parameters, or says some itself, has `answer(inputs, wanted, parameters) -> Answer` as well; one that puts
    requests together itself `answer_many`, see `Many`; one whose signature streams `answers`, which gives an iterator.
    """

    signature: Signature
    providers: tuple[str, ...]

    def run(self, inputs: Mapping[str, Array], wanted: list[str]) -> list[Array]: ...


class Many(Protocol):
    """Answers several requests of the same shapes, each with what it gets or what is wrong with it."""

    def answer_many(self, many: list[tuple[dict[str, Array], Mapping[str, Any]]], wanted: list[str]) -> list[Answer | ServingError]: ...


class Runs:
    """Of one loaded model. `waits`: requests may wait for others to share a run with. `refuse` ends a request with an error."""

    def __init__(
        self,
        model: Backend,
        door: Door,
        board: Board,
        counts: Counts,
        keeper: AbstractContextManager[None],
        *,
        row_ns: int,
        waits: bool,
        refuse: Callable[[Waiting, ServingError], None],
        stop_batching: Callable[[], None],
    ) -> None:
        self._model, self._door, self._board, self._counts, self._keeper = model, door, board, counts, keeper
        self.row_ns = row_ns
        """Time of the model for one row, lately."""
        self.free = False
        """The model may be run from where a request is read: it is usually quick, idle, and not on its way out."""
        self._waits = waits
        self._refuse, self._stop_batching = refuse, stop_batching
        self._wary = 0
        self.keep: Callable[[bytes, Encoded], None] = _not_kept
        """What keeps an answer for the same question, where the model's owner wants that."""
        self._heads: Heads = {}
        self._datatypes = {spec.name: spec.datatype for spec in model.signature.outputs}
        self._answering: Callable[[dict[str, Array], list[str], Mapping[str, Any]], Answer] | None = getattr(model, "answer", None)
        self._many: Any = model if hasattr(model, "answer_many") else None

    def __call__(self, batch: list[Waiting]) -> None:
        """Runs it and answers everybody in it."""
        started = time.monotonic_ns()
        self.free = False
        board, cells = self._board, self._board.cells
        for request in batch:
            request.begun, request.started_ns = True, started
            board.begin(request.connection.slot, request.sequence)
        deadlines = [request.deadline_ns for request in batch]
        cells[boards.RUNNING_DEADLINE] = max(deadlines) if all(deadlines) else 0
        cells[boards.RUNNING_SINCE] = started
        cells[boards.RUNNING] = len(batch)
        try:
            if self._many is not None:
                self._run_each(batch, self._many, started)
            else:
                self._run_together(batch, started)
        finally:
            cells[boards.RUNNING] = 0
            cells[boards.RUNNING_SINCE] = 0
            if self._many is not None:
                cells[boards.SEQUENCES] = getattr(self._many, "sequences", 0)
            self.look_whether_free()

    def look_whether_free(self) -> None:
        """To be called when the model's state has changed."""
        quick = self.row_ns <= LONG_RUN_NS and not self._wary
        self.free = quick and self._board.cells[boards.STATE] == boards.READY and not self._waits

    def ran(self, compute_ns: int, requests: int = 1) -> None:
        """How long a run took: decides who keeps the door while the next one lasts."""
        row_ns = compute_ns // requests
        self.row_ns = (3 * self.row_ns + row_ns) // 4 if self.row_ns else row_ns
        if compute_ns > LONG_RUN_NS:
            if compute_ns > SURPRISING_NS:
                self._wary = WARY_RUNS
            self.look_whether_free()

    def _run_together(self, batch: list[Waiting], started: int) -> None:
        try:
            if len(batch) == 1:
                inputs = decode(batch[0].prepared, batch[0].body)
            else:
                inputs = merge([(request.prepared, request.body) for request in batch])
            decoded = time.monotonic_ns()
            answer = self._compute(len(batch), lambda: self._ask(inputs, batch[0].prepared))
            results = Results(self._datatypes, batch[0].prepared.wanted, answer.outputs, self._heads, answer.parameters)
            computed = time.monotonic_ns()
            if len(batch) > 1:
                results.check_rows(sum(request.prepared.rows for request in batch))
        except NotSplittable:
            self._stop_batching()
            self._one_by_one(batch)
        except ServingError as error:
            if len(batch) == 1:
                self._refuse(batch[0], error)
            else:
                self._one_by_one(batch)  # one of them is to blame, and must not harm the others
        except Exception as error:  # noqa: BLE001 - one request must not end the model for the others
            if len(batch) == 1:
                self._refuse(batch[0], _unusable(error))
            else:
                self._one_by_one(batch)
        else:
            self._answer(batch, results, started, decoded, computed)

    def _one_by_one(self, batch: list[Waiting]) -> None:
        for request in batch:
            self._run_together([request], time.monotonic_ns())

    def _compute(self, requests: int, run: Callable[[], Any]) -> Any:
        """What `run` gives; where it may take long, somebody else keeps the door meanwhile."""
        if self.row_ns * requests > LONG_RUN_NS or self._wary:
            self._wary = max(0, self._wary - 1)
            with self._keeper:
                return run()
        return run()

    def _ask(self, inputs: dict[str, Array], prepared: Prepared) -> Answer:
        if self._answering is None:
            return Answer(self._model.run(inputs, prepared.wanted))
        return self._answering(inputs, prepared.wanted, prepared.parameters)

    def _answer(self, batch: list[Waiting], results: Results, started: int, decoded: int, computed: int) -> None:
        begin, rows, encoded = 0, 0, []
        for request in batch:
            rows += request.prepared.rows
            encoded.append(results.whole() if len(batch) == 1 else results.rows(begin, rows))
            begin = rows
        times = Times(started, decoded - started, computed - decoded, time.monotonic_ns() - computed)
        self._count_run(rows, times, len(batch))
        for request, each in zip(batch, encoded, strict=True):
            self.hand_out(request, each, times, computed)

    def _count_run(self, rows: int, times: Times, requests: int) -> None:
        self._board.executed(rows, times.input_ns, times.compute_ns, times.output_ns)
        self.ran(times.compute_ns, requests)

    def _run_each(self, batch: list[Waiting], model: Many, started: int) -> None:
        """Where the model itself puts requests together."""
        inputs = []
        for request in list(batch):
            try:
                inputs.append((decode(request.prepared, request.body), request.prepared.parameters))
            except ServingError as error:
                batch.remove(request)
                self._refuse(request, error)
        if not batch:
            return
        decoded = time.monotonic_ns()
        wanted = batch[0].prepared.wanted
        answers: list[Answer | ServingError] = self._compute(len(batch), lambda: model.answer_many(inputs, wanted))
        computed = time.monotonic_ns()
        encoded: list[Encoded | ServingError] = [self._encoded(answer, wanted) for answer in answers]
        times = Times(started, decoded - started, computed - decoded, time.monotonic_ns() - computed)
        self._count_run(sum(request.prepared.rows for request in batch), times, len(batch))
        for request, each in zip(batch, encoded, strict=True):
            if isinstance(each, ServingError):
                self._refuse(request, each)
            else:
                self.hand_out(request, each, times, computed)

    def _encoded(self, answer: Answer | ServingError, wanted: list[str]) -> Encoded | ServingError:
        if isinstance(answer, ServingError):
            return answer
        try:
            return Results(self._datatypes, wanted, answer.outputs, self._heads, answer.parameters).whole()
        except Exception as error:  # noqa: BLE001 - as above
            return _unusable(error)

    def hand_out(self, request: Waiting, encoded: Encoded, times: Times, computed: int) -> None:
        """An answer that was computed at `computed`: sent and counted, or refused where it is too large or too late."""
        head, parts, size = encoded
        limit = self._door.memory_limit
        if request.cache_key and size <= limit:
            self.keep(request.cache_key, encoded)
        if size > limit:
            self._refuse(request, errors.too_large(f"the answer has {size} bytes, at most {limit} are sent"))
        elif request.deadline_ns and computed > request.deadline_ns and not request.gone:
            self._refuse(request, errors.deadline_exceeded("the deadline passed while the model ran"))
        else:
            self._deliver(request, times, head, parts, size)

    def _deliver(self, request: Waiting, times: Times, head: bytes, parts: list[tuple[int, Any]], size: int) -> None:
        """Counted before it is sent: who has an answer finds it in the statistics."""
        connection, now = request.connection, time.monotonic_ns()
        connection.request = None
        if request.gone:
            self._counts.gone(request, now)
            return
        self._counts.succeeded(request, times, now)
        numbers = (times.started - request.arrived_ns, times.input_ns, times.compute_ns, times.output_ns)
        try:
            if self._door.send(connection, lane.RESULT, request.sequence, numbers, head, parts, size):
                return
        except ServingError as error:
            self._counts.succeeded(request, times, now, -1)
            self._refuse(request, error)
        else:
            self._counts.succeeded(request, times, now, -1)
            self._counts.gone(request, now)


def _not_kept(key: bytes, answer: Encoded) -> None:
    pass


def _unusable(error: Exception) -> ServingError:
    return errors.model_failed(f"the model's answer cannot be used: {type(error).__name__}: {error}")
