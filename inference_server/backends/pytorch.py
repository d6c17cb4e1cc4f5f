"""PyTorch models: programs of `torch.export` (.pt2) and TorchScript (.pt). Either file is code, so they run in a process of their own.

What a `.pt2` file takes and gives stands in it; of a `.pt` file `model.toml` says it. Nothing is unpickled: torch is told to read weights
only, whatever it would fall back to, and `.pt` files go through TorchScript's own reader.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idl.messages import TensorSpec
from idl.tensors import Array
from inference_server import errors
from inference_server.backends.presented import Model, presented
from inference_server.declared import Declared
from inference_server.types import Signature

TORCHSCRIPT, EXPORTED = "pytorch_libtorch", "pytorch_export"
NEEDED = "PyTorch models need torch 2.6 or later (pip install -e '.[torch]' in the checkout)"
_NUMBERED = re.compile(r".*__(\d{1,4})")
"""Triton's names for tensors that a TorchScript file has no names for: `INPUT__0`."""
_LONGEST_WORDS = 400
_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}
"""torch's types -> the protocol's."""


def loaded(path: Path, name: str, threads: int, providers: Sequence[str], device_id: int, declared: Declared) -> Model:
    """The model in `path`, as callers see it. `providers`: onnxruntime's, of which one for NVIDIA's GPUs means that one may be used.

    Raises invalid_model, unsupported.
    """
    torch = _torch(name)
    if threads:
        torch.set_num_threads(threads)
    device = _device(torch, providers, device_id)
    if path.suffix == ".pt2":
        model: Model = _exported(torch, path, name, device)
        return presented(model, name, declared) if declared.inputs or declared.outputs else model
    return _scripted(torch, path, name, device, declared)


def _torch(name: str) -> Any:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torch.export falls back to unpickling: torch 2.13, `deserialize_torch_artifact`
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    try:
        import torch
    except ImportError as missing:
        raise errors.unsupported(f"model {name!r}: {NEEDED}") from missing
    return torch


def _device(torch: Any, providers: Sequence[str], device_id: int) -> Any:
    wanted = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}.intersection(providers)
    if wanted and torch.cuda.is_available() and device_id < torch.cuda.device_count():
        return torch.device("cuda", device_id)
    return torch.device("cpu")


class TorchModel:
    """Satisfies `running.Backend`. `call`: the inputs as tensors, by name, to the outputs, by name."""

    def __init__(self, torch: Any, device: Any, signature: Signature, call: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        self._torch, self._device, self._call = torch, device, call
        self.signature = signature
        self.providers: tuple[str, ...] = ("CUDAExecutionProvider",) if device.type == "cuda" else ("CPUExecutionProvider",)
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._bfloat = {spec.name for spec in (*signature.inputs, *signature.outputs) if spec.datatype == "BF16"}

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """The wanted outputs, in that order; BF16 as uint16 bit patterns. Raises model_failed."""
        try:
            with self._torch.inference_mode():
                found = self._call({name: self._tensor(name, array) for name, array in inputs.items()})
                return [self._array(self._outputs[name], found) for name in wanted]
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, NotImplementedError) as error:
            raise errors.model_failed(f"the model failed: {_words(error)}") from error

    def _tensor(self, name: str, array: Array) -> Any:
        """A model may write into what it is given, and what callers' memory is mapped from may not be written to."""
        given = array if array.flags.writeable and array.flags.c_contiguous else np.array(array, order="C")
        tensor = self._torch.from_numpy(given)
        if name in self._bfloat:
            tensor = tensor.view(self._torch.bfloat16)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)

    def _array(self, spec: TensorSpec, found: Mapping[str, Any]) -> Array:
        tensor = found.get(spec.name)
        if not isinstance(tensor, self._torch.Tensor):
            raise errors.model_failed(f"the model gave no tensor {spec.name!r}; it gave {', '.join(map(repr, found)) or 'nothing'}")
        datatype = _datatype(tensor.dtype)
        if datatype != spec.datatype:
            raise errors.model_failed(f"output {spec.name!r} is {datatype or tensor.dtype}, and {spec.datatype} is declared")
        if len(tensor.shape) != len(spec.shape) or any(said not in (-1, got) for got, said in zip(tensor.shape, spec.shape, strict=True)):
            raise errors.model_failed(f"output {spec.name!r} has shape {list(tensor.shape)}, and {list(spec.shape)} is declared")
        tensor = tensor.detach().cpu().contiguous()
        made: Array = (tensor.view(self._torch.uint16) if spec.datatype == "BF16" else tensor).numpy()
        return made


