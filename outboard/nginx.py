"""nginx's configuration: the templates in `nginx/`, filled."""

import json
import os
import re
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from outboard import nginx_pages

if TYPE_CHECKING:
    from gateway.settings import Settings

_TEMPLATES = Path(__file__).resolve().parent.parent / "nginx"
_READ_MARGIN_S = 30
"""What nginx waits beyond the gateway's longest request: the gateway's own answer comes first."""
_UNQUOTABLE = re.compile(r'["$\\\x00-\x1f]')
KINDS = ("http", "tls", "grpc")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that nginx makes itself: on one of `causes`, as `status` with an error code of the contract."""

    causes: tuple[int, ...]
    status: int
    code: str
    title: str
    detail: str
    retry_after_s: int = 0


REFUSALS = (
    Refusal((400, 497), 400, "invalid_input", "Invalid input", "this is not a valid HTTP request for this port"),
    Refusal((403,), 403, "forbidden", "Not allowed", "this address is not open to you"),
    Refusal((405,), 405, "unsupported", "Not supported", "the method is not allowed here"),
    Refusal((408,), 408, "deadline_exceeded", "Deadline exceeded", "the request did not arrive in time"),
    Refusal((413,), 413, "too_large", "Too large", "the body has more than @{max_body_bytes} bytes, or the file more than is taken"),
    Refusal((414,), 414, "too_large", "Too large", "the address is too long"),
    Refusal((494,), 431, "too_large", "Too large", "the headers are too long"),
    Refusal((500,), 500, "internal", "Internal error", "the server made a mistake"),
    Refusal((501,), 501, "unsupported", "Not supported", "the transfer encoding is not supported"),
    Refusal((502, 503, 504), 503, "unavailable", "Unavailable", "the gateway cannot be reached", 1),
)


@dataclass(frozen=True, slots=True)
class Values:
    """What the templates leave open. `listen` is an address as nginx writes it: `127.0.0.1:8080`, `[::1]:8080`.

    `run_dir` takes the pid file and temporary files. `gateway_socket` is uWSGI's, `hot_sockets` are those of the gateway's event loops.
    `grpc_target` is `host:port` or `unix:/path` of the
    model host. `certificate` and `certificate_key` are files; without them the grpc variant speaks HTTP/2 in clear text.
    """

    run_dir: Path
    listen: str
    gateway_socket: Path = Path("gateway.sock")
    hot_sockets: tuple[Path, ...] = ()
    max_body_bytes: int = 64 << 20
    max_upload_bytes: int = (4 << 30) + (4 << 20)
    upload_timeout_s: float = 600.0
    request_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    listen_queue: int = 1024
    workers: str = "auto"
    access_log: bool = False
    metrics_allow: tuple[str, ...] = ("127.0.0.1", "::1", "unix:")
    certificate: Path | None = None
    certificate_key: Path | None = None
    hsts_s: int = 31_536_000
    redirect_listen: str = ""
    grpc_target: str = ""


def find() -> str | None:
    """The nginx program, also where `sbin` is not on the search path; None where it is not installed."""
    return shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin")))


def command(binary: str, configuration: Path, *arguments: str) -> list[str]:
    """How nginx is started: with messages on standard error from the first one on, not in a file of the system's."""
    return [binary, "-e", "stderr", "-c", str(configuration), *arguments]


def for_up(data: Path, listen: str, environ: Mapping[str, str]) -> Values:
    """The values for a gateway on this machine with the settings of `environ`. Raises gateway.settings.SettingsError."""
    from gateway.settings import Settings

    run_dir = data.absolute() / "run"
    hosts = (f"thrift+unix://{run_dir / 'thrift.sock'}",)
    return for_gateway(replace(Settings.from_env(environ), socket=str(run_dir / "gateway.sock"), model_hosts=hosts), run_dir, listen)


