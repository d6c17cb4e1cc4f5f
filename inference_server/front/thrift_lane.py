"""ModelInfer over Thrift straight to the executors, in the thread that waits on the connections: no call holds a thread.

What the lane has no answer to, and what would keep that thread busy, is left to the server's workers: their answer is the one that counts.
"""

import time
from collections.abc import Callable

from idl import affinity
from idl.codes import ServingError
from idl.event_loop import Loop
from idl.lane import REMEMBERED_BYTES, Frame, unpack_head
from idl.lane_loop import Lane, Lanes
from idl.lane_routes import Routes
from idl.thrift_binary import REPLY, message
from idl.thrift_schema import Inference
from idl.traces import Tracer
from inference_server.front import calls
from inference_server.front.calls import Calls, Head, Message
from inference_server.front.configuration import Configuration
from inference_server.transports import thrift_codec as codec
from inference_server.transports import thrift_layouts
from inference_server.transports.framed_connection import Connection
from inference_server.transports.framing import Buffer
from inference_server.transports.tokens import Token

IDLE_LANE_S = 30.0
"""How long a lane that nobody uses keeps its memory."""
LARGE_BYTES = 1 << 20
"""A frame from here on is copied by a worker."""
MOST_RUNNING = 1024
"""Calls in executors; more wait for a worker."""
_JOINED = 32 * 1024
"""Bytes up to which copying an answer together is cheaper than handing over its parts."""


class ThriftLane:
    """Satisfies `framed_server.Shortcut`."""

    def __init__(self, configuration: Configuration, loop: Loop, *, tracer: Tracer | None = None) -> None:
        self._lanes = Lanes(loop, configuration.max_message_bytes)
        self._token = Token(configuration.token, configuration.token_file)
        self._default_timeout_s = configuration.default_timeout_s
        self._layouts = thrift_layouts.Calls()
        self._calls = Calls(
            Routes(configuration.run_dir),
            self._lanes,
            self._token,
            default_timeout_s=configuration.default_timeout_s,
            max_message_bytes=configuration.max_message_bytes,
        )
        self._calls.tracer = tracer
        self._trim_at = 0.0

    def begin(self, connection: Connection, frame: Buffer, otherwise: Callable[[], None]) -> calls.Call | None:
        """Sends it to an executor, or calls `otherwise`."""
        said = self._layouts.read(frame) if len(frame) <= LARGE_BYTES and len(self._calls.running) < MOST_RUNNING else None
        if said is None or said.timeout_ms < 0 or not self._allowed(said.token, said.described.model):
            otherwise()
            return None
        now = time.monotonic()
        deadline = now + (said.timeout_ms / 1000 if said.timeout_ms else self._default_timeout_s)
        model, version, head, offsets, size = said.described
        asked = Message(
            said.id, model, version, head, list(zip(offsets, said.contents, strict=True)), size, affinity.of(unpack_head(head).parameters)
        )
        caller = ThriftCaller(connection, said.sequence, said.id, otherwise)
        call = ThriftCall(self._calls, caller, Head(None, "", said.id, said.traceparent), asked, now, deadline)
        call.sequence = said.sequence
        return call if call.ask() else None

    def _allowed(self, token: str, model: str) -> bool:
        try:
            self._token.check(token, "ModelInfer", model)
        except ServingError:
            return False
        return True

    def tick(self, now: float) -> None:
        self._calls.sweep(now)
        if now >= self._trim_at:
            self._lanes.trim(now - IDLE_LANE_S)
            self._trim_at = now + IDLE_LANE_S

    def close(self) -> None:
        self._lanes.trim(float("inf"))


class ThriftCall(calls.Call):
    """One request on its way; answered as Thrift."""

    __slots__ = ("sequence",)

    sequence: bytes

    def _written(self, frame: Frame) -> tuple[list[Buffer], int]:
        route = self._route
        assert route is not None, "nothing is answered that was not asked"
        queue_ns, _, compute_ns, _ = frame.numbers
        read = thrift_layouts.answers if len(frame.head) <= REMEMBERED_BYTES else thrift_layouts.answers.__wrapped__
        said = read(frame.head, route.model, route.version)
        return thrift_layouts.reply(said, self.sequence, self._message.id, frame.body, queue_ns // 1000, compute_ns // 1000)


class ThriftCaller:
    """Who asked. Satisfies `calls.Caller`."""

    __slots__ = ("_connection", "_id", "_otherwise", "_sequence")

    def __init__(self, connection: Connection, sequence: bytes, request_id: str, otherwise: Callable[[], None]) -> None:
        self._connection = connection
        self._sequence = sequence
        self._id = request_id
        self._otherwise = otherwise

    def succeed(self, parts: list[Buffer], size: int, lane: Lane) -> None:
        if size <= _JOINED:
            whole = b"".join(parts)
            lane.give_back()
            self._connection.reply_whole(whole)
        else:
            self._connection.reply(parts, lane.give_back)

    def fail(self, error: ServingError) -> None:
        result = Inference.ModelInfer_result(error=codec.serving_error(error, self._id))
        self._connection.reply(message("ModelInfer", REPLY, int.from_bytes(self._sequence, "big", signed=True), result))

    def decline(self) -> None:
        self._otherwise()
