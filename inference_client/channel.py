"""The seam between `Client` and the protocols: typed verbs, one `Channel` per host, and what a failed call tells about its request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from idl.codes import Code, ServingError
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
from inference_client.deadline import Deadline

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Verb(Generic[Q, R]):
    """`name` as the contract spells it. `reads`: changes nothing, so that it may be sent twice. `changes`: changes the one host it reaches."""

    name: str
    reads: bool = False
    changes: bool = False


@dataclass(frozen=True, slots=True)
class ModelName:
    """`version` empty: the one that serves by default; for statistics `name` empty: all."""

    name: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class RepositoryChange:
    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to copy to `<model>/<version>/<file_name>`; `progress` is called with (bytes sent, bytes in all). `user`: of the users'
    repository.
    """

    path: Path
    model_name: str
    version: int
    file_name: str
    size: int
    sha256: str
    progress: Callable[[int, int], None] | None
    user: bool = False


@dataclass(frozen=True, slots=True)
class TrialFile:
    """A file to validate: `name` is its path in a version's folder; of a `Path` the content is read when it is sent."""

    name: str
    source: Path | BinaryIO


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the host stored; `existed`: the same bytes were there already."""

    size: int
    sha256: str
    existed: bool


@dataclass(frozen=True, slots=True)
class Removal:
    """`version` 0: the whole model."""

    name: str
    version: int


@dataclass(frozen=True, slots=True)
class StreamOrder:
    """Several answers are wanted to `request`; `timeout_ms` for all of them, 0: no limit."""

    request: InferRequest
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class StreamTurn:
    """The next answers of `stream`, a cursor: at most `most`, after waiting at most `wait_ms` for the first of them."""

    stream: str
    most: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """`done`: these are the last, and the cursor is closed."""

    stream: str
    answers: tuple[InferResponse, ...]
    done: bool


@dataclass(frozen=True, slots=True)
class DrainOrder:
    timeout_s: float
    resume: bool


@dataclass(frozen=True, slots=True)
class InstancesOrder:
    """`version` empty: every version that serves."""

    name: str
    version: str
    count: int


@dataclass(frozen=True, slots=True)
class LabelsOrder:
    """`labels`: label -> version, all of them."""

    name: str
    labels: Mapping[str, int]
    canary_percent: int


@dataclass(frozen=True, slots=True)
class TraceOrder:
    """Settings to change, none to ask only; `model` "": the server's. A setting with an empty list: what stands above it counts again."""

    model: str
    settings: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class DrainState:
    """`drained`: nothing is in flight."""

    drained: bool
    in_flight: int


@dataclass(frozen=True, slots=True)
class ControlTurn:
    """One call of a control verb over Thrift: `messages` as protobuf writes them, `last` where none follows. `call` "": it begins."""

    verb: str
    call: str
    messages: tuple[bytes, ...]
    last: bool
    cancel: bool
    wait_ms: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class ControlReply:
    """`message`: the answer, where it is `done`."""

    call: str
    done: bool
    message: bytes | memoryview


