"""`/v2`: the Open Inference Protocol over HTTP, with the model repository, configuration, statistics and binary data extensions."""

import base64
from typing import Any

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue

from gateway.blueprints.calls import current_call, note, read_body
from gateway.context import services
from gateway.operations import generate, inference, tensor_json, v2_inference
from gateway.operations.v2_inference import Heads
from gateway.operations.v2_messages import HEADER_LENGTH
from gateway.types import Scope
from idl.codes import Code, ServingError
from idl.messages import BatchStatistics, Duration, ModelStatistics, ResponseStatistics, TensorSpec
from idl.tensors import invalid

blueprint = Blueprint("v2", __name__)


@blueprint.get("/v2")
def server_metadata() -> ResponseReturnValue:
    """The server's name, version and extensions."""
    metadata = services().models.server_metadata()
    extensions = list(dict.fromkeys((*metadata.extensions, "binary_tensor_data")))
    return {"name": metadata.name, "version": metadata.version, "extensions": extensions}


@blueprint.get("/v2/health/live")
def server_live() -> ResponseReturnValue:
    """200 while the model host answers."""
    live = services().models.server_live()
    return {"live": live}, 200 if live else 503


@blueprint.get("/v2/health/ready")
def server_ready() -> ResponseReturnValue:
    """200 while every model that should be loaded is ready, else 503."""
    ready = services().models.server_ready()
    return {"ready": ready}, 200 if ready else 503


@blueprint.get("/v2/models/<model>")
@blueprint.get("/v2/models/<model>/versions/<version>")
def model_metadata(model: str, version: str = "") -> ResponseReturnValue:
    """Names, datatypes and shapes of a model's inputs and outputs."""
    models = services().models
    inference.require_callable(models, current_call(), model, version, Scope.READ)
    metadata = models.metadata(model, version)
    return {
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": [_spec(spec) for spec in metadata.inputs],
        "outputs": [_spec(spec) for spec in metadata.outputs],
        "properties": dict(metadata.properties),
    }


