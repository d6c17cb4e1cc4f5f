"""What runs inside an executor process: takes requests off the lane, runs the model on one or several of them, answers.

One thread runs the model. Between two runs it reads whatever has arrived into the queue; while a long run lasts, a doorkeeper does, so
that a full queue says so at once. A caller that hung up or whose deadline has passed is never run.
"""

import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from idl import board as boards
from idl import lane
from idl.board import Board
from idl.codes import Code, ServingError
from idl.messages import TensorSpec
from idl.tensors import Array
from inference_server import errors
from inference_server.executors.batcher import Batcher, QueuePolicy
from inference_server.executors.door import Door, Doorkeeper
from inference_server.executors.express import Express
from inference_server.executors.merging import Heads, NotSplittable, Results, decode, merge
from inference_server.executors.prepared import Preparer
from inference_server.executors.requests import Connection, Waiting
from inference_server.executors.tuning import Tuning
from inference_server.types import Signature

LONG_RUN_NS = 2_000_000
"""From this on the doorkeeper is worth its hand-over."""
SURPRISING_NS, WARY_RUNS = 20_000_000, 1000
"""A model that once ran this long may do so again: for so many runs the doorkeeper stands by, however short they usually are."""
AT_ITS_DEADLINE_NS = 25_000_000
"""A caller that hangs up so shortly before its deadline does it because of that: on the wire a deadline is a rest of time, which begins
anew wherever it arrives."""
LEAST_RETRY_MS, MOST_RETRY_MS = 10, 30_000


class Backend(Protocol):
    """A loaded model: what it takes and gives, and one run of it."""

    signature: Signature
    providers: tuple[str, ...]

    def run(self, inputs: Mapping[str, Array], wanted: list[str]) -> list[Array]: ...


Load = Callable[[dict[str, Any]], tuple[Backend, Tuning, QueuePolicy]]


@dataclass(slots=True)
class _Times:
    """Of one run: when it started, and how long its parts took."""

    started: int
    input_ns: int
    compute_ns: int
    output_ns: int


