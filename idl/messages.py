"""The contract's messages as plain values: what transports decode into and what clients are given.

gRPC and Thrift are two spellings of these. Shapes are in elements, -1 in a specification means any size. Durations say their unit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor with its raw contents (see `idl.tensors` for the layout)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class InferRequest:
    """`outputs` empty: all of them. `deadline` is in seconds of `time.monotonic()` on this machine, None without one. `traced`: whoever asks an
    executor tells of a pipeline's steps; never on a wire."""

    model_name: str
    inputs: tuple[Tensor, ...]
    model_version: str = ""
    id: str = ""
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None
    traceparent: str = ""
    traced: bool = False


@dataclass(frozen=True, slots=True)
class InferResponse:
    """`parameters` holds, besides a backend's own, `queue_us` and `compute_us`: microseconds waited and computed (integers)."""

    model_name: str
    model_version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """`versions` are the ones that are ready, ascending. `properties`: what the server decided about the model, as texts."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """`state` is UNAVAILABLE, LOADING, READY, UNLOADING or UNKNOWN; `reason` says why where it is not READY."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Duration:
    """How often, and how many nanoseconds in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Runs with `batch_size` rows in the batch; the durations share one count."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class ResponseStatistics:
    """The answers with one index within their requests, of a model that gives several: `key` is that index, from "0".

    `compute_infer`, `compute_output`: of those that were computed, and encoded; `success`, `fail`: both together; `empty_response`: there was
    no answer left, the request was over; `cancel`: nobody waited for it any more, and how long giving it up took.
    """

    key: str
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    success: Duration = Duration()
    fail: Duration = Duration()
    empty_response: Duration = Duration()
    cancel: Duration = Duration()


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """`kind`: CPU or GPU, and `id` which of them; of all instances."""

    kind: str
    id: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """`last_inference`: milliseconds since the epoch, 0 for never.

    `cancel`: requests that nobody waited for any more or whose deadline had passed; they are among `fail`. `cache_hit`, `cache_miss`: look-ups
    in a cache of answers. `responses`: of a model that gives several answers, by their place among them.
    """

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()
    cancel: Duration = Duration()
    batches: tuple[BatchStatistics, ...] = ()
    memory: tuple[MemoryUsage, ...] = ()
    responses: tuple[ResponseStatistics, ...] = ()


@dataclass(frozen=True, slots=True)
class SharedRegion:
    """`byte_size` bytes from `offset` on of the POSIX shared memory object `key`, registered as `name`."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class HostModel:
    """One loaded version on a model host; `memory_bytes` is resident and private, of all its instances.

    `cpus` and `memory_reserved_bytes`: what is reserved for all of them, 0 for nothing. `instances`: those that take requests. `reason`
    says why where `state` is not READY.
    """

    name: str
    version: str
    state: str
    memory_bytes: int
    in_flight: int
    cpus: float = 0.0
    memory_reserved_bytes: int = 0
    instances: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a model host has and what is loaded there. `cpus_free` and `memory_free_bytes` are what can still be reserved: that nobody uses
    them now is another matter (`memory_available_bytes`).
    """

    cpus: float
    memory_bytes: int
    memory_available_bytes: int
    disk_available_bytes: int
    execution_providers: tuple[str, ...]
    models: tuple[HostModel, ...]
    cpus_reserved: float = 0.0
    cpus_free: float = 0.0
    memory_reserved_bytes: int = 0
    memory_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ScriptReport:
    """Of a script that can be used. `functions`: "preprocess", "postprocess" or both; `load_ms`: how long loading it took, before any call."""

    functions: tuple[str, ...]
    load_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ValidatedTensor:
    """`shape`: each axis as its size, its name in the file ("batch") or "-1". `low`, `high`, `optype` ("continuous", "categorical",
    "ordinal"), `values` (the only ones that are allowed): where the file says so.
    """

    name: str
    datatype: str
    shape: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    optype: str = ""
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Latency:
    """Of `runs` runs with `batch` rows, milliseconds."""

    batch: int
    runs: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Validation:
    """What a model host found out about a model by trying it.

    `format`: onnx, pmml, python, torchscript or torch_export. `opset` 0: none; `parameter_count` None: not known. `memory_bytes`: the most that
    the process had for it. `latencies`: on one thread, empty where no input of the host's own making runs on it (`warnings` say why).
    `model_file`: the name that the model's own file has to have in a version's folder; `files`: all paths in that folder, of a zip
    archive its entries.
    """

    format: str
    platform: str
    algorithm: str
    producer: str = ""
    opset: int = 0
    parameter_count: int | None = None
    size_bytes: int = 0
    inputs: tuple[ValidatedTensor, ...] = ()
    outputs: tuple[ValidatedTensor, ...] = ()
    memory_bytes: int = 0
    load_ms: float = 0.0
    latencies: tuple[Latency, ...] = ()
    proposed_cpus: float = 0.0
    proposed_memory_bytes: int = 0
    warnings: tuple[str, ...] = ()
    model_file: str = ""
    files: tuple[str, ...] = ()