# torch.export --------------------------------------------------------------------------------------------------------------------


def _exported(torch: Any, path: Path, name: str, device: Any) -> TorchModel:
    _check_archive(path, name)
    try:
        program = torch.export.load(str(path))
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module()
    except Exception as error:
        raise errors.invalid_model(name, f"{path.name} cannot be loaded: {_words(error, path)}") from error
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    names = [each.arg.name for each in program.graph_signature.input_specs if each.kind.name == "USER_INPUT"]
    inputs = tuple(_spec(torch, name, f"input {each!r}", each, values.get(each)) for each in names)
    results = [values.get(each.arg.name) for each in program.graph_signature.output_specs if each.kind.name == "USER_OUTPUT"]
    called = _output_names(torch, program.call_spec.out_spec)
    if len(called) != len(results) or len(set(called)) != len(called):
        raise errors.invalid_model(name, f"{path.name}: its outputs cannot be told apart by names: {', '.join(map(repr, called))}")
    outputs = tuple(_spec(torch, name, f"output {each!r}", each, value) for each, value in zip(called, results, strict=True))
    in_spec = program.call_spec.in_spec
    unflatten, leaves = torch.utils._pytree.tree_unflatten, torch.utils._pytree.tree_leaves

    def call(given: dict[str, Any]) -> Mapping[str, Any]:
        positional, named = unflatten([given[each] for each in names], in_spec)
        return dict(zip(called, leaves(module(*positional, **named)), strict=True))

    specs = (*inputs, *outputs)
    batch_axis = 0 if all(spec.shape and spec.shape[0] == -1 for spec in specs) else None
    return TorchModel(torch, device, Signature(EXPORTED, inputs, outputs, batch_axis), call)


