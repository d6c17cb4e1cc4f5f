"""Whether a request fits a model's signature: decided before it is queued, so that a wrong one costs the model nothing."""

from collections.abc import Sequence

from idl import tensors
from idl.lane import TensorHead
from idl.messages import TensorSpec
from inference_server import errors
from inference_server.types import Signature


def check(signature: Signature, model: str, inputs: Sequence[TensorHead], wanted: Sequence[str]) -> None:
    """`wanted`: names of outputs, empty for all. Raises invalid_input naming the tensor and both values."""
    if signature.is_open:
        _check_open(inputs, wanted)
        return
    specs = {spec.name: spec for spec in signature.inputs}
    seen: set[str] = set()
    for tensor in inputs:
        spec = specs.get(tensor.name)
        if spec is None:
            raise errors.invalid_input(f"model {model!r} has no input {_short(tensor.name)}; it has {_names(signature.inputs)}")
        if tensor.name in seen:
            raise errors.invalid_input(f"input {tensor.name!r} stands twice in the request")
        seen.add(tensor.name)
        _check_tensor(spec, tensor)
    if len(seen) != len(specs):
        missing = ", ".join(repr(name) for name in specs if name not in seen)
        raise errors.invalid_input(f"model {model!r}: input {missing} is missing")
    _check_outputs(signature, model, wanted)


def _check_open(inputs: Sequence[TensorHead], wanted: Sequence[str]) -> None:
    """Of a model that takes any tensors: each must be one, under a name of its own."""
    seen: set[str] = set()
    for tensor in inputs:
        if not tensor.name or tensor.name in seen:
            raise errors.invalid_input(
                f"input {_short(tensor.name)} stands twice in the request" if tensor.name else "an input has no name"
            )
        seen.add(tensor.name)
        tensors.check_size(tensor.name, tensor.datatype, tensor.shape, tensor.size)
    _check_once(wanted)


def _check_tensor(spec: TensorSpec, tensor: TensorHead) -> None:
    if tensor.datatype != spec.datatype:
        raise errors.invalid_input(f"input {spec.name!r} is {spec.datatype}, got {_short(tensor.datatype)}")
    tensors.element_count(tensor.name, tensor.shape)
    if len(tensor.shape) != len(spec.shape) or any(want not in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True)):
        raise errors.invalid_input(f"input {spec.name!r} has shape {list(spec.shape)}, got {list(tensor.shape)}")
    tensors.check_size(tensor.name, tensor.datatype, tensor.shape, tensor.size)


def _check_outputs(signature: Signature, model: str, wanted: Sequence[str]) -> None:
    have = {spec.name for spec in signature.outputs}
    for name in wanted:
        if name not in have:
            raise errors.invalid_input(f"model {model!r} has no output {_short(name)}; it has {_names(signature.outputs)}")
    _check_once(wanted)


def _check_once(wanted: Sequence[str]) -> None:
    if len(set(wanted)) != len(wanted):
        raise errors.invalid_input("an output stands twice in the request")


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in specs) or "none"


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")
