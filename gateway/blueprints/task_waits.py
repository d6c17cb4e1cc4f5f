"""Answers that come when a task does something: waiting for its end, and its events as a stream.

Under uWSGI the connection goes to `gateway.waiters`, and the worker's thread is free at once; anywhere else the thread itself waits, and
only so many threads may.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import flask
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Response

from gateway.context import REQUEST_ID_HEADER, Services, request_id
from gateway.errors import problem
from gateway.operations import task_notices
from gateway.storage.task_records import TERMINAL, TaskRecord
from gateway.waiters import KEEP_ALIVE_S, LOOK_EVERY_S, Watch
from idl.codes import Code, ServingError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

EVENT_STREAM = "text/event-stream"
_RETRY_MS = 1000
Spell = Callable[[TaskRecord], Response]


class Detached(flask.Response):
    """An answer that somebody else gives on the same connection. Flask's own kind of answer: of any other it would make one."""

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        return []


class EndWatch:
    """Waits for a task's end, or for the time that the caller gives it. A `Watch`."""

    def __init__(self, owned: Services, task: TaskRecord, until: float, spell: Spell, path: str) -> None:
        self.task_id = task.id
        self.until = until
        self.answer: Response | None = None
        self._owned = owned
        self._spell = spell
        self._path = path
        self._request_id = request_id()

    def step(self, *, is_late: bool, is_idle: bool) -> tuple[bytes, bool]:
        task = self._owned.storage.tasks.get(self.task_id)
        if task is not None and not task.is_over and not is_late:
            return b"", False
        try:
            if task is None:
                raise ServingError(Code.NOT_FOUND, f"there is no task {self.task_id!r} any more")
            self.answer = self._spell(task)
        except ServingError as error:
            self.answer = problem(error, self._path, self._request_id)
        return raw(self.answer, self._request_id), True


class EventsWatch:
    """A task's events, from after one that the caller has. A `Watch`."""

    def __init__(self, owned: Services, task_id: str, after: int, until: float) -> None:
        self.task_id = task_id
        self.until = until
        self._owned = owned
        self._after = after

    def step(self, *, is_late: bool, is_idle: bool) -> tuple[bytes, bool]:
        events = self._owned.storage.tasks.events(self.task_id, self._after)
        if events:
            self._after = events[-1].id
            return b"".join(map(task_notices.event_text, events)), is_late or events[-1].state in TERMINAL
        gone = is_late or self._owned.storage.tasks.get(self.task_id) is None
        return (b": \n\n" if is_idle else b""), gone


def at_its_end(owned: Services, task: TaskRecord, wait_s: float, spell: Spell, path: str) -> Response:
    """What `spell` makes of the task when it has ended, or when `wait_s` is over."""
    if task.is_over or wait_s <= 0:
        return spell(task)
    watch = EndWatch(owned, task, time.monotonic() + wait_s, spell, path)
    if _hand_over(owned, watch, b""):
        return Detached()
    with _Thread(owned):
        while not watch.step(is_late=time.monotonic() >= watch.until, is_idle=False)[1]:
            _sleep(owned, watch)
    assert watch.answer is not None
    return watch.answer


def events(owned: Services, task_id: str, after: int) -> Response:
    """The stream of a task's events. Raises overloaded."""
    watch = EventsWatch(owned, task_id, after, time.monotonic() + owned.settings.stream_timeout_s)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    head = Response(b"", 200, headers, content_type=EVENT_STREAM)
    del head.headers["Content-Length"]
    if _hand_over(owned, watch, raw(head, request_id())):
        return Detached()
    thread = _Thread(owned)
    thread.__enter__()
    made = Response(_stream(owned, watch), 200, headers, content_type=EVENT_STREAM)
    made.call_on_close(thread.leave)
    return made


def _stream(owned: Services, watch: EventsWatch) -> Iterator[bytes]:
    is_over, sent_at = False, time.monotonic()
    yield b": \n\n"
    while not is_over:
        now = time.monotonic()
        data, is_over = watch.step(is_late=now >= watch.until, is_idle=now - sent_at > KEEP_ALIVE_S)
        if data:
            sent_at = now
            yield data
        elif not is_over:
            _sleep(owned, watch)


def _sleep(owned: Services, watch: Watch) -> None:
    """Until the task has changed, or for a second."""
    mark, until = owned.storage.task_marks.read(watch.task_id), min(watch.until, time.monotonic() + 1.0)
    while owned.storage.task_marks.read(watch.task_id) == mark and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)


class _Thread:
    """One of the threads that may wait."""

    def __init__(self, owned: Services) -> None:
        self._streams = owned.streams
        self._left = False

    def __enter__(self) -> None:
        if not self._streams.acquire(blocking=False):
            raise ServingError(Code.OVERLOADED, "too many callers wait for tasks already", retry_after_ms=_RETRY_MS)

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._streams.release()

    def __exit__(self, *_: object) -> None:
        self.leave()


def _hand_over(owned: Services, watch: Watch, head: bytes) -> bool:
    """False where this server's connections cannot be."""
    if owned.detach is None:
        return False
    descriptor = owned.detach()
    try:
        owned.waiters.take(descriptor, _Headed(watch, head) if head else watch)
    except BaseException:
        os.close(descriptor)
        raise
    return True


class _Headed:
    """The same with something before it."""

    def __init__(self, watch: Watch, head: bytes) -> None:
        self.task_id = watch.task_id
        self.until = watch.until
        self._watch = watch
        self._head = head

    def step(self, *, is_late: bool, is_idle: bool) -> tuple[bytes, bool]:
        data, is_over = self._watch.step(is_late=is_late, is_idle=is_idle)
        head, self._head = self._head, b""
        return head + data, is_over


def raw(response: Response, number: str) -> bytes:
    """The whole answer as bytes; the connection ends with it."""
    response.headers[REQUEST_ID_HEADER] = number
    response.headers["Connection"] = "close"
    status = f"HTTP/1.1 {response.status_code} {HTTP_STATUS_CODES.get(response.status_code, 'Unknown')}\r\n"
    lines: Any = response.headers.to_wsgi_list()
    return (status + "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n").encode("latin-1") + response.get_data()
