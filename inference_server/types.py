"""Values that cross the server's rooms, and the Protocol that transports are written against."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from idl.messages import (
    Capacity,
    InferRequest,
    InferResponse,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ScriptReport,
    ServerMetadata,
    TensorSpec,
    Validation,
)
from idl.tensors import Array

SEQUENCE_IDLE_S, MOST_SEQUENCES = 300.0, 4096
"""How long a sequence that is not continued is kept, and how many at once, where the model's owner says nothing."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model file itself says. `batch_axis` is 0 where the first dimension of every input and output is dynamic, else None.

    `streams`: it gives several answers for one request. `notes`: what the file says of a tensor besides, in words. `functions`: of a script,
    what it has; its inputs and outputs are open, any names, types and shapes.
    """

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_axis: int | None
    streams: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)
    functions: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        return bool(self.functions)

    def to_json(self) -> dict[str, Any]:
        def specs(many: tuple[TensorSpec, ...]) -> list[list[Any]]:
            return [[spec.name, spec.datatype, list(spec.shape)] for spec in many]

        return {
            "platform": self.platform,
            "inputs": specs(self.inputs),
            "outputs": specs(self.outputs),
            "batch_axis": self.batch_axis,
            "streams": self.streams,
            "notes": dict(self.notes),
            "functions": list(self.functions),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Signature":
        def specs(many: Sequence[Sequence[Any]]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(name, datatype, tuple(shape)) for name, datatype, shape in many)

        return cls(
            said["platform"],
            specs(said["inputs"]),
            specs(said["outputs"]),
            said["batch_axis"],
            said["streams"],
            said["notes"],
            tuple(said["functions"]),
        )


class Answer(NamedTuple):
    """What a model gives for one request: `outputs` in the order in which they were wanted; `parameters`: what it says besides."""

    outputs: Sequence[Array]
    parameters: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Batching:
    """What was decided about a loaded version, by its owner or by measuring it.

    `max_batch_size` and `preferred`: rows of one run, 0 or 1: requests run one by one, and `reason` says why. Priorities as in
    `ModelSettings`, 0 for none; `default_timeout_us` 0 for ever.
    """

    max_batch_size: int = 0
    preferred: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    max_queue_size: int = 0
    priority_levels: int = 0
    default_priority: int = 0
    default_timeout_us: int = 0
    reason: str = ""

    @property
    def on(self) -> bool:
        return self.max_batch_size > 1


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What a pushed file is to become: `<model>/<version>/<file_name>`, version 0 meaning `<model>/<file_name>`. `user`: in the users'
    repository. Of a file that is validated only the name is said, and perhaps size and hash: 0 and "" where they are not.
    """

    model_name: str
    version: int
    file_name: str
    size: int
    sha256: str
    user: bool = False


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`existed`: the same bytes were there already."""

    size: int
    sha256: str
    existed: bool


class Answers(Protocol):
    """Several answers to one request; not thread-safe. To be closed: what is left of them is then not computed."""

    def next(self, until: float | None = None) -> InferResponse | None:
        """The next one, None after the last. Raises ServingError; TimeoutError where none has come by `until` (monotonic seconds)."""
        ...

    def close(self) -> None: ...


class Inference(Protocol):
    """The verbs of the open protocol, in its order; every one raises `ServingError` and nothing else. All are thread-safe."""

    def server_live(self) -> bool: ...

    def server_ready(self) -> bool: ...

    def model_ready(self, name: str, version: str) -> bool:
        """False, not an error, for a model or version that is not there."""
        ...

    def server_metadata(self) -> ServerMetadata: ...

    def model_metadata(self, name: str, version: str) -> ModelMetadata: ...

    def model_infer(self, request: InferRequest) -> InferResponse:
        """Blocks until the answer, the deadline, or a refusal."""
        ...

    def model_stream(self, request: InferRequest, watch: int = -1) -> "Answers":
        """All answers to `request`, each when it is asked for. `watch`: a descriptor whose hang-up ends it with cancelled."""
        ...

    def model_config(self, name: str, version: str) -> dict[str, Any]:
        """The model configuration, as protobuf's JSON mapping of `inference.ModelConfig`."""
        ...

    def model_statistics(self, name: str, version: str) -> tuple[ModelStatistics, ...]: ...

    def repository_index(self, ready: bool) -> tuple[ModelIndex, ...]: ...

    def repository_model_load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Loads what the repository holds now, or reloads; returns when it serves. A failure leaves what served before serving."""
        ...

    def repository_model_unload(self, name: str, parameters: Mapping[str, Any]) -> None: ...


class Operations(Protocol):
    """The verbs of `outboard.Control`; every one raises `ServingError` and nothing else."""

    def put_file(self, header: FileHeader, chunks: Iterator[bytes]) -> StoredFile: ...

    def capacity(self) -> Capacity: ...

    def drain(self, resume: bool, timeout_s: float) -> tuple[bool, int]:
        """(nothing is in flight, how many are)."""
        ...

    def set_instances(self, name: str, version: str, count: int) -> None:
        """How many processes serve a version, "" for every version that serves; returns when they do, no request is lost."""
        ...

    def set_labels(self, name: str, labels: Mapping[str, int], canary_percent: int) -> None:
        """What the labels mean from now on, all of them, and the part of the requests without a version that goes to the canary."""
        ...

    def remove_model(self, name: str, version: int) -> bool:
        """Unloads a user's model, or one version of it (0: all), and removes its files; False where it was not there."""
        ...

    def validate(self, parts: Iterator[FileHeader | bytes], deadline: float, active: Callable[[], bool]) -> Validation:
        """Tries a model without keeping it. `parts`: of each file its header, then its content. `active`: whether somebody still waits."""
        ...

    def validate_script(self, source: bytes) -> ScriptReport:
        """Looks at a user's script; nothing of it is left."""
        ...
