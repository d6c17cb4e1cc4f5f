"""gRPC messages <-> the contract's values. Nothing here decides or waits; every refusal is a `ServingError` with invalid_input.

Rules for tensor contents: Open Inference Protocol v2, gRPC, "Tensor Data".
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from idl import tensors
from idl.generated import inference_pb2 as pb
from idl.messages import (
    BatchStatistics,
    Duration,
    InferRequest,
    InferResponse,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ResponseStatistics,
    ServerMetadata,
    Tensor,
    TensorSpec,
)
from idl.shared_regions import CLASSIFICATION, PARAMETERS
from inference_server.errors import invalid_input
from inference_server.transports.guard import check_count

TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype -> its field of `InferTensorContents`; FP16 and BF16 have none."""

_INT64 = range(-(2**63), 2**63)
_EXTENDED = frozenset({CLASSIFICATION, *PARAMETERS})
"""Tensor parameters that change what a request means; `tensor_extensions` knows what."""


def parse(kind: Any, data: bytes) -> Any:
    """Parses `data` as a message of class `kind`."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise invalid_input(f"the message is not a {kind.DESCRIPTOR.full_name}") from None


def infer_request(request: Any, request_id: str, deadline: float | None, traceparent: str) -> InferRequest:
    """`ModelInferRequest` that is not extended -> value; `request_id` stands in where the message has no id of its own."""
    check_counts(request)
    return InferRequest(
        request.model_name,
        _raw_inputs(request) if request.raw_input_contents else _typed_inputs(request),
        request.model_version,
        request.id or request_id,
        tuple(str(output.name) for output in request.outputs),
        parameters(request.parameters) if request.parameters else {},
        deadline,
        traceparent,
    )


def check_counts(request: Any) -> None:
    """Raises invalid_input for too many tensors."""
    check_count("inputs", len(request.inputs))
    check_count("outputs", len(request.outputs))


def is_extended(request: Any) -> bool:
    """Whether a tensor lies in shared memory or is wanted as classes: then its contents are not what they are elsewhere."""
    return any(not _EXTENDED.isdisjoint(tensor.parameters) for tensor in (*request.inputs, *request.outputs) if tensor.parameters)


def _raw_inputs(request: Any) -> tuple[Tensor, ...]:
    inputs, raw = request.inputs, request.raw_input_contents
    if len(inputs) != len(raw):
        missing = f"; input {inputs[len(raw)].name!r} has none" if len(raw) < len(inputs) else ""
        raise invalid_input(f"raw_input_contents has {len(raw)} entries for {len(inputs)} inputs{missing}")
    return tuple(_raw_tensor(tensor, data) for tensor, data in zip(inputs, raw, strict=True))


def _raw_tensor(tensor: Any, data: bytes) -> Tensor:
    if tensor.HasField("contents") and tensor.contents.ListFields():
        raise invalid_input(
            f"tensor {tensor.name!r} has typed contents, and the request has raw_input_contents: only one of them may be used"
        )
    return Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)


def _typed_inputs(request: Any) -> tuple[Tensor, ...]:
    return tuple(_typed_tensor(tensor) for tensor in request.inputs)


def _typed_tensor(tensor: Any) -> Tensor:
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    if datatype not in tensors.DTYPES:
        raise invalid_input(f"tensor {name!r} has datatype {datatype!r}, which is none of the protocol's")
    field = TYPED_FIELDS.get(datatype)
    if field is None:
        raise invalid_input(f"tensor {name!r}: {datatype} has no typed contents, it travels in raw_input_contents only")
    for used, _ in tensor.contents.ListFields():
        if used.name != field:
            raise invalid_input(f"tensor {name!r} of {datatype} belongs in {field}, {used.name} has values")
    values, count = getattr(tensor.contents, field), tensors.element_count(name, shape)
    if len(values) != count:
        raise invalid_input(f"tensor {name!r} of {datatype} {list(shape)} needs {count} elements in {field}, got {len(values)}")
    return Tensor(name, datatype, shape, _typed_bytes(name, datatype, values, count))


def _typed_bytes(name: str, datatype: str, values: Iterable[Any], count: int) -> bytes:
    if datatype == "BYTES":
        return b"".join(len(item).to_bytes(4, "little") + item for item in values)
    try:
        return np.fromiter(values, tensors.DTYPES[datatype], count).tobytes()
    except OverflowError:  # an int8 or int16 travels in a 32-bit field
        raise invalid_input(f"tensor {name!r} has an element that is out of the range of {datatype}") from None


def parameters(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A map of `InferParameter` or `ModelRepositoryParameter` -> Python values; an entry without a value is None."""
    values = {}
    for name, entry in entries.items():
        choice = entry.WhichOneof("parameter_choice")
        values[name] = getattr(entry, choice) if choice else None
    return values


