"""The rows of a batch as a model takes them: several in one request where its batch axis is free, and an answer for each.

A row is one sample: a csv row or an object with a value for each input, a list for the only input, a file for the only input. A line of
JSON with `inputs` is a whole request, as a prediction's body is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.model_declaration import Declaration
from gateway.models_rpc import Models
from gateway.operations import deployment_calls, inference, prediction_bodies, prediction_inputs, predictions, tensor_json
from gateway.operations.batch_rows import Row
from gateway.operations.deployments import Target
from gateway.operations.images import Limits
from gateway.operations.inference import Call
from gateway.operations.prediction_bodies import Files, Given, Nested, PredictionBody
from gateway.operations.prediction_inputs import ANY_PICTURE
from gateway.settings import Settings
from idl.codes import ServingError
from idl.messages import ModelMetadata, TensorSpec
from idl.tensors import invalid

MOST_TOGETHER = 256
Answer = Mapping[str, Any]
"""`outputs` and perhaps `labels`, each of one sample; or `error` with `code` and `message`."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a batch needs to know of its model. `together`: rows that go into one request at most, 1 where it must not be shared.
    `columns`: of a csv file. `outputs`, `top_k`: what the answers hold, as in a prediction."""

    model: str
    version: str
    metadata: ModelMetadata
    declaration: Declaration
    together: int
    columns: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None
    top_k: int | None = None
    target: Target | None = None

    @property
    def labelled(self) -> str:
        """The output that labels are of, "" for none."""
        return predictions.labelled_output(self.metadata, self.declaration, self.body({}))

    @property
    def shown(self) -> tuple[str, ...]:
        """The outputs that the answers hold."""
        return tuple(spec.name for spec in self.metadata.outputs) if self.outputs is None else self.outputs

    def body(self, inputs: Mapping[str, Given]) -> PredictionBody:
        return PredictionBody(inputs=inputs, outputs=self.outputs, top_k=self.top_k)


def signature(
    models: Models,
    model: str,
    version: str,
    columns: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    top_k: int | None,
    target: Target | None,
) -> Signature:
    """Rows share a request only where the host has found that requests may (`max_batch_size`), and nothing stands before or behind the model."""
    metadata, config = models.metadata(model, version), models.config(model, version)
    free = all(spec.shape and spec.shape[0] == -1 for spec in (*metadata.inputs, *metadata.outputs))
    plain = target is None or not target.script_name
    together = min(MOST_TOGETHER, int(config.get("max_batch_size", 0) or 0)) if free and plain else 1
    made = Signature(model, version, metadata, models.declaration(model, version), max(1, together), columns, outputs, top_k, target)
    predictions.wanted_outputs(metadata, made.body({}), made.labelled)  # raises for an output that it has not
    return made


def stands_alone(row: Row) -> bool:
    """Whether a row is a request of its own."""
    return isinstance(row.value, dict) and "inputs" in row.value


def answer(models: Models, settings: Settings, call: Call, known: Signature, rows: Sequence[Row]) -> list[Answer]:
    """One answer for each row, none of which has an error. Raises ServingError for all of them together."""
    if stands_alone(rows[0]):
        return [_whole(models, settings, call, known, rows[0].value)]
    body = known.body(_inputs(known, [row.value for row in rows]))
    if known.target is not None and known.target.script_name:
        said = deployment_calls.predict(models, settings, call, known.target, body, known.version)
        return [{name: said[name] for name in ("outputs", "labels") if name in said}]
    labelled = known.labelled
    limits = Limits(settings.max_image_pixels, settings.max_body_bytes, call.deadline)
    prepared = prediction_inputs.prepare(known.metadata, known.declaration, body, limits)
    wanted = predictions.wanted_outputs(known.metadata, body, labelled)
    response = inference.predict(models, call, known.model, known.version, prepared.tensors, wanted)
    found = {tensor.name: tensor for tensor in response.outputs}
    columns = {name: _split(tensor_json.to_nested(found[name]), found[name].shape, len(rows)) for name in known.shown}
    answers: list[dict[str, Any]] = [{"outputs": {name: column[place] for name, column in columns.items()}} for place in range(len(rows))]
    if labelled:
        top_k = known.top_k or known.declaration.top_k
        labels = predictions.top_labels(found[labelled], known.declaration.labels[labelled], top_k)
        if len(labels) != len(rows):
            raise _Unsplittable
        for each, chosen in zip(answers, labels, strict=True):
            each["labels"] = chosen
    return list(answers)


class Unsplittable(ServingError):
    """An answer to several rows that has no part for each."""


_Unsplittable = Unsplittable(invalid("").code, "the model's answer has no part for each row")


def _split(nested: Any, shape: Sequence[int], count: int) -> Sequence[Any]:
    if shape and shape[0] == count and isinstance(nested, list):
        return nested
    if count == 1:
        return [nested]
    raise _Unsplittable


def _whole(models: Models, settings: Settings, call: Call, known: Signature, value: Any) -> Answer:
    """A line that is a whole request; its answer is one of a prediction."""
    body = prediction_bodies.from_json(json.dumps(value).encode())
    if body.outputs is None and body.top_k is None:
        body = replace(body, outputs=known.outputs, top_k=known.top_k)
    if known.target is not None:
        said = deployment_calls.predict(models, settings, call, known.target, body, known.version)
    else:
        said = predictions.predict(models, settings, call, known.model, known.version, body, 0.0)
    return {name: said[name] for name in ("outputs", "labels") if name in said}


def _inputs(known: Signature, values: Sequence[Any]) -> dict[str, Given]:
    """The inputs of samples, by name."""
    specs = known.metadata.inputs
    if known.columns:
        return _of_cells(known, values)
    if isinstance(values[0], bytes):
        return _of_files(known, values)
    if isinstance(values[0], dict):
        return {name: _stacked(_spec(specs, name), [_value(value, name) for value in values]) for name in values[0]}
    if len(specs) != 1:
        raise invalid(f"the model has {len(specs)} inputs: a row must be an object with a value for each")
    return {specs[0].name: _stacked(specs[0], list(values))}


def _value(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise invalid(f"rows that go together do not have the same fields: {name[:80]!r} is missing in one")
    return value[name]


def alike(one: Row, other: Row) -> bool:
    """Whether two rows may go into one request."""
    if isinstance(one.value, dict) and isinstance(other.value, dict):
        return one.value.keys() == other.value.keys() and not stands_alone(other)
    return type(one.value) is type(other.value)


def _spec(specs: Sequence[TensorSpec], name: str) -> TensorSpec | None:
    return next((spec for spec in specs if spec.name == name), None)


def _of_cells(known: Signature, rows: Sequence[Sequence[str]]) -> dict[str, Given]:
    specs = {spec.name: spec for spec in known.metadata.inputs}
    if set(specs) == set(known.columns):
        return {name: _stacked(specs[name], _cells(specs[name], [row[place] for row in rows])) for place, name in enumerate(known.columns)}
    if len(specs) != 1:
        missing = sorted(specs.keys() - set(known.columns))
        said = f"input {missing[0]!r} has no column" if missing else f"{sorted(set(known.columns) - specs.keys())[0][:80]!r} is no input"
        raise invalid(f"the columns do not fit the model: {said}")
    (spec,) = specs.values()
    numbers = [_cells(spec, row) for row in rows]
    return {spec.name: Nested(numbers[0] if len(spec.shape) == 1 and len(rows) == 1 else numbers)}


def _cells(spec: TensorSpec, cells: Sequence[str]) -> list[Any]:
    """Texts as the input's elements."""
    kind = spec.datatype
    if kind == "BYTES":
        return list(cells)
    try:
        if kind.startswith(("FP", "BF")):
            return list(map(float, cells))
        if kind == "BOOL":
            return [_BOOLEANS[cell.strip().lower()] for cell in cells]
        return list(map(int, cells))
    except (ValueError, KeyError):
        return [_cell(spec, cell) for cell in cells]


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _cell(spec: TensorSpec, cell: str) -> Any:
    """One that is no plain number: a JSON value, such as a list."""
    try:
        return tensor_json.parse(cell.encode(), "the cell")
    except (ServingError, UnicodeEncodeError):
        raise invalid(f"input {spec.name!r} has a cell {cell[:40]!r}, which is neither a number nor JSON") from None


