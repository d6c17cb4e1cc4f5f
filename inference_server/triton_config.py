"""A Triton model configuration: `config.pbtxt`, or JSON in a load request, as the settings that this server has for the same things.

What changes no answer and is not acted on is named, so that the log can say it. What would change answers (sequences, other
frameworks) refuses the model: serving it as if nothing were said would be wrong. Field by field: docs/configuration.md.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format

from idl.generated import inference_pb2 as pb
from inference_server import label_files, model_settings, pipeline_steps, triton_ensemble
from inference_server.declared import CONFIG, Declared, DeclaredTensor
from inference_server.setting_checks import InvalidModelSettings, bad, plain_name, shown
from inference_server.warmup_samples import FOLDER, MOST_RUNS, MOST_SAMPLES, Sample, SampleInput

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
TORCHSCRIPT, PYTORCH = "pytorch_libtorch", "pytorch"
OWN_PARAMETER = "outboard"
"""The parameter that holds keys of `model.toml` as JSON: what a Triton configuration has no field for."""
ANSWERED = ("batching", "execution_providers")
"""Parameters that this server adds to its answers, so that an answer can be sent back as it is."""
NOTE = "field."
"""Begins the names of parameters that this server answers with: what a model's file says of a tensor in words."""
MAX_BYTES = 2**20
_LONGEST_ERROR = 300


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """What a configuration says. `values`: fields of ModelSettings; `unused`: names of what is set and not acted on; `parameters`: its own."""

    values: Mapping[str, Any] = field(default_factory=dict)
    declared: Declared | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def read(folder: Path, name: str) -> TritonConfig | None:
    """`folder/config.pbtxt` of model `name`; None where there is none. Raises InvalidModelSettings."""
    try:
        with (folder / CONFIG).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidModelSettings(f"{CONFIG} cannot be read: {error.strerror}") from error
    return translated(parse(raw), name, folder, CONFIG)


