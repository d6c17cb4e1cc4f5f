"""A stream of answers in the event loop: from an executor's lane to nginx, as fast as its reader takes them, without a thread.

It is for requests of which everything is known already: who asks, and the model's signature. `streaming` has the others.
"""

import socket
from typing import TYPE_CHECKING

from gateway.context import REQUEST_ID_HEADER
from gateway.errors import STATUS
from gateway.front.heads import Head
from gateway.hot_routes import Target
from gateway.operations import generate
from idl import affinity
from idl import lane as frames
from idl.codes import Code
from idl.event_loop import READ, WRITE
from idl.lane import Frame
from idl.lane_calls import read_answer
from idl.lane_loop import Lane
from idl.lane_requests import Packed, Request
from idl.lane_routes import response
from idl.lane_streams import WINDOW
from idl.messages import InferRequest
from idl.nginx_http import Connection
from idl.traces import Trace

if TYPE_CHECKING:
    from gateway.front.exchange import Exchanges

_START = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n%b: %b\r\n\r\n"


def pack(request: InferRequest) -> Packed:
    """Raises struct.error, TypeError, ValueError for what no frame can hold."""
    head, parts, size = frames.pack_request(request.inputs, request.outputs, request.parameters)
    return Packed(request.model_name, request.model_version, head, parts, size, affinity.of(request.parameters))


class LaneEvents(Request):
    """One stream. Takes the connection over with its first answer."""

    __slots__ = (
        "_asked",
        "_body",
        "_caller",
        "_closing",
        "_ended",
        "_front",
        "_given",
        "_head",
        "_out",
        "_rest",
        "_sock",
        "_started",
        "_status",
        "_target",
        "trace",
    )

    def __init__(
        self,
        front: "Exchanges",
        caller: Connection,
        head: Head,
        target: Target,
        started: float,
        deadline: float,
        asked: InferRequest,
        body: bytes,
    ) -> None:
        """`asked` is what `body` means. Raises as `pack`."""
        super().__init__(front, pack(asked), deadline, WINDOW)
        self._body = body
        self._front, self._caller, self._head, self._target, self._started, self._asked = front, caller, head, target, started, asked
        self._sock: socket.socket | None = None
        self._out: list[bytes] = []
        """Events that were not given to the socket yet, for one chunk."""
        self._rest = memoryview(b"")
        """Of those that were, what it did not take."""
        self._given = 0
        self._closing = self._ended = False
        self._status = 200
        self.trace: Trace | None = None
        """Of which nobody is told: those that are have a thread."""

    # what the executor says ------------------------------------------------------------------------------------------------------

    def part(self, lane: Lane, frame: Frame) -> None:
        """One more answer."""
        self._given += 1
        try:
            self._event(frame)
        except Exception as error:  # noqa: BLE001 - one stream must not end the front
            self.leave()
            self._end(error)

    def paused(self, lane: Lane) -> None:
        """What has come is passed on; the executor goes on where all of it was taken."""
        self._flush()
        if not self._rest and not self._closing:
            lane.taken(self._given)

    def _answer(self, lane: Lane, frame: Frame) -> None:
        if frame.kind == frames.RESULT:
            try:
                self._event(frame)
            except Exception as error:  # noqa: BLE001 - as above
                lane.close()
                self._end(error)
                return
        lane.give_back()
        self._begin()
        self._finish()

    def _event(self, frame: Frame) -> None:
        assert self._route is not None, "it was sent"
        event = generate.event(response(self._asked, self._route.version, read_answer(frame)))
        self._begin()
        self._out.append(event)

    def _end(self, error: Exception) -> None:
        if self._sock is not None:
            told = generate.as_told(error)
            self._front.keep(self._head, self._target, told)
            self._out.append(generate.failure_event(told))
            self._finish()
            return
        self._front.refuse(self._caller, self._head, self._target, self._started, error, self.trace)

    def _decline(self) -> None:
        """The lane has no answer: a thread asks the model host."""
        self._front.services.metrics.withdraw()
        self._front.stream_by_thread(self._caller, self._head, self._target, self._started, self._body, self.trace)

    # what goes to nginx ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._sock is None:
            self._sock = self._caller.detach()
            self._front.loop.add(self._sock.fileno(), self._ready)
            self._front.events.add(self)
            start = _START % (generate.EVENT_STREAM.encode(), REQUEST_ID_HEADER.encode(), self._head.request_id.encode("latin-1"))
            self._rest = memoryview(start)

    def _ready(self, events: int) -> None:
        assert self._sock is not None, "it is waited for"
        if events & ~WRITE:
            try:
                gone = not self._sock.recv(1024, socket.MSG_DONTWAIT)
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                self.cancel()
                return
        if events & WRITE:
            self._flush()
            if not self._rest and not self._closing and self._lane is not None:
                self._lane.taken(self._given)

    def _flush(self) -> None:
        sock = self._sock
        if sock is None:
            return
        if self._out:
            self._rest = memoryview(bytes(self._rest) + generate.chunk(b"".join(self._out)))
            self._out = []
        if self._closing and not self._ended:
            self._ended = True
            self._rest = memoryview(bytes(self._rest) + generate.LAST_CHUNK)
        waited = False
        try:
            while self._rest:
                self._rest = self._rest[sock.send(self._rest) :]
        except BlockingIOError:
            waited = True
        except OSError:
            self.cancel()
            return
        if waited:
            self._front.loop.watch(sock.fileno(), READ | WRITE)
        elif self._closing:
            self._close()
        else:
            self._front.loop.watch(sock.fileno(), READ)

    def _finish(self) -> None:
        self._closing = True
        self._flush()

    def cancel(self) -> None:
        """The caller has gone: the model's work on it ends."""
        self.leave()
        self._status = STATUS[Code.CANCELLED]
        if self._sock is None:
            self._note()
        self._close()

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._front.loop.remove(sock.fileno())
            sock.close()
            self._front.events.discard(self)
            self._note()

    def _note(self) -> None:
        self._front.note(self._head, self._target, self._started, self._status)
