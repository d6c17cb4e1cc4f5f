"""The client: addresses and options in, verbs out. It keeps no state but its connections."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from numpy.typing import ArrayLike

from idl.codes import ServingError
from idl.messages import (
    Capacity,
    InferRequest,
    InferResponse,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ScriptReport,
    ServerMetadata,
    SharedRegion,
    Validation,
)
from idl.traces import Tracer
from inference_client import channel as verbs
from inference_client.addresses import parse
from inference_client.channel import (
    DrainOrder,
    DrainState,
    InstancesOrder,
    LabelsOrder,
    LocalFile,
    ModelName,
    RawAnswers,
    RemoteFile,
    Removal,
    RepositoryChange,
    TraceOrder,
    Verb,
)
from inference_client.connections import Connections, Options
from inference_client.deadline import Deadline
from inference_client.files import sha256_of, size_of, trial_files
from inference_client.lane_channel import LaneChannel
from inference_client.result import InferResult, to_result, to_tensors
from inference_client.streams import Answers
from inference_client.tls import Credentials, Tls

Q = TypeVar("Q")
R = TypeVar("R")

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_SLOWEST_COPY = 1024 * 1024
"""Bytes a second: with less than this a copy runs into its default deadline."""
_TRIAL_S = 120.0
"""What a validation may take besides, where its caller says nothing: twice the host's own default."""


