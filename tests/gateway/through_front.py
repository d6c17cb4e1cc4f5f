"""The front as it runs, but for nginx: a real event loop on a real socket, and what nginx does with its answers, as WSGI middleware."""

import http.client
import io
import re
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.context import Services
from gateway.front.server import Front

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PASSED = ("AUTHORIZATION", "CONTENT_ENCODING", "ACCEPT_ENCODING", "INFERENCE_HEADER_CONTENT_LENGTH", "TRACEPARENT")
_LOCATION = re.compile(r"/v2/models/[A-Za-z0-9_.-]+(/versions/[A-Za-z0-9_.-]+)?/infer")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LARGE = 60_000


@contextmanager
def running(services: Services, path: Path, lanes: str) -> Iterator[Front]:
    """A front at `path`, in a thread of its own."""
    front = Front(services, path, lanes, 64 << 20)
    thread = threading.Thread(target=front.serve, name="front")
    thread.start()
    yield front
    front.leave(0)
    thread.join()


class ThroughFront:
    """As nginx/hot-location.conf.in: what the front declines goes on to `app`. Counts what it was asked and what it answered itself."""

    def __init__(self, app: "WSGIApplication", path: Path) -> None:
        self._app = app
        self._path = path
        self.asked = self.answered = 0

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        size = environ.get("CONTENT_LENGTH") or ""
        if environ["REQUEST_METHOD"] != "POST" or not _LOCATION.fullmatch(environ["PATH_INFO"]) or not size or int(size) >= LARGE:
            return self._app(environ, start_response)
        body = environ["wsgi.input"].read(int(size))
        self.asked += 1
        answer = self._ask(environ, body)
        if answer is None:
            return self._app({**environ, "wsgi.input": io.BytesIO(body)}, start_response)
        self.answered += 1
        status, headers, data = answer
        start_response(status, headers)
        return [data]

    def _ask(self, environ: "WSGIEnvironment", body: bytes) -> tuple[str, list[tuple[str, str]], bytes] | None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        number = given if _ID.fullmatch(given) else uuid.uuid4().hex
        fields = {name.replace("_", "-"): environ[key] for name in _PASSED if environ.get(key := f"HTTP_{name}")}
        connection = UnixConnection(self._path)
        try:
            connection.request("POST", f"/{number}{environ['PATH_INFO']}", body, {"Host": "outboard", **fields})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.headers.get("X-Accel-Redirect") == "@gateway":
            return None
        return f"{response.status} {response.reason}", list(response.headers.items()), data


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__("outboard", timeout=60, **options)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