def _stacked(spec: TensorSpec | None, values: list[Any]) -> Given:
    """Values of samples as one value with the sample axis in front."""
    if values and all(tensor_json.is_base64(value) for value in values):
        return Files(tuple(tensor_json.decode_base64("the row", value["b64"]) for value in values))
    if spec is not None and len(spec.shape) == 2 and spec.shape[1] in (1, -1) and not any(isinstance(value, list) for value in values):
        return Nested([[value] for value in values])
    if spec is not None and len(values) == 1 and isinstance(values[0], list) and len(spec.shape) == _depth(values[0]):
        return Nested(values[0])  # the model has no sample axis, or the row has brought it
    if spec is not None and not spec.shape and len(values) == 1:
        return Nested(values[0])
    return Nested(values)


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list) and depth < 64:
        depth, value = depth + 1, value[0] if value else None
    return depth


def _of_files(known: Signature, contents: Sequence[bytes]) -> dict[str, Given]:
    specs = known.metadata.inputs
    if len(specs) != 1:
        return {ANY_PICTURE: Files(tuple(contents))}
    (spec,) = specs
    if spec.datatype == "BYTES" or len(spec.shape) >= 3 or spec.name in known.declaration.images:
        return {spec.name: Files(tuple(contents))}
    return {spec.name: _stacked(spec, [tensor_json.parse(content, "the file") for content in contents])}
