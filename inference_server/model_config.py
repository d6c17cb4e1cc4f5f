"""The model configuration that the protocol's ModelConfig verb answers, made from the file's signature and `model.toml`."""

import json
from typing import Any

from idl.messages import TensorSpec
from inference_server.model_settings import ModelSettings, VersionPolicy
from inference_server.repository import MODEL_FILE
from inference_server.types import Signature

PARAMETER = "outboard"
"""The parameter whose value is a JSON text of `ModelSettings.published`: what the gateway needs to know of a model."""


def model_config(name: str, settings: ModelSettings, signature: Signature, providers: tuple[str, ...]) -> dict[str, Any]:
    """protobuf's JSON mapping of `inference.ModelConfig`, with the field names as they stand in the IDL.

    max_batch_size is 0 and dims are whole shapes: requests are run one by one.
    """
    kind = "KIND_GPU" if any(provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider") for provider in providers) else "KIND_CPU"
    return {
        "name": name,
        "platform": signature.platform,
        "backend": "onnxruntime",
        "version_policy": _version_policy(settings.version_policy),
        "max_batch_size": 0,
        "input": [_tensor(spec) for spec in signature.inputs],
        "output": [_tensor(spec) for spec in signature.outputs],
        "instance_group": [{"name": name, "count": 1, "kind": kind}],
        "default_model_filename": MODEL_FILE,
        "parameters": {
            PARAMETER: {"string_value": json.dumps(settings.published(), ensure_ascii=False)},
            "execution_providers": {"string_value": ",".join(providers)},
        },
    }


def _version_policy(policy: VersionPolicy) -> dict[str, Any]:
    if policy.specific:
        return {"specific": {"versions": list(policy.specific)}}
    return {"latest": {"num_versions": policy.latest}} if policy.latest else {"all": {}}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": datatype, "dims": list(spec.shape)}
