"""ModelInfer straight from gRPC's core, without the hand-overs between threads that grpcio's Python server has for every call.

One thread takes what the core has done from a completion queue and asks executors; another waits for the executors' answers and hands
them to the core. No call holds a thread, so any number of them can wait and be batched. Every other method stays with grpcio's Python
server, on the same port: the core sorts calls by method. What is used of grpcio here is not its public interface; where a release has
changed it, `attach` says so, and grpcio's Python server answers ModelInfer as well.
"""

import contextlib
import logging
import threading
import time
from typing import Any

import grpc

from idl.codes import ServingError
from idl.event_loop import Loop
from idl.lane_loop import Lane, Lanes
from idl.lane_routes import Routes
from idl.traces import Tracer
from inference_server.errors import invalid_input
from inference_server.front.calls import Call, Calls, Head
from inference_server.front.configuration import Configuration
from inference_server.transports import grpc_status
from inference_server.transports.grpc_calls import Call as Asked
from inference_server.transports.grpc_calls import Workers, overloaded
from inference_server.transports.grpc_infer import Buffer
from inference_server.transports.grpc_server import General
from inference_server.transports.guard import as_serving_error
from inference_server.transports.tokens import Token

try:
    from grpc._cython import cygrpc
except ImportError:
    cygrpc = None

log = logging.getLogger("outboard.server")

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SWEEP_S = 0.1
IDLE_LANE_S = 30.0
_AHEAD = 4
"""Calls that the core may hand over before the first of them is looked at."""
_NO_FLAGS = 0
_NO_TIMEOUT_S = 1e9
"""grpcio says some 9e18 seconds where a call has no deadline."""


class Direct:
    """Satisfies `grpc_server.Shortcut`. `general` answers, in `workers`, what the lane has no answer to."""

    def __init__(self, configuration: Configuration, general: General, workers: Workers, *, tracer: Tracer | None = None) -> None:
        self.general = general
        self.workers = workers
        self.lock = threading.Lock()
        """Held by whichever of the two threads works on calls."""
        self.loop = Loop(SWEEP_S, self._tick, self.lock)
        self.lanes = Lanes(self.loop, configuration.max_message_bytes)
        self.calls = Calls(
            Routes(configuration.run_dir),
            self.lanes,
            Token(configuration.token, configuration.token_file),
            default_timeout_s=configuration.default_timeout_s,
            max_message_bytes=configuration.max_message_bytes,
        )
        self.calls.tracer = tracer
        self.receiving: dict[CoreCaller, float] = {}
        """Who has not sent its message yet, since when."""
        self.patience_s = configuration.default_timeout_s
        self._trim_at = 0.0
        self._threads = [
            threading.Thread(target=self._serve, name="grpc-core", daemon=True),
            threading.Thread(target=self.loop.run_or_end, name="grpc-lanes", daemon=True),
        ]

    def attach(self, server: grpc.Server) -> bool:
        """Before the server starts. False where this release of grpcio cannot be served so."""
        try:
            self._server = server._state.server
            self._queue = cygrpc.CompletionQueue()
            self._server.register_completion_queue(self._queue)
            self._server.register_method(METHOD)
            if callable(self._server.request_registered_call):
                return True
        except (AttributeError, TypeError):
            pass
        self.loop.close()
        return False

    def start(self) -> None:
        """After the server has started."""
        for _ in range(_AHEAD):
            self._server.request_registered_call(self._queue, self._queue, METHOD, self._called)
        for thread in self._threads:
            thread.start()

    def stop(self) -> int:
        """After the server has stopped: no call is left in the core. How many an executor still had."""
        running = len(self.calls.running)
        self._queue.shutdown()
        self.loop.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self.lanes.trim(float("inf"))
        self.loop.close()
        return running

    def _serve(self) -> None:
        poll, ended = self._queue.poll, cygrpc.CompletionType.queue_shutdown
        while (event := poll()).completion_type != ended:
            with self.lock:
                try:
                    event.tag(event)
                except Exception as error:  # noqa: BLE001 - one call must not end the others
                    as_serving_error(error, METHOD)  # logged there
            event = None  # what holds a call must not outlive it

    def _called(self, event: Any) -> None:
        """A new call; its message is still to come."""
        if not event.success:
            return  # the server stops
        with contextlib.suppress(ValueError):  # it stops
            self._server.request_registered_call(self._queue, self._queue, METHOD, self._called)
        CoreCaller(self, event)

    def _tick(self, now: float) -> None:
        self.calls.sweep(now)
        for caller in [caller for caller, since in self.receiving.items() if now - since > self.patience_s]:
            caller.give_up()
        if now >= self._trim_at:
            self.lanes.trim(now - IDLE_LANE_S)
            self._trim_at = now + IDLE_LANE_S


