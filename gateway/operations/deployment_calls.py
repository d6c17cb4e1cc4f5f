"""A prediction of a deployment: its script before and after, its model in between."""

import time
from collections.abc import Sequence
from typing import Any

from gateway.models_rpc import Models
from gateway.operations import inference, prediction_inputs, predictions, script_tensors, tensor_json
from gateway.operations.deployments import Target
from gateway.operations.images import Limits
from gateway.operations.inference import Call
from gateway.operations.prediction_bodies import PredictionBody
from gateway.settings import Settings
from idl.messages import InferRequest, InferResponse, Tensor

PREPROCESS, POSTPROCESS = "preprocess", "postprocess"


def predict(models: Models, settings: Settings, call: Call, target: Target, body: PredictionBody, version: str = "") -> dict[str, Any]:
    """The answer's JSON value, of a deployment that runs; `version`: a number or a label, "" for the one that serves.

    Raises what the model's host says, and what a script does: invalid_input, model_failed, too_large.
    """
    started = time.monotonic()
    if target.script_name:
        answer = _with_script(models, settings, call, target, body, version, started)
    else:
        answer = predictions.predict(models, settings, call, target.rpc_name, version, body, started)
    return {"id": answer.pop("id"), "model": target.model, "deployment": target.rpc_name} | {**answer, "model": target.model}


def _with_script(
    models: Models, settings: Settings, call: Call, target: Target, body: PredictionBody, version: str, started: float
) -> dict[str, Any]:
    metadata = models.metadata(target.rpc_name, version)
    assumed: Any = {}
    if PREPROCESS in target.functions:
        given = run(models, call, target, PREPROCESS, script_tensors.of_body(body))
        inputs = script_tensors.fitted(metadata.inputs, given)
    else:
        limits = Limits(settings.max_image_pixels, settings.max_body_bytes, call.deadline)
        prepared = prediction_inputs.prepare(metadata, models.declaration(target.rpc_name, version), body, limits)
        inputs, assumed = prepared.tensors, prepared.assumed
    response = inference.predict(models, call, target.rpc_name, version, inputs, ())
    given = run(models, call, target, POSTPROCESS, response.outputs) if POSTPROCESS in target.functions else response.outputs
    shown = script_tensors.chosen(given, body.outputs)
    answer: dict[str, Any] = {
        "id": call.request_id,
        "version": response.model_version,
        "outputs": {name: tensor_json.to_nested(tensor) for name, tensor in shown.items()},
    }
    if assumed:
        answer["assumed"] = assumed
    return answer | {"timing_ms": predictions.timing(response, time.monotonic() - started)}


def run(models: Models, call: Call, target: Target, function: str, given: Sequence[Tensor]) -> Sequence[Tensor]:
    """What a function of the deployment's script makes of `given`."""
    return models.infer(_asked(call, target.script_name, function, given), call.connection).outputs


def _asked(call: Call, script: str, function: str, given: Sequence[Tensor]) -> InferRequest:
    return InferRequest(
        script,
        tuple(given),
        id=call.request_id,
        parameters={"function": function},
        deadline=call.deadline,
        traceparent=call.traceparent,
    )


def infer(models: Models, call: Call, target: Target, request: InferRequest) -> InferResponse:
    """The open protocol's inference of a deployment with a script, which sees the tensors as they came."""
    if not target.script_name:
        return models.infer(request, call.connection)
    inputs: Sequence[Tensor] = request.inputs
    if PREPROCESS in target.functions:
        metadata = models.metadata(target.rpc_name, request.model_version)
        inputs = script_tensors.fitted(metadata.inputs, run(models, call, target, PREPROCESS, inputs))
    wanted = () if POSTPROCESS in target.functions else request.outputs
    asked = InferRequest(
        request.model_name,
        tuple(inputs),
        request.model_version,
        request.id,
        wanted,
        request.parameters,
        request.deadline,
        request.traceparent,
    )
    response = models.infer(asked, call.connection)
    if POSTPROCESS not in target.functions:
        return response
    shown = script_tensors.chosen(run(models, call, target, POSTPROCESS, response.outputs), request.outputs or None)
    return InferResponse(response.model_name, response.model_version, response.id, tuple(shown.values()), response.parameters)