def _set_parameter(entry: Any, value: Any) -> None:
    if isinstance(value, bool):
        entry.bool_param = value
    elif isinstance(value, int):
        setattr(entry, "int64_param" if value in _INT64 else "uint64_param", value)
    elif isinstance(value, float):
        entry.double_param = value
    else:
        entry.string_param = str(value)


def infer_response(response: InferResponse, request_id: str) -> Any:
    """Value -> `ModelInferResponse` with raw contents; `request_id` is the request's id as it came."""
    message = pb.ModelInferResponse(model_name=response.model_name, model_version=response.model_version, id=request_id)
    for name, value in response.parameters.items():
        _set_parameter(message.parameters[name], value)
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(tensor.data if isinstance(tensor.data, bytes) else bytes(tensor.data))
    return message


def server_metadata(metadata: ServerMetadata) -> Any:
    return pb.ServerMetadataResponse(name=metadata.name, version=metadata.version, extensions=metadata.extensions)


def model_metadata(metadata: ModelMetadata) -> Any:
    return pb.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=map(_tensor_metadata, metadata.inputs),
        outputs=map(_tensor_metadata, metadata.outputs),
        properties=metadata.properties,
    )


def _tensor_metadata(spec: TensorSpec) -> Any:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def model_config(config: dict[str, Any]) -> Any:
    return pb.ModelConfigResponse(config=ParseDict(config, pb.ModelConfig()))


def model_statistics(statistics: Iterable[ModelStatistics]) -> Any:
    return pb.ModelStatisticsResponse(model_stats=map(_model_statistics, statistics))


def _model_statistics(statistics: ModelStatistics) -> Any:
    return pb.ModelStatistics(
        name=statistics.name,
        version=statistics.version,
        last_inference=statistics.last_inference,
        inference_count=statistics.inference_count,
        execution_count=statistics.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.compute_input),
            compute_infer=_duration(statistics.compute_infer),
            compute_output=_duration(statistics.compute_output),
            cache_hit=_duration(statistics.cache_hit),
            cache_miss=_duration(statistics.cache_miss),
        ),
        batch_stats=map(_batch_statistics, statistics.batches),
        memory_usage=[pb.MemoryUsage(type=used.kind, id=used.id, byte_size=used.byte_size) for used in statistics.memory],
        response_stats={each.key: _response_statistics(each) for each in statistics.responses},
    )


def _response_statistics(response: ResponseStatistics) -> Any:
    return pb.InferResponseStatistics(
        compute_infer=_duration(response.compute_infer),
        compute_output=_duration(response.compute_output),
        success=_duration(response.success),
        fail=_duration(response.fail),
        empty_response=_duration(response.empty_response),
        cancel=_duration(response.cancel),
    )


def _batch_statistics(batch: BatchStatistics) -> Any:
    return pb.InferBatchStatistics(
        batch_size=batch.batch_size,
        compute_input=_duration(batch.compute_input),
        compute_infer=_duration(batch.compute_infer),
        compute_output=_duration(batch.compute_output),
    )


def _duration(duration: Duration) -> Any:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)


def repository_index(models: Iterable[ModelIndex]) -> Any:
    entry = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(
        models=[entry(name=model.name, version=model.version, state=model.state, reason=model.reason) for model in models]
    )
