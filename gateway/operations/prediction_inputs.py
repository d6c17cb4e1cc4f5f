"""What a caller gave -> the model's input tensors.

Nothing is guessed: a missing batch axis, a column order, a wrong type are refused with what the model expects. The one assumption is
how a picture becomes a tensor where the model's owner did not declare it: the shape decides, and the answer says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway import model_declaration
from gateway.model_declaration import Declaration, ImageSteps
from gateway.operations import images, tensor_json
from gateway.operations.images import Limits
from gateway.operations.prediction_bodies import Files, Given, Nested, PredictionBody, Table, Texts
from idl import tensors
from idl.codes import ServingError
from idl.messages import ModelMetadata, Tensor, TensorSpec
from idl.tensors import invalid

ANY_PICTURE = "image"
"""The name that stands for a model's only picture input."""
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """`assumed`: what the owner did not declare and the shape decided, by input name."""

    tensors: tuple[Tensor, ...]
    assumed: Mapping[str, Any]


def prepare(metadata: ModelMetadata, declaration: Declaration, body: PredictionBody, limits: Limits) -> Prepared:
    """Every input of the model, in its order. Raises invalid_input naming the input, too_large, deadline_exceeded, invalid_model."""
    if body.table is not None:
        return _from_table(metadata, body.table)
    specs = {spec.name: spec for spec in metadata.inputs}
    given = _by_input_name(metadata, declaration, body.inputs)
    assumed: dict[str, Any] = {}
    made = tuple(_tensor(metadata.name, spec, declaration, given[name], limits, assumed) for name, spec in specs.items())
    return Prepared(made, assumed)


def _by_input_name(metadata: ModelMetadata, declaration: Declaration, given: Mapping[str, Given]) -> Mapping[str, Given]:
    names = [spec.name for spec in metadata.inputs]
    if ANY_PICTURE in given and ANY_PICTURE not in names:
        pictures = _picture_inputs(metadata, declaration)
        if len(pictures) == 1 and pictures[0] not in given:
            given = {pictures[0] if name == ANY_PICTURE else name: value for name, value in given.items()}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise invalid(f"model {metadata.name!r} has no input {unknown[0][:80]!r}; {_inputs_are(names)}")
    missing = [name for name in names if name not in given]
    if missing:
        raise invalid(f"input {missing[0]!r} is missing; {_inputs_are(names)}")
    return given


def _inputs_are(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN])) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"its inputs are {shown}" if names else "it has no inputs"


def _picture_inputs(metadata: ModelMetadata, declaration: Declaration) -> list[str]:
    declared = [spec.name for spec in metadata.inputs if spec.name in declaration.images]
    return declared or [spec.name for spec in metadata.inputs if _steps(metadata.name, spec, declaration) is not None]


def _steps(model: str, spec: TensorSpec, declaration: Declaration) -> ImageSteps | None:
    if spec.datatype in ("BYTES", "BOOL"):
        return None
    declared = declaration.images.get(spec.name)
    batched = (-1, *spec.shape) if declared and len(spec.shape) == 3 else spec.shape
    return model_declaration.complete(model, spec.name, declared, batched)


def _tensor(model: str, spec: TensorSpec, declaration: Declaration, given: Given, limits: Limits, assumed: dict[str, Any]) -> Tensor:
    if isinstance(given, Nested):
        tensor = _from_nested(spec, given.value)
    elif isinstance(given, Texts):
        tensor = _from_texts(spec, given.values)
    else:
        tensor = _from_files(model, spec, declaration, given, limits, assumed)
    return _checked(spec, tensor)


def _checked(spec: TensorSpec, tensor: Tensor) -> Tensor:
    fits = len(tensor.shape) == len(spec.shape) and all(want in (-1, size) for want, size in zip(spec.shape, tensor.shape, strict=True))
    if not fits:
        raise invalid(f"input {spec.name!r} has shape {list(tensor.shape)}, the model takes {list(spec.shape)} (-1: any size)")
    return tensor


def _from_nested(spec: TensorSpec, value: Any) -> Tensor:
    flat, shape = tensor_json.flatten(spec.name, value)
    return tensor_json.to_tensor(spec.name, spec.datatype, flat, shape)


