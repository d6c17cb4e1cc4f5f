"""A prediction of one model from what a person or an application sends: decode, ask the model, spell the answer."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gateway.model_declaration import Declaration
from gateway.models_rpc import Models
from gateway.operations import form_inputs, inference, prediction_inputs, sample_answers, tensor_json
from gateway.operations.images import Limits
from gateway.operations.inference import Call
from gateway.operations.prediction_bodies import FormInput, PredictionBody
from gateway.settings import Settings
from idl.codes import Code, ServingError
from idl.messages import InferResponse, ModelMetadata, Tensor
from idl.tensors import Array, invalid

# made once: json.dumps makes one for each call
_spell = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def answer(models: Models, settings: Settings, call: Call, model: str, version: str, read_body: Callable[[], PredictionBody]) -> bytes:
    """One prediction as the answer's JSON, once `call` may use the model. Raises ServingError."""
    started = time.monotonic()
    if inference.require_callable(models, call, model, version) is not None:
        raise is_deployment(model)
    return spelled(predict(models, settings, call, model, version, read_body(), started))


def is_deployment(name: str) -> ServingError:
    """The refusal where a model is asked for, and there is a deployment of that name."""
    return ServingError(Code.MODEL_NOT_FOUND, f"{name!r} is a deployment: ask /v1/deployments/{name}/predictions")


def spelled(answer: Mapping[str, Any]) -> bytes:
    """An answer as JSON."""
    return _spell(answer).encode()


def predict(
    models: Models, settings: Settings, call: Call, model: str, version: str, body: PredictionBody, started: float
) -> dict[str, Any]:
    """The answer's JSON value; `started` is when the request came, by `time.monotonic()`. `inference.require_callable` comes first."""
    metadata, declaration = models.metadata(model, version), models.declaration(model, version)
    if body.form is not None:
        return _of_form(models, settings, call, model, version, body, body.form)
    labelled = labelled_output(metadata, declaration, body)
    wanted = wanted_outputs(metadata, body, labelled)
    limits = Limits(settings.max_image_pixels, settings.max_body_bytes, call.deadline)
    prepared = prediction_inputs.prepare(metadata, declaration, body, limits)
    response = inference.predict(models, call, model, version, prepared.tensors, wanted)
    outputs = {tensor.name: tensor for tensor in response.outputs}
    shown = outputs if body.outputs is None else {name: outputs[name] for name in body.outputs}
    answer: dict[str, Any] = {
        "id": call.request_id,
        "model": response.model_name,
        "version": response.model_version,
        "outputs": {name: tensor_json.to_nested(tensor) for name, tensor in shown.items()},
    }
    if labelled:
        answer["labels"] = top_labels(outputs[labelled], declaration.labels[labelled], body.top_k or declaration.top_k)
    if prepared.assumed:
        answer["assumed"] = prepared.assumed
    answer["timing_ms"] = timing(response, time.monotonic() - started)
    return answer


def _of_form(
    models: Models, settings: Settings, call: Call, model: str, version: str, body: PredictionBody, form: FormInput
) -> dict[str, Any]:
    """Each sample is a prediction of its own."""
    metadata, declaration = models.metadata(model, version), models.declaration(model, version)
    limits = form_inputs.limits_of(settings, call.deadline)
    samples = form_inputs.decode(form.filetype, form.fields, form.files, metadata, declaration, limits)

    def run(sample: PredictionBody) -> dict[str, Any]:
        wanted = replace(sample, outputs=body.outputs, top_k=body.top_k)
        return predict(models, settings, call, model, version, wanted, time.monotonic())

    return sample_answers.answered(samples, run)


def labelled_output(metadata: ModelMetadata, declaration: Declaration, body: PredictionBody) -> str:
    """The output that the answer's labels are of, "" for none: the model's first labelled one that the caller wants."""
    labelled = [spec.name for spec in metadata.outputs if spec.name in declaration.labels and spec.datatype != "BYTES"]
    if body.top_k is not None and not labelled:
        raise invalid(f"model {metadata.name!r} declares no labels that top_k could choose from")
    wanted = [name for name in labelled if not body.outputs or name in body.outputs]
    return wanted[0] if wanted else ""


def wanted_outputs(metadata: ModelMetadata, body: PredictionBody, labelled: str) -> tuple[str, ...]:
    """What to ask the model host for; empty means all."""
    if body.outputs is None:
        return ()
    names = [spec.name for spec in metadata.outputs]
    for name in body.outputs:
        if name not in names:
            raise invalid(f"model {metadata.name!r} has no output {name[:80]!r}; its outputs are {', '.join(map(repr, names))}")
    if not body.outputs and not labelled:
        raise invalid(f"outputs is empty, and model {metadata.name!r} declares no labels: nothing would be answered")
    return body.outputs or (labelled,)


def top_labels(tensor: Tensor, labels: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
    """For each sample of a [sample, class] tensor its `top_k` classes, best first; a NaN is never better than a number.

    A tensor without a sample axis is one sample; further axes are flattened. A class beyond the labels has the label None.
    """
    scores = tensor_json.to_array(tensor)
    if scores.ndim < 2:
        scores = scores.reshape(1, -1)
    elif scores.ndim > 2:
        scores = scores.reshape(scores.shape[0], int(np.prod(scores.shape[1:])))
    return [_top(row, labels, top_k) for row in scores]


def _top(row: Array, labels: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    values = row.astype(np.float64)
    order = np.lexsort((-values, np.isnan(values)))[:top_k].tolist()
    return [
        {"label": labels[index] if index < len(labels) else None, "index": index, "score": _number(score)}
        for index, score in zip(order, row[order].tolist(), strict=True)
    ]


def _number(score: Any) -> Any:
    return tensor_json.finite_or_name(score) if isinstance(score, float) else score


def timing(response: InferResponse, total_s: float) -> dict[str, float]:
    """Milliseconds in the queue, in the model, and in all."""
    queue_us, compute_us = (int(response.parameters.get(name, 0)) for name in ("queue_us", "compute_us"))
    return {"queue": queue_us / 1000, "compute": compute_us / 1000, "total": round(total_s * 1000, 3)}