def _spec(torch: Any, model: str, what: str, name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        raise errors.invalid_model(model, f"{what} is no tensor: only tensors are carried")
    datatype = _datatype(value.dtype)
    if not datatype:
        raise errors.invalid_model(model, f"{what} is {value.dtype}, which the protocol cannot carry")
    return TensorSpec(name, datatype, tuple(size if isinstance(size, int) else -1 for size in value.shape))


def _output_names(torch: Any, spec: Any) -> list[str]:
    """A dict's keys; `output` for a single tensor; else the places in what is given, `output_0` and so on."""
    count = spec.num_leaves
    paths = [path for path, _ in torch.utils._pytree.tree_flatten_with_path(torch.utils._pytree.tree_unflatten([0] * count, spec))[0]]
    return [_output_name(path) for path in paths]


def _output_name(path: Iterable[Any]) -> str:
    steps = [getattr(step, "key", getattr(step, "name", getattr(step, "idx", None))) for step in path]
    if not steps:
        return "output"
    return ".".join(map(str, steps)) if isinstance(steps[0], str) else "output_" + ".".join(map(str, steps))


# TorchScript ---------------------------------------------------------------------------------------------------------------------


def _scripted(torch: Any, path: Path, name: str, device: Any, declared: Declared) -> TorchModel:
    inputs, outputs = declared.specs(name)
    if not inputs or not outputs:
        missing = "[inputs.NAME] and [outputs.NAME]" if not inputs and not outputs else "[inputs.NAME]" if not inputs else "[outputs.NAME]"
        raise errors.invalid_model(
            name, f"{path.name} does not say what its tensors are: model.toml needs {missing} with datatype and shape"
        )
    if texts := [spec.name for spec in (*inputs, *outputs) if spec.datatype == "BYTES"]:
        raise errors.invalid_model(name, f"{texts[0]!r} is BYTES, and torch has no texts")
    _check_archive(path, name, "constants.pkl")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
        arguments = list(module.forward.schema.arguments)[1:]
    except Exception as error:
        raise errors.invalid_model(name, f"{path.name} cannot be loaded: {_words(error, path)}") from error
    order = _order(name, [spec.name for spec in inputs], arguments)
    names = [spec.name for spec in outputs]

    def call(given: dict[str, Any]) -> Mapping[str, Any]:
        positional = [given[each] for each in order[0]]
        return _by_name(torch, module(*positional, **{argument: given[each] for argument, each in order[1].items()}), names)

    specs = (*inputs, *outputs)
    batch_axis = 0 if all(spec.shape and spec.shape[0] == -1 for spec in specs) else None
    return TorchModel(torch, device, Signature(TORCHSCRIPT, inputs, outputs, batch_axis), call)


def _order(model: str, names: Sequence[str], arguments: Sequence[Any]) -> tuple[list[str], dict[str, str]]:
    """(Names of inputs in the order of `forward`, forward's argument -> input). Raises invalid_model where they do not fit."""
    if all(_NUMBERED.fullmatch(name) for name in names):
        by_number = {int(match[1]): name for name in names if (match := _NUMBERED.fullmatch(name))}
        if sorted(by_number) == list(range(len(names))) and len(names) <= len(arguments):
            return [by_number[index] for index in range(len(names))], {}
    known = [argument.name for argument in arguments]
    needed = [argument.name for argument in arguments if not argument.has_default_value()]
    unknown = [name for name in names if name not in known]
    missing = [name for name in needed if name not in names]
    if unknown or missing:
        what = f"has no {unknown[0]!r}" if unknown else f"needs {missing[0]!r} as well"
        raise errors.invalid_model(
            model, f"inputs are {', '.join(map(repr, names))}, and forward takes {', '.join(known) or 'nothing'}: it {what}"
        )
    return [], {name: name for name in names}


def _by_name(torch: Any, given: Any, names: Sequence[str]) -> dict[str, Any]:
    if isinstance(given, torch.Tensor):
        given = [given]
    if isinstance(given, Mapping):
        return {str(key): value for key, value in given.items()}
    if not isinstance(given, (tuple, list)):
        raise errors.model_failed(f"the model gave a {type(given).__name__}, not tensors")
    if len(given) < len(names):
        raise errors.model_failed(f"the model gave {len(given)} tensors, and {len(names)} are declared")
    return dict(zip(names, given, strict=False))


# files ---------------------------------------------------------------------------------------------------------------------------


def _check_archive(path: Path, model: str, wanted: str = "") -> None:
    """Both kinds are zip archives, and TorchScript has its code in it: said before torch says less."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
    except OSError as error:
        raise errors.invalid_model(model, f"{path.name} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        if path.stat().st_size == 0:
            raise errors.invalid_model(model, f"{path.name} is empty: it has 0 bytes") from error
        kind = "a program of torch.export (torch.export.save)" if not wanted else "TorchScript (torch.jit.save)"
        raise errors.invalid_model(model, f"{path.name} is not {kind}, or is cut off") from error
    if wanted and not any(name.endswith(f"/{wanted}") for name in inside):
        raise errors.invalid_model(
            model, f"{path.name} is a pickle of torch.save, which is not loaded: save torch.jit.script(model), or torch.export it as .pt2"
        )


def _datatype(dtype: Any) -> str:
    return _DATATYPES.get(str(dtype).removeprefix("torch."), "")


def _words(error: BaseException, path: Path | None = None) -> str:
    """The line that says most: TorchScript's errors end with it, after lines of its own code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = next((line for line in reversed(lines) if line.startswith(("RuntimeError", "Error", "torch.jit.Error"))), lines[0])
    if path is not None:
        text = text.replace(str(path), path.name).replace(f"{path.parent}/", "")
    return text[:_LONGEST_WORDS]
