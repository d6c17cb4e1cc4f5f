"""A model as its configuration presents it: with other shapes than its file has, where a `reshape` says so."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from idl.tensors import Array
from inference_server import errors
from inference_server.declared import Declared, DeclaredTensor, present, reshaped
from inference_server.types import Signature


class Model(Protocol):
    """What a backend makes of a file."""

    signature: Signature
    providers: tuple[str, ...]

    def run(self, inputs: Mapping[str, Array], wanted: list[str]) -> list[Array]: ...


def presented(model: Model, name: str, declared: Declared) -> Model:
    """`model` itself with what callers see for its signature, or one around it that reshapes. Raises invalid_model where both contradict."""
    signature = present(name, model.signature, declared)
    if not declared.reshapes:
        model.signature = signature
        return model
    return Reshaping(model, signature, declared)


class Reshaping:
    """A model between callers' shapes and its own. Only the shape is another: no element moves, nothing is copied."""

    def __init__(self, model: Model, signature: Signature, declared: Declared) -> None:
        self._model = model
        self.signature = signature
        self.providers = model.providers
        self._inputs = _shapes(declared, declared.inputs)
        self._outputs = _shapes(declared, declared.outputs)

    def run(self, inputs: Mapping[str, Array], wanted: list[str]) -> list[Array]:
        """As the model's own. Raises model_failed for an answer that does not fit its declaration."""
        inner = {name: self._inner(name, array) for name, array in inputs.items()}
        return [self._outer(name, array) for name, array in zip(wanted, self._model.run(inner, wanted), strict=True)]

    def _inner(self, name: str, array: Array) -> Array:
        shapes = self._inputs.get(name)
        return array if shapes is None else array.reshape(reshaped(array.shape, *shapes))

    def _outer(self, name: str, array: Array) -> Array:
        shapes = self._outputs.get(name)
        if shapes is None:
            return array
        outer, inner = shapes
        try:
            return array.reshape(reshaped(array.shape, inner, outer))
        except ValueError:
            raise errors.model_failed(f"output {name!r} has shape {list(array.shape)}, and its configuration says {list(inner)}") from None


def _shapes(declared: Declared, tensors: Sequence[DeclaredTensor]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Name -> (callers' shape, the model's), of what is reshaped."""
    return {
        tensor.name: (declared.whole(tensor.dims), declared.whole(tensor.reshape))
        for tensor in tensors
        if tensor.dims is not None and tensor.reshape is not None
    }