class CoreCaller:
    """One call in gRPC's core. Satisfies `calls.Caller`; its methods are tags of the completion queue."""

    __slots__ = ("_call", "_deadline", "_direct", "_head", "_message", "_over", "_running")

    def __init__(self, direct: Direct, event: Any) -> None:
        self._call = event.call
        self._direct = direct
        self._head = head = _head(event)
        now = time.monotonic()
        self._deadline = now + (direct.patience_s if head.timeout_s is None else head.timeout_s)
        self._message = b""
        self._over = False
        self._running: Call | None = None
        direct.receiving[self] = now
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._received)

    def _received(self, event: Any) -> None:
        self._direct.receiving.pop(self, None)
        if self._over:
            return
        message = event.batch_operations[0].message() if event.success else None
        if message is None:
            self.fail(invalid_input("the call carries no message"))
            return
        self._message = message
        self._running = self._direct.calls.begin(self, self._head, message)

    def _closed(self, event: Any) -> None:
        """The call is over: answered, or cancelled by its client, its deadline or the server's end."""
        self._over = True
        self._direct.receiving.pop(self, None)
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def _sent(self, event: Any) -> None:
        """Nothing is left to do."""

    def give_up(self) -> None:
        """Its message does not come."""
        self._direct.receiving.pop(self, None)
        self._call.cancel()

    def succeed(self, parts: list[Buffer], size: int, lane: Lane) -> None:
        message = b"".join(parts)
        lane.give_back()
        self._answer(message)

    def fail(self, error: ServingError) -> None:
        self._running = None
        metadata = [("outboard-code", error.code.value)]
        if error.retry_after_ms > 0:
            metadata.append(("retry-after-ms", str(error.retry_after_ms)))
        status = cygrpc.SendStatusFromServerOperation(
            tuple(metadata), int(grpc_status.STATUS[error.code]), grpc_status.details(error).encode(), _NO_FLAGS
        )
        self._send(cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), status)

    def decline(self) -> None:
        self._running = None
        if self._over:
            return
        if not self._direct.workers.enter():
            self.fail(overloaded())
            return
        self._direct.workers.executor.submit(self._ask)

    def _ask(self) -> None:
        """In a worker: the ordinary way, which may wait."""
        direct, head = self._direct, self._head
        try:
            if not self._over:
                self._answer(direct.general(self._message, Asked(self._deadline, head.request_id, head.traceparent, head.token)))
        except ServingError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an error of ours
            self.fail(as_serving_error(error, METHOD, head.request_id))
        finally:
            direct.workers.leave()

    def _answer(self, message: bytes) -> None:
        self._running = None
        status = cygrpc.SendStatusFromServerOperation((), 0, b"", _NO_FLAGS)
        self._send(cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), cygrpc.SendMessageOperation(message, _NO_FLAGS), status)

    def _send(self, *operations: Any) -> None:
        if not self._over:
            self._call.start_server_batch(operations, self._sent)


def _head(event: Any) -> Head:
    metadata = dict(event.invocation_metadata)
    left = event.call_details.deadline - time.time()
    return Head(
        left if left < _NO_TIMEOUT_S else None,
        grpc_status.bearer(str(metadata.get("authorization", ""))),
        str(metadata.get("x-request-id", "")),
        str(metadata.get("traceparent", "")),
    )
