"""The gateway's configuration: one frozen value, read from the environment in one function."""

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from idl.trace_export import Endpoint

PREFIX = "OUTBOARD_GATEWAY_"
MAX_SOCKET_PATH = 107
"""Bytes in a unix socket's path: `sun_path` has 108 with its closing NUL."""
_MIB = 1 << 20
_FORM_BYTES = 4 * _MIB
_HERE = ("localhost", "127.0.0.1", "::1")


class SettingsError(ValueError):
    """A setting that is unknown or has a value that cannot be used; the message names the environment variable."""


def _setting(
    default: Any, text: str, *, low: float | None = None, high: float | None = None, secret: bool = False, choices: tuple[str, ...] = ()
) -> Any:
    """A field; `text` is what the documentation says about it."""
    return field(default=default, metadata={"text": text, "low": low, "high": high, "secret": secret, "choices": choices})


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """Everything that can be configured; each field is the environment variable OUTBOARD_GATEWAY_<NAME>."""

    data_dir: Path = _setting(Path("data"), "folder of the database, the secret and the run files")  # noqa: RUF009
    model_hosts: tuple[str, ...] = _setting(("thrift://127.0.0.1:9090",), "addresses of the model hosts, separated by commas")
    model_host_metrics: str = _setting(
        "",
        "addresses of the model hosts' metrics, such as http://127.0.0.1:8002/metrics, in their order, separated by commas; empty: "
        "deployments' statistics come without latencies by bucket and errors by code",
    )
    model_host_token: str = _setting("", "token sent to the model hosts", secret=True)
    model_host_ca: str = _setting("", "PEM file of the authorities of model hosts with TLS; empty: the system's")
    model_host_certificate: str = _setting("", "PEM file of the certificate shown to model hosts that ask for one")
    model_host_key: str = _setting("", "PEM file of its private key")
    secret_key: str = _setting("", "signs access tokens; 32 characters or more; empty: made once, kept in the data folder", secret=True)
    admin_password: str = _setting("", "first password of the user `admin`, used once, while there is no administrator", secret=True)
    public_url: str = _setting("", "the address that people use, for links; empty: the address that the gateway listens on")
    public_grpc: str = _setting("", "where people reach the model host over gRPC, such as grpc://host:8001, for the snippets on pages")
    public_thrift: str = _setting("", "the same over Thrift, such as thrift://host:9090")
    socket: str = _setting("", "unix socket for the uwsgi protocol, with nginx in front; empty: HTTP on http_host and http_port")
    http_host: str = _setting("127.0.0.1", "address for HTTP without nginx")
    http_port: int = _setting(8080, "port for HTTP without nginx", low=1, high=65_535)
    processes: int = _setting(2, "uWSGI worker processes", low=1)
    threads: int = _setting(8, "threads of each worker process", low=1)
    hot_processes: int = _setting(
        -1, "event loops that answer inference of models on this host, behind nginx; 0: the workers do; -1: one for every two cores", low=-1
    )
    workers: int = _setting(1, "task workers that run beside it; 0: none here, `outboard worker` is one", low=0, high=16)
    task_threads: int = _setting(16, "predictions of tasks that a task worker has under way at once", low=1, high=512)
    task_lease_s: float = _setting(60.0, "after which a task is taken from a worker that says nothing", low=1)
    task_heartbeat_s: float = _setting(20.0, "how often a worker says that it still has its tasks; well below the lease", low=0.1)
    task_attempts: int = _setting(3, "runs of a task whose worker, connection or model process dies", low=1)
    task_run_s: float = _setting(900.0, "longest time that one run of a task's prediction may take", low=0.1)
    task_queue_age_s: float = _setting(6 * 3600.0, "after which a task that waits has expired", low=1)
    task_queue_size: int = _setting(200_000, "unfinished tasks of all users; 0: no limit", low=0)
    task_result_ttl_s: float = _setting(24 * 3600.0, "how long inputs and results of ended tasks are kept", low=1)
    task_history_s: float = _setting(30 * 86_400.0, "how long ended tasks and deliveries are listed", low=1)
    batches_at_once: int = _setting(2, "batches that a task worker has under way at once", low=1, high=64)
    batch_requests: int = _setting(16, "requests to the model host that one batch has under way at once", low=1, high=256)
    webhook_addresses: str = _setting("public", "any: webhooks may lead to private and loopback addresses", choices=("public", "any"))
    webhook_timeout_s: float = _setting(15.0, "longest time that a webhook's receiver may take", low=0.1)
    webhook_attempts: int = _setting(
        10, "deliveries of a notice before it is given up; the waits between them grow to a day", low=1, high=10
    )
    listen_queue: int = _setting(1024, "connections that may wait to be accepted; never more than the kernel allows", low=1)
    max_body_bytes: int = _setting(64 * _MIB, "largest request body", low=1024)
    max_upload_bytes: int = _setting(4096 * _MIB, "largest file of a model, script or batch that is uploaded", low=1024)
    upload_timeout_s: float = _setting(600.0, "longest time that taking in a file, and having a model host try it, may take", low=1)
    upload_ttl_s: int = _setting(86_400, "after which an upload in pieces that was not used is removed", low=60)
    max_uploads: int = _setting(20, "uploads in pieces of one user that are open at once", low=1)
    purge_after_days: int = _setting(30, "how long a deleted model can be restored", low=0)
    test_memory_bytes: int = _setting(4096 * _MIB, "memory of all models together that are loaded to be tried", low=1)
    test_idle_s: float = _setting(300.0, "after which a model that was tried is unloaded", low=1)
    max_samples: int = _setting(10_000, "rows, lines, files or frames of one call", low=1)
    max_unpacked_bytes: int = _setting(512 * _MIB, "bytes of a zip archive of inputs, unpacked", low=1024)
    request_timeout_s: float = _setting(30.0, "longest time that a request may take", low=0.1)
    stream_timeout_s: float = _setting(3600.0, "longest time that a stream of answers may take", low=0.1)
    max_streams: int = _setting(512, "streams of answers open at once, for each event loop", low=1)
    drain_timeout_s: float = _setting(30.0, "how long requests in flight may go on after a stop was asked for", low=0.0)
    ready_timeout_s: float = _setting(2.0, "longest wait for a model host in a readiness check", low=0.1)
    max_image_pixels: int = _setting(50_000_000, "most pixels that a picture may have", low=1)
    access_token_ttl_s: int = _setting(900, "life of an access token", low=1)
    refresh_token_ttl_s: int = _setting(30 * 86_400, "life of a refresh token that is not used", low=1)
    sign_in_failures: int = _setting(5, "failed sign-ins at once for one user from one address", low=1)
    sign_in_failure_interval_s: float = _setting(30.0, "after which one more failed sign-in is allowed", low=0.001)
    registration: str = _setting("open", "closed: new accounts need a sign-up token", choices=("open", "closed"))
    registrations: int = _setting(100, "new accounts at once from one address", low=1)
    registration_interval_s: float = _setting(10.0, "after which one more is allowed", low=0.001)
    email_address: str = _setting("optional", "required: no account without an e-mail address", choices=("optional", "required"))
    unverified_sign_in: str = _setting(
        "allowed", "refused: whoever has given an e-mail address confirms it before the first sign-in", choices=("allowed", "refused")
    )
    code_requests: int = _setting(3, "codes at once for one e-mail address; ten times as many asked for from one address", low=1)
    code_request_interval_s: float = _setting(300.0, "after which one more code is sent to an e-mail address", low=0.001)
    smtp_host: str = _setting("", "mail server for codes; empty: they are in the log and in the administrator's outbox")
    smtp_port: int = _setting(587, "its port", low=1, high=65_535)
    smtp_tls: str = _setting("starttls", "how the way to it is kept secret", choices=("starttls", "tls", "none"))
    smtp_ca: str = _setting("", "PEM file of the authorities of its certificate; empty: the system's")
    smtp_user: str = _setting("", "who signs in at the mail server; empty: nobody")
    smtp_password: str = _setting("", "with which password", secret=True)
    smtp_sender: str = _setting("", "the e-mail address that letters come from")
    oidc_issuer: str = _setting("", "https address of an OpenID provider to sign in at; empty: none. Needs public_url")
    oidc_client_id: str = _setting("", "what the gateway is called there")
    oidc_client_secret: str = _setting("", "its password there; empty: a public client", secret=True)
    oidc_scopes: str = _setting("openid email profile", "what is asked for there")
    oidc_ca: str = _setting("", "PEM file of the authorities of its certificate; empty: the system's")
    oidc_accounts: str = _setting(
        "create", "what an identity without an account gets: a new one; or linked: none", choices=("create", "linked")
    )
    oidc_link_by_email: str = _setting(
        "never",
        "verified: an identity gets the account of its e-mail address, where both sides have verified it",
        choices=("never", "verified"),
    )
    watch_interval_s: float = _setting(
        10.0, "how often deployments' statistics are collected, and they are scaled and sent to sleep", low=0.1
    )
    scale_up_queue_ms: float = _setting(20.0, "mean wait of requests from which a deployment gets one more instance", low=0.0)
    scale_down_after_s: float = _setting(60.0, "how long one instance less must have been enough for it to go", low=0.0)
    quota_models: int = _setting(1_000, "models of one user; 0: no limit", low=0)
    quota_bytes: int = _setting(100 << 30, "bytes of one user's models; 0: no limit", low=0)
    quota_deployments: int = _setting(100, "deployments of one user; 0: no limit", low=0)
    quota_instances: int = _setting(64, "processes on each model host of one user's deployments, at their most; 0: no limit", low=0)
    quota_tasks: int = _setting(100_000, "unfinished tasks of one user; 0: no limit", low=0)
    trace_endpoint: str = _setting("", "where traces are sent over OTLP/HTTP, such as http://127.0.0.1:4318; empty: nowhere")
    trace_rate: float = _setting(1.0, "share of the requests without a traceparent that begin a trace", low=0.0, high=1)
    log_level: str = _setting("info", "debug adds one line a request", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        for spec in fields(self):
            _check(spec, getattr(self, spec.name))
        if self.socket and max(len(str(path).encode()) for path in (self.socket_path, *self.hot_sockets)) > MAX_SOCKET_PATH:
            raise SettingsError(f"{PREFIX}SOCKET is longer than the {MAX_SOCKET_PATH} bytes that a unix socket's path may have")
        if self.trace_endpoint:
            try:
                Endpoint.parse(self.trace_endpoint)
            except ValueError as error:
                raise SettingsError(f"{PREFIX}TRACE_ENDPOINT: {error}") from None
        self._check_together()
        if self.secret_key and len(self.secret_key) < 32:
            raise SettingsError(f"{PREFIX}SECRET_KEY has {len(self.secret_key)} characters, at least 32 are needed")

    def _check_together(self) -> None:
        """What one setting needs of others."""
        if self.smtp_host and not self.smtp_sender:
            raise SettingsError(f"{PREFIX}SMTP_HOST needs {PREFIX}SMTP_SENDER")
        if self.oidc_issuer:
            for name in ("oidc_client_id", "public_url"):
                if not getattr(self, name):
                    raise SettingsError(f"{PREFIX}OIDC_ISSUER needs {PREFIX}{name.upper()}")
            if not is_safe_url(self.oidc_issuer):
                raise SettingsError(f"{PREFIX}OIDC_ISSUER must begin with https://, or http:// on this machine")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises SettingsError that names the variable, also for a variable with the prefix that is no setting."""
        by_key = {PREFIX + spec.name.upper(): spec for spec in fields(cls)}
        values: dict[str, Any] = {}
        for key, text in environ.items():
            if not key.startswith(PREFIX):
                continue
            spec = by_key.get(key)
            if spec is None:
                raise SettingsError(f"{key} is not a setting")
            values[spec.name] = _parse(key, spec, text)
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """The variables that `from_env` reads this value from, the ones with a default left out."""
        changed = [spec for spec in fields(self) if getattr(self, spec.name) != spec.default]
        return {PREFIX + spec.name.upper(): _text(getattr(self, spec.name)) for spec in changed}

    @property
    def max_request_bytes(self) -> int:
        """Of any request: a file that is uploaded, and the form around it."""
        return max(self.max_body_bytes, self.max_upload_bytes + _FORM_BYTES)

    @property
    def state_dir(self) -> Path:
        """What must survive: the database and the secret."""
        return self.data_dir.absolute() / "gateway"

    @property
    def run_dir(self) -> Path:
        """What is made anew at every start."""
        return self.data_dir.absolute() / "run"

    @property
    def uwsgi_ini(self) -> Path:
        """uWSGI's configuration."""
        return self.run_dir / "uwsgi.ini"

    @property
    def metrics_dir(self) -> Path:
        """Where the workers' counters meet."""
        return self.run_dir / "gateway-metrics"

    @property
    def socket_path(self) -> Path:
        return Path(self.socket).absolute()

    @property
    def hot_sockets(self) -> tuple[Path, ...]:
        """Where the event loops listen, one each; none without nginx in front, or with models elsewhere."""
        if not (self.socket and self.lanes):
            return ()
        path, count = self.socket_path, self.hot_processes if self.hot_processes >= 0 else half_the_cores()
        return tuple(path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1))

    @property
    def lanes(self) -> str:
        """The folder of the local lanes of the only model host, where it is on this host; else ""."""
        scheme, _, path = self.model_hosts[0].partition("://")
        return f"{path}.lane" if len(self.model_hosts) == 1 and scheme.endswith("+unix") else ""

    def __repr__(self) -> str:
        pairs = ((spec.name, getattr(self, spec.name), spec.metadata["secret"]) for spec in fields(self))
        return "Settings(" + ", ".join(f"{name}={'***' if secret and value else repr(value)}" for name, value, secret in pairs) + ")"


def is_safe_url(url: str) -> bool:
    """Whether nobody on the way can read what goes there."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _HERE))


def half_the_cores() -> int:
    """Of those that this process may use, at least 1: the other half is for the models."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_PARSERS: dict[type, Callable[[str], Any]] = {str: str, int: int, float: float, type(Path()): Path, tuple: _hosts}


def _parse(key: str, spec: "Field[Any]", text: str) -> Any:
    assert spec.default is not MISSING
    try:
        return _PARSERS[type(spec.default)](text)
    except ValueError:
        raise SettingsError(f"{key} is {text!r}, not a number") from None


def _check(spec: "Field[Any]", value: Any) -> None:
    key, low, high, choices = PREFIX + spec.name.upper(), spec.metadata["low"], spec.metadata["high"], spec.metadata["choices"]
    if low is not None and not low <= value < float("inf"):
        raise SettingsError(f"{key} is {value}, it must be at least {low}")
    if high is not None and value > high:
        raise SettingsError(f"{key} is {value}, it must be at most {high:g}")
    if choices and value not in choices:
        raise SettingsError(f"{key} is {value!r}, it must be one of {', '.join(choices)}")
    if isinstance(value, tuple) and not value:
        raise SettingsError(f"{key} names no address")
