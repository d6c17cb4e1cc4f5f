"""Thrift structures <-> the contract's values. Nothing here decides or waits; every refusal is a `ServingError` with invalid_input.

A field that a caller left out is None here, whatever the IDL says, and stands for the empty value.
"""

import json
from collections.abc import Iterable
from typing import Any

from idl.codes import ServingError
from idl.messages import (
    Duration,
    InferRequest,
    InferResponse,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
    Tensor,
    TensorSpec,
)
from idl.thrift_schema import schema
from inference_server.transports.guard import check_count
from inference_server.transports.thrift_infer import text_of


def infer_request(request: Any, deadline: float | None) -> InferRequest:
    inputs, outputs = request.inputs or (), request.outputs or ()
    check_count("inputs", len(inputs))
    check_count("outputs", len(outputs))
    return InferRequest(
        request.model_name or "",
        tuple(Tensor(tensor.name or "", tensor.datatype or "", tuple(tensor.shape or ()), tensor.data or b"") for tensor in inputs),
        request.model_version or "",
        request.id or "",
        tuple(outputs),
        request.parameters or {},
        deadline,
        request.traceparent or "",
    )


def infer_response(response: InferResponse, request_id: str | None) -> Any:
    return schema.InferResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=request_id or "",
        outputs=[schema.Tensor(name=t.name, datatype=t.datatype, shape=t.shape, data=t.data) for t in response.outputs],
        parameters={name: text_of(value) for name, value in response.parameters.items()},
    )


def stream_chunk(stream: str, answers: Iterable[InferResponse], done: bool, request_id: str | None) -> Any:
    """`request_id` None: each answer says it."""
    made = [infer_response(answer, answer.id if request_id is None else request_id) for answer in answers]
    return schema.StreamChunk(stream=stream, answers=made, done=done)


def server_metadata(metadata: ServerMetadata) -> Any:
    return schema.ServerMetadataResponse(name=metadata.name, version=metadata.version, extensions=metadata.extensions)


def model_metadata(metadata: ModelMetadata) -> Any:
    return schema.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=[_tensor_metadata(spec) for spec in metadata.inputs],
        outputs=[_tensor_metadata(spec) for spec in metadata.outputs],
        properties=dict(metadata.properties),
    )


def _tensor_metadata(spec: TensorSpec) -> Any:
    return schema.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def load_parameters(request: Any) -> dict[str, Any]:
    """Of `RepositoryModelLoadRequest`: the texts and the files in one, as the model repository extension has them."""
    files = {name: bytes(content) for name, content in (request.files or {}).items()}
    return {**(request.parameters or {}), **files}


def model_config(config: dict[str, Any]) -> Any:
    return schema.ModelConfigResponse(config_json=json.dumps(config, ensure_ascii=False))


def model_statistics(statistics: Iterable[ModelStatistics]) -> Any:
    return schema.ModelStatisticsResponse(model_stats=[_model_statistics(entry) for entry in statistics])


def _model_statistics(statistics: ModelStatistics) -> Any:
    return schema.ModelStatistics(
        name=statistics.name,
        version=statistics.version,
        last_inference=statistics.last_inference,
        inference_count=statistics.inference_count,
        execution_count=statistics.execution_count,
        success=_duration(statistics.success),
        fail=_duration(statistics.fail),
        queue=_duration(statistics.queue),
        compute_input=_duration(statistics.compute_input),
        compute_infer=_duration(statistics.compute_infer),
        compute_output=_duration(statistics.compute_output),
        cache_hit=_duration(statistics.cache_hit),
        cache_miss=_duration(statistics.cache_miss),
        cancel=_duration(statistics.cancel),
        batch_stats=[
            schema.BatchStatistics(
                batch_size=batch.batch_size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for batch in statistics.batches
        ],
        memory_usage=[schema.MemoryUsage(type=used.kind, id=used.id, byte_size=used.byte_size) for used in statistics.memory],
        response_stats=[
            schema.ResponseStatistics(
                key=each.key,
                compute_infer=_duration(each.compute_infer),
                compute_output=_duration(each.compute_output),
                success=_duration(each.success),
                fail=_duration(each.fail),
                empty_response=_duration(each.empty_response),
                cancel=_duration(each.cancel),
            )
            for each in statistics.responses
        ],
    )


def _duration(duration: Duration) -> Any:
    return schema.StatisticDuration(count=duration.count, ns=duration.ns)


def repository_index(models: Iterable[ModelIndex]) -> Any:
    return schema.RepositoryIndexResponse(
        models=[schema.ModelIndex(name=model.name, version=model.version, state=model.state, reason=model.reason) for model in models]
    )


def serving_error(error: ServingError, request_id: str) -> Any:
    """The IDL's one exception."""
    return schema.ServingError(
        code=error.code.value, message=error.message, retry_after_ms=error.retry_after_ms, request_id=error.request_id or request_id
    )
