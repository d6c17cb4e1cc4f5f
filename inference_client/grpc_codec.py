"""The contract's values <-> gRPC messages, one pair of functions for each verb."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from idl import config_json, tensors
from idl.generated import control_pb2 as control
from idl.generated import inference_pb2 as pb
from idl.messages import (
    BatchStatistics,
    Capacity,
    Duration,
    HostModel,
    InferRequest,
    InferResponse,
    Latency,
    MemoryUsage,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ResponseStatistics,
    ScriptReport,
    ServerMetadata,
    SharedRegion,
    Tensor,
    TensorSpec,
    ValidatedTensor,
    Validation,
)
from inference_client.channel import (
    DrainOrder,
    DrainState,
    InstancesOrder,
    LabelsOrder,
    LocalFile,
    ModelName,
    RemoteFile,
    RepositoryChange,
    TraceOrder,
    TrialFile,
)

CHUNK_BYTES = 1024 * 1024
"""What one message of PutFile may carry."""
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Codec:
    """`path` is the method's full name, `reply` the class of its answer. `encode` raises ValueError and TypeError, `decode` ValueError."""

    path: str
    encode: Callable[[Any], Any]
    reply: Any
    decode: Callable[[Any], Any]


def _set_parameter(entry: Any, value: object) -> None:
    if isinstance(value, bool):
        entry.bool_param = value
    elif isinstance(value, int):
        setattr(entry, "int64_param" if value in _INT64 or isinstance(entry, pb.ModelRepositoryParameter) else "uint64_param", value)
    elif isinstance(value, float) and isinstance(entry, pb.InferParameter):
        entry.double_param = value
    elif isinstance(value, bytes) and isinstance(entry, pb.ModelRepositoryParameter):
        entry.bytes_param = value
    elif isinstance(value, str):
        entry.string_param = value
    else:
        raise TypeError(f"a parameter is a {type(value).__name__}, which this verb cannot carry")


def _set_parameters(message: Any, parameters: Mapping[str, Any]) -> Any:
    for name, value in parameters.items():
        _set_parameter(message.parameters[name], value)
    return message


def _parameters(entries: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for name, entry in entries.items():
        choice = entry.WhichOneof("parameter_choice")
        values[name] = getattr(entry, choice) if choice else None
    return values


def _encode_infer(request: InferRequest) -> Any:
    message = pb.ModelInferRequest(model_name=request.model_name, model_version=request.model_version, id=request.id)
    for tensor in request.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(tensor.data if isinstance(tensor.data, bytes) else bytes(tensor.data))
    for name in request.outputs:
        message.outputs.add(name=name)
    return _set_parameters(message, request.parameters)


def _decode_infer(reply: Any) -> InferResponse:
    raw = reply.raw_output_contents
    if raw and len(raw) != len(reply.outputs):
        raise ValueError(f"{len(raw)} raw contents for {len(reply.outputs)} outputs")
    outputs = tuple(
        Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), raw[index] if raw else _typed_bytes(tensor))
        for index, tensor in enumerate(reply.outputs)
    )
    return InferResponse(reply.model_name, reply.model_version, reply.id, outputs, _parameters(reply.parameters))


def _typed_bytes(tensor: Any) -> bytes:
    """The raw contents of an output whose server answers with typed ones."""
    fields = tensor.contents.ListFields()
    if not fields:
        return b""
    if len(fields) != 1 or tensor.datatype not in tensors.DTYPES:
        raise ValueError(f"output {tensor.name!r} of {tensor.datatype!r} has contents of {len(fields)} kinds")
    values = fields[0][1]
    if tensor.datatype == "BYTES":
        return b"".join(len(item).to_bytes(4, "little") + item for item in values)
    return np.fromiter(values, tensors.DTYPES[tensor.datatype], len(values)).tobytes()


def _spec(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape))


def _decode_metadata(reply: Any) -> ModelMetadata:
    inputs, outputs = (tuple(map(_spec, specs)) for specs in (reply.inputs, reply.outputs))
    return ModelMetadata(reply.name, tuple(reply.versions), reply.platform, inputs, outputs, dict(reply.properties))


def _statistics(model: Any) -> ModelStatistics:
    stats = model.inference_stats
    return ModelStatistics(
        model.name,
        model.version,
        model.last_inference,
        model.inference_count,
        model.execution_count,
        _duration(stats.success),
        _duration(stats.fail),
        _duration(stats.queue),
        _duration(stats.compute_input),
        _duration(stats.compute_infer),
        _duration(stats.compute_output),
        cache_hit=_duration(stats.cache_hit),
        cache_miss=_duration(stats.cache_miss),
        batches=tuple(
            BatchStatistics(each.batch_size, _duration(each.compute_input), _duration(each.compute_infer), _duration(each.compute_output))
            for each in model.batch_stats
        ),
        memory=tuple(MemoryUsage(used.type, used.id, used.byte_size) for used in model.memory_usage),
        responses=tuple(_response(key, model.response_stats[key]) for key in sorted(model.response_stats, key=_in_order)),
    )


