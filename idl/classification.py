"""The best classes of an output as texts (Triton's classification extension)."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from idl import tensors
from idl.messages import Tensor
from idl.tensors import Array, invalid


def count_of(name: str, value: object) -> int:
    """The parameter `classification` of output `name`: how many classes are wanted, 0 for none. Raises invalid_input."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**31:
        raise invalid(f"output {name!r}: the parameter 'classification' is not a number of classes")
    return value


def classify(tensor: Tensor, count: int, labels: Sequence[str]) -> Tensor:
    """BYTES with "value:index" or "value:index:label", best first, of the `count` highest values, of equal ones the first, NaN last.

    An output of rank 2 or more is ranked for each row of its first axis ([rows, count]), one of rank 1 or 0 as a whole ([count]). Raises
    invalid_input for an output without numbers.
    """
    if tensor.datatype in ("BYTES", "BOOL"):
        raise invalid(f"output {tensor.name!r} is {tensor.datatype}, classification is for numbers")
    values = tensors.decode(tensor.name, tensor.datatype, tensor.shape, tensor.data)
    if tensor.datatype == "BF16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    rows = values.reshape(values.shape[0], math.prod(values.shape[1:])) if values.ndim > 1 else values.reshape(1, values.size)
    best = min(count, rows.shape[1])
    texts = [_text(row, index, labels) for row in rows for index in _order(row)[:best].tolist()]
    shape = (len(rows), best) if values.ndim > 1 else (best,)
    array = np.empty(len(texts), object)
    array[:] = texts
    return replace(tensor, datatype="BYTES", shape=shape, data=tensors.encode(array, "BYTES"))


def _order(row: Array) -> NDArray[np.intp]:
    """Indices, the highest value first."""
    if row.dtype.kind in "iu":
        return np.argsort(np.invert(row), kind="stable")  # turns the order round, and no integer is too small for it
    return np.argsort(-row.astype(np.float64), kind="stable")


def _text(row: Array, index: int, labels: Sequence[str]) -> str:
    value = row[index].item()
    spelled = str(value) if row.dtype.kind in "iu" else f"{value:f}" if math.isfinite(value) else str(value)
    return f"{spelled}:{index}:{labels[index]}" if index < len(labels) else f"{spelled}:{index}"
