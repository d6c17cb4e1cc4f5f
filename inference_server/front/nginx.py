"""nginx before the front: where it is, and its configuration, made from `nginx/grpc-*.conf.in`."""

import os
import re
import resource
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from idl.codes import Code, ServingError
from inference_server.transports.grpc_status import STATUS, percent_encoded

_TEMPLATES = Path(__file__).resolve().parent.parent.parent / "nginx"
_UNQUOTABLE = re.compile(r'["$\\\x00-\x1f:]')
_LONG_S = 7 * 24 * 3600
"""Longer than any call: its deadline is kept elsewhere."""
_MOST_CONNECTIONS = 8192
_LARGEST_BUFFER, _SMALL_BUFFER = 30 * 2**20, 2**20
"""Just below what glibc's allocator gives back to the kernel after each use; and where the kernel counts memory before it is touched."""
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_FRAME_BYTES = 5
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class Values:
    """What the template leaves open. `listeners` are the sockets that nginx inherits; paths are sockets, but `folder` takes files.
    `tls`: a PEM file of key and certificate for the TCP listeners, read for each handshake; `client_ca`: of the authorities of callers."""

    folder: Path
    listeners: Sequence[socket.socket]
    fronts: Sequence[Path]
    absent: Path
    grpcio: Path
    workers: int
    max_message_bytes: int
    request_timeout_s: float
    drain_timeout_s: float
    tls: Path | None = None
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What nginx says itself where it has one of `causes`, as HTTP statuses."""

    causes: tuple[int, ...]
    error: ServingError


def _answers(values: Values) -> tuple[_Answer, ...]:
    return (
        _Answer((400, 404, 405, 411, 414, 417, 494), ServingError(Code.INVALID_INPUT, "this is no gRPC request")),
        _Answer((495, 496), ServingError(Code.UNAUTHENTICATED, "a client certificate that is valid here is needed")),
        _Answer((413,), ServingError(Code.TOO_LARGE, f"the message has more than {values.max_message_bytes} bytes")),
        _Answer((500, 502, 503, 504), ServingError(Code.UNAVAILABLE, "the connection to the model server broke", retry_after_ms=1000)),
    )


def find() -> str | None:
    """The nginx program, also where `sbin` is not on the search path; None where it is not installed."""
    return shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin")))


def command(binary: str, configuration: Path) -> list[str]:
    """How nginx is started: with messages on standard error from the first one on, not in a file of the system's."""
    return [binary, "-e", "stderr", "-c", str(configuration)]


def environ(listeners: Sequence[socket.socket]) -> dict[str, str]:
    """nginx takes listening sockets over from its environment: what it does itself where its program is replaced under load."""
    return {"PATH": os.defpath, "NGINX": "".join(f"{listener.fileno()};" for listener in listeners)}


def render(values: Values) -> str:
    """The whole configuration. Raises ValueError for a path that nginx cannot be told."""
    answers = _answers(values)
    filled = _files(values) | {
        "user": "user root;" if os.geteuid() == 0 else "",  # else its workers could not open our sockets
        "workers": str(values.workers),
        "drain_s": str(max(1, round(values.drain_timeout_s))),
        "long_s": str(_LONG_S),
        "max_body_bytes": str(values.max_message_bytes + _FRAME_BYTES),
        "body_buffer": str(_body_buffer(values.max_message_bytes + _FRAME_BYTES)),
        "body_timeout_s": str(max(1, round(values.request_timeout_s))),
        "fronts": "\n".join(f"        server {_socket(path)} max_fails=0;" for path in values.fronts),
        "absent": _socket(values.absent),
        "grpcio": _socket(values.grpcio),
        "listens": "\n".join(f"        listen {address(listener)}{_secure(listener, values)} http2;" for listener in values.listeners),
        "tls": _tls(values),
        "tls_pair": _quoted(values.tls) if values.tls else '""',
        "server_error_pages": _error_pages(answers, 8),
        "error_pages": _error_pages(answers, 12),
        "refusals": "\n\n".join(_location(answer.error) for answer in answers),
    }
    filled["to_grpcio"] = _template("grpc-pass", filled)
    return _template("grpc-front", filled)


def _secure(listener: socket.socket, values: Values) -> str:
    return " ssl" if values.tls and listener.family != socket.AF_UNIX else ""


def _tls(values: Values) -> str:
    lines = []
    if values.tls:
        lines += ["ssl_certificate $tls_pair;", "ssl_certificate_key $tls_pair;", "ssl_protocols TLSv1.2 TLSv1.3;"]
        lines += [f"ssl_ciphers {_CIPHERS};", "ssl_session_tickets off;", "ssl_session_cache off;"]
    if values.client_ca:
        lines += [f"ssl_client_certificate {_quoted(values.client_ca)};", "ssl_verify_client on;", "ssl_verify_depth 9;"]
    return "\n".join(f"        {line}" for line in lines)


def _body_buffer(longest: int) -> int:
    """What nginx sets aside for each call whose size it is not told, which is all of them; what is longer goes through a file."""
    try:
        strict = _OVERCOMMIT.read_text().strip() == "2"
    except OSError:
        strict = False
    return min(longest, _SMALL_BUFFER if strict else _LARGEST_BUFFER)


def _files(values: Values) -> dict[str, str]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(most, 65_536) if most > 0 else 65_536
    temporary = {f"{name}_temp": _quoted(values.folder / name) for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi")}
    return temporary | {
        "pid": _quoted(values.folder / "nginx.pid"),
        "max_files": str(files),
        "connections": str(max(64, min(_MOST_CONNECTIONS, files - 64))),
    }


def address(listener: socket.socket) -> str:
    """Of a listening socket, as nginx writes it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return _socket(Path(name))
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def _error_pages(answers: Sequence[_Answer], indent: int) -> str:
    lines = (f"error_page {' '.join(map(str, answer.causes))} =200 {_place(answer.error)};" for answer in answers)
    return "\n".join(" " * indent + line for line in lines)


def _place(error: ServingError) -> str:
    """Not a named location: to those nginx cannot go where it could not read the request's own address."""
    return f"/.answer/{error.code.value}"


def _location(error: ServingError) -> str:
    """A location that answers with `error`: HTTP 200 and no body, all that gRPC has to say in the headers."""
    message = percent_encoded(error.message).decode()
    headers = {"grpc-status": str(int(STATUS[error.code])), "grpc-message": f'"{message}"', "outboard-code": error.code.value}
    if error.retry_after_ms:
        headers["retry-after-ms"] = str(error.retry_after_ms)
    lines = ["internal;", "default_type application/grpc;", *(f"add_header {name} {value} always;" for name, value in headers.items())]
    inner = "\n".join(f"            {line}" for line in (*lines, "return 200;"))
    return f"        location = {_place(error)} {{\n{inner}\n        }}"


def _template(name: str, filled: Mapping[str, str]) -> str:
    text = (_TEMPLATES / f"{name}.conf.in").read_text(encoding="utf-8")
    return re.sub(r"@\{(\w+)\}", lambda match: filled[match[1]], text).rstrip("\n")


def _quoted(path: Path) -> str:
    text = str(path.absolute())
    if _UNQUOTABLE.search(text):
        raise ValueError(f"the path {text!r} holds a character that nginx's configuration cannot")
    return f'"{text}"'


def _socket(path: Path) -> str:
    return f'"unix:{_quoted(path)[1:-1]}"'
