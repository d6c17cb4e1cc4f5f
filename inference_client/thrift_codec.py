"""The contract's values <-> the classes of `inference.thrift`, one pair of functions for each verb.

A field that a peer left out is None in thriftpy2's classes; here it becomes the type's empty value.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from idl.codes import Code, ServingError
from idl.messages import (
    BatchStatistics,
    Duration,
    InferRequest,
    InferResponse,
    MemoryUsage,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ResponseStatistics,
    ServerMetadata,
    SharedRegion,
    Tensor,
    TensorSpec,
)
from idl.thrift_schema import Inference, schema
from inference_client.channel import ControlReply, ControlTurn, ModelName, RepositoryChange, StreamChunk, StreamOrder, TraceOrder

TIMES = ("queue_us", "compute_us")
"""Parameters of a reply that are integers in the contract's values; Thrift's map has text only."""
MAX_TIMEOUT_MS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Codec:
    """`encode(request, token, timeout_ms)` makes the Thrift request, `decode` reads the Thrift response; both raise ValueError and kin."""

    encode: Callable[[Any, str, int], Any]
    decode: Callable[[Any], Any]


def text_of(value: object) -> str:
    """A parameter as Thrift's `map<string, string>` has it: true and false as JSON spells them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode()
    return str(value)


def _texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: text_of(value) for name, value in parameters.items()}


def _encode_infer(request: InferRequest, token: str, timeout_ms: int) -> Any:
    return schema.InferRequest(
        model_name=request.model_name,
        model_version=request.model_version,
        id=request.id,
        inputs=[schema.Tensor(name=t.name, datatype=t.datatype, shape=t.shape, data=t.data) for t in request.inputs],
        outputs=list(request.outputs),
        parameters=_texts(request.parameters),
        timeout_ms=min(timeout_ms, MAX_TIMEOUT_MS),
        token=token,
        traceparent=request.traceparent,
    )


def _decode_infer(reply: Any) -> InferResponse:
    parameters: dict[str, Any] = dict(reply.parameters or {})
    for name in TIMES:
        if name in parameters:
            parameters[name] = int(parameters[name])
    return InferResponse(
        reply.model_name or "",
        reply.model_version or "",
        reply.id or "",
        tuple(Tensor(t.name or "", t.datatype or "", tuple(t.shape or ()), t.data or b"") for t in reply.outputs or ()),
        parameters,
    )


def _encode_stream(order: StreamOrder, token: str, _: int) -> Any:
    return _encode_infer(order.request, token, order.timeout_ms)


def _decode_chunk(reply: Any) -> StreamChunk:
    return StreamChunk(reply.stream or "", tuple(map(_decode_infer, reply.answers or ())), bool(reply.done))


def _spec(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name or "", tensor.datatype or "", tuple(tensor.shape or ()))


def _decode_metadata(reply: Any) -> ModelMetadata:
    inputs, outputs = (tuple(map(_spec, tensors or ())) for tensors in (reply.inputs, reply.outputs))
    properties = dict(reply.properties or {})
    return ModelMetadata(reply.name or "", tuple(reply.versions or ()), reply.platform or "", inputs, outputs, properties)


def _decode_server_metadata(reply: Any) -> ServerMetadata:
    return ServerMetadata(reply.name or "", reply.version or "", tuple(reply.extensions or ()))


def _decode_config(reply: Any) -> dict[str, Any]:
    config = json.loads(reply.config_json)
    if not isinstance(config, dict):
        raise TypeError("the configuration is no JSON object")
    return config


def _duration(value: Any) -> Duration:
    return Duration(value.count or 0, value.ns or 0) if value is not None else Duration()


def _statistics(model: Any) -> ModelStatistics:
    return ModelStatistics(
        model.name or "",
        model.version or "",
        model.last_inference or 0,
        model.inference_count or 0,
        model.execution_count or 0,
        _duration(model.success),
        _duration(model.fail),
        _duration(model.queue),
        _duration(model.compute_input),
        _duration(model.compute_infer),
        _duration(model.compute_output),
        _duration(model.cache_hit),
        _duration(model.cache_miss),
        _duration(model.cancel),
        tuple(
            BatchStatistics(
                each.batch_size or 0, _duration(each.compute_input), _duration(each.compute_infer), _duration(each.compute_output)
            )
            for each in model.batch_stats or ()
        ),
        tuple(MemoryUsage(used.type or "", used.id or 0, used.byte_size or 0) for used in model.memory_usage or ()),
        tuple(
            ResponseStatistics(
                each.key or "",
                _duration(each.compute_infer),
                _duration(each.compute_output),
                _duration(each.success),
                _duration(each.fail),
                _duration(each.empty_response),
                _duration(each.cancel),
            )
            for each in model.response_stats or ()
        ),
    )


def _index(model: Any) -> ModelIndex:
    return ModelIndex(model.name or "", model.version or "", model.state or "", model.reason or "")


