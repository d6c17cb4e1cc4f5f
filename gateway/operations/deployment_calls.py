"""A prediction of a deployment: its script before and after, its model in between."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gateway.models_rpc import Models
from gateway.operations import (
    form_inputs,
    inference,
    prediction_inputs,
    predictions,
    sample_answers,
    script_tensors,
    tensor_json,
)
from gateway.operations.deployments import Target
from gateway.operations.images import Limits
from gateway.operations.inference import Call
from gateway.operations.prediction_bodies import PredictionBody
from gateway.settings import Settings
from idl.codes import ServingError
from idl.messages import InferRequest, InferResponse, Tensor

PREPROCESS, POSTPROCESS = "preprocess", "postprocess"


def predict(models: Models, settings: Settings, call: Call, target: Target, body: PredictionBody, version: str = "") -> dict[str, Any]:
    """The answer's JSON value; `version`: a number or a label, "" for the one that serves. Where `call` knows how, one that sleeps is woken.

    Raises what the model's host says, and what a script does: invalid_input, model_failed, too_large; and what `Deployed.ready` raises.
    """
    started = time.monotonic()
    if call.deployed is not None:
        target = call.deployed.ready(target, call.deadline)
    try:
        answer = _predict(models, settings, call, target, body, version, started)
    except ServingError as error:
        if call.deployed is None:
            raise
        target = call.deployed.again(target, error, call.deadline)
        answer = _predict(models, settings, call, target, body, version, started)
    named = {"id": call.request_id, "model": target.model, "deployment": target.rpc_name}
    return named | {key: value for key, value in answer.items() if key not in named}


def _predict(
    models: Models, settings: Settings, call: Call, target: Target, body: PredictionBody, version: str, started: float
) -> dict[str, Any]:
    if not target.script_name:
        return predictions.predict(models, settings, call, target.rpc_name, version, body, started)
    if body.form is None or PREPROCESS in target.functions:
        return _with_script(models, settings, call, target, body, version, started)
    metadata, declaration = models.metadata(target.rpc_name, version), models.declaration(target.rpc_name, version)
    limits = form_inputs.limits_of(settings, call.deadline)
    samples = form_inputs.decode(body.form.filetype, body.form.fields, body.form.files, metadata, declaration, limits)

    def run(sample: PredictionBody) -> dict[str, Any]:
        wanted = replace(sample, outputs=body.outputs)
        return _with_script(models, settings, call, target, wanted, version, time.monotonic())

    return sample_answers.answered(samples, run)


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
        "version": response.model_version,
        "outputs": {name: tensor_json.to_nested(tensor) for name, tensor in shown.items()},
    }
    if assumed:
        answer["assumed"] = assumed
    return answer | {"timing_ms": predictions.timing(response, time.monotonic() - started)}


def run(models: Models, call: Call, target: Target, function: str, given: Sequence[Tensor]) -> Sequence[Tensor]:
    """What a function of the deployment's script makes of `given`."""
    return models.infer(_asked(call, target, function, given), call.connection).outputs


def _asked(call: Call, target: Target, function: str, given: Sequence[Tensor]) -> InferRequest:
    return InferRequest(
        target.script_name,
        tuple(given),
        str(target.script_version),
        id=call.request_id,
        parameters={"function": function},
        deadline=call.deadline,
        traceparent=call.traceparent,
    )


def infer(models: Models, call: Call, target: Target, request: InferRequest) -> InferResponse:
    """The open protocol's inference of a deployment that ran a moment ago; its script sees the tensors as they came."""
    try:
        return _infer(models, call, target, request)
    except ServingError as error:
        if call.deployed is None:
            raise
        return _infer(models, call, call.deployed.again(target, error, call.deadline), request)


def _infer(models: Models, call: Call, target: Target, request: InferRequest) -> InferResponse:
    if not target.script_name:
        return models.infer(request, call.connection)
    inputs: Sequence[Tensor] = request.inputs
    if PREPROCESS in target.functions:
        metadata = models.metadata(target.rpc_name, request.model_version)
        inputs = script_tensors.fitted(metadata.inputs, run(models, call, target, PREPROCESS, inputs))
    wanted = () if POSTPROCESS in target.functions else request.outputs
    response = models.infer(replace(request, inputs=tuple(inputs), outputs=wanted), call.connection)
    if POSTPROCESS not in target.functions:
        return response
    shown = script_tensors.chosen(run(models, call, target, POSTPROCESS, response.outputs), request.outputs or None)
    return replace(response, outputs=tuple(shown.values()))
