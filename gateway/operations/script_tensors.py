"""Between a prediction's body, a deployment's script and its model: a script takes and gives tensors of any kind, a model takes its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gateway.operations import form_inputs, tensor_json
from gateway.operations.prediction_bodies import OF_ONE, Files, FormInput, Given, Nested, PredictionBody
from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import Tensor, TensorSpec
from idl.tensors import Array, invalid


def of_body(body: PredictionBody) -> tuple[Tensor, ...]:
    """What the caller gave as it stands: whole numbers are INT64, others FP64, texts and files BYTES; a table is its columns."""
    if body.form is not None:
        return tuple(_of_given(name, given) for name, given in _of_form(body.form).items())
    if body.table is not None:
        cells = list(zip(*body.table.rows, strict=True))
        return tuple(_of_value(name, list(cells[place])) for place, name in enumerate(body.table.columns))
    return tuple(_of_given(name, given) for name, given in body.inputs.items())


def _of_form(form: FormInput) -> dict[str, Given]:
    """With one word for all, JSON's names are the inputs', and whatever else came is one input, `input`, of bytes; with a word for each
    name, likewise for each."""
    kinds = form_inputs.kinds_of(form.filetype)
    if isinstance(kinds, str):
        if kinds != "none":
            return {"input": _content(form, "input", kinds)}
        value = tensor_json.parse(_bytes(form, "input"), "input")
        return {name: Nested(item) for name, item in value.items()} if isinstance(value, dict) else {"input": Nested(value)}
    plain = tensor_json.parse(_bytes(form, "input"), "input") if "none" in kinds.values() else {}
    made: dict[str, Given] = {}
    for name, kind in kinds.items():
        if kind == "none" and (not isinstance(plain, dict) or name not in plain):
            raise invalid(f"input has no {name[:80]!r}")
        made[name] = Nested(plain[name]) if kind == "none" else _content(form, f"{OF_ONE}{name}", kind)
    return made


def _content(form: FormInput, field: str, kind: str) -> Files:
    """Bytes as they came, out of base64 where that is how."""
    content = form.files.get(field)
    if content is None:
        content = _bytes(form, field)
    if kind.endswith("base64"):
        content = tensor_json.decode_base64(field, content.decode("ascii", "replace"))
    return Files((content,))


def _bytes(form: FormInput, field: str) -> bytes:
    """Of a text field; in JSON it may hold half of a surrogate pair. Raises invalid_input."""
    if field not in form.fields:
        raise invalid(f"the form has no {field[:80]}")
    return tensor_json.encode_text(field, form.fields[field])


def _of_given(name: str, given: Given) -> Tensor:
    if isinstance(given, Files):
        array = np.empty(len(given.contents), object)
        array[:] = given.contents
        return Tensor(name, "BYTES", array.shape, tensors.encode(array, "BYTES"))
    if isinstance(given, Nested):
        return _of_value(name, given.value)
    values = [_read(text) for text in given.values]
    return _of_value(name, values[0] if len(values) == 1 and isinstance(values[0], list) else values)


def _read(text: str) -> Any:
    """A form's field: a number or a JSON list where it is one, else the text itself."""
    try:
        value = tensor_json.parse(text.encode(errors="surrogatepass"))
    except ServingError:
        return text
    return value if isinstance(value, (int, float, list)) else text


def _of_value(name: str, value: Any) -> Tensor:
    flat, shape = tensor_json.flatten(name, value)
    types = {float if type(item) is str and item in tensor_json.NON_FINITE else type(item) for item in flat}
    if types and types <= {bool}:
        datatype = "BOOL"
    elif types and types <= {int}:
        datatype = "INT64"
    else:
        datatype = "FP64" if types <= {int, float} else "BYTES"
    return tensor_json.to_tensor(name, datatype, flat, shape)


def fitted(specs: Sequence[TensorSpec], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What `preprocess` gave, as the model takes it: numbers in the model's own types where that loses nothing but digits of a fraction.

    Raises model_failed, in the words of the script's owner.
    """
    by_name = {tensor.name: tensor for tensor in given}
    names = ", ".join(repr(spec.name) for spec in specs)
    for name in by_name.keys() - {spec.name for spec in specs}:
        raise _unfit(f"gave {name[:80]!r}, and the model takes {names}")
    for spec in specs:
        if spec.name not in by_name:
            raise _unfit(f"gave no {spec.name!r}; the model takes {names}")
    return tuple(_fitted(spec, by_name[spec.name]) for spec in specs)


def _fitted(spec: TensorSpec, tensor: Tensor) -> Tensor:
    shape = tensor.shape
    if len(shape) != len(spec.shape) or any(want not in (-1, size) for want, size in zip(spec.shape, shape, strict=True)):
        raise _unfit(f"gave {spec.name!r} of shape {list(shape)}, and the model takes {list(spec.shape)} (-1: any size)")
    if tensor.datatype == spec.datatype:
        return tensor
    if "BYTES" in (tensor.datatype, spec.datatype) or (spec.datatype == "BOOL") != (tensor.datatype == "BOOL"):
        raise _unfit(f"gave {spec.name!r} as {tensor.datatype}, and the model takes {spec.datatype}")
    return Tensor(spec.name, spec.datatype, shape, tensors.encode(_cast(spec, tensor_json.to_array(tensor)), spec.datatype))


def _cast(spec: TensorSpec, array: Array) -> Array:
    if spec.datatype == "BF16":
        return tensor_json.to_bfloat16(array.astype(np.float32))
    wanted = tensors.DTYPES[spec.datatype]
    if wanted.kind in "iu":
        if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.trunc(array)).all()):
            raise _unfit(f"gave {spec.name!r} with fractions, and the model takes {spec.datatype}")
        limits: Any = np.iinfo(wanted)
        if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
            raise _unfit(f"gave {spec.name!r} with numbers outside {limits.min} to {limits.max}, which {spec.datatype} is")
    with np.errstate(over="ignore"):
        return array.astype(wanted)


def _unfit(what: str) -> ServingError:
    return ServingError(Code.MODEL_FAILED, f"the script's preprocess {what}")


def chosen(outputs: Sequence[Tensor], wanted: Sequence[str] | None) -> Mapping[str, Tensor]:
    """What `postprocess` gave, or of that what the caller wants. Raises invalid_input."""
    by_name = {tensor.name: tensor for tensor in outputs}
    if wanted is None:
        return by_name
    for name in wanted:
        if name not in by_name:
            raise invalid(f"the deployment's script gives no output {name[:80]!r}; it gave {', '.join(map(repr, by_name)) or 'nothing'}")
    return {name: by_name[name] for name in wanted}
