"""Request bodies that are not as the application needs them.

What an early answer left unread is read away, because closing a socket with unread bytes takes the answer back: nginx, still sending,
would find a broken connection in its place. Under uWSGI's own HTTP port, without nginx in front, a chunked body, of which `wsgi.input`
shows nothing, is fetched through uWSGI's own call and given a length.
"""

import tempfile
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any

from werkzeug.wsgi import ClosingIterator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PIECE = 1 << 16
_IN_MEMORY = 1 << 20
_FEW_DIGITS = 5
"""A length with fewer is below 10,000 bytes."""


class EarlyAnswers:
    """WSGI middleware behind nginx, which has the whole body, of at most `max_bytes`."""

    def __init__(self, app: "WSGIApplication", max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        answer = self._app(environ, start_response)
        if len(environ.get("CONTENT_LENGTH", "")) < _FEW_DIGITS:  # the socket has taken all of it
            return answer
        stream = environ["wsgi.input"]
        return ClosingIterator(answer, [lambda: _read_away(lambda: stream.read(_PIECE), self._max_bytes)])


class BrokenBody:
    """`wsgi.input` of a body that broke off; whoever reads it reports a lost caller."""

    def read(self, size: int = -1) -> bytes:
        raise OSError("the body broke off, or is not in valid chunks")

    def close(self) -> None:
        """There is nothing to close."""


class DirectBodies:
    """WSGI middleware. `read_chunk` is `uwsgi.chunked_read`: b"" at the end, OSError for a caller that is gone or sends no valid chunks.

    Of a chunked body little more than `max_bytes` is kept: its length is then over the limit, and refused as any other.
    """

    def __init__(self, app: "WSGIApplication", read_chunk: Callable[[], bytes], max_bytes: int) -> None:
        self._app = app
        self._read_chunk = read_chunk
        self._max_bytes = max_bytes

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            # uWSGI closes after each answer and does not say so
            return start_response(status, [*headers, ("Connection", "close")], *rest)

        if "chunked" in environ.pop("HTTP_TRANSFER_ENCODING", "").lower():
            body, size = self._collect()
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = body, str(size)
            unread = self._read_chunk if size > self._max_bytes else _nothing
            return ClosingIterator(self._app(environ, start), [body.close, lambda: _read_away(unread, self._max_bytes)])
        stream = environ["wsgi.input"]
        return ClosingIterator(self._app(environ, start), [lambda: _read_away(lambda: stream.read(_PIECE), self._max_bytes)])

    def _collect(self) -> tuple[Any, int]:
        body: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        try:
            while body.tell() <= self._max_bytes and (piece := self._read_chunk()):
                body.write(piece)
        except OSError:
            body.close()
            return BrokenBody(), 1
        size = body.tell()
        body.seek(0)
        return body, size


def _read_away(read: Callable[[], bytes], left: int) -> None:
    try:
        while left > 0 and (piece := read()):
            left -= len(piece)
    except OSError:
        return


def _nothing() -> bytes:
    return b""
