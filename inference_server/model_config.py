"""What a loaded model is told to be: the answer of the protocol's ModelConfig verb, and the properties in its metadata.

Both are made from what was decided, not from what was asked for: a client that goes by them is never wrong.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from google.protobuf.json_format import ParseDict

from idl import config_json
from idl.generated import inference_pb2 as pb
from idl.messages import TensorSpec
from inference_server import triton_ensemble
from inference_server.declared import Declared, DeclaredTensor
from inference_server.model_settings import ModelSettings, VersionPolicy
from inference_server.repository_model import PIPELINE, RepositoryModel
from inference_server.triton_config import ANSWERED, BACKEND, NOTE, OWN_PARAMETER
from inference_server.types import MOST_SEQUENCES, SEQUENCE_IDLE_S, Batching, Signature
from inference_server.version_labels import Labels, described
from inference_server.warmup_samples import Sample, SampleInput

_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider")
_BACKENDS = {"onnx": BACKEND, PIPELINE: ""}
"""What runs a model -> what clients of the protocol know it by, where that is another word; an ensemble has none."""


def model_config(
    model: RepositoryModel, signature: Signature, providers: tuple[str, ...], batching: Batching, instances: int
) -> dict[str, Any]:
    """`inference.ModelConfig` as `idl.config_json` has it.

    max_batch_size is 0, and dims are whole shapes, where a request's first axis is not a batch; else dims leave that axis out.
    """
    settings, declared = model.settings, model.declared or Declared()
    file = model.file(max(model.versions, default=0))
    backend = model.backend(max(model.versions, default=0))
    size = batching.max_batch_size if batching.on else 1 if declared.max_batch_size else 0
    if settings.steps:  # it puts nothing together itself, and takes what its owner says
        size = (settings.max_batch_size or declared.max_batch_size) if declared.max_batch_size and signature.batch_axis == 0 else 0
    own = settings.published() | ({"steps": untold} if (untold := triton_ensemble.untold(settings.steps)) else {})
    if model.user:
        own |= {"user": True}
    config: dict[str, Any] = {
        "name": model.name,
        "platform": signature.platform,
        "backend": _BACKENDS.get(backend, backend),
        "version_policy": _version_policy(settings.version_policy),
        "max_batch_size": size,
        "input": [_tensor(spec, size, _of(spec, declared.inputs)) for spec in signature.inputs],
        "output": [_tensor(spec, size, _of(spec, declared.outputs)) for spec in signature.outputs],
        "instance_group": [{"name": model.name, "count": instances, "kind": "KIND_GPU" if set(_GPU) & set(providers) else "KIND_CPU"}],
        "default_model_filename": "" if settings.steps else file.name,
        "parameters": {
            **{key: {"string_value": value} for key, value in model.parameters.items()},
            **{f"{NOTE}{name}": {"string_value": text} for name, text in signature.notes.items()},
            OWN_PARAMETER: {"string_value": json.dumps(own, ensure_ascii=False)},
            **{key: {"string_value": value} for key, value in zip(ANSWERED, (verdict(batching), ",".join(providers)), strict=True)},
        },
    }
    if settings.steps:
        config[triton_ensemble.FIELD] = triton_ensemble.described(settings.steps)
    if settings.cache is not None:
        config["response_cache"] = {"enable": True}
    if signature.streams:
        config["model_transaction_policy"] = {"decoupled": True}
    if settings.warmup:
        specs = {spec.name: spec for spec in signature.inputs}
        config["model_warmup"] = [_warmup(f"warmup {index}", sample, specs) for index, sample in enumerate(settings.warmup)]
    if settings.state:  # of a choice: the answer's parameters say whether requests share runs as well
        config["sequence_batching"] = _sequence_batching(settings)
    elif batching.on and not settings.steps:
        config["dynamic_batching"] = _dynamic_batching(batching)
    return config_json.to_json(ParseDict(config, pb.ModelConfig()))


def properties(
    batching: Batching,
    instances: int,
    default: Sequence[tuple[int, int]],
    labels: Labels | None,
    signature: Signature | None = None,
    sandbox: str = "",
) -> dict[str, str]:
    """What the server decided about a model, as texts, in its metadata. `default`: (version, weight) of requests that name none; `sandbox`:
    whether its code runs in one, "" for what has none.
    """
    every = sum(weight for _, weight in default)
    told = {
        "batching": verdict(batching),
        "instances": str(instances),
        "default_version": ", ".join(
            f"{version} ({100 * weight // every} %)" if len(default) > 1 else str(version) for version, weight in default
        ),
    }
    if signature is not None and signature.is_open:
        told |= {"tensors": "open: any names, types and shapes", "functions": ", ".join(signature.functions)}
    told |= {"sandbox": sandbox} if sandbox else {}
    return told | ({"version_labels": described(labels)} if labels and labels.versions else {})


def verdict(batching: Batching) -> str:
    """ "on, up to 16 rows" or "off: why"."""
    if not batching.on:
        return f"off: {batching.reason}" if batching.reason else "off"
    return f"on, up to {batching.max_batch_size} rows"


def _version_policy(policy: VersionPolicy) -> dict[str, Any]:
    if policy.specific:
        return {"specific": {"versions": list(policy.specific)}}
    return {"latest": {"num_versions": policy.latest}} if policy.latest else {"all": {}}


def _of(spec: TensorSpec, tensors: tuple[DeclaredTensor, ...]) -> DeclaredTensor | None:
    return next((tensor for tensor in tensors if tensor.name == spec.name), None)


def _tensor(spec: TensorSpec, size: int, declared: DeclaredTensor | None) -> dict[str, Any]:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    made: dict[str, Any] = {"name": spec.name, "data_type": datatype, "dims": list(spec.shape[1:] if size else spec.shape)}
    if declared is not None and declared.reshape is not None:
        made["reshape"] = {"shape": list(declared.reshape)}
    return made


def _sequence_batching(settings: ModelSettings) -> dict[str, Any]:
    """Without types and dims of the states: what callers see of the model has those tensors no more."""
    said = settings.sequence
    return {
        "max_sequence_idle_microseconds": round(said.get("idle_timeout_s", SEQUENCE_IDLE_S) * 1e6),
        "oldest": {"max_candidate_sequences": said.get("max_sequences", MOST_SEQUENCES)},
        "state": [{"input_name": name, "output_name": state["output"]} for name, state in settings.state.items()],
    }


def _warmup(name: str, sample: Sample, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    inputs = {key: _warmup_input(content, specs.get(key)) for key, content in sample.inputs.items()}
    return {"name": name, "batch_size": sample.batch or 0, "count": sample.count, "inputs": inputs}


def _warmup_input(content: SampleInput, spec: TensorSpec | None) -> dict[str, Any]:
    """The message has no word for a value other than zero: such an input says its type and dims only."""
    datatype = content.datatype or (spec.datatype if spec else "")
    shape = content.shape if content.shape is not None or spec is None else tuple(max(size, 1) for size in spec.shape)
    made: dict[str, Any] = {"dims": list(shape or ())}
    if datatype:
        made["data_type"] = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    if content.file:
        made["input_data_file"] = PurePosixPath(content.file).name
    elif content.random:
        made["random_data"] = True
    elif not content.value:
        made["zero_data"] = True
    return made


def _dynamic_batching(batching: Batching) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(batching.preferred),
        "max_queue_delay_microseconds": batching.max_queue_delay_us,
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.default_priority,
        "default_queue_policy": {
            "default_timeout_microseconds": batching.default_timeout_us,
            "allow_timeout_override": True,
            "max_queue_size": batching.max_queue_size,
        },
    }
