"""What a Triton configuration says of a model's tensors, and what callers see of the model by it.

Without a declaration the file's own signature is what callers see. With one, the two must agree; the declaration may name fewer outputs,
fix open sizes, and give a tensor another shape than the model has it in (`reshape`). Imported into the process that executors are forked
from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from idl.messages import TensorSpec
from inference_server import errors
from inference_server.types import Signature

CONFIG = "config.pbtxt"


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """`dims` as callers send it, `reshape` as the model has it where that differs. `datatype` "" and `dims` None: the file's own."""

    name: str
    datatype: str = ""
    dims: tuple[int, ...] | None = None
    reshape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Declared:
    """With `max_batch_size` above 0 every tensor has a first axis, the batch, which `dims` and `reshape` leave out.

    Empty `inputs` or `outputs`: the file's own. `source`: where it stands, for messages.
    """

    max_batch_size: int = 0
    inputs: tuple[DeclaredTensor, ...] = ()
    outputs: tuple[DeclaredTensor, ...] = ()
    source: str = CONFIG

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Declared":
        return cls(said["max_batch_size"], _tensors(said["inputs"]), _tensors(said["outputs"]), said["source"])

    def specs(self, model: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a model whose file does not say them. Raises invalid_model where this does not either."""
        return tuple(self._spec(model, "inputs", each) for each in self.inputs), tuple(
            self._spec(model, "outputs", each) for each in self.outputs
        )

    def _spec(self, model: str, what: str, tensor: "DeclaredTensor") -> TensorSpec:
        if not tensor.datatype or tensor.dims is None:
            raise errors.invalid_model(model, f"{self.source}: {what}.{tensor.name} needs a datatype and a shape")
        return TensorSpec(tensor.name, tensor.datatype, self.whole(tensor.dims))

    @property
    def reshapes(self) -> bool:
        return any(tensor.reshape is not None for tensor in (*self.inputs, *self.outputs))

    def whole(self, dims: Sequence[int]) -> tuple[int, ...]:
        """`dims` with the batch axis, where there is one."""
        return (-1, *dims) if self.max_batch_size else tuple(dims)


def _tensors(said: Sequence[Mapping[str, Any]]) -> tuple[DeclaredTensor, ...]:
    def sizes(given: Sequence[int] | None) -> tuple[int, ...] | None:
        return None if given is None else tuple(given)

    return tuple(DeclaredTensor(each["name"], each["datatype"], sizes(each["dims"]), sizes(each["reshape"])) for each in said)


def present(model: str, file: Signature, declared: Declared) -> Signature:
    """What callers see of a model whose file has the signature `file`. Raises invalid_model, naming both, where they contradict."""
    inputs = _presented(model, "input", file.inputs, declared.inputs, declared)
    outputs = _presented(model, "output", file.outputs, declared.outputs, declared)
    if declared.inputs:
        for spec in file.inputs:
            if all(tensor.name != spec.name for tensor in declared.inputs):
                raise errors.invalid_model(model, f"{declared.source} does not name input {spec.name!r}, which the model's file needs")
    batch_axis = 0 if all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs)) else None
    return replace(file, inputs=inputs, outputs=outputs, batch_axis=batch_axis if file.batch_axis == 0 or declared.max_batch_size else None)


def _presented(
    model: str, what: str, specs: Sequence[TensorSpec], tensors: Sequence[DeclaredTensor], declared: Declared
) -> tuple[TensorSpec, ...]:
    have = {spec.name: spec for spec in specs}
    if not tensors:
        for spec in specs:
            _check_batch_axis(model, what, spec, declared)
        return tuple(specs)
    found: dict[str, TensorSpec] = {}
    for tensor in tensors:
        if tensor.name not in have:
            names = ", ".join(map(repr, have)) or "none"
            raise errors.invalid_model(model, f"{declared.source} names {what} {tensor.name!r}, the model's file has {names}")
        if tensor.name in found:
            raise errors.invalid_model(model, f"{declared.source} names {what} {tensor.name!r} twice")
        found[tensor.name] = _agreed(model, what, have[tensor.name], tensor, declared)
    return tuple(found.values())


def _agreed(model: str, what: str, spec: TensorSpec, tensor: DeclaredTensor, declared: Declared) -> TensorSpec:
    """The declared tensor as callers see it."""
    if tensor.datatype not in ("", spec.datatype):
        raise errors.invalid_model(
            model, f"{what} {spec.name!r} is {tensor.datatype} in {declared.source} and {spec.datatype} in the model's file"
        )
    _check_batch_axis(model, what, spec, declared)
    if tensor.dims is None:
        return spec
    inner = declared.whole(tensor.dims if tensor.reshape is None else tensor.reshape)
    if len(inner) != len(spec.shape) or any(own not in (-1, said) for own, said in zip(spec.shape, inner, strict=True)):
        batch = ", the batch axis first" if declared.max_batch_size else ""
        raise errors.invalid_model(
            model, f"{what} {spec.name!r} has shape {list(inner)} by {declared.source}{batch}, and {list(spec.shape)} in the model's file"
        )
    if tensor.reshape is not None and _segments(tensor.dims) != _segments(tensor.reshape):
        raise errors.invalid_model(
            model,
            f"{declared.source}: {what} {spec.name!r} has dims {list(tensor.dims)}, which cannot be reshaped to {list(tensor.reshape)}",
        )
    return TensorSpec(spec.name, spec.datatype, declared.whole(tensor.dims))


def _check_batch_axis(model: str, what: str, spec: TensorSpec, declared: Declared) -> None:
    if declared.max_batch_size and spec.shape[:1] != (-1,):
        raise errors.invalid_model(
            model,
            f"{declared.source} says max_batch_size {declared.max_batch_size}, which needs an open first axis everywhere, "
            f"and {what} {spec.name!r} has shape {list(spec.shape)} in the model's file",
        )


def _segments(dims: Sequence[int]) -> list[int]:
    """The numbers of elements before, between and after the open sizes: what two shapes must share to be one of the other's reshapes."""
    found, at = [], 0
    for index, size in enumerate(dims):
        if size < 0:
            found.append(math.prod(dims[at:index]))
            at = index + 1
    return [*found, math.prod(dims[at:])]


def reshaped(shape: Sequence[int], source: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """A tensor of `shape`, which is one of `source`'s, as `target` has it: open sizes keep their order. Both with the batch axis, if any."""
    sizes = iter([got for got, said in zip(shape, source, strict=True) if said < 0])
    return tuple(next(sizes) if size < 0 else size for size in target)