def for_gateway(settings: "Settings", run_dir: Path, listen: str) -> Values:
    """The values for a gateway with these settings, wherever its models are; `settings.socket` must be set."""
    from gateway.settings import half_the_cores

    return Values(
        run_dir=run_dir,
        listen=listen,
        gateway_socket=settings.socket_path,
        hot_sockets=settings.hot_sockets,
        workers=str(half_the_cores()),
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_request_bytes,
        upload_timeout_s=settings.upload_timeout_s,
        request_timeout_s=settings.request_timeout_s,
        drain_timeout_s=settings.drain_timeout_s,
        listen_queue=settings.listen_queue,
    )


def render(kind: str, values: Values) -> str:
    """The whole configuration of variant `kind`. Raises ValueError for a path that nginx cannot be told."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    if kind == "tls" and not (values.certificate and values.certificate_key):
        raise ValueError("TLS needs a certificate and its key")
    filled = _common(values) | _tls(values) | _grpc(values)
    filled["page_maps"] = "" if kind == "grpc" else nginx_pages.maps()
    filled["problem_pages"] = _error_pages(nginx_pages.ASKS_FOR_A_PAGE, 8)
    filled["v2_pages"] = _error_pages("v2", 12)
    filled["problem_locations"] = "\n".join(
        _fill(_location(style, refusal), filled) for style in ("problem", "page", "v2") for refusal in REFUSALS
    )
    filled |= _hot(values, filled)
    filled["gateway"] = _template("gateway", filled)
    filled["servers"] = _template(kind, filled)
    return _template("main", filled)


def _common(values: Values) -> dict[str, str]:
    temporary = values.run_dir.absolute() / "nginx"
    temporary.mkdir(parents=True, exist_ok=True)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        # as root the workers stay root: nobody else can reach the sockets in the run folder. Do not run it as root.
        "user": "user root;" if os.geteuid() == 0 else "",
        "pid": _quoted(values.run_dir.absolute() / "nginx.pid"),
        "workers": values.workers,
        "max_files": str(min(most_files, 65_536) if most_files > 0 else 65_536),
        "drain_s": str(max(1, round(values.drain_timeout_s))),
        "access_log": _ACCESS_LOG if values.access_log else "access_log off;",
        **{f"{name}_temp": _quoted(temporary / name) for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi")},
        "listen": values.listen,
        "listen_queue": str(values.listen_queue),
        "max_body_bytes": str(values.max_body_bytes),
        "max_upload_bytes": str(values.max_upload_bytes),
        "upload_timeout_s": str(round(values.upload_timeout_s) + _READ_MARGIN_S),
        "read_timeout_s": str(round(values.request_timeout_s) + _READ_MARGIN_S),
        "gateway_socket": _socket(values.gateway_socket),
        "metrics_allow": "\n".join(f"            allow {network};" for network in values.metrics_allow),
    }


_ACCESS_LOG = """log_format outboard escape=json '{"time":"$time_iso8601","level":"info","event":"http_request","request_id":"$outboard_request_id",'
        '"method":"$request_method","path":"$uri","status":$status,"bytes":$body_bytes_sent,"seconds":$request_time,"address":"$remote_addr"}';
    # the path only: a query string may hold a password
    access_log /dev/stdout outboard;"""


def _tls(values: Values) -> dict[str, str]:
    filled = {"hsts_s": str(values.hsts_s), "redirect_listen": values.redirect_listen, "redirect": ""}
    if values.certificate and values.certificate_key:
        filled |= {"certificate": _quoted(values.certificate.absolute()), "certificate_key": _quoted(values.certificate_key.absolute())}
    if values.redirect_listen:
        port = values.listen.rpartition(":")[2]
        filled["https_port"] = "" if port == "443" else f":{port}"
        filled["redirect"] = _template("redirect", filled)
    return filled


def _grpc(values: Values) -> dict[str, str]:
    filled = {"grpc_tls": "", "grpc_certificate": "", "grpc_target": ""}
    if values.certificate and values.certificate_key:
        certificate, key = _quoted(values.certificate.absolute()), _quoted(values.certificate_key.absolute())
        lines = (f"ssl_certificate {certificate};", f"ssl_certificate_key {key};", "ssl_protocols TLSv1.2 TLSv1.3;")
        filled |= {"grpc_tls": "ssl ", "grpc_certificate": "\n".join(f"        {line}" for line in lines)}
    if values.grpc_target:
        scheme, _, path = values.grpc_target.partition(":")
        filled["grpc_target"] = _socket(Path(path), "grpc://") if scheme == "unix" else f"grpc://{values.grpc_target}"
    return filled


def _hot(values: Values, filled: Mapping[str, str]) -> dict[str, str]:
    """The gateway's event loops, where there are some."""
    if not values.hot_sockets:
        return {"hot_upstream": "", "hot_location": ""}
    servers = "\n".join(f"        server {_socket(path)} max_fails=0;" for path in values.hot_sockets)
    return {name: _template(name.replace("_", "-"), {**filled, "hot_servers": servers}) for name in ("hot_upstream", "hot_location")}


