"""What runs inside an executor process: takes requests off the lane, runs the model on one or several of them, answers.

One thread runs the model. Between two runs it reads whatever has arrived into the queue; while a long run lasts, a doorkeeper does, so
that a full queue says so at once. A caller that hung up or whose deadline has passed is never run.
"""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from idl import board as boards
from idl import lane
from idl.board import Board
from idl.codes import ServingError
from inference_server import errors
from inference_server.executors.batcher import EXPIRE_NS, Batcher, QueuePolicy
from inference_server.executors.counting import Counts, Times
from inference_server.executors.door import Door, Doorkeeper
from inference_server.executors.express import Express
from inference_server.executors.prepared import Preparer
from inference_server.executors.requests import Connection, Waiting
from inference_server.executors.response_cache import BYTES, ENTRIES, ResponseCache
from inference_server.executors.running import Backend, Runs
from inference_server.executors.side_by_side import MOST, SideBySide
from inference_server.executors.streams import Stream, Streams
from inference_server.executors.tuning import Tuning

DEFAULT_STREAMS = 256
"""Requests of a model with several answers that are under way at once; the others wait in the queue."""
LEAST_RETRY_MS, MOST_RETRY_MS = 10, 30_000


Load = Callable[[dict[str, Any]], tuple[Backend, Tuning, QueuePolicy]]