SERVER_LIVE: Verb[None, bool] = Verb("ServerLive", reads=True)
SERVER_READY: Verb[None, bool] = Verb("ServerReady", reads=True)
MODEL_READY: Verb[ModelName, bool] = Verb("ModelReady", reads=True)
SERVER_METADATA: Verb[None, ServerMetadata] = Verb("ServerMetadata", reads=True)
MODEL_METADATA: Verb[ModelName, ModelMetadata] = Verb("ModelMetadata", reads=True)
MODEL_INFER: Verb[InferRequest, InferResponse] = Verb("ModelInfer")
STREAM_OPEN: Verb[StreamOrder, StreamChunk] = Verb("StreamOpen")
STREAM_NEXT: Verb[StreamTurn, StreamChunk] = Verb("StreamNext")
STREAM_CLOSE: Verb[str, None] = Verb("StreamClose")
MODEL_CONFIG: Verb[ModelName, dict[str, Any]] = Verb("ModelConfig", reads=True)
MODEL_STATISTICS: Verb[ModelName, tuple[ModelStatistics, ...]] = Verb("ModelStatistics", reads=True)
REPOSITORY_INDEX: Verb[bool, tuple[ModelIndex, ...]] = Verb("RepositoryIndex", reads=True)
REPOSITORY_MODEL_LOAD: Verb[RepositoryChange, None] = Verb("RepositoryModelLoad", changes=True)
REPOSITORY_MODEL_UNLOAD: Verb[RepositoryChange, None] = Verb("RepositoryModelUnload", changes=True)
SHARED_MEMORY_STATUS: Verb[str, tuple[SharedRegion, ...]] = Verb("SystemSharedMemoryStatus", reads=True)
SHARED_MEMORY_REGISTER: Verb[SharedRegion, None] = Verb("SystemSharedMemoryRegister", changes=True)
SHARED_MEMORY_UNREGISTER: Verb[str, None] = Verb("SystemSharedMemoryUnregister", changes=True)
TRACE_SETTING: Verb[TraceOrder, dict[str, list[str]]] = Verb("TraceSetting", changes=True)
LOG_SETTINGS: Verb[Mapping[str, bool | int | str], dict[str, bool | int | str]] = Verb("LogSettings", changes=True)
PUT_FILE: Verb[LocalFile, RemoteFile] = Verb("PutFile", changes=True)
CAPACITY: Verb[None, Capacity] = Verb("Capacity", reads=True)
DRAIN: Verb[DrainOrder, DrainState] = Verb("Drain", changes=True)
SET_INSTANCES: Verb[InstancesOrder, None] = Verb("SetInstances", changes=True)
SET_LABELS: Verb[LabelsOrder, None] = Verb("SetLabels", changes=True)
REMOVE_MODEL: Verb[Removal, bool] = Verb("RemoveModel", changes=True)
CONTROL: Verb[ControlTurn, ControlReply] = Verb("Control", changes=True)
VALIDATE: Verb[Sequence[TrialFile], Validation] = Verb("Validate", changes=True)
VALIDATE_SCRIPT: Verb[bytes, ScriptReport] = Verb("ValidateScript", reads=True)


class RawAnswers(Protocol):
    """As a channel gives them; not thread-safe."""

    def next(self, until: float | None = None) -> InferResponse | None:
        """The next one, None after the last. Raises ServingError. `until` (monotonic seconds): raises TimeoutError where none has come by
        then, or where that cannot be known.
        """
        ...

    def close(self) -> None:
        """What is left is given up, and not computed. Idempotent."""
        ...


class Channel(Protocol):
    """Calls to one host. Thread-safe."""

    def call(self, verb: Verb[Q, R], request: Q, deadline: Deadline) -> R:
        """Raises `Unreachable` or `Lost`, or the ServingError that the host declared; `unsupported` for a verb the protocol lacks."""
        ...

    def stream(self, request: InferRequest, deadline: Deadline) -> RawAnswers:
        """Several answers to one request. Raises as `call`, here or where they are asked for."""
        ...

    def close(self) -> None:
        """Calls under way finish; later ones are refused. Idempotent."""
        ...

    def abandon(self) -> None:
        """In a forked child: lets go of what the parent had open, without a word to the peer and without taking a lock."""
        ...


class Unreachable(ServingError):
    """No byte of the request left this process: it may be sent elsewhere, whatever it does."""

    def __init__(self, reason: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"the model host cannot be reached: {reason}")
        self.reason = reason


class Lost(ServingError):
    """The request was sent, or may have been, and what became of it is not known."""


def closed() -> ServingError:
    """What a call gets after `close`."""
    return ServingError(Code.UNAVAILABLE, "the client is closed")


def too_large(what: str, size: int, limit: int) -> ServingError:
    return ServingError(Code.TOO_LARGE, f"the {what} has {size} bytes, at most {limit} are allowed")