def _error_pages(style: str, indent: int) -> str:
    lines = (f"error_page {' '.join(map(str, each.causes))} ={each.status} {_address(style, each)};" for each in REFUSALS)
    return "\n".join(" " * indent + line for line in lines)


def _address(style: str, refusal: Refusal) -> str:
    """Not a named location: to those nginx cannot go, and answers 500, where it could not read the request's own address."""
    return f"/.refused/{style}/{refusal.status}"


def _location(style: str, refusal: Refusal) -> str:
    """A location that answers with `refusal`: as RFC 9457 says, as the open protocol does, or as a page."""
    headers = {"X-Request-Id": "$outboard_request_id", "Cache-Control": "no-store"}
    if refusal.retry_after_s:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if style == "page":
        headers |= {
            "Content-Security-Policy": f'"{nginx_pages.policy()}"',
            "X-Content-Type-Options": "nosniff",
            "Vary": '"Accept, Accept-Language, Cookie"',
        }
        return _answered(style, refusal, '"text/html; charset=utf-8"', headers, nginx_pages.body(refusal.status))
    if style == "v2":
        media, headers["Outboard-Code"] = "application/json", refusal.code
        body: dict[str, object] = {"error": refusal.detail}
    else:
        media = "application/problem+json"
        body = {"type": f"/v1/errors#{refusal.code}", "title": refusal.title, "status": refusal.status, "detail": refusal.detail}
        body |= {"code": refusal.code, "request_id": "$outboard_request_id"}
    return _answered(style, refusal, media, headers, json.dumps(body))


def _answered(style: str, refusal: Refusal, media: str, headers: Mapping[str, str], text: str) -> str:
    lines = ["internal;", f"default_type {media};", *(f"add_header {name} {value} always;" for name, value in headers.items())]
    lines.append(f"return {refusal.status} '{text}';")
    inner = "\n".join(f"            {line}" for line in lines)
    return f"        location = {_address(style, refusal)} {{\n{inner}\n        }}"


def _template(name: str, filled: Mapping[str, str]) -> str:
    return _fill((_TEMPLATES / f"{name}.conf.in").read_text(encoding="utf-8"), filled).rstrip("\n")


def _fill(text: str, filled: Mapping[str, str]) -> str:
    return re.sub(r"@\{(\w+)\}", lambda match: filled[match[1]], text)


def _quoted(path: Path) -> str:
    text = str(path)
    if _UNQUOTABLE.search(text):
        raise ValueError(f"the path {text!r} holds a character that nginx's configuration cannot")
    return f'"{text}"'


def _socket(path: Path, scheme: str = "") -> str:
    text = str(path.absolute())
    if ":" in text:
        raise ValueError(f"the socket's path {text!r} holds a colon, which nginx's configuration cannot")
    _quoted(path)
    return f'"{scheme}unix:{text}"'