def _encode_load(change: RepositoryChange, token: str, _: int) -> Any:
    files = {name: value for name, value in change.parameters.items() if isinstance(value, bytes)}
    texts = _texts({name: value for name, value in change.parameters.items() if name not in files})
    return schema.RepositoryModelLoadRequest(model_name=change.name, parameters=texts, token=token, files=files)


def _encode_unload(change: RepositoryChange, token: str, _: int) -> Any:
    return schema.RepositoryModelUnloadRequest(model_name=change.name, parameters=_texts(change.parameters), token=token)


def _encode_region(region: SharedRegion, token: str, _: int) -> Any:
    said = schema.SharedRegion(name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size)
    return schema.SystemSharedMemoryRegisterRequest(region=said, token=token)


def _encode_trace(order: TraceOrder, token: str, _: int) -> Any:
    settings = {name: list(values) for name, values in order.settings.items()}
    return schema.TraceSettingRequest(model_name=order.model, settings=settings, token=token)


def _encode_control(turn: ControlTurn, token: str, _: int) -> Any:
    return schema.ControlRequest(
        verb=turn.verb,
        call=turn.call,
        messages=list(turn.messages),
        last=turn.last,
        cancel=turn.cancel,
        wait_ms=turn.wait_ms,
        timeout_ms=turn.timeout_ms,
        token=token,
    )


def _encode_name(kind: Any) -> Callable[[ModelName, str, int], Any]:
    return lambda model, token, _: kind(name=model.name, version=model.version, token=token)


CODECS: dict[str, Codec] = {
    "ServerLive": Codec(lambda _, token, ms: schema.ServerLiveRequest(), lambda reply: bool(reply.live)),
    "ServerReady": Codec(lambda _, token, ms: schema.ServerReadyRequest(), lambda reply: bool(reply.ready)),
    "ModelReady": Codec(
        lambda model, token, ms: schema.ModelReadyRequest(name=model.name, version=model.version), lambda reply: bool(reply.ready)
    ),
    "ServerMetadata": Codec(lambda _, token, ms: schema.ServerMetadataRequest(), _decode_server_metadata),
    "ModelMetadata": Codec(_encode_name(schema.ModelMetadataRequest), _decode_metadata),
    "ModelInfer": Codec(_encode_infer, _decode_infer),
    "StreamOpen": Codec(_encode_stream, _decode_chunk),
    "StreamNext": Codec(
        lambda turn, token, _: schema.StreamNextRequest(stream=turn.stream, most=turn.most, wait_ms=turn.wait_ms, token=token),
        _decode_chunk,
    ),
    "Control": Codec(_encode_control, lambda reply: ControlReply(reply.call or "", bool(reply.done), reply.message or b"")),
    "StreamClose": Codec(lambda stream, token, _: schema.StreamCloseRequest(stream=stream, token=token), lambda _: None),
    "ModelConfig": Codec(_encode_name(schema.ModelConfigRequest), _decode_config),
    "ModelStatistics": Codec(_encode_name(schema.ModelStatisticsRequest), lambda reply: tuple(map(_statistics, reply.model_stats or ()))),
    "RepositoryIndex": Codec(
        lambda ready, token, ms: schema.RepositoryIndexRequest(ready=ready, token=token),
        lambda reply: tuple(map(_index, reply.models or ())),
    ),
    "RepositoryModelLoad": Codec(_encode_load, lambda _: None),
    "RepositoryModelUnload": Codec(_encode_unload, lambda _: None),
    "SystemSharedMemoryStatus": Codec(
        lambda name, token, _: schema.SystemSharedMemoryStatusRequest(name=name, token=token),
        lambda reply: tuple(
            SharedRegion(region.name or "", region.key or "", region.offset or 0, region.byte_size or 0) for region in reply.regions or ()
        ),
    ),
    "SystemSharedMemoryRegister": Codec(_encode_region, lambda _: None),
    "SystemSharedMemoryUnregister": Codec(
        lambda name, token, _: schema.SystemSharedMemoryUnregisterRequest(name=name, token=token), lambda _: None
    ),
    "TraceSetting": Codec(_encode_trace, lambda reply: dict(reply.settings or {})),
    "LogSettings": Codec(
        lambda settings, token, _: schema.LogSettingsRequest(
            settings={name: json.dumps(value) for name, value in settings.items()}, token=token
        ),
        lambda reply: {name: json.loads(value) for name, value in (reply.settings or {}).items()},
    ),
}
"""By the verb's name in the contract; a verb that Thrift does not have is not in it."""

ARGUMENTS: dict[str, Any] = {name: getattr(Inference, f"{name}_args") for name in CODECS}
RESULTS: dict[str, Any] = {name: getattr(Inference, f"{name}_result") for name in CODECS}


def declared_error(error: Any, request_id: str) -> ServingError:
    """The exception that the host declared; `internal` where its code is none that we know."""
    try:
        code = Code(error.code)
    except ValueError:
        code = Code.INTERNAL
    message = error.message or f"the model host said {error.code!r}"
    return ServingError(code, message, retry_after_ms=max(0, error.retry_after_ms or 0), request_id=error.request_id or request_id)