def _spec(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


@blueprint.get("/v2/models/<model>/ready")
@blueprint.get("/v2/models/<model>/versions/<version>/ready")
def model_ready(model: str, version: str = "") -> ResponseReturnValue:
    """200 for a model that takes requests; 503, or 404 for one that is not there, with the reason."""
    models, call = services().models, current_call()
    if not models.model_ready(model, version):
        inference.require_callable(models, call, model, version, Scope.READ, running=False)
        models.metadata(model, version)  # raises the reason
        raise ServingError(Code.NOT_READY, f"model {model!r} is not ready")
    inference.require_callable(models, call, model, version, Scope.READ, running=False)
    return {"name": model, "ready": True}


@blueprint.get("/v2/models/<model>/config")
@blueprint.get("/v2/models/<model>/versions/<version>/config")
def model_config(model: str, version: str = "") -> ResponseReturnValue:
    """The model configuration extension."""
    models = services().models
    inference.require_callable(models, current_call(), model, version, Scope.READ)
    return dict(models.config(model, version))


@blueprint.get("/v2/models/<model>/stats")
@blueprint.get("/v2/models/<model>/versions/<version>/stats")
def model_statistics(model: str, version: str = "") -> ResponseReturnValue:
    """The statistics extension for one model."""
    models = services().models
    inference.require_callable(models, current_call(), model, version, Scope.READ, running=False)
    return {"model_stats": [_statistics(entry) for entry in models.statistics(model, version)]}


@blueprint.get("/v2/models/stats")
def all_statistics() -> ResponseReturnValue:
    """The statistics of every model that the caller may see."""
    return {"model_stats": [_statistics(entry) for entry in inference.visible_statistics(services().models, current_call())]}


def _statistics(entry: ModelStatistics) -> dict[str, object]:
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss", "cancel")
    return {
        "name": entry.name,
        "version": entry.version,
        "last_inference": entry.last_inference,
        "inference_count": entry.inference_count,
        "execution_count": entry.execution_count,
        "inference_stats": {part: _duration(getattr(entry, part)) for part in parts},
        "response_stats": {response.key: _response(response) for response in entry.responses},
        "batch_stats": [_batch(batch) for batch in entry.batches],
        "memory_usage": [{"type": used.kind, "id": used.id, "byte_size": used.byte_size} for used in entry.memory],
    }


def _batch(batch: BatchStatistics) -> dict[str, object]:
    parts = ("compute_input", "compute_infer", "compute_output")
    return {"batch_size": batch.batch_size, **{part: _duration(getattr(batch, part)) for part in parts}}


def _response(response: ResponseStatistics) -> dict[str, object]:
    parts = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
    return {part: _duration(getattr(response, part)) for part in parts}


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


@blueprint.post("/v2/models/<model>/infer")
@blueprint.post("/v2/models/<model>/versions/<version>/infer")
def infer(model: str, version: str = "") -> ResponseReturnValue:
    """One inference; tensors as JSON or binary data, body and answer compressed or not."""
    heads = Heads(request.headers.get(HEADER_LENGTH), request.headers.get("Accept-Encoding", ""))
    answer = v2_inference.infer(services().models, current_call(inference=model), model, version, read_body, heads)
    return Response(answer.body, headers=list(answer.headers))


@blueprint.post("/v2/models/<model>/generate")
@blueprint.post("/v2/models/<model>/versions/<version>/generate")
def generate_one(model: str, version: str = "") -> ResponseReturnValue:
    """One answer to a JSON object of texts and numbers (generate extension)."""
    return Response(
        generate.one(services().models, current_call(inference=model), model, version, read_body()), content_type="application/json"
    )


@blueprint.post("/v2/models/<model>/generate_stream")
@blueprint.post("/v2/models/<model>/versions/<version>/generate_stream")
def generate_stream(model: str, version: str = "") -> ResponseReturnValue:
    """Every answer as a server-sent event. Behind nginx the front answers this; here a stream holds a thread, so half of them at most do."""
    owned = services()
    if not owned.streams.acquire(blocking=False):
        raise ServingError(Code.OVERLOADED, "as many streams are open as this process has threads for", retry_after_ms=1000)
    try:
        events = generate.Events(owned.models, current_call(owned.settings.stream_timeout_s, inference=model), model, version, read_body())
    except BaseException:
        owned.streams.release()
        raise
    response = Response(iter(events), content_type=generate.EVENT_STREAM, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.call_on_close(owned.streams.release)
    response.call_on_close(events.close)
    return response


@blueprint.post("/v2/repository/index")
def repository_index() -> ResponseReturnValue:
    """Every model of the repository that the caller may see, or with {"ready": true} those that are ready."""
    ready = _optional_json("ready").get("ready", False)
    if not isinstance(ready, bool):
        raise invalid("ready is not true or false")
    entries = inference.visible_index(services().models, current_call(), ready=ready)
    return [{"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason} for entry in entries]


@blueprint.post("/v2/repository/models/<model>/load")
def load(model: str) -> ResponseReturnValue:
    """Loads or reloads a model; operators only."""
    inference.require_operator(current_call())
    parameters = {name: _content(name, value) for name, value in _parameters().items()}
    note("host.load", model, {"parameters": [name[:200] for name in parameters]})
    services().models.load(model, parameters)
    return {}


def _content(name: str, value: Any) -> Any:
    """A file inside the request is base64 here, and bytes from here on (model repository extension, "Load")."""
    if not name.startswith("file:"):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        raise invalid(f"parameter {name[:40]!r} is not base64") from None


@blueprint.post("/v2/repository/models/<model>/unload")
def unload(model: str) -> ResponseReturnValue:
    """Unloads a model; operators only."""
    inference.require_operator(current_call())
    parameters = _parameters()
    note("host.unload", model)
    services().models.unload(model, parameters)
    return {}


def _parameters() -> dict[str, Any]:
    given = _optional_json("parameters").get("parameters", {})
    if not isinstance(given, dict):
        raise invalid("parameters is not an object")
    for name, value in given.items():
        if not isinstance(value, (str, int, bool)):
            raise invalid(f"parameter {name[:40]!r} is not a text, a whole number, or true or false")
    return given


def _optional_json(known: str) -> dict[str, Any]:
    """The body, whose only field is `known`; nothing for no body. A misspelt field is refused: what it was to say would not be done."""
    body = read_body()
    given = tensor_json.parse(body) if body else {}
    if not isinstance(given, dict):
        raise invalid("the body is not a JSON object")
    if unknown := sorted(given.keys() - {known}):
        raise invalid(f"the body has an unknown field {unknown[0][:80]!r}; known is {known!r}")
    return given