class Executor:
    """The loop of one model instance. `control` is the supervisor's socket: its end of file ends the process.

    The supervisor says {"load": {...}} once, and {"leave": true} when the instance is to take nothing more; the answers are
    {"ready": ...} or {"failed": ...}, and {"left": true} when the queue is empty.
    """

    def __init__(self, listener: socket.socket, control: socket.socket, board: Board, board_descriptor: int, memory_limit: int) -> None:
        self._control = control
        self._board = board
        self._counts = Counts(board)
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
        self._runs: Runs | None = None
        self._express: Express | None = None
        self._cache: ResponseCache | None = None
        self._streams: Streams | SideBySide | None = None
        """Where the model gives several answers for a request, or answers several requests side by side."""

    def serve(self, load: Load) -> None:
        """Until the supervisor goes away. `load` makes the model that the supervisor's message describes."""
        while self._running:
            self.turn(load)
        self._keeper.close()
        self._door.close()

    def turn(self, load: Load) -> None:
        """Waits for something to do, and does it."""
        batcher, streams = self._batcher, self._streams
        due = batcher.due_in(time.monotonic_ns()) if batcher.size else None
        if streams is not None:
            due = _sooner(streams.due_in(time.monotonic_ns()), due if not streams.full else EXPIRE_NS if batcher.size else None)
        self._door.step(-1 if due is None else due / 1e9, linger=True)
        if self._commands:
            self._obey(load)
        if streams is not None:
            streams.step()
            self._begin(streams)
        elif (batch := self._next(batcher.take)) and self._runs is not None:
            self._runs(batch)
        if self._leaving and not batcher.size and (streams is None or streams.empty):
            self._leaving = False
            if (close := getattr(self._model, "close", None)) is not None:
                close()
            self._say({"left": True})

    def _begin(self, streams: Streams | SideBySide) -> None:
        """Those of the queue that may begin now."""
        starts = streams.starts
        if not starts:
            self._next(self._batcher.expire)
        for _ in range(starts):
            batch = self._next(self._batcher.take)
            if not batch:
                break
            streams.begin(batch[0])

    def _next(self, take: Callable[[int, list[Waiting]], list[Waiting]]) -> list[Waiting]:
        """What is to run, once those whose time is over have been told so."""
        expired: list[Waiting] = []
        batch = take(time.monotonic_ns(), expired)
        for request in expired:
            self._refuse(request, errors.deadline_exceeded("the deadline passed in the queue; the request was not run"))
        return batch

    # what arrives ----------------------------------------------------------------------------------------------------------------

    def _asked(self, connection: Connection, frame: lane.Frame, alone: bool) -> None:
        """A request: queued, refused at once, or, where it comes alone to a free model, answered."""
        runs = self._runs
        if (
            alone
            and runs is not None
            and runs.free
            and not self._batcher.size
            and self._express is not None
            and self._express(connection, frame)
        ):
            return
        now = time.monotonic_ns()
        try:
            if runs is None:
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
        request.traced = frame.numbers[1] & lane.TRACED != 0
        if isinstance(self._streams, Streams):  # its connection's memory is used again before the last answer
            request.body, request.window = memoryview(bytes(frame.body)), frame.numbers[2]
        if self._cache is not None and self._answered_before(self._cache, request, frame.head):
            return
        if not self._batcher.add(request, self._streams.free if self._streams is not None else 0):
            self._refuse_frame(connection, frame, self._overloaded())
            return
        connection.request = request
        self._board.cells[boards.ACCEPTED] += 1

    def _answered_before(self, cache: ResponseCache, request: Waiting, head: bytes) -> bool:
        """Gives a kept answer. Else False, and the request's own one will be kept: of exactly the bytes that were looked up, whatever its
        caller does to its memory meanwhile.
        """
        if request.deadline_ns and request.arrived_ns > request.deadline_ns:
            return False
        request.body = memoryview(bytes(request.body))
        request.cache_key = cache.key(head, request.prepared, request.body)
        answer = cache.find(request.cache_key)
        looked_ns = time.monotonic_ns() - request.arrived_ns
        if answer is None:
            cache.missed(looked_ns)
            return False
        request.cache_key = b""  # it is there
        cells = self._board.cells
        cells[boards.ACCEPTED] += 1
        cells[boards.RUNNING] += 1  # the end of a request takes it back
        request.begun = True
        assert self._runs is not None
        cache.hit(looked_ns)  # before it is sent: who has the answer finds it in the statistics
        self._runs.hand_out(request, answer, Times(request.arrived_ns, 0, 0, looked_ns), time.monotonic_ns())
        return True

    def _overloaded(self) -> ServingError:
        waiting = self._batcher.size
        wait_ms = waiting * (self._runs.row_ns if self._runs is not None else 0) // 1_000_000
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
        self._counts.gone(request, time.monotonic_ns())

    # what is refused -------------------------------------------------------------------------------------------------------------

    def _refuse(self, request: Waiting, error: ServingError) -> None:
        """The answer to a request that was in the queue or in the model."""
        now = time.monotonic_ns()
        request.connection.request = None
        if request.gone:
            self._counts.gone(request, now)
            return
        self._counts.failed(request, error.code, now)
        started = request.started_ns or now
        self._send_error(request.connection, request.sequence, error, (started - request.arrived_ns, now - started), request.steps)

    def _refuse_frame(self, connection: Connection, frame: lane.Frame, error: ServingError) -> None:
        """The answer to a request that never came into the queue."""
        self._counts.refused(error.code)
        self._send_error(connection, frame.sequence, error)

    def _send_error(
        self, connection: Connection, sequence: int, error: ServingError, times: tuple[int, int] = (0, 0), steps: tuple[str, ...] = ()
    ) -> bool:
        """`times`: ns in the queue and in the model."""
        said = {"code": error.code.value, "message": error.message[:2000]}
        head = json.dumps(said | {"steps": steps} if steps else said).encode()
        return self._door.send(connection, lane.ERROR, sequence, (error.retry_after_ms, *times, 0), head)

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
                self._leaving = True
                if self._runs is not None:
                    self._runs.look_whether_free()

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
            sequences=hasattr(model, "sequences"),
        )
        self._datatypes = {spec.name: spec.datatype for spec in model.signature.outputs}
        self._model = model
        self._runs = Runs(
            model,
            self._door,
            self._board,
            self._counts,
            self._keeper,
            row_ns=tuning.row_ns.get(1, 0),
            waits=policy.max_delay_ns > 0,
            refuse=self._refuse,
            stop_batching=self._prepare.stop_batching,
        )
        concurrent: Any = model if hasattr(model, "start") else None
        if model.signature.streams:
            self._streams = self._made_streams(model, asked.get("max_streams") or DEFAULT_STREAMS)
        elif concurrent is not None:
            self._streams = SideBySide(
                self._door, self._board, concurrent, most=getattr(model, "most", MOST), refuse=self._refuse, hand_out=self._runs.hand_out
            )
        elif (cache := asked.get("cache")) is not None:
            self._cache = ResponseCache(
                asked["name"],
                asked["version"],
                self._board,
                entries=cache.get("entries", ENTRIES),
                size=cache.get("bytes", BYTES),
                ttl_ns=int(1e9 * cache.get("ttl_s", 0)),
            )
            self._runs.keep = self._cache.keep
        elif not hasattr(model, "answer"):
            self._express = self._made_express(model, self._runs)
        self._board.cells[boards.STATE] = boards.READY
        self._runs.look_whether_free()
        self._say(
            {
                "ready": model.signature.to_json(),
                "providers": list(model.providers),
                "tuning": tuning.to_json(),
                "queue": asdict(policy),
            }
        )

    def _made_express(self, model: Backend, runs: Runs) -> Express:
        return Express(
            self._door,
            self._board,
            model.run,
            self._datatypes,
            self._prepare.kept,
            refuse=self._refuse,
            gone=self._counts.gone,
            ran=runs.ran,
        )

    def _made_streams(self, model: Any, most: int) -> Streams:
        return Streams(
            self._door,
            self._board,
            model,
            self._datatypes,
            self._keeper,
            most=most,
            refuse=self._refuse,
            gone=self._counts.gone,
            succeeded=self._streamed,
        )

    def _streamed(self, stream: Stream, now: int) -> None:
        """All its answers were given."""
        stream.request.connection.request = None
        times = Times(stream.started, stream.input_ns, stream.compute_ns, stream.output_ns)
        self._board.executed(1, times.input_ns, times.compute_ns, times.output_ns)
        self._counts.succeeded(stream.request, times, now)

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._control.send(json.dumps(message).encode())
        except OSError:
            self._running = False


def _sooner(one: int | None, other: int | None) -> int | None:
    """Of two waits, None for one without an end."""
    return one if other is None else other if one is None else min(one, other)