def parse(raw: bytes) -> Any:
    """protobuf's text format -> `inference.ModelConfig`. Raises InvalidModelSettings with line and column."""
    if len(raw) > MAX_BYTES:
        raise InvalidModelSettings(f"{CONFIG} has more than {MAX_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidModelSettings(f"{CONFIG} is not text: byte {error.start} is not UTF-8") from error
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise InvalidModelSettings(f"{CONFIG}: {_said(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidModelSettings(f"{CONFIG} cannot be read: {str(error)[:_LONGEST_ERROR]}") from error


def _said(error: text_format.ParseError) -> str:
    """The parser says "line:column : 'the line': what", the line however long."""
    what = re.sub(r"^\d+:\d+ : ", "", str(error))
    what = what if len(what) <= _LONGEST_ERROR else f"...{what[-_LONGEST_ERROR:]}"
    return f"line {error.GetLine()}, column {error.GetColumn()}: {what}"


def parse_json(source: str, text: str | bytes) -> Any:
    """protobuf's JSON mapping -> `inference.ModelConfig`. `source`: for messages. Raises InvalidModelSettings."""
    if len(text) > MAX_BYTES:
        raise InvalidModelSettings(f"{source} has more than {MAX_BYTES} bytes")
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise TypeError("it is not a JSON object")
        return json_format.ParseDict(given, pb.ModelConfig())
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise InvalidModelSettings(f"{source} is not a model configuration: {_said_of_json(error)}") from error


def _said_of_json(error: Exception) -> str:
    """Of an unknown field the parser lists all those that it knows, in another spelling than people write."""
    unknown = re.search(r'has no field named "(.*?)" at "ModelConfig\.?(.*?)"', str(error), re.DOTALL)
    if unknown is None:
        return str(error)[:_LONGEST_ERROR]
    return f"{unknown[2] or 'it'} has no field {shown(unknown[1])}"


def translated(config: Any, name: str, folder: Path, source: str) -> TritonConfig:
    """`config`: an `inference.ModelConfig` that came from `source` and belongs to the files in `folder`. Raises InvalidModelSettings."""
    try:
        is_ensemble = triton_ensemble.is_one(config)
        _check_servable(config, name)
        own_keys = _own_keys(config)
        values = _values(config, folder)
        if is_ensemble:
            values["steps"] = _steps(config, own_keys.pop("steps", {}), folder)
        own, parameters, unused_parameters = _parameters(config, own_keys, values, folder)
        declared = Declared(config.max_batch_size, _tensors(config.input), _tensors(config.output), source)
    except InvalidModelSettings as error:
        raise InvalidModelSettings(f"{source}: {error}") from error
    says_tensors = declared.max_batch_size or declared.inputs or declared.outputs
    unused = (*_unused(config), *unused_parameters)
    return TritonConfig(values | own, declared if says_tensors else None, parameters, tuple(sorted(unused)))


def _check_servable(config: Any, name: str) -> None:
    if config.name and config.name != name:
        raise InvalidModelSettings(f"name is {shown(config.name)}, and the model's folder is {name!r}")
    if config.platform not in ("", PLATFORM, TORCHSCRIPT, pipeline_steps.PLATFORM):
        raise InvalidModelSettings(f"platform {shown(config.platform)} is not served here, only {PLATFORM} and {TORCHSCRIPT}")
    if config.backend not in ("", BACKEND, PYTORCH, pipeline_steps.PLATFORM):
        raise InvalidModelSettings(f"backend {shown(config.backend)} is not served here, only {BACKEND} and {PYTORCH}")
    scheduling = config.WhichOneof("scheduling_choice")
    for what, is_set in (
        ("sequence_batching", scheduling == "sequence_batching"),
        ("model_transaction_policy.decoupled", config.model_transaction_policy.decoupled),
        ("batch_input", bool(config.batch_input)),
        ("batch_output", bool(config.batch_output)),
        ("model_repository_agents", bool(config.model_repository_agents.agents)),
        ("is_shape_tensor", any(tensor.is_shape_tensor for tensor in (*config.input, *config.output))),
    ):
        if is_set:
            raise InvalidModelSettings(f"{what} is not supported, and without it the answers would be others")
    if config.model_operations.op_library_filename:
        raise InvalidModelSettings(
            "model_operations.op_library_filename names code to be loaded into the server's processes, which is not done"
        )
    if config.max_batch_size < 0:
        raise bad("max_batch_size", config.max_batch_size, "a whole number from 0")


# tensors -------------------------------------------------------------------------------------------------------------------------


def _tensors(tensors: Any) -> tuple[DeclaredTensor, ...]:
    return tuple(_tensor(tensor) for tensor in tensors)


def _tensor(tensor: Any) -> DeclaredTensor:
    if not tensor.name:
        raise InvalidModelSettings("an input or output has no name")
    reshape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None
    dims = tuple(tensor.dims) or None
    for size in (*(dims or ()), *(reshape or ())):
        if size < -1 or size == 0:
            raise InvalidModelSettings(f"tensor {tensor.name!r} has a dimension {size}; sizes are above 0, or -1 for any")
    if reshape is not None and dims is None:
        raise InvalidModelSettings(f"tensor {tensor.name!r} has a reshape and no dims")
    return DeclaredTensor(tensor.name, datatype(tensor.data_type), dims, reshape)


def datatype(kind: int) -> str:
    """`TYPE_FP32` -> `FP32`; "" where none is said."""
    name = pb.DataType.Name(kind) if kind in pb.DataType.values() else ""
    if not name:
        raise InvalidModelSettings(f"data_type {kind} is none of the protocol's")
    return {"TYPE_STRING": "BYTES", "TYPE_INVALID": ""}.get(name, name.removeprefix("TYPE_"))


# settings ------------------------------------------------------------------------------------------------------------------------


def _values(config: Any, folder: Path) -> dict[str, Any]:
    """Fields of ModelSettings, through the checks that `model.toml` goes through."""
    given = dict(triton_ensemble.without(_given(config)) if triton_ensemble.is_one(config) else _given(config))
    values = model_settings.checked(given, folder)
    if len(config.model_warmup) > MOST_SAMPLES:
        raise InvalidModelSettings(f"model_warmup has {len(config.model_warmup)} samples, at most {MOST_SAMPLES} are taken")
    if config.model_warmup:
        values["warmup"] = tuple(_sample(sample, config.max_batch_size) for sample in config.model_warmup)
    labels = {tensor.name: tensor.label_filename for tensor in config.output if tensor.label_filename}
    if labels:
        values["labels"] = {
            name: label_files.read_file(f"label_filename of {name!r}", folder / plain_name("label_filename", file, folder))
            for name, file in labels.items()
        }
    return values


def _given(config: Any) -> Iterator[tuple[str, Any]]:
    """Keys of `model.toml` and their values, as that file would have them."""
    if config.HasField("version_policy"):
        yield "version_policy", _version_policy(config.version_policy)
    if config.response_cache.enable:
        yield "cache", {}
    if config.default_model_filename:
        yield "model_file", config.default_model_filename
    yield from _batching(config)
    yield from _instances(config.instance_group)
    level = config.optimization.graph.level
    if config.optimization.HasField("graph") and level:
        if level not in _LEVELS:
            raise bad("optimization.graph.level", level, "-1, 1 or 2")
        yield "onnxruntime", {"graph_optimization": _LEVELS[level]}


_LEVELS = {-1: "basic", 1: "extended", 2: "none"}


def _steps(config: Any, untold: Any, folder: Path) -> Any:
    """`untold`: what our own parameter says of the steps."""
    said = triton_ensemble.with_untold(f"parameters.{OWN_PARAMETER}.steps", triton_ensemble.steps(config), untold)
    return pipeline_steps.reader(f"{triton_ensemble.FIELD}.step", said, folder)


def _version_policy(policy: Any) -> Any:
    choice = policy.WhichOneof("policy_choice")
    if choice == "specific":
        return {"specific": list(policy.specific.versions)}
    return "all" if choice == "all" else {"latest": policy.latest.num_versions or 1}


def _batching(config: Any) -> Iterator[tuple[str, Any]]:
    if config.max_batch_size:
        yield "max_batch_size", config.max_batch_size
    elif config.input or config.output:
        yield "batching", False  # whole shapes are declared: Triton would not put requests together either
    if not config.HasField("dynamic_batching"):
        return
    batching, queue = config.dynamic_batching, config.dynamic_batching.default_queue_policy
    yield "max_queue_delay_us", batching.max_queue_delay_microseconds
    yield "preferred_batch_sizes", list(batching.preferred_batch_size)
    yield "priority_levels", batching.priority_levels
    yield "default_priority", batching.default_priority_level
    yield "default_timeout_us", queue.default_timeout_microseconds
    if queue.max_queue_size:
        yield "max_queue_size", queue.max_queue_size


def _instances(groups: Any) -> Iterator[tuple[str, Any]]:
    """Several groups are one number of executors: all of them are the same here."""
    if not groups:
        return
    least = min(group.count for group in groups)
    if least < 0:
        raise bad("instance_group.count", least, "a whole number from 0")
    yield "instances", sum(group.count or 1 for group in groups)
    kinds = {group.kind for group in groups}
    if kinds == {pb.ModelInstanceGroup.KIND_CPU}:
        yield "device", "cpu"
    elif kinds == {pb.ModelInstanceGroup.KIND_GPU}:
        yield "device", "gpu"


def _sample(sample: Any, max_batch_size: int) -> Sample:
    inputs = {name: _sample_input(name, content) for name, content in sample.inputs.items()}
    count = min(max(1, sample.count), MOST_RUNS)
    return Sample(inputs, max(1, sample.batch_size) if max_batch_size else None, count)


def _sample_input(name: str, content: Any) -> SampleInput:
    kind = content.WhichOneof("input_data_type")
    file = ""
    if kind == "input_data_file":
        file = f"{FOLDER}/{plain_name(f'model_warmup: input_data_file of {name!r}', content.input_data_file, Path())}"
    if any(size < 0 for size in content.dims):
        raise InvalidModelSettings(f"model_warmup: input {name!r} has dims {list(content.dims)}: a sample has whole sizes")
    return SampleInput(tuple(content.dims) or None, datatype(content.data_type), None, kind == "random_data" and content.random_data, file)


# parameters ----------------------------------------------------------------------------------------------------------------------


def _parameters(
    config: Any, own_keys: dict[str, Any], values: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """(fields of ModelSettings, all but our own parameter, names of those that are not acted on). `own_keys`: as `_own_keys` has them."""
    parameters = {name: entry.string_value for name, entry in config.parameters.items() if name != OWN_PARAMETER}
    own = _own(own_keys, folder)
    for name in [name for name in parameters if name in ANSWERED or name.startswith(NOTE)]:
        del parameters[name]
    session = dict(values.get("onnxruntime", {}))
    unused = []
    for name, text in parameters.items():
        if "steps" in values:
            unused.append(f"parameters.{name}")
        elif name == "intra_op_thread_count":
            own.setdefault("threads", _number(name, text))
        elif name in _SESSION:
            key, meaning = _SESSION[name]
            session[key] = _meant(name, text, meaning)
        else:
            unused.append(f"parameters.{name}")
    if session:
        own["onnxruntime"] = model_settings.checked({"onnxruntime": session}, folder)["onnxruntime"] | own.get("onnxruntime", {})
    return own, parameters, unused


_SWITCH = {"0": False, "1": True}
_SESSION: dict[str, tuple[str, Mapping[str, Any] | None]] = {
    "inter_op_thread_count": ("inter_op_threads", None),
    "execution_mode": ("execution_mode", {"0": "sequential", "1": "parallel"}),
    "enable_mem_arena": ("memory_arena", _SWITCH),
    "enable_mem_pattern": ("memory_pattern", _SWITCH),
}
"""Parameter of Triton's onnxruntime backend -> key of `[onnxruntime]`, and what its values mean (None: a number)."""


def _meant(name: str, text: str, meaning: Mapping[str, Any] | None) -> Any:
    if meaning is None:
        return _number(name, text)
    if text not in meaning:
        raise bad(f"parameters.{name}", text, " or ".join(map(repr, meaning)))
    return meaning[text]


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 5):
        raise bad(f"parameters.{name}", text, "a whole number")
    return int(text)


def _own_keys(config: Any) -> dict[str, Any]:
    """Keys of `model.toml` as JSON has them. Raises InvalidModelSettings."""
    if OWN_PARAMETER not in config.parameters or not (text := config.parameters[OWN_PARAMETER].string_value):
        return {}
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModelSettings(f"parameters.{OWN_PARAMETER} is not JSON: {str(error)[:_LONGEST_ERROR]}") from error
    if not isinstance(given, dict):
        raise bad(f"parameters.{OWN_PARAMETER}", given, "a JSON object")
    return given


def _own(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fields of ModelSettings: `top_k` may stand beside `labels`, as `ModelConfig` answers it."""
    top_k = given.pop("top_k", None)
    values = model_settings.values(f"parameters.{OWN_PARAMETER}", given, folder)
    return values if top_k is None else {"top_k": model_settings.top_k("top_k", top_k, folder)} | values


# what is not acted on ------------------------------------------------------------------------------------------------------------


def _unused(config: Any) -> Iterator[str]:
    """Names of what is set and changes nothing here."""
    for name in ("runtime", "cc_model_filenames", "metric_tags", "model_metrics"):
        if any(field.name == name for field, _ in config.ListFields()):
            yield name
    if triton_ensemble.is_one(config):
        yield from triton_ensemble.unused(config)
    else:
        yield from (f"optimization.{field.name}" for field, _ in config.optimization.ListFields() if field.name != "graph")
    for name in _set_in(config.instance_group, ("gpus", "profile", "rate_limiter", "passive", "secondary_devices", "host_policy")):
        yield f"instance_group.{name}"
    for name in _set_in(config.input, ("format", "allow_ragged_batch", "optional", "is_non_linear_format_io")):
        yield f"input.{name}"
    for name in _set_in(config.output, ("is_non_linear_format_io",)):
        yield f"output.{name}"
    if config.HasField("dynamic_batching"):
        yield from (
            f"dynamic_batching.{name}" for name in _set_in([config.dynamic_batching], ("preserve_ordering", "priority_queue_policy"))
        )
        if config.dynamic_batching.default_queue_policy.timeout_action != pb.ModelQueuePolicy.REJECT:
            yield "dynamic_batching.default_queue_policy.timeout_action"


def _set_in(messages: Any, names: tuple[str, ...]) -> list[str]:
    found = {field.name for message in messages for field, _ in message.ListFields()}
    return [name for name in names if name in found]
