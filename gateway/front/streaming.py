"""Streams of answers through the front: each has a thread, which writes to nginx itself, and waits where its reader is slow.

A stream lasts long and mostly waits; it must keep neither the event loop nor a worker of uWSGI's, whose threads are for quick calls.
"""

import contextlib
import logging
import socket
import threading
import time

from werkzeug.wrappers import Response

from gateway import observation, wsgi_request
from gateway.context import REQUEST_ID_HEADER, Services
from gateway.errors import STATUS, internal, problem
from gateway.front import heads
from gateway.front.heads import Head
from gateway.hot_routes import Target
from gateway.operations import generate
from gateway.operations.compression import decompress
from gateway.operations.generate import Events
from gateway.operations.inference import Call
from idl.codes import Code, ServingError
from idl.nginx_http import Buffer, Connection
from idl.traces import Trace

_log = logging.getLogger(__name__)

RETRY_MS = 1000
_START = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n%b: %b\r\n\r\n"


class Streaming:
    """At most `most` at once."""

    def __init__(self, services: Services, most: int) -> None:
        self._services = services
        self._most = most
        self._lock = threading.Lock()
        self._running: set[socket.socket] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    def begin(self, caller: Connection, head: Head, target: Target, body: Buffer, trace: Trace | None = None) -> None:
        """Takes the connection over. `trace`: where one was begun. Raises overloaded, and then has not."""
        with self._lock:
            if len(self._running) >= self._most:
                raise ServingError(Code.OVERLOADED, f"{self._most} streams are open already", retry_after_ms=RETRY_MS)
            sock = caller.detach()
            self._running.add(sock)
        threading.Thread(target=self._run, args=(sock, head, target, bytes(body), trace), name="front-stream", daemon=True).start()

    def _run(self, sock: socket.socket, head: Head, target: Target, body: bytes, trace: Trace | None) -> None:
        metrics = self._services.metrics
        started = observation.begin(metrics)
        status = 500
        tracer = self._services.tracer
        try:
            sock.setblocking(True)
            status = self._answer(sock, head, target, body, trace.header if trace else head.fields.traceparent)
        except OSError:  # nginx, and so the caller, has gone
            status = STATUS[Code.CANCELLED]
        except Exception:  # noqa: BLE001 - the next stream is still to be served
            _log.exception("stream_failed")
        finally:
            observation.end(metrics, started, head.request_id, target.endpoint, "POST", head.path, status)
            if tracer is not None and trace is not None:
                code = Code.CANCELLED.value if status == STATUS[Code.CANCELLED] else ""
                observation.tell(tracer, trace, started, head.request_id, target.endpoint, "POST", head.path, status, code)
            with self._lock:
                self._running.discard(sock)
            sock.close()

    def _answer(self, sock: socket.socket, head: Head, target: Target, body: bytes, traceparent: str) -> int:
        """The status. Raises OSError where the caller goes."""
        try:
            events = self._events(sock, head, target, body, traceparent)
        except ServingError as error:
            return _refuse(sock, head, problem(error, head.path, head.request_id))
        except Exception as error:  # noqa: BLE001 - the caller is owed an answer
            return _refuse(sock, head, internal(error, "POST", head.path, head.request_id))
        try:
            sock.sendall(_START % (generate.EVENT_STREAM.encode(), REQUEST_ID_HEADER.encode(), head.request_id.encode("latin-1")))
            for event in events:
                sock.sendall(generate.chunk(event))
            sock.sendall(generate.LAST_CHUNK)
        finally:
            events.close()
        return 200

    def _events(self, sock: socket.socket, head: Head, target: Target, body: bytes, traceparent: str) -> Events:
        owned, fields = self._services, head.fields
        caller = None if fields.authorization is None else owned.tokens.authenticate(wsgi_request.bearer_token(fields.authorization))
        timeout_s = owned.settings.stream_timeout_s
        call: Call = wsgi_request.call(caller, head.request_id, timeout_s, traceparent, sock.fileno(), owned.deployed)
        if fields.content_encoding:
            body = decompress(body, fields.content_encoding, owned.settings.max_body_bytes)
        return Events(owned.models, call, target.model, target.version, body)

    def close(self, grace_s: float) -> None:
        """Lets those under way go on for `grace_s`, then cuts them off."""
        until = time.monotonic() + grace_s
        while self._running and time.monotonic() < until:
            time.sleep(0.05)
        with self._lock:
            left = list(self._running)
        for sock in left:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _refuse(sock: socket.socket, head: Head, answer: Response) -> int:
    answer.headers["Connection"] = "close"  # else nginx keeps it, and asks a closed one next
    sock.sendall(heads.failure(answer, head.request_id))
    return answer.status_code