class Client:
    """Calls one model host, or the hosts of one service in turn. Thread-safe; connects at the first call; usable in a forked child.

    `addresses`: one or several of `thrift://host:port`, `thrift+unix:///path`, `grpc://host:port`, `grpc+unix:///path`, `host:port`
    for gRPC, or with TLS `thrifts://host:port` and `grpcs://host:port`; all of one protocol. Every method raises `ServingError` and nothing else of its own. `timeout_s`, of the client or of one
    call, is for the whole call: connecting, waiting for a free connection, and every retry. With several hosts one that cannot be
    reached is set aside for a while, and a request that provably did not run goes to the next. Where the server of a unix socket lets us,
    inference goes to the model's process directly, over the local lane; then no token is asked for. In a child that was forked while another
    thread was inside gRPC, gRPC itself does not work; Thrift does.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        token: str = "",
        timeout_s: float = 30.0,
        connect_timeout_s: float = 2.0,
        max_connections: int = 32,
        max_message_bytes: int = _MAX_MESSAGE_BYTES,
        local_lane: bool = True,
        tracer: Tracer | None = None,
        tls: Tls | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_connections` is per host, and for Thrift: gRPC has one. `local_lane` False: RPC also where a unix socket's server has one.
        `tracer`: who is told of requests with a `traceparent` that take the local lane, where no server does it; its owner closes it.
        `tls`: for addresses with TLS; None: the system's authorities, and no certificate of the client's own.

        Raises ValueError for an address, a limit, or a file of `tls` that cannot be.
        """
        parsed = tuple(parse(text) for text in ([addresses] if isinstance(addresses, str) else addresses))
        if len({address.protocol for address in parsed}) != 1:
            raise ValueError("a client needs at least one address, and all of one protocol")
        if not (timeout_s > 0 and connect_timeout_s > 0 and max_connections > 0 and 0 < max_message_bytes < 2**31):
            raise ValueError("time-outs and limits must be above 0, and a message below 2 GiB")
        secure = any(address.secure for address in parsed)
        if tls is not None and not secure:
            raise ValueError("tls is for addresses that begin with thrifts:// or grpcs://")
        self._timeout_s = timeout_s
        self._max_message_bytes = max_message_bytes
        self._clock = clock
        options = Options(
            token=token,
            connect_timeout_s=connect_timeout_s,
            max_connections=max_connections,
            max_message_bytes=max_message_bytes,
            local_lane=local_lane,
            tracer=tracer,
            credentials=Credentials(tls or Tls()) if secure else None,
        )
        self._connections = Connections(parsed, options, clock)

    @property
    def max_message_bytes(self) -> int:
        """Of a request, and of its answer."""
        return self._max_message_bytes

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        datatypes: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
        traceparent: str = "",
    ) -> InferResult:
        """One inference. `inputs`: name -> array; text and bytes are BYTES. `outputs`: the wanted ones, empty for all.

        `datatypes`: input name -> type where numpy's does not say it ("BF16" for uint16 bit patterns).
        """
        at = self._clock() + (self._timeout_s if timeout_s is None else timeout_s)
        if not (parameters or datatypes or traceparent) and (local := self._local()) is not None:
            try:
                result = local.infer_arrays(model, version, inputs, outputs, request_id, at)
            except ServingError as error:
                error.request_id = error.request_id or request_id
                raise
            if result is not None:
                return result
        tensors = to_tensors(inputs, datatypes or {})
        return to_result(
            self.infer_raw(InferRequest(model, tensors, version, request_id, tuple(outputs), parameters or {}, at, traceparent))
        )

    def infer_raw(self, request: InferRequest, *, timeout_s: float | None = None, watch: int = -1) -> InferResponse:
        """The same with raw contents, which are passed on unread. The request's own deadline counts as well, and alone without `timeout_s`.

        `watch`: a descriptor, such as that of the connection that the request came on, whose hang-up ends the call with cancelled: what still
        waits is then not run.
        """
        at = request.deadline
        if at is None or timeout_s is not None:
            latest = self._clock() + (self._timeout_s if timeout_s is None else timeout_s)
            at = latest if at is None else min(at, latest)
        deadline = Deadline(at, self._clock, watch)
        try:
            return self._send(verbs.MODEL_INFER, request, deadline)
        except ServingError as error:
            error.request_id = error.request_id or request.id
            raise

    def stream(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        datatypes: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
        traceparent: str = "",
    ) -> Answers:
        """All answers of a model that gives several for a request, each when it is asked for; of any other model its one.

        `timeout_s` is for all of them, None: as long as they take. The rest as `infer`. A model computes only a few answers ahead of who
        asks for them.
        """
        tensors = to_tensors(inputs, datatypes or {})
        at = None if timeout_s is None else self._clock() + timeout_s
        return Answers(
            self.stream_raw(InferRequest(model, tensors, version, request_id, tuple(outputs), parameters or {}, at, traceparent))
        )

    def stream_raw(self, request: InferRequest, *, watch: int = -1) -> RawAnswers:
        """The same with raw contents. `watch` as in `infer_raw`."""
        deadline = Deadline(float("inf") if request.deadline is None else request.deadline, self._clock, watch)
        return self._connections.mine().stream(request, deadline)

    def server_live(self, *, timeout_s: float | None = None) -> bool:
        return self._call(verbs.SERVER_LIVE, None, timeout_s)

    def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Of the host whose turn it is."""
        return self._call(verbs.SERVER_READY, None, timeout_s)

    def model_ready(self, name: str, version: str = "", *, timeout_s: float | None = None) -> bool:
        """False, not an error, for a model or version that is not there."""
        return self._call(verbs.MODEL_READY, ModelName(name, version), timeout_s)

    def server_metadata(self, *, timeout_s: float | None = None) -> ServerMetadata:
        return self._call(verbs.SERVER_METADATA, None, timeout_s)

    def model_metadata(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelMetadata:
        return self._call(verbs.MODEL_METADATA, ModelName(name, version), timeout_s)

    def model_config(self, name: str, version: str = "", *, timeout_s: float | None = None) -> dict[str, Any]:
        """protobuf's JSON mapping of `inference.ModelConfig`, with the IDL's field names; the same over both protocols."""
        return self._call(verbs.MODEL_CONFIG, ModelName(name, version), timeout_s)

    def model_statistics(self, name: str = "", version: str = "", *, timeout_s: float | None = None) -> tuple[ModelStatistics, ...]:
        """Of one model, or of all."""
        return self._call(verbs.MODEL_STATISTICS, ModelName(name, version), timeout_s)

    def repository_index(self, ready: bool = False, *, timeout_s: float | None = None) -> tuple[ModelIndex, ...]:
        """Every version in the repository with its state, or only those that are ready."""
        return self._call(verbs.REPOSITORY_INDEX, ready, timeout_s)

    def load_model(self, name: str, parameters: Mapping[str, Any] | None = None, *, timeout_s: float | None = None) -> None:
        """Returns when the model serves. Parameter `version`: load exactly that one. One host only, as all that follow."""
        self._call(verbs.REPOSITORY_MODEL_LOAD, RepositoryChange(name, parameters or {}), timeout_s)

    def unload_model(self, name: str, parameters: Mapping[str, Any] | None = None, *, timeout_s: float | None = None) -> None:
        self._call(verbs.REPOSITORY_MODEL_UNLOAD, RepositoryChange(name, parameters or {}), timeout_s)

    def shared_memory_status(self, name: str = "", *, timeout_s: float | None = None) -> tuple[SharedRegion, ...]:
        """The regions of system shared memory that are registered, or the one of that name."""
        return self._call(verbs.SHARED_MEMORY_STATUS, name, timeout_s)

    def register_shared_memory(self, region: SharedRegion, *, timeout_s: float | None = None) -> None:
        self._call(verbs.SHARED_MEMORY_REGISTER, region, timeout_s)

    def unregister_shared_memory(self, name: str = "", *, timeout_s: float | None = None) -> None:
        """ "" for every region."""
        self._call(verbs.SHARED_MEMORY_UNREGISTER, name, timeout_s)

    def trace_settings(
        self, model: str = "", settings: Mapping[str, Sequence[str]] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, list[str]]:
        """Changes `settings`, of a model or of the server, and tells all that count now. An empty list takes a setting back."""
        return self._call(verbs.TRACE_SETTING, TraceOrder(model, settings or {}), timeout_s)

    def log_settings(
        self, settings: Mapping[str, bool | int | str] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, bool | int | str]:
        """Changes `settings` and tells all that count now."""
        return self._call(verbs.LOG_SETTINGS, settings or {}, timeout_s)

    def put_file(
        self,
        path: str | os.PathLike[str],
        model: str,
        version: int,
        file_name: str,
        progress: Callable[[int, int], None] | None = None,
        *,
        user: bool = False,
        timeout_s: float | None = None,
    ) -> RemoteFile:
        """Copies a local file to `<model>/<version>/<file_name>` of the host's repository, verified by its SHA-256.

        `user`: to the users' repository, where a model is called `owner.deployment` or `owner.model.test` (each part letters, digits, "_" and
        "-", 64 at most), a file name may have folders in it (`a/b/c/name`), and a file beside the versions (version 0) takes the place of
        the one before; everywhere else other bytes at a name that is taken are already_exists. So is a name that the operator's
        repository has. `progress(sent, all)` in bytes, called from another thread. Without `timeout_s` it may take the client's own
        time-out and a second for each MiB. Raises OSError as well, for the local file.
        """
        source = Path(path)
        size = source.stat().st_size
        file = LocalFile(source, model, version, file_name, size, sha256_of(source), progress, user)
        return self._call(verbs.PUT_FILE, file, timeout_s or self._timeout_s + size / _SLOWEST_COPY)

    def remove_model(self, name: str, version: int = 0, *, timeout_s: float | None = None) -> bool:
        """Unloads a model of the users' repository, or one version of it (0: all), and removes its files. False: it was not there. Raises
        forbidden for an operator's model.
        """
        return self._call(verbs.REMOVE_MODEL, Removal(name, version), timeout_s)

    def validate(
        self,
        files: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | tuple[str, BinaryIO]],
        *,
        timeout_s: float | None = None,
    ) -> Validation:
        """The host tries a model that lies in no repository, in a limited process, and tells what it is; it keeps nothing of it.

        `files`: paths, sent under their last name, and pairs of a name (`a/b/c/name` at most) and an open binary file, read from where it
        stands. Their content says what they are: ONNX with the files of its weights, PMML, TorchScript, torch.export, `model.py` and what
        belongs to it, or a zip archive of these; `model.toml` may be among them. Raises invalid_model with the reason where the host would
        not serve it, or it hangs, dies or takes too much memory; too_large; overloaded (with a wait); unsupported where the host lacks what
        the format needs; insufficient_capacity. Raises OSError as well, for the local files, and ValueError for none.
        """
        sent = trial_files(files)
        known = sum(size_of(file.source) for file in sent)
        return self._call(verbs.VALIDATE, sent, timeout_s or self._timeout_s + _TRIAL_S + known / _SLOWEST_COPY)

    def validate_script(self, source: bytes, *, timeout_s: float | None = None) -> ScriptReport:
        """The host looks at a user's script: it is compiled and loaded in a box, none of its functions is called, and nothing of it is kept.

        `source`: UTF-8, at most 256 KiB. Raises invalid_input with the reason, and the line where there is one; overloaded (with a wait) where
        enough scripts are looked at; unsupported where the host has no box.
        """
        return self._call(verbs.VALIDATE_SCRIPT, source, timeout_s)

    def capacity(self, *, timeout_s: float | None = None) -> Capacity:
        """What the host has and what is loaded there."""
        return self._call(verbs.CAPACITY, None, timeout_s)

    def drain(self, timeout_s: float, resume: bool = False) -> DrainState:
        """The host takes no new inference and finishes what is in flight, for at most `timeout_s`; `resume` takes it back."""
        return self._call(verbs.DRAIN, DrainOrder(timeout_s, resume), self._timeout_s + timeout_s)

    def set_instances(self, model: str, count: int, version: str = "", *, timeout_s: float | None = None) -> None:
        """How many processes serve the model; returns when they do. `version` empty: each version that serves."""
        self._call(verbs.SET_INSTANCES, InstancesOrder(model, version, count), timeout_s)

    def set_labels(self, model: str, labels: Mapping[str, int], canary_percent: int = 0, *, timeout_s: float | None = None) -> None:
        """What the labels mean from now on, all of them, and the percentage of requests without a version for "canary"."""
        self._call(verbs.SET_LABELS, LabelsOrder(model, labels, canary_percent), timeout_s)

    def close(self) -> None:
        """Calls under way finish; later ones are refused with unavailable. Idempotent."""
        self._connections.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._clock() + (self._timeout_s if timeout_s is None else timeout_s), self._clock)

    def _call(self, verb: Verb[Q, R], request: Q, timeout_s: float | None) -> R:
        return self._send(verb, request, self._deadline(timeout_s))

    def _send(self, verb: Verb[Q, R], request: Q, deadline: Deadline) -> R:
        return self._connections.mine().call(verb, request, deadline)

    def _local(self) -> LaneChannel | None:
        """The way to the only host, where that is this machine."""
        channel = self._connections.mine().only
        return channel if isinstance(channel, LaneChannel) else None
