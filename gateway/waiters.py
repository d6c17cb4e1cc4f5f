"""Callers that wait for a task: one thread holds their connections, however many there are, and no thread of a worker's waits with them.

Whoever answers the request hands a copy of its connection over and is free for the next one. What a task does is seen at a number in shared
memory that changes with it; only then the database is asked.
"""

import contextlib
import logging
import select
import socket
import threading
import time
from typing import Protocol

from gateway.storage.task_marks import TaskMarks
from idl.codes import Code, ServingError

_log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.02
KEEP_ALIVE_S = 15.0
LINGER_S = 60.0
"""How long a caller may read nothing of what is there for it."""
_RETRY_MS = 1000
_MOST_UNSENT = 1 << 20
"""Bytes that a stream's reader may be behind before it is cut off; it comes back and goes on from the last event that it has."""


class Watch(Protocol):
    """What somebody waits for. `until`: seconds of the monotonic clock."""

    task_id: str
    until: float

    def step(self, *, is_late: bool, is_idle: bool) -> tuple[bytes, bool]:
        """What is to be sent now, and whether that was all. `is_late`: the time is over. `is_idle`: nothing was sent for a while."""
        ...


class _Waiter:
    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        self.sock = sock
        self.watch = watch
        self.mark: int | None = None
        self.unsent = memoryview(b"")
        self.is_over = False
        self.sent_at = self.moved_at = time.monotonic()


class Waiters:
    """Thread-safe; begins its thread with the first waiter, and belongs to the process that made it. `most` at once."""

    def __init__(self, marks: TaskMarks, most: int) -> None:
        self._marks = marks
        self._most = most
        self._lock = threading.Lock()
        self._new: list[_Waiter] = []
        self._count = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def take(self, descriptor: int, watch: Watch) -> None:
        """Owns a connection's descriptor from here on. Raises overloaded, and then does not."""
        with self._lock:
            if self._count >= self._most or self._closing:
                raise ServingError(Code.OVERLOADED, f"{self._most} callers wait for tasks already", retry_after_ms=_RETRY_MS)
            self._count += 1
            self._new.append(_Waiter(socket.socket(fileno=descriptor), watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="waiters", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Cuts off who waits still: they come back."""
        with self._lock:
            self._closing = True
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        waiters: dict[int, _Waiter] = {}
        poll = select.poll()
        while not self._closing:
            with self._lock:
                new, self._new = self._new, []
                if not new and not waiters:
                    self._thread = None
                    return
            for waiter in new:
                waiter.sock.setblocking(False)
                waiters[waiter.sock.fileno()] = waiter
                poll.register(waiter.sock, select.POLLRDHUP)
            gone = {
                number for number, event in poll.poll(LOOK_EVERY_S * 1000) if event & (select.POLLHUP | select.POLLRDHUP | select.POLLERR)
            }
            now = time.monotonic()
            for number, waiter in list(waiters.items()):
                if number in gone or self._step(waiter, now):
                    poll.unregister(number)
                    del waiters[number]
                    waiter.sock.close()
                    with self._lock:
                        self._count -= 1
        for waiter in waiters.values():
            waiter.sock.close()

    def _step(self, waiter: _Waiter, now: float) -> bool:
        """True where nothing is left to be sent."""
        try:
            self._look(waiter, now)
            while waiter.unsent:
                with contextlib.suppress(BlockingIOError):
                    waiter.unsent = waiter.unsent[waiter.sock.send(waiter.unsent) :]
                    waiter.moved_at = now
                    continue
                is_behind = not waiter.is_over and len(waiter.unsent) > _MOST_UNSENT
                return is_behind or now - waiter.moved_at > LINGER_S
        except OSError:
            return True
        except Exception:  # noqa: BLE001 - the others wait still
            _log.exception("waiter_failed")
            return True
        return waiter.is_over

    def _look(self, waiter: _Waiter, now: float) -> None:
        if waiter.is_over:
            return
        mark = self._marks.read(waiter.watch.task_id)
        is_late, is_idle = now >= waiter.watch.until, now - waiter.sent_at > KEEP_ALIVE_S
        if mark == waiter.mark and not is_late and not is_idle:
            return
        try:
            data, waiter.is_over = waiter.watch.step(is_late=is_late, is_idle=is_idle)
        except ServingError as error:
            _log.warning("waiter_put_off", extra={"reason": error.message})
            waiter.mark, waiter.is_over = None, is_late
            return
        waiter.mark = mark
        if data:
            if not waiter.unsent:
                waiter.moved_at = now
            waiter.unsent = memoryview(bytes(waiter.unsent) + data if waiter.unsent else data)
            waiter.sent_at = now
