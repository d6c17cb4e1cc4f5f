"""Everything that can be set about the server, in one frozen value. Nothing else reads the environment."""

import dataclasses
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from idl.trace_export import Endpoint

PREFIX = "OUTBOARD_SERVER_"


class InvalidSettings(ValueError):
    """A setting cannot be used; the message names it and the value."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Ports: 0 takes a free one, -1 opens none. Sizes are bytes, times seconds. Empty socket paths open none.

    `tls_certificate`, `tls_key`, `tls_client_ca`: PEM files; with the last, callers must have a certificate of that authority.
    `models`: repository roots, the first one wins where two hold the same model. `push_dir`: where pushed models go that no root has;
    empty means the first root. `user_models`: the repository of users' models, None for none. `run_dir` holds the executors' sockets; empty means a fresh folder for temporary files. `memory_limits`:
    "auto" (control groups where they can be used, else watching) or "watch". `shared_memory`: callers may register POSIX shared memory. `kept_memory_bytes` cannot be reserved by models.
    `sandbox`: "auto" (each model's own settings say) or "required" (no code without one).
    `validations`: how many at once, 0 for none at all; of one `validation_max_bytes` are its files', `validation_memory_bytes` its process's.
    """

    models: tuple[Path, ...] = ()
    push_dir: Path | None = None
    user_models: Path | None = None
    run_dir: Path | None = None
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    thrift_port: int = 9090
    metrics_port: int = 8002
    grpc_socket: Path | None = None
    thrift_socket: Path | None = None
    token: str = dataclasses.field(default="", repr=False)
    token_file: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False
    max_message_bytes: int = 64 * 2**20
    grpc_front: str = "auto"
    grpc_front_processes: int = 0
    grpc_threads: int = 16
    thrift_threads: int = 16
    thrift_idle_timeout_s: float = 600.0
    max_connections: int = 4096
    request_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    model_threads: int = 0
    memory_limits: str = "auto"
    kept_memory_bytes: int = 512 * 2**20
    hang_grace_s: float = 10.0
    sandbox: str = "auto"
    validations: int = 2
    validation_max_bytes: int = 2 * 2**30
    validation_memory_bytes: int = 2 * 2**30
    validation_timeout_s: float = 60.0
    execution_providers: tuple[str, ...] = ("CPUExecutionProvider",)
    model_control: str = "explicit"
    poll_interval_s: float = 5.0
    shared_memory: bool = False
    log_level: str = "info"
    trace_endpoint: str = ""
    trace_rate: float = 1.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **overrides: Any) -> "Settings":
        """Reads `OUTBOARD_SERVER_*`; `overrides` (a command line's, None for not given) win. Raises InvalidSettings."""
        known = {PREFIX + field.name.upper(): field for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, text in environ.items():
            if not key.startswith(PREFIX):
                continue
            if key not in known:
                raise InvalidSettings(f"{key} is not a setting; known are {', '.join(sorted(known))}")
            values[known[key].name] = _parse(key, known[key].type, text)
        values |= {name: value for name, value in overrides.items() if value is not None}
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        if not self.models:
            raise InvalidSettings("no model repository is named: give --models DIR or OUTBOARD_SERVER_MODELS")
        if self.user_models and any(_overlap(self.user_models, root) for root in (*self.models, *filter(None, (self.push_dir,)))):
            raise InvalidSettings(f"{PREFIX}USER_MODELS = {str(self.user_models)!r} and an operator's repository lie in one another")
        for port in (self.grpc_port, self.thrift_port, self.metrics_port):
            if not -1 <= port <= 65535:
                raise InvalidSettings(f"port {port} is not a port")
        for name in ("max_message_bytes", "grpc_threads", "thrift_threads", "max_connections", "validation_max_bytes"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"{PREFIX}{name.upper()} = {getattr(self, name)} is below 1")
        for name in ("kept_memory_bytes", "hang_grace_s", "validations"):
            if getattr(self, name) < 0:
                raise InvalidSettings(f"{PREFIX}{name.upper()} = {getattr(self, name)} is below 0")
        if self.validation_memory_bytes < 64 * 2**20 or not 1 <= self.validation_timeout_s <= 3600:
            raise InvalidSettings(f"{PREFIX}VALIDATION_MEMORY_BYTES is from 67108864, and {PREFIX}VALIDATION_TIMEOUT_S from 1 to 3600")
        if self.memory_limits not in ("auto", "watch"):
            raise InvalidSettings(f"{PREFIX}MEMORY_LIMITS = {self.memory_limits!r} is neither auto nor watch")
        if self.sandbox not in ("auto", "required"):
            raise InvalidSettings(f"{PREFIX}SANDBOX = {self.sandbox!r} is neither auto nor required")
        if self.model_control not in ("explicit", "poll"):
            raise InvalidSettings(f"{PREFIX}MODEL_CONTROL = {self.model_control!r} is neither explicit nor poll")
        if not 0.05 <= self.poll_interval_s <= 86400:
            raise InvalidSettings(f"{PREFIX}POLL_INTERVAL_S = {self.poll_interval_s} is not from 0.05 to 86400")
        if self.grpc_front not in ("auto", "nginx", "grpcio"):
            raise InvalidSettings(f"{PREFIX}GRPC_FRONT = {self.grpc_front!r} is none of auto, nginx, grpcio")
        if not 0 <= self.grpc_front_processes <= 64:
            raise InvalidSettings(f"{PREFIX}GRPC_FRONT_PROCESSES = {self.grpc_front_processes} is not from 0 to 64")
        self._check_traces()
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise InvalidSettings(f"{PREFIX}LOG_LEVEL = {self.log_level!r} is none of debug, info, warning, error")
        self._check_access()

    def _check_access(self) -> None:
        if len(parts := self.token.split(",")) > 2 or (self.token and not all(part.strip() for part in parts)):
            raise InvalidSettings(f"{PREFIX}TOKEN holds {len(parts)} tokens between commas, or an empty one: one is taken, or two")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidSettings(f"{PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY go together")
        if self.tls_client_ca and not self.tls_certificate:
            raise InvalidSettings(f"{PREFIX}TLS_CLIENT_CA needs {PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY")
        if not (is_loopback(self.host) or self.token or self.token_file or self.tls_client_ca or self.insecure):
            raise InvalidSettings(
                f"host {self.host} can be reached from other machines and nobody has to say who they are: set {PREFIX}TOKEN, "
                f"{PREFIX}TOKEN_FILE or {PREFIX}TLS_CLIENT_CA, or say --insecure to serve everybody"
            )

    def _check_traces(self) -> None:
        if not 0 <= self.trace_rate <= 1:
            raise InvalidSettings(f"{PREFIX}TRACE_RATE = {self.trace_rate} is not from 0 to 1")
        if self.trace_endpoint:
            try:
                Endpoint.parse(self.trace_endpoint)
            except ValueError as error:
                raise InvalidSettings(f"{PREFIX}TRACE_ENDPOINT: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _overlap(one: Path, other: Path) -> bool:
    """Whether a folder is the other one, or lies in it, whichever way they are written."""
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def _parse(key: str, kind: Any, text: str) -> Any:
    """`kind` is the field's annotation."""
    try:
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
    except (ValueError, KeyError):
        raise InvalidSettings(f"{key} = {text!r} is not a {kind.__name__}") from None
    if kind is str:
        return text
    if kind == tuple[Path, ...]:
        return tuple(Path(part) for part in text.split(os.pathsep) if part)
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return Path(text) if text else None
