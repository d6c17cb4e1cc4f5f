"""One connection of the framed server: a frame is read, asked and answered before the next is looked at.

Whoever calls holds the server's lock: its loop, or a worker with an answer. Nothing here waits.
"""

import logging
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from idl.event_loop import GONE, READ, WRITE, Loop
from inference_server.transports.framing import Buffer, Frame, FrameReader, Lost, Outbox

log = logging.getLogger("outboard.server")

HUNG_UP = select.EPOLLRDHUP
_FRAMES = 16
"""Frames of one pipelining peer that are answered before the others get their turn."""


class Running(Protocol):
    """A frame that somebody else answers."""

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""


class Asked(Protocol):
    """What a connection does with a whole frame: it is answered at once, by `reply`, or later, by what is returned."""

    def __call__(self, connection: "Connection", frame: Frame) -> Running | None: ...


class Connection:
    """A peer. `touched` is when it last moved, in seconds of `time.monotonic()`; `ended` is told once that it is closed."""

    __slots__ = (
        "_ask",
        "_asking",
        "_ended",
        "_events",
        "_loop",
        "_release",
        "_running",
        "busy",
        "closed",
        "leaving",
        "outbox",
        "reader",
        "sock",
        "touched",
    )

    def __init__(
        self, sock: socket.socket, loop: Loop, ask: Asked, ended: Callable[["Connection"], None], *, limit: int, start: bytes
    ) -> None:
        """Raises OSError where the loop can watch no more."""
        self.sock = sock
        self.reader = FrameReader(sock, limit, start)
        self.outbox = Outbox(sock)
        self.touched = time.monotonic()
        self.busy = False
        """A frame is being answered."""
        self.closed = False
        self.leaving = False
        """To be closed when nothing is under way."""
        self._ask = ask
        self._asking = False
        self._ended = ended
        self._loop = loop
        self._running: Running | None = None
        self._release: Callable[[], None] | None = None
        """What to call when the memory is free that the reply on its way lies in."""
        self._events = READ | HUNG_UP
        loop.add(sock.fileno(), self.ready, self._events)

    @property
    def opening(self) -> bool:
        """Whether it is not yet ready for a frame."""
        return False

    def ready(self, events: int) -> None:
        """The socket can be read or written, or the peer has gone; 0: a look, whether something is there."""
        self._guarded(self._turn, events)

    def waits(self) -> bool:
        """Whether the peer is still there for an answer; closed where it is not."""
        if not self.closed and _gone(self.sock):
            self.fail("the peer has gone, and nobody waits for the answer")
        return not self.closed

    def reply(self, parts: Sequence[Buffer], release: Callable[[], None] | None = None) -> None:
        """Answers the frame that was asked. `release` is called when the parts are not needed any more."""
        self._running = None
        if self.closed:
            if release is not None:
                release()
            return
        self._release = release
        self.outbox.put(parts)
        self._answered()

    def reply_whole(self, data: bytes) -> None:
        """As `reply`, for one that is in one piece."""
        self._running = None
        if not self.closed:
            self._guarded(self._send, data)

    def _send(self, data: bytes) -> None:
        self.touched = time.monotonic()
        if self.outbox.send(data):
            self.busy = False
            if not self._asking and (self.reader.ahead or self.leaving or self._events != READ | HUNG_UP):
                self._next(0)
        else:
            self._watch(WRITE)

    def fail(self, reason: str) -> None:
        """There is no answer to what was asked: the connection ends."""
        log.debug("connection closed", extra={"fields": {"reason": reason}})
        self.close()

    def _answered(self) -> None:
        self._guarded(self._flush, 0)

    def _guarded(self, step: Callable[..., None], argument: object) -> None:
        if self.closed:
            return
        try:
            step(argument)
        except Lost as reason:
            self.fail(str(reason))
        except Exception:
            log.exception("connection broken off")
            self.close()

    def _turn(self, events: int) -> None:
        if not self.outbox.empty:
            if events & GONE:
                raise Lost("the peer has gone before it had its reply")
            self._flush(events)
        elif self.busy:
            self._disturbed(events)
        else:
            self.touched = time.monotonic()
            self._next(events)

    def _disturbed(self, events: int) -> None:
        """The peer goes, or sends more, while it waits for an answer."""
        if events & (HUNG_UP | GONE) and _gone(self.sock):
            raise Lost("the peer has gone, and nobody waits for the answer")
        if events & READ:
            self._watch(HUNG_UP)  # what it sends is read when its turn comes

    def _flush(self, events: int) -> None:
        self.touched = time.monotonic()
        if not self.outbox.flush():
            self._watch(WRITE)
            return
        self._let_go()
        self.busy = False
        if not self._asking:
            self._next(0)

    def _next(self, events: int) -> None:
        """Takes what frames there are, until one is not answered at once."""
        reader = self.reader
        for _ in range(_FRAMES):
            frame = reader.next()
            if frame is None:
                if self.leaving and reader.idle:
                    raise Lost("the server stops")
                self._watch(READ | HUNG_UP)
                return
            if events & HUNG_UP and _gone(self.sock):
                raise Lost("the peer has gone, and nobody waits for the answer")
            self.busy = self._asking = True
            try:
                self._running = self._ask(self, frame)
            finally:
                self._asking = False
            if self.closed:
                return
            if self.busy:
                if self.outbox.empty:
                    self._watch(READ | HUNG_UP)
                return
            if not reader.ahead and not self.leaving:
                self._watch(READ | HUNG_UP)
                return
        self._watch(READ | WRITE | HUNG_UP)  # it can be written to: its next turn comes when the others have had theirs

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._loop.watch(self.sock.fileno(), events)

    def _let_go(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def close(self) -> None:
        """Idempotent. A call under way is given up."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove(self.sock.fileno())
        self._ended(self)
        self.sock.close()
        self.outbox.drop()
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self._let_go()


def _gone(sock: socket.socket) -> bool:
    """An event may be of an earlier owner of the descriptor's number."""
    poll = select.poll()
    with suppress(OSError):
        poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