class Executor:
    """The loop of one model instance. `control` is the supervisor's socket: its end of file ends the process.

    The supervisor says {"load": {...}} once, and {"leave": true} when the instance is to take nothing more; the answers are
    {"ready": ...} or {"failed": ...}, and {"left": true} when the queue is empty.
    """

    def __init__(self, listener: socket.socket, control: socket.socket, board: Board, board_descriptor: int, memory_limit: int) -> None:
        self._control = control
        self._board = board
        self._memory_limit = memory_limit
        self._door = Door(
            listener,
            control,
            board,
            board_descriptor,
            memory_limit,
            asked=self._asked,
            left=self._left,
            commanded=self._command,
        )
        self._keeper = Doorkeeper(self._door)
        self._batcher = Batcher(QueuePolicy())
        self._model: Backend | None = None
        self._name = ""
        self._commands: list[dict[str, Any]] = []
        self._running = True
        self._leaving = False
        self._row_ns = 0
        """Time of the model for one row, lately."""
        self._wary = 0
        self._heads: Heads = {}
        self._express: Express | None = None
        self._free = False
        """The model may be run from where a request is read: it is loaded, usually quick, idle, and not on its way out."""

    def serve(self, load: Load) -> None:
        """Until the supervisor goes away. `load` makes the model that the supervisor's message describes."""
        while self._running:
            self.turn(load)
        self._keeper.close()
        self._door.close()

    def turn(self, load: Load) -> None:
        """Waits for something to do, and does it."""
        batcher = self._batcher
        due = batcher.due_in(time.monotonic_ns()) if batcher.size else None
        self._door.step(-1 if due is None else due / 1e9, linger=True)
        if self._commands:
            self._obey(load)
        expired: list[Waiting] = []
        batch = batcher.take(time.monotonic_ns(), expired)
        for request in expired:
            self._refuse(request, errors.deadline_exceeded("the deadline passed in the queue; the request was not run"))
        if batch:
            self._run(batch)
        if self._leaving and not batcher.size:
            self._leaving = False
            self._say({"left": True})

    # what arrives ----------------------------------------------------------------------------------------------------------------

    def _asked(self, connection: Connection, frame: lane.Frame, alone: bool) -> None:
        """A request: queued, refused at once, or, where it comes alone to a free model, answered."""
        if alone and self._free and not self._batcher.size and self._express is not None and self._express(connection, frame):
            return
        now = time.monotonic_ns()
        try:
            if self._model is None:
                raise errors.not_ready("the model is loading")
            if self._board.cells[boards.STATE] == boards.LEAVING:
                self._door.send(connection, lane.MOVED, frame.sequence, (0, 0, 0, 0))
                return
            prepared = self._prepare(frame.head)
            if prepared.body_size > len(frame.body):
                raise errors.invalid_input("the tensors are longer than their frame")
        except lane.LaneError as error:
            self._refuse_frame(connection, frame, errors.invalid_input(str(error)))
            return
        except ServingError as error:
            self._refuse_frame(connection, frame, error)
            return
        deadline = expires = frame.numbers[0]
        if prepared.timeout_ns:
            expires = min(deadline or now + prepared.timeout_ns, now + prepared.timeout_ns)
        request = Waiting(connection, frame.sequence, frame.body, prepared, now, deadline, expires)
        if not self._batcher.add(request):
            self._refuse_frame(connection, frame, self._overloaded())
            return
        connection.request = request
        self._board.cells[boards.ACCEPTED] += 1

    def _overloaded(self) -> ServingError:
        waiting = self._batcher.size
        wait_ms = waiting * self._row_ns // 1_000_000
        return errors.overloaded(
            f"{waiting} requests wait for model {self._name!r} already", max(LEAST_RETRY_MS, min(MOST_RETRY_MS, wait_ms))
        )

    def _left(self, request: Waiting) -> None:
        """Its caller hung up. What waits is not run; what runs is answered to nobody."""
        if request.gone:
            return
        if request.begun:
            request.gone = True
            return
        self._batcher.drop(request)
        self._count_gone(request, time.monotonic_ns())

    # what runs -------------------------------------------------------------------------------------------------------------------

    def _run(self, batch: list[Waiting]) -> None:
        started = time.monotonic_ns()
        self._free = False
        board, cells = self._board, self._board.cells
        for request in batch:
            request.begun = True
            board.begin(request.connection.slot, request.sequence)
        deadlines = [request.deadline_ns for request in batch]
        cells[boards.RUNNING_DEADLINE] = max(deadlines) if all(deadlines) else 0
        cells[boards.RUNNING_SINCE] = started
        cells[boards.RUNNING] = len(batch)
        try:
            self._run_together(batch, started)
        finally:
            cells[boards.RUNNING] = 0
            cells[boards.RUNNING_SINCE] = 0
            self._look_whether_free()

    def _look_whether_free(self) -> None:
        quick = self._row_ns <= LONG_RUN_NS and not self._wary
        self._free = quick and self._board.cells[boards.STATE] == boards.READY and not self._batcher.policy.max_delay_ns

    def _ran(self, compute_ns: int, requests: int = 1) -> None:
        """How long a run took: decides who keeps the door while the next one lasts."""
        row_ns = compute_ns // requests
        self._row_ns = (3 * self._row_ns + row_ns) // 4 if self._row_ns else row_ns
        if compute_ns > LONG_RUN_NS:
            if compute_ns > SURPRISING_NS:
                self._wary = WARY_RUNS
            self._look_whether_free()

    def _run_together(self, batch: list[Waiting], started: int) -> None:
        try:
            if len(batch) == 1:
                inputs = decode(batch[0].prepared, batch[0].body)
            else:
                inputs = merge([(request.prepared, request.body) for request in batch])
            decoded = time.monotonic_ns()
            results = self._compute(batch, inputs)
            computed = time.monotonic_ns()
            if len(batch) > 1:
                results.check_rows(sum(request.prepared.rows for request in batch))
        except NotSplittable:
            self._prepare.stop_batching()
            self._one_by_one(batch)
        except ServingError as error:
            if len(batch) == 1:
                self._refuse(batch[0], error)
            else:
                self._one_by_one(batch)  # one of them is to blame, and must not harm the others
        except Exception as error:  # noqa: BLE001 - one request must not end the model for the others
            if len(batch) == 1:
                self._refuse(batch[0], errors.model_failed(f"the model's answer cannot be used: {type(error).__name__}: {error}"))
            else:
                self._one_by_one(batch)
        else:
            self._answer(batch, results, started, decoded, computed)

    def _one_by_one(self, batch: list[Waiting]) -> None:
        for request in batch:
            self._run_together([request], time.monotonic_ns())

    def _compute(self, batch: list[Waiting], inputs: dict[str, Array]) -> Results:
        model, prepared = self._model, batch[0].prepared
        assert model is not None, "nothing is queued before a model is there"
        wanted = prepared.wanted
        if self._row_ns * len(batch) > LONG_RUN_NS or self._wary:
            self._wary = max(0, self._wary - 1)
            with self._keeper:
                arrays = model.run(inputs, wanted)
        else:
            arrays = model.run(inputs, wanted)
        return Results(self._datatypes, wanted, arrays, self._heads)

    def _answer(self, batch: list[Waiting], results: Results, started: int, decoded: int, computed: int) -> None:
        begin, rows, encoded = 0, 0, []
        for request in batch:
            rows += request.prepared.rows
            encoded.append(results.whole() if len(batch) == 1 else results.rows(begin, rows))
            begin = rows
        times = _Times(started, decoded - started, computed - decoded, time.monotonic_ns() - computed)
        self._board.executed(rows, times.input_ns, times.compute_ns, times.output_ns)
        self._ran(times.compute_ns, len(batch))
        for request, (head, parts, size) in zip(batch, encoded, strict=True):
            if size > self._memory_limit:
                self._refuse(request, errors.too_large(f"the answer has {size} bytes, at most {self._memory_limit} are sent"))
            elif request.deadline_ns and computed > request.deadline_ns and not request.gone:
                self._refuse(request, errors.deadline_exceeded("the deadline passed while the model ran"))
            else:
                self._deliver(request, times, head, parts, size)

    def _deliver(self, request: Waiting, times: _Times, head: bytes, parts: list[tuple[int, Any]], size: int) -> None:
        """Counted before it is sent: who has an answer finds it in the statistics."""
        connection, now = request.connection, time.monotonic_ns()
        connection.request = None
        if request.gone:
            self._count_gone(request, now)
            return
        self._count(request, times, now, 1)
        numbers = (times.started - request.arrived_ns, times.input_ns, times.compute_ns, times.output_ns)
        try:
            if self._door.send(connection, lane.RESULT, request.sequence, numbers, head, parts, size):
                return
        except ServingError as error:
            self._count(request, times, now, -1)
            self._refuse(request, error)
        else:
            self._count(request, times, now, -1)
            self._count_gone(request, now)

    # what is counted -------------------------------------------------------------------------------------------------------------

    def _count(self, request: Waiting, times: _Times, now: int, sign: int) -> None:
        """A success; `sign` -1 takes it back."""
        cells = self._board.cells
        cells[boards.RUNNING] -= sign  # first: what is inside when the process dies is counted as failed
        cells[boards.FINISHED] += sign
        queue_ns = times.started - request.arrived_ns
        self._board.succeeded(now - request.arrived_ns, queue_ns, times.input_ns, times.compute_ns, times.output_ns, sign)
        cells[boards.LAST_INFERENCE] = time.time_ns() // 1_000_000

    def _count_gone(self, request: Waiting, now: int) -> None:
        """Nobody took the answer: its time was up, or its caller went away."""
        late = request.deadline_ns and now > request.deadline_ns - AT_ITS_DEADLINE_NS
        code = Code.DEADLINE_EXCEEDED if late else Code.CANCELLED
        cells = self._board.cells
        cells[boards.CANCELLED] += 1
        cells[boards.CANCELLED_NS] += now - request.arrived_ns
        self._board.failed(code.value, now - request.arrived_ns)
        self._finished(request)

    def _finished(self, request: Waiting) -> None:
        cells = self._board.cells
        cells[boards.FINISHED] += 1
        if request.begun and cells[boards.RUNNING]:
            cells[boards.RUNNING] -= 1

    def _refuse(self, request: Waiting, error: ServingError) -> None:
        """The answer to a request that was in the queue or in the model."""
        now = time.monotonic_ns()
        request.connection.request = None
        if request.gone:
            self._count_gone(request, now)
            return
        self._finished(request)
        self._board.failed(error.code.value, now - request.arrived_ns)
        self._send_error(request.connection, request.sequence, error)

    def _refuse_frame(self, connection: Connection, frame: lane.Frame, error: ServingError) -> None:
        """The answer to a request that never came into the queue."""
        self._board.failed(error.code.value, 0)
        self._send_error(connection, frame.sequence, error)

    def _send_error(self, connection: Connection, sequence: int, error: ServingError) -> bool:
        said = json.dumps({"code": error.code.value, "message": error.message[:2000]}).encode()
        return self._door.send(connection, lane.ERROR, sequence, (error.retry_after_ms, 0, 0, 0), said)

    # what the supervisor says ----------------------------------------------------------------------------------------------------

    def _command(self) -> None:
        """Only reads: a command is obeyed by the thread that runs the model."""
        try:
            text = self._control.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            text = b""
        if not text:
            self._running = False
        else:
            self._commands.append(json.loads(text))

    def _obey(self, load: Load) -> None:
        commands, self._commands = self._commands, []
        for command in commands:
            if "load" in command:
                self._load(command["load"], load)
            elif "leave" in command:
                self._board.cells[boards.STATE] = boards.LEAVING
                self._leaving, self._free = True, False

    def _load(self, asked: dict[str, Any], load: Load) -> None:
        try:
            model, tuning, policy = load(asked)
        except ServingError as error:
            self._say({"failed": error.code.value, "message": error.message})
            return
        self._name = asked["name"]
        self._batcher = Batcher(policy)
        self._prepare = Preparer(
            asked["name"],
            model.signature,
            batching=policy.max_batch_size > 1,
            limit=self._memory_limit,
            most_rows=policy.most_rows,
            default_timeout_ns=policy.default_timeout_ns,
        )
        self._row_ns = tuning.row_ns.get(1, 0)
        self._datatypes = {spec.name: spec.datatype for spec in model.signature.outputs}
        self._model = model
        self._express = Express(
            self._door,
            self._board,
            model.run,
            self._datatypes,
            self._prepare.kept,
            refuse=self._refuse,
            gone=self._count_gone,
            ran=self._ran,
        )
        self._board.cells[boards.STATE] = boards.READY
        self._look_whether_free()
        self._say(
            {
                "ready": _describe(model.signature),
                "providers": list(model.providers),
                "tuning": tuning.to_json(),
                "queue": asdict(policy),
            }
        )

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._control.send(json.dumps(message).encode())
        except OSError:
            self._running = False


def _describe(signature: Signature) -> dict[str, Any]:
    def specs(many: tuple[TensorSpec, ...]) -> list[list[Any]]:
        return [[spec.name, spec.datatype, list(spec.shape)] for spec in many]

    return {
        "platform": signature.platform,
        "inputs": specs(signature.inputs),
        "outputs": specs(signature.outputs),
        "batch_axis": signature.batch_axis,
    }
