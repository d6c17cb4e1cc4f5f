"""A small engine that runs in the test's own process: what transports are tested with where no model is needed."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from idl.codes import Code, ServingError
from idl.messages import (
    Capacity,
    Duration,
    HostModel,
    InferRequest,
    InferResponse,
    Latency,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ScriptReport,
    ServerMetadata,
    TensorSpec,
    ValidatedTensor,
    Validation,
)
from inference_server.errors import model_not_found
from inference_server.types import FileHeader, StoredFile

SPECS = (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("text", "BYTES", (-1,)))
CONFIG = {
    "name": "echo",
    "platform": "onnxruntime_onnx",
    "maxBatchSize": 4,
    "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["3"]}],
    "versionPolicy": {"latest": {"numVersions": 1}},
}
STATISTICS = ModelStatistics(
    "echo", "1", 1_700_000_000_000, 7, 5, Duration(7, 70), Duration(1, 10), Duration(7, 1), Duration(7, 2), Duration(7, 3), Duration(7, 4)
)
CAPACITY = Capacity(
    cpus=2.0,
    memory_bytes=8 << 30,
    memory_available_bytes=4 << 30,
    disk_available_bytes=100 << 30,
    execution_providers=("CPUExecutionProvider",),
    models=(
        HostModel("echo", "1", "READY", 1 << 20, 5, cpus=1.5, memory_reserved_bytes=3 << 30, instances=2),
        HostModel("echo", "2", "UNAVAILABLE", 0, 0, reason="its process died 8 times in a row"),
    ),
    cpus_reserved=1.5,
    cpus_free=0.5,
    memory_reserved_bytes=3 << 30,
    memory_free_bytes=4 << 30,
)

VALIDATION = Validation(
    "pmml",
    "pmml",
    "TreeModel",
    "maker 1",
    17,
    0,
    inputs=(ValidatedTensor("age", "FP64", ("-1",), 0.0, None, "continuous"), ValidatedTensor("kind", "BYTES", ("batch",), values=("a",))),
    memory_bytes=1 << 20,
    load_ms=2.5,
    latencies=(Latency(8, 30, 0.5, 1.5),),
    proposed_cpus=0.25,
    proposed_memory_bytes=1 << 26,
    warnings=("slow",),
    model_file="model.pmml",
)


class EchoEngine:
    """Models: `echo` gives its inputs back; `wait` does so once `release` is set; `refuse` raises the code that its parameter
    `code` names; `broken` raises what is not ours; `large` answers with `size` bytes. `seen` holds every request that was executed.
    """

    def __init__(self) -> None:
        self.ready = True
        self.seen: list[InferRequest] = []
        self.calls: list[tuple[Any, ...]] = []
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()
        self.files: dict[str, bytes] = {}

    def server_live(self) -> bool:
        return True

    def server_ready(self) -> bool:
        return self.ready

    def model_ready(self, name: str, version: str) -> bool:
        return self.ready and name == "echo" and version in ("", "1")

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("echo-server", "1.2", ("statistics", "model_repository"))

    def model_metadata(self, name: str, version: str) -> ModelMetadata:
        if name != "echo":
            raise model_not_found(name)
        return ModelMetadata("echo", ("1", "2"), "onnxruntime_onnx", SPECS, SPECS[:1])

    def model_infer(self, request: InferRequest) -> InferResponse:
        self.seen.append(request)
        if request.deadline is not None and request.deadline <= time.monotonic():
            raise ServingError(Code.DEADLINE_EXCEEDED, "too late", request_id=request.id)
        outputs = request.inputs
        match request.model_name:
            case "wait":
                self.entered.release()
                assert self.release.wait(30)
            case "refuse":
                wait = int(request.parameters.get("retry_after_ms", 0))
                raise ServingError(Code(request.parameters["code"]), "refused as asked", retry_after_ms=wait, request_id=request.id)
            case "broken":
                raise ZeroDivisionError("secret detail in /some/path")
            case "large":
                size = int(request.parameters["size"])
                outputs = (replace(request.inputs[0], datatype="UINT8", shape=(size,), data=bytes(size)),)
            case "echo":
                pass
            case other:
                raise model_not_found(other)
        return InferResponse(request.model_name, "1", request.id, outputs, {"queue_us": 5, **request.parameters})

    def model_config(self, name: str, version: str) -> dict[str, Any]:
        if name != "echo":
            raise model_not_found(name)
        return CONFIG

    def model_statistics(self, name: str, version: str) -> tuple[ModelStatistics, ...]:
        return (STATISTICS,) if name in ("", "echo") else ()

    def repository_index(self, ready: bool) -> tuple[ModelIndex, ...]:
        both = (ModelIndex("echo", "1", "READY", ""), ModelIndex("sleepy", "2", "UNAVAILABLE", "not loaded"))
        return both[:1] if ready else both

    def repository_model_load(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.calls.append(("load", name, dict(parameters)))

    def repository_model_unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.calls.append(("unload", name, dict(parameters)))

    def put_file(self, header: FileHeader, chunks: Iterator[bytes]) -> StoredFile:
        data = b"".join(chunks)
        existed = header.file_name in self.files
        self.files[header.file_name] = data
        return StoredFile(len(data), hashlib.sha256(data).hexdigest(), existed)

    def capacity(self) -> Capacity:
        return CAPACITY

    def drain(self, resume: bool, timeout_s: float) -> tuple[bool, int]:
        self.calls.append(("drain", resume, timeout_s))
        return True, 0

    def set_instances(self, name: str, version: str, count: int) -> None:
        self.calls.append(("set_instances", name, version, count))

    def set_labels(self, name: str, labels: Mapping[str, int], canary_percent: int) -> None:
        self.calls.append(("set_labels", name, dict(labels), canary_percent))

    def remove_model(self, name: str, version: int) -> bool:
        self.calls.append(("remove_model", name, version))
        return version == 0

    def validate_script(self, source: bytes) -> ScriptReport:
        self.calls.append(("validate_script", source))
        return ScriptReport(("preprocess",), 1.5)

    def validate(self, parts: Iterator[FileHeader | bytes], deadline: float, active: Callable[[], bool]) -> Validation:
        found: dict[str, bytes] = {}
        for part in parts:
            if isinstance(part, FileHeader):
                found[name := part.file_name] = b""
            else:
                found[name] += part
        return replace(VALIDATION, size_bytes=sum(map(len, found.values())), files=tuple(found))
