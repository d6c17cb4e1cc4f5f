"""uWSGI's master before it is uWSGI: everything that is done once, before there is a worker.

It imports in the process that becomes the master, and what it imported stays.
"""

import fcntl
import logging
import math
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from gateway import log
from gateway.operations.users import FIRST_ADMINISTRATOR, SIGNUP_TTL, Users
from gateway.settings import MAX_SOCKET_PATH, PREFIX, Settings, SettingsError
from gateway.storage import Storage
from idl.codes import ServingError
from inference_client import Client

_log = logging.getLogger(__name__)
_ROOT = Path(__file__).resolve().parent.parent
_MULE = _ROOT / "gateway" / "front" / "mule.py"
_WORKER = _ROOT / "gateway" / "worker" / "mule.py"
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
_HARAKIRI_MARGIN_S = 15
"""What a worker may take beyond the longest request before uWSGI ends it: it hangs."""


_UPLOADS = r"^/(v1/(models|models/[^/]+/(versions|test)|uploads|uploads/[^/]+|batches)|uploadmodel|modifymodel|testmodel)$"
"""Paths that take files in, and have a model host try or load them."""
_SLOW = (
    r"^/(v1/(batches/[^/]+/failures/file|scripts|scripts/[^/]+/versions|script-checks|deployments/[^/]+/script-trials)"
    r"|ui/deployments/[^/]+/script|uploadscript)$"
)
"""Paths that have a model host try scripts, or read a result from end to end. nginx/gateway.conf.in has both."""
_STREAMS = r"^/v2/models/[^/]+(/versions/[^/]+)?/generate_stream$"
"""Answers that may take as long as a stream may. A worker has them where the event loops do not: pages, large bodies, what is not here."""
_STOP_BEHIND_NGINX = """\
hook-accepting = unix_signal:2 gracefully_kill
hook-accepting = unix_signal:1 gracefully_kill"""
"""The master sends its workers SIGINT and, after the mercy, SIGKILL; this makes of SIGINT the end after the requests in flight."""
_STOP_ROUTER = """\
hook-master-start = unix_signal:15 gracefully_kill_them_all
hook-master-start = unix_signal:2 gracefully_kill_them_all
hook-accepting = unix_signal:2 uwsgi_opt_noop
hook-accepting = unix_signal:1 gracefully_kill
hook-as-gateway = unix_signal:2 uwsgi_opt_noop"""
"""The way above ends the HTTP router first, and with it every connection. This one ends it last, but knows no mercy: the requests'
own time-outs bound it. The master sends its workers SIGHUP, which ends one at once that does not accept yet (gateway/wsgi.py). Ctrl-C reaches the whole process group; only the master may act on it, and uwsgi_opt_noop does nothing."""


PRELOADED = ("gateway.application", "gateway.front.server", "gateway.worker.process", "inference_client.thrift_channel")
"""What workers and event loops use; its memory is shared by all of them."""


class AlreadyRunning(RuntimeError):
    """Another gateway uses the same data folder."""


def main() -> int:
    """`sys.argv`: --ini, uWSGI's configuration, and the descriptor from which the first administrator's password is read. Returns a status as
    `python -m gateway` does, where uWSGI cannot be started.
    """
    with os.fdopen(int(sys.argv.pop())) as file:
        password = file.read()
    settings = Settings.from_env(os.environ)
    log.configure(settings.log_level)
    return _status(settings, password, run)


def check(settings: Settings) -> int:
    """Everything but uWSGI itself: the status with which `--check` ends."""
    return _status(settings, settings.admin_password, lambda _: None)