def _in_order(key: str) -> tuple[int, str]:
    """Numbers by their size."""
    return len(key), key


def _response(key: str, each: Any) -> ResponseStatistics:
    return ResponseStatistics(
        key,
        _duration(each.compute_infer),
        _duration(each.compute_output),
        _duration(each.success),
        _duration(each.fail),
        _duration(each.empty_response),
        _duration(each.cancel),
    )


def _duration(part: Any) -> Duration:
    return Duration(part.count, part.ns)


def _index(model: Any) -> ModelIndex:
    return ModelIndex(model.name, model.version, model.state, model.reason)


def _decode_capacity(reply: Any) -> Capacity:
    return Capacity(
        reply.cpus,
        reply.memory_bytes,
        reply.memory_available_bytes,
        reply.disk_available_bytes,
        tuple(reply.execution_providers),
        tuple(map(_host_model, reply.models)),
        reply.cpus_reserved,
        reply.cpus_free,
        reply.memory_reserved_bytes,
        reply.memory_free_bytes,
    )


def _host_model(model: Any) -> HostModel:
    return HostModel(
        model.name,
        model.version,
        model.state,
        model.memory_bytes,
        model.in_flight,
        model.cpus,
        model.memory_reserved_bytes,
        model.instances,
        model.reason,
    )


def _encode_drain(order: DrainOrder) -> Any:
    return control.DrainRequest(resume=order.resume, timeout_ms=int(order.timeout_s * 1000))


def _encode_instances(order: InstancesOrder) -> Any:
    return control.SetInstancesRequest(model_name=order.name, version=order.version, count=order.count)


def _encode_labels(order: LabelsOrder) -> Any:
    return control.SetLabelsRequest(model_name=order.name, labels=order.labels, canary_percent=order.canary_percent)


class FileMessages:
    """The stream of PutFile or Validate, read from the files as it is sent. `error`: what ended it early; grpcio, which reads it, would
    only log that.
    """

    def __init__(self, sent: LocalFile | Sequence[TrialFile]) -> None:
        self.error: Exception | None = None
        self._messages = _file_messages(sent) if isinstance(sent, LocalFile) else _trial_messages(sent)
        self._given_up = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def give_up(self) -> None:
        """The call is cancelled by whoever reads next; for a caller that was interrupted before it had the call."""
        self._given_up = True

    def __next__(self) -> bytes:
        try:
            if self._given_up:
                raise InterruptedError
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise


def _file_messages(file: LocalFile) -> Iterator[bytes]:
    header = control.PutFileRequest.Header(
        model_name=file.model_name, version=file.version, file_name=file.file_name, size=file.size, sha256=file.sha256, user=file.user
    )
    yield control.PutFileRequest(header=header).SerializeToString()
    sent = 0
    with file.path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield control.PutFileRequest(chunk=chunk).SerializeToString()
            sent += len(chunk)
            if file.progress is not None:
                file.progress(sent, file.size)


def _trial_messages(files: Sequence[TrialFile]) -> Iterator[bytes]:
    for file in files:
        yield control.PutFileRequest(header=control.PutFileRequest.Header(file_name=file.name)).SerializeToString()
        with file.source.open("rb") if isinstance(file.source, Path) else nullcontext(file.source) as source:
            while chunk := source.read(CHUNK_BYTES):
                yield control.PutFileRequest(chunk=chunk).SerializeToString()


def _decode_validation(reply: Any) -> Validation:
    return Validation(
        reply.format,
        reply.platform,
        reply.algorithm,
        reply.producer,
        reply.opset,
        reply.parameter_count if reply.HasField("parameter_count") else None,
        reply.size_bytes,
        tuple(map(_validated, reply.inputs)),
        tuple(map(_validated, reply.outputs)),
        reply.memory_bytes,
        reply.load_ms,
        tuple(Latency(each.batch, each.runs, each.p50_ms, each.p99_ms) for each in reply.latencies),
        reply.proposed_cpus,
        reply.proposed_memory_bytes,
        tuple(reply.warnings),
        reply.model_file,
        tuple(reply.files),
    )


def _validated(tensor: Any) -> ValidatedTensor:
    low, high = (getattr(tensor, name) if tensor.HasField(name) else None for name in ("low", "high"))
    return ValidatedTensor(tensor.name, tensor.datatype, tuple(tensor.shape), low, high, tensor.optype, tuple(tensor.values))


