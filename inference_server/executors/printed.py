"""What owners' code prints, line by line, in the server's log: each process has one pipe for standard output and error, read here.

A line in the log is the code's word, and looks like nothing else: `said`, the model, the text, in which control characters are written out.
Who prints without end costs the server little: of a second's lines so many are in the log and the others counted, of its bytes so many are
read, and who writes on waits.
"""

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("outboard.server")

LONGEST_LINE = 2000
"""Bytes; the rest of a longer line is counted."""
LINES_PER_S, BYTES_PER_S = 100, 4 << 20
_PIECE = 1 << 16


@dataclass(slots=True)
class _Source:
    """One process's pipe. `told`: the fields of its lines; `line`: what has come of the next one, `more` bytes of it are not kept."""

    descriptor: int
    told: Mapping[str, Any]
    line: bytearray = field(default_factory=bytearray)
    more: int = 0
    window_s: float = 0.0
    lines: int = 0
    read: int = 0
    left_out: int = 0
    waiting: bool = False

    @property
    def due_s(self) -> float:
        """When there is something to say or do without anything having come; 0: never."""
        return self.window_s + 1 if self.left_out or self.waiting else 0.0

    def renew(self, now: float) -> None:
        """Another second begins."""
        if now - self.window_s >= 1:
            self._tell_left_out()
            self.window_s, self.lines, self.read = now, 0, 0

    def take(self, data: bytes) -> None:
        self.read += len(data)
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            if self.lines >= LINES_PER_S:  # the rest is counted, not looked at: it may be megabytes of empty lines
                last = data.rfind(b"\n")
                self.left_out += data.count(b"\n", at)
                self.line.clear()
                at, self.more = last + 1, 0
                break
            self._keep(data[at:end])
            self._tell()
            at = end + 1
        self._keep(data[at:])

    def end(self) -> None:
        """Nothing more will come."""
        if self.line or self.more:
            self._tell()
        self._tell_left_out()

    def _keep(self, data: bytes) -> None:
        room = LONGEST_LINE - len(self.line)
        self.line += data[:room]
        self.more += max(0, len(data) - room)

    def _tell(self) -> None:
        text = plain(self.line.decode("utf-8", "backslashreplace"))
        fields = {**self.told, "text": text} | ({"bytes_left_out": self.more} if self.more else {})
        self.line.clear()
        self.more = 0
        self.lines += 1
        log.info("said", extra={"fields": fields})

    def _tell_left_out(self) -> None:
        if self.left_out:
            log.info("said", extra={"fields": {**self.told, "text": "", "lines_left_out": self.left_out}})
            self.left_out = 0


def plain(text: str) -> str:
    """With everything that is no letter to be seen written out, tabs excepted: no terminal obeys it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode() for each in text)


class Printed:
    """One thread for all of them, from the first one on. Thread-safe; `close` is idempotent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[int, _Source] = {}
        self._poll = select.epoll()
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread: threading.Thread | None = None
        self._closed = False

    def listen(self, descriptor: int, told: Mapping[str, Any]) -> None:
        """Reads it to its end, and closes it."""
        os.set_blocking(descriptor, False)
        with self._lock:
            if self._closed:
                os.close(descriptor)
                return
            self._sources[descriptor] = _Source(descriptor, told)
            self._poll.register(descriptor, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="printed", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """What has been printed so far is in the log afterwards."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.close(self._waker)
        if self._thread is not None:
            self._thread.join()
        for source in list(self._sources.values()):
            if not source.waiting:
                self._read(source)
            self._end(source)
        self._poll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            due = [source.due_s for source in list(self._sources.values()) if source.due_s]
            for descriptor, _ in self._poll.poll(max(0.0, min(due) - time.monotonic()) if due else None):
                if descriptor == self._wake:
                    return
                if (source := self._sources.get(descriptor)) is not None and not self._read(source):
                    self._end(source)
            for source in list(self._sources.values()):
                self._renew(source)

    def _renew(self, source: _Source) -> None:
        source.renew(time.monotonic())
        if source.waiting and source.read < BYTES_PER_S:
            source.waiting = False
            self._poll.register(source.descriptor, select.EPOLLIN)

    def _read(self, source: _Source) -> bool:
        """As much as is there, within a second's bytes. False at its end."""
        source.renew(time.monotonic())
        try:
            while source.read < BYTES_PER_S:
                data = os.read(source.descriptor, _PIECE)
                if not data:
                    return False
                source.take(data)
        except BlockingIOError:
            return True
        except OSError:
            return False
        source.waiting = True
        self._poll.unregister(source.descriptor)
        return True

    def _end(self, source: _Source) -> None:
        source.end()
        with self._lock:
            self._sources.pop(source.descriptor, None)
        if not source.waiting:
            with contextlib.suppress(OSError):
                self._poll.unregister(source.descriptor)
        os.close(source.descriptor)