def _from_texts(spec: TensorSpec, values: Sequence[str]) -> Tensor:
    if spec.datatype == "BYTES":
        return _one_by_one(spec, values)
    parsed = [_parsed(spec.name, value) for value in values]
    if not any(isinstance(value, list) for value in parsed):
        return _one_by_one(spec, parsed)
    if len(parsed) > 1:
        raise invalid(f"input {spec.name!r} is there {len(parsed)} times; a list stands alone")
    return _from_nested(spec, parsed[0])


def _parsed(name: str, value: str) -> Any:
    try:
        return tensor_json.parse(tensor_json.encode_text(f"input {name!r}", value), "the field")
    except ServingError as error:
        raise ServingError(
            error.code, f"input {name!r} takes a number, a JSON list, or a file (curl: -F {name}=@PATH): {error.message}"
        ) from error


def _from_files(model: str, spec: TensorSpec, declaration: Declaration, given: Files, limits: Limits, assumed: dict[str, Any]) -> Tensor:
    if spec.datatype == "BYTES":
        return _of_contents(spec, given.contents)
    steps = _steps(model, spec, declaration)
    if steps is None:
        raise invalid(f"input {spec.name!r} takes numbers of shape {list(spec.shape)}, not a file")
    if spec.name not in declaration.images:
        assumed[spec.name] = _spelled(steps)
    return images.to_tensor(spec, steps, given.contents, limits)


def _of_contents(spec: TensorSpec, contents: Sequence[bytes]) -> Tensor:
    array = np.empty(len(contents), object)
    array[:] = contents
    return Tensor(spec.name, "BYTES", _shape_of_elements(spec, len(contents)), tensors.encode(array, "BYTES"))


def _spelled(steps: ImageSteps) -> dict[str, Any]:
    return {
        "layout": steps.layout,
        "colour": steps.colour,
        "size": list(steps.size) if steps.size else None,
        "mean": list(steps.mean),
        "std": list(steps.std),
    }


def _one_by_one(spec: TensorSpec, elements: Sequence[Any]) -> Tensor:
    return tensor_json.to_tensor(spec.name, spec.datatype, elements, _shape_of_elements(spec, len(elements)))


def _shape_of_elements(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """The shape of `count` samples of one element each. Raises invalid_input where the model takes something else."""
    if not spec.shape and count == 1:
        return ()
    if not spec.shape or any(size not in (1, -1) for size in spec.shape[1:]) or spec.shape[0] not in (-1, count):
        raise invalid(f"input {spec.name!r} takes shape {list(spec.shape)}, not {count} single value{'s' if count > 1 else ''}")
    return (count,) + (1,) * (len(spec.shape) - 1)


def _from_table(metadata: ModelMetadata, table: Table) -> Prepared:
    """A column for each input; or, for a model with one input of rows of numbers, the columns in the caller's order."""
    names = [spec.name for spec in metadata.inputs]
    if set(names) == set(table.columns):
        cells = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
        return Prepared(tuple(_checked(spec, _one_by_one(spec, cells[spec.name])) for spec in metadata.inputs), {})
    if len(names) == 1 and len(metadata.inputs[0].shape) == 2:
        return _from_rows(metadata.inputs[0], table)
    missing = sorted(set(names) - set(table.columns))
    which = f"input {missing[0]!r} is missing" if missing else f"no input {sorted(set(table.columns) - set(names))[0][:80]!r}"
    raise invalid(f"the table does not fit model {metadata.name!r}: {which}; {_inputs_are(names)}")


def _from_rows(spec: TensorSpec, table: Table) -> Prepared:
    if not table.ordered:
        raise invalid(
            f"input {spec.name!r} takes rows of numbers and its columns have no declared names: records have no order, send columns and data"
        )
    flat = [cell for row in table.rows for cell in row]
    tensor = tensor_json.to_tensor(spec.name, spec.datatype, flat, (len(table.rows), len(table.columns)))
    return Prepared((_checked(spec, tensor),), {spec.name: {"columns": list(table.columns)}})
