"""One thread that waits for many descriptors."""

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

log = logging.getLogger("outboard")

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR

Handler = Callable[[int], None]
"""Gets the epoll events."""


class Loop:
    """Handlers of descriptors, and one that is called at least every `tick_s` seconds, with the time (monotonic seconds)."""

    def __init__(self, tick_s: float, on_tick: Callable[[float], None], lock: AbstractContextManager[Any] | None = None) -> None:
        """`lock` is held while handlers run, for those who share their data from other threads."""
        self._poll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._tick_s = tick_s
        self._on_tick = on_tick
        self._lock = lock or nullcontext()
        self._stopped = False

    def add(self, descriptor: int, handler: Handler, events: int = READ) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def watch(self, descriptor: int, events: int) -> None:
        """Changes what a descriptor is waited for."""
        self._poll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Before it is closed. Idempotent."""
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def run(self) -> None:
        """Until `stop`. What a handler raises ends it."""
        poll, handlers = self._poll.poll, self._handlers
        due = time.monotonic() + self._tick_s
        while not self._stopped:
            ready = poll(self._tick_s)
            with self._lock:
                for descriptor, events in ready:
                    handler = handlers.get(descriptor)
                    if handler is not None:  # else an earlier handler of this round has removed it
                        handler(events)
                now = time.monotonic()
                if now >= due:
                    self._on_tick(now)
                    due = now + self._tick_s

    def run_or_end(self) -> None:
        """`run`, in a thread of a process that is of no use without it: where a handler raises, the process is asked to end (SIGTERM)."""
        try:
            self.run()
        except Exception:
            log.critical("an event loop has ended, and this process with it", exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """After `run`. Idempotent."""
        self._poll.close()