def _status(settings: Settings, password: str, then: Callable[[Settings], None]) -> int:
    try:
        prepare(replace(settings, admin_password=password))
        then(settings)
    except SettingsError as error:
        print(f"outboard: {error}", file=sys.stderr)
        return 2
    except (ServingError, AlreadyRunning, OSError) as error:
        print(f"outboard: the gateway cannot start: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(settings: Settings) -> None:
    """Makes the folders, the database and the secret, and sees to the first administrator. Raises ServingError and SettingsError."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    _check_addresses(settings)
    storage = Storage(settings.state_dir)
    try:
        if not settings.secret_key:
            storage.secret()
        token = Users(storage, settings).first_administrator(settings.admin_password)
    finally:
        storage.close()
    if token:
        _tell(token, settings)


def _check_addresses(settings: Settings) -> None:
    try:
        Client(settings.model_hosts).close()
    except ValueError as error:
        raise SettingsError(f"{PREFIX}MODEL_HOSTS: {error}") from None


def run(settings: Settings) -> NoReturn:
    """Becomes uWSGI. Raises AlreadyRunning where another gateway has the data folder."""
    lock = _lock(settings)
    shutil.rmtree(settings.metrics_dir, ignore_errors=True)
    settings.metrics_dir.mkdir(parents=True)
    log_descriptor = os.dup(sys.stderr.fileno())
    for descriptor in (lock, log_descriptor):
        os.set_inheritable(descriptor, True)
    settings.uwsgi_ini.write_text(render(settings, log_descriptor), encoding="utf-8")
    _allow_many_files()
    _log.info("gateway_starting", extra={"listen": settings.socket or f"{settings.http_host}:{settings.http_port}"})
    for name in PRELOADED:
        import_module(name)
    pyuwsgi = import_module("pyuwsgi")  # only here: it takes this process over
    _redirect_output(settings)
    pyuwsgi.run()
    raise SystemExit(0)


def render(settings: Settings, log_descriptor: int) -> str:
    """uWSGI's configuration."""
    values = _values(settings, log_descriptor)
    template = (_ROOT / "nginx" / "uwsgi.ini.in").read_text(encoding="utf-8")
    return re.sub(r"@\{(\w+)\}", lambda match: values[match[1]], template)


def _values(settings: Settings, log_descriptor: int) -> dict[str, str]:
    return {
        "python_path": _value(_ROOT),
        "processes": str(settings.processes),
        "threads": str(settings.threads),
        "listeners": _listeners(settings),
        "workers": "\n".join(f"mule = {_value(_WORKER)}" for _ in range(settings.workers)),
        "stop": _STOP_BEHIND_NGINX if settings.socket else _STOP_ROUTER,
        "listen_queue": str(min(settings.listen_queue, _kernel_queue())),
        "drain_s": str(max(1, math.ceil(settings.drain_timeout_s))),
        "log_descriptor": str(log_descriptor),
    }


def _listeners(settings: Settings) -> str:
    if settings.socket:
        harakiri_s = math.ceil(settings.request_timeout_s) + _HARAKIRI_MARGIN_S
        # not without nginx: there a slow sender holds a thread for as long, and its worker's other requests would end with it
        slow_s = math.ceil(settings.upload_timeout_s) + _HARAKIRI_MARGIN_S
        lines = [f"socket = {_value(settings.socket_path)}", "chmod-socket = 660"]
        # by routes, for the option `harakiri` holds for every request, whatever a route says
        stream_s = math.ceil(settings.stream_timeout_s) + _HARAKIRI_MARGIN_S
        for path, seconds in ((_UPLOADS, slow_s), (_SLOW, slow_s), (_STREAMS, stream_s)):
            lines += [f"route = {path} harakiri:{seconds}", f"route = {path} last:"]
        lines.append(f"route-run = harakiri:{harakiri_s}")
        return "\n".join([*lines, *(f"mule = {_value(_MULE)}" for _ in settings.hot_sockets)])
    # uWSGI's HTTP router holds idle connections, so that they cost no worker thread
    return "\n".join(
        (
            f"http = {settings.http_host}:{settings.http_port}",
            # between the router and the workers; without it, a port that everybody on this machine could speak to
            f"socket = {_value(_router_socket(settings))}",
            "chmod-socket = 600",
            "http-chunked-input = true",
            # one chunk; above the limit for bodies, so that it is us who refuse them, with an answer
            f"chunked-input-limit = {2 * settings.max_body_bytes}",
            "http-manage-expect = 1",
            "http-buffer-size = 32768",
            f"http-timeout = {math.ceil(settings.request_timeout_s) + _HARAKIRI_MARGIN_S}",
        )
    )


def _router_socket(settings: Settings) -> Path:
    path = settings.run_dir / "gateway-router.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise SettingsError(f"the data folder's path is too long for a unix socket, which may have {MAX_SOCKET_PATH} bytes: {path}")
    return path


def _value(path: Path) -> str:
    """A path as uWSGI's ini file takes it. Raises SettingsError where it cannot be written there."""
    text = str(path)
    if any(character in text for character in "\n\r$@"):
        raise SettingsError(f"the path {text!r} holds a character that uWSGI's configuration cannot")
    return text.replace("%", "%%")


def _kernel_queue() -> int:
    try:
        return int(_SOMAXCONN.read_text(encoding="ascii"))
    except OSError:
        return 128


def _lock(settings: Settings) -> int:
    """Held until the last process of this gateway has ended: two of them would share a socket and counters."""
    descriptor = os.open(settings.run_dir / "gateway.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(f"another gateway runs on {settings.data_dir}") from None
    return descriptor


def _redirect_output(settings: Settings) -> None:
    """What uWSGI prints before its logger is there is no JSON and no message for a person."""
    with (settings.run_dir / "uwsgi-start.log").open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_PLACEHOLDER = "YOURS"
"""Too short for a password: pasted as it stands the command is refused, and nobody gets an account whose password everybody can read here."""


def _tell(token: str, settings: Settings) -> None:
    """To the terminal and not the log: whoever reads it can become administrator."""
    url = settings.public_url or f"http://{settings.http_host}:{settings.http_port}"
    body = f'{{"username": "{FIRST_ADMINISTRATOR}", "password": "{_PLACEHOLDER}", "signup_token": "{token}"}}'
    hours = int(SIGNUP_TTL.total_seconds() // 3600)
    how = f"once and within {hours} hours, with a password of your own in the place of {_PLACEHOLDER}"
    print(f"outboard: there is no administrator yet. To become it, {how}:", file=sys.stderr)
    print(f"  curl -H 'Content-Type: application/json' -d '{body}' {url}/v1/users", file=sys.stderr, flush=True)