def _encode_trace(order: TraceOrder) -> Any:
    kind = pb.TraceSettingRequest
    return kind(model_name=order.model, settings={name: kind.SettingValue(value=values) for name, values in order.settings.items()})


def _encode_logs(settings: Mapping[str, bool | int | str]) -> Any:
    message = pb.LogSettingsRequest()
    for name, value in settings.items():
        if isinstance(value, bool):
            message.settings[name].bool_param = value
        elif isinstance(value, int):
            message.settings[name].uint32_param = value
        else:
            message.settings[name].string_param = value
    return message


def _open(name: str, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> Codec:
    return Codec(f"/inference.GRPCInferenceService/{name}", encode, getattr(pb, f"{name}Response"), decode)


def _control(name: str, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> Codec:
    return Codec(f"/outboard.Control/{name}", encode, getattr(control, f"{name}Response"), decode)


def _named(kind: Any) -> Callable[[ModelName], Any]:
    return lambda model: kind(name=model.name, version=model.version)


def _change(kind: Any) -> Callable[[RepositoryChange], Any]:
    return lambda change: _set_parameters(kind(model_name=change.name), change.parameters)


CODECS: dict[str, Codec] = {
    "ServerLive": _open("ServerLive", lambda _: pb.ServerLiveRequest(), lambda reply: reply.live),
    "ServerReady": _open("ServerReady", lambda _: pb.ServerReadyRequest(), lambda reply: reply.ready),
    "ModelReady": _open("ModelReady", _named(pb.ModelReadyRequest), lambda reply: reply.ready),
    "ServerMetadata": _open(
        "ServerMetadata",
        lambda _: pb.ServerMetadataRequest(),
        lambda reply: ServerMetadata(reply.name, reply.version, tuple(reply.extensions)),
    ),
    "ModelMetadata": _open("ModelMetadata", _named(pb.ModelMetadataRequest), _decode_metadata),
    "ModelInfer": _open("ModelInfer", _encode_infer, _decode_infer),
    "ModelConfig": _open("ModelConfig", _named(pb.ModelConfigRequest), lambda reply: config_json.to_json(reply.config)),
    "ModelStatistics": _open(
        "ModelStatistics", _named(pb.ModelStatisticsRequest), lambda reply: tuple(map(_statistics, reply.model_stats))
    ),
    "RepositoryIndex": _open(
        "RepositoryIndex", lambda ready: pb.RepositoryIndexRequest(ready=ready), lambda reply: tuple(map(_index, reply.models))
    ),
    "RepositoryModelLoad": _open("RepositoryModelLoad", _change(pb.RepositoryModelLoadRequest), lambda _: None),
    "RepositoryModelUnload": _open("RepositoryModelUnload", _change(pb.RepositoryModelUnloadRequest), lambda _: None),
    "SystemSharedMemoryStatus": _open(
        "SystemSharedMemoryStatus",
        lambda name: pb.SystemSharedMemoryStatusRequest(name=name),
        lambda reply: tuple(SharedRegion(each.name, each.key, each.offset, each.byte_size) for each in reply.regions.values()),
    ),
    "SystemSharedMemoryRegister": _open(
        "SystemSharedMemoryRegister",
        lambda said: pb.SystemSharedMemoryRegisterRequest(name=said.name, key=said.key, offset=said.offset, byte_size=said.byte_size),
        lambda _: None,
    ),
    "SystemSharedMemoryUnregister": _open(
        "SystemSharedMemoryUnregister", lambda name: pb.SystemSharedMemoryUnregisterRequest(name=name), lambda _: None
    ),
    "TraceSetting": _open("TraceSetting", _encode_trace, lambda reply: {name: list(entry.value) for name, entry in reply.settings.items()}),
    "LogSettings": _open("LogSettings", _encode_logs, lambda reply: _parameters(reply.settings)),
    "PutFile": _control("PutFile", FileMessages, lambda reply: RemoteFile(reply.size, reply.sha256, reply.existed)),
    "ValidateScript": _control(
        "ValidateScript",
        lambda source: control.ValidateScriptRequest(source=source),
        lambda reply: ScriptReport(tuple(reply.functions), reply.load_ms),
    ),
    "Capacity": _control("Capacity", lambda _: control.CapacityRequest(), _decode_capacity),
    "Drain": _control("Drain", _encode_drain, lambda reply: DrainState(reply.drained, reply.in_flight)),
    "SetInstances": _control("SetInstances", _encode_instances, lambda _: None),
    "SetLabels": _control("SetLabels", _encode_labels, lambda _: None),
    "RemoveModel": _control(
        "RemoveModel", lambda asked: control.RemoveModelRequest(model_name=asked.name, version=asked.version), lambda reply: reply.removed
    ),
    "Validate": _control("Validate", FileMessages, _decode_validation),
}
"""By the verb's name in the contract."""
