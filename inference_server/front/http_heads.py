"""The little HTTP/1.1 that nginx and the front speak: heads of requests, and whole answers.

gRPC's status leaves as response headers, which nginx sends on as trailers (nginx/grpc-front.conf.in). An answer of status 418 means that
the front has none, and nginx then asks the grpcio server.
"""

from dataclasses import dataclass
from functools import lru_cache

from idl.codes import ServingError
from inference_server.front.calls import Head
from inference_server.transports.grpc_status import STATUS, bearer, details, percent_encoded, timeout_s

DECLINED = b"HTTP/1.1 418 -\r\nContent-Length: 0\r\n\r\n"
_REMEMBERED_BYTES = 512


@dataclass(frozen=True, slots=True)
class HttpHead:
    """Satisfies `nginx_http.Head`: the bytes of the body, and what the call says outside its message."""

    length: int
    said: Head


def parse(head: bytes) -> HttpHead:
    """`head` without the empty line at its end. Raises ValueError where it is none."""
    return _remembered(head) if len(head) <= _REMEMBERED_BYTES else _parse(head)


def _parse(head: bytes) -> HttpHead:
    _, *lines = head.decode("utf-8", "replace").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    said = Head(
        timeout_s(fields.get("grpc-timeout", "")),
        bearer(fields.get("authorization", "")),
        fields.get("x-request-id", ""),
        fields.get("traceparent", ""),
    )
    return HttpHead(int(fields.get("content-length", "0")), said)


_remembered = lru_cache(maxsize=1024)(_parse)


def success(size: int) -> bytes:
    """What comes before a message of `size` bytes: the head, and gRPC's own five bytes."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nContent-Length: %d\r\n\r\n\0%b" % (size + 5, size.to_bytes(4, "big"))


def failure(error: ServingError) -> bytes:
    """The whole answer that an error is."""
    lines = [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\ngrpc-status: %d\r\ngrpc-message: %b\r\noutboard-code: %b\r\n"
        % (STATUS[error.code], percent_encoded(details(error)), error.code.value.encode())
    ]
    if error.retry_after_ms > 0:
        lines.append(b"retry-after-ms: %d\r\n" % error.retry_after_ms)
    return b"".join((*lines, b"\r\n"))
