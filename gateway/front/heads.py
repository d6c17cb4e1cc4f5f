"""The heads of nginx's requests and of our answers. nginx puts the request's id before the address: `/<id>/v2/models/...`."""

from functools import lru_cache
from typing import NamedTuple

from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Response

from gateway import hot_routes
from gateway.context import REQUEST_ID_HEADER
from gateway.hot_routes import Target
from gateway.operations.v2_inference import Answer, Heads

DECLINED = b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: @gateway\r\nContent-Length: 0\r\n\r\n"
"""nginx then goes on at the location that asks the uWSGI workers, with the same body."""

_REMEMBERED_BYTES = 1024


class Fields(NamedTuple):
    """The header fields that matter; texts are "" where absent, `authorization` None."""

    length: int
    authorization: str | None
    heads: Heads
    content_encoding: str
    traceparent: str


class Head(NamedTuple):
    """`target` None: an address that only the workers answer; `path` is the address without what follows a question mark."""

    request_id: str
    path: str
    target: Target | None
    fields: Fields

    @property
    def length(self) -> int:
        return self.fields.length


def parse(head: bytes) -> Head:
    """`head` without the empty line at its end. Raises ValueError where it is none of nginx's."""
    line, _, rest = head.partition(b"\r\n")
    method, address, _ = line.decode("latin-1").split(" ")
    request_id, path = address[1:].split("/", 1)
    path = f"/{path.partition('?')[0]}"
    fields = _remembered(rest) if len(rest) <= _REMEMBERED_BYTES else _fields(rest)
    return Head(request_id, path, _target(path) if method == "POST" else None, fields)


def _target(path: str) -> Target | None:
    return hot_routes.target(path) or hot_routes.stream_target(path)


def _fields(lines: bytes) -> Fields:
    split = (line.partition(":") for line in lines.decode("latin-1").split("\r\n"))
    fields = {name.lower(): value.strip() for name, _, value in split}
    return Fields(
        int(fields.get("content-length", "0")),
        fields.get("authorization"),
        Heads(fields.get("inference-header-content-length"), fields.get("accept-encoding", "")),
        fields.get("content-encoding", ""),
        fields.get("traceparent", ""),
    )


_remembered = lru_cache(maxsize=1024)(_fields)
"""The same lines, seen again, cost a look-up: what is new in each request stands in its first line."""


def success(answer: Answer, request_id: str) -> bytes:
    return b"%bContent-Length: %d\r\n%b: %b\r\n\r\n%b" % (
        _success(answer.headers),
        len(answer.body),
        REQUEST_ID_HEADER.encode(),
        request_id.encode("latin-1"),
        answer.body,
    )


@lru_cache(maxsize=1024)
def _success(headers: tuple[tuple[str, str], ...]) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + _lines(headers)


def failure(response: Response, request_id: str) -> bytes:
    """`response` as bytes."""
    status = f"HTTP/1.1 {response.status_code} {HTTP_STATUS_CODES.get(response.status_code, 'Unknown')}\r\n".encode("latin-1")
    response.headers[REQUEST_ID_HEADER] = request_id
    return status + _lines(response.headers.to_wsgi_list()) + b"\r\n" + response.get_data()


def _lines(headers: "tuple[tuple[str, str], ...] | list[tuple[str, str]]") -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
