"""What an event loop may not do itself because it takes long, done by a thread: look-ups and large encodings."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable
from queue import SimpleQueue

from idl.codes import ServingError
from idl.event_loop import Loop

_log = logging.getLogger(__name__)
_MOST_WAITING = 256

Work = Callable[[], object]
Then = Callable[[object], None]
"""Called in the loop with what the work returned, or with the exception that it raised."""


class Errands:
    """One thread beside a loop. What it is asked to do more than once at a time it does once."""

    def __init__(self, loop: Loop) -> None:
        self._waiting: set[Hashable] = set()
        self._queue: SimpleQueue[tuple[Hashable, Work, Then | None] | None] = SimpleQueue()
        self._done: deque[tuple[Hashable, object, Then | None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop = loop
        loop.add(self._wake, self._finish)
        self._thread = threading.Thread(target=self._run, name="front-errands", daemon=True)
        self._thread.start()

    def look_up(self, key: Hashable, work: Work) -> None:
        """Runs `work` for what it leaves behind; not again while the same `key` waits, and not at all while too many do."""
        if key not in self._waiting and len(self._waiting) < _MOST_WAITING:
            self._waiting.add(key)
            self._queue.put((key, work, None))

    def run(self, work: Work, then: Then) -> None:
        """Runs `work`, then `then` in the loop."""
        self._queue.put((None, work, then))

    def _run(self) -> None:
        while (errand := self._queue.get()) is not None:
            key, work, then = errand
            try:
                result: object = work()
            except ServingError as error:
                result = error
            except Exception as error:  # noqa: BLE001 - the next errand is still to be run
                _log.exception("errand_failed")
                result = error
            self._done.append((key, result, then))
            os.eventfd_write(self._wake, 1)

    def _finish(self, events: int) -> None:
        os.eventfd_read(self._wake)
        while self._done:
            key, result, then = self._done.popleft()
            self._waiting.discard(key)
            if then is not None:
                then(result)

    def close(self) -> None:
        """After the loop's end: waits for what is being done."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._wake)
