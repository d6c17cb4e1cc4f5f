"""Several requests as one run: their inputs put together along the first axis, the outputs taken apart again."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from idl import lane, tensors
from idl.messages import Tensor
from idl.tensors import Array
from inference_server.executors.prepared import Prepared
from inference_server.types import Signature


class NotSplittable(Exception):
    """An output does not have one row for each row that went in."""


def decode(prepared: Prepared, body: memoryview) -> dict[str, Array]:
    """One request's inputs, as views of `body` where the type allows. Raises invalid_input."""
    return {t.name: tensors.decode(t.name, t.datatype, t.shape, body[t.offset : t.offset + t.size]) for t in prepared.tensors}


def merge(many: Sequence[tuple[Prepared, memoryview]]) -> dict[str, Array]:
    """Inputs of requests of one key, in their order. BYTES must have been checked by `decode` before."""
    merged: dict[str, Array] = {}
    rows = sum(prepared.rows for prepared, _ in many)
    for index, first in enumerate(many[0][0].tensors):
        parts = [(prepared.tensors[index], body) for prepared, body in many]
        if first.datatype == "BYTES":
            arrays = [tensors.decode(t.name, t.datatype, t.shape, body[t.offset : t.offset + t.size]) for t, body in parts]
            merged[first.name] = np.concatenate(arrays)
            continue
        data = b"".join([body[t.offset : t.offset + t.size] for t, body in parts])
        merged[first.name] = np.frombuffer(data, tensors.DTYPES[first.datatype]).reshape((rows, *first.shape[1:]))
    return merged


class Results:
    """What one run gave, to be handed out in rows."""

    def __init__(self, signature: Signature, wanted: Sequence[str], arrays: Sequence[Array]) -> None:
        datatypes = {spec.name: spec.datatype for spec in signature.outputs}
        self._parts = [_flat(name, datatypes[name], array) for name, array in zip(wanted, arrays, strict=True)]

    def whole(self) -> tuple[bytes, list[tuple[int, Any]], int]:
        """(head, parts, size) of everything, for the lane."""
        return lane.pack_request([Tensor(name, datatype, shape, data) for name, datatype, shape, data, _ in self._parts], (), {})

    def check_rows(self, rows: int) -> None:
        """Raises NotSplittable unless every output has this many rows."""
        for name, _, shape, _, _ in self._parts:
            if not shape or shape[0] != rows:
                raise NotSplittable(f"output {name!r} has shape {list(shape)} for {rows} rows")

    def rows(self, begin: int, end: int) -> tuple[bytes, list[tuple[int, Any]], int]:
        """The same for rows `begin` to `end`."""
        made = []
        for name, datatype, shape, data, array in self._parts:
            count = end - begin
            if datatype == "BYTES":
                piece: Any = tensors.encode(array[begin:end], "BYTES")
            else:
                size = len(data) // shape[0]
                piece = data[begin * size : end * size]
            made.append(Tensor(name, datatype, (count, *shape[1:]), piece))
        return lane.pack_request(made, (), {})


def _flat(name: str, datatype: str, array: Array) -> tuple[str, str, tuple[int, ...], Any, Array]:
    if datatype == "BYTES":
        return name, datatype, array.shape, tensors.encode(array, "BYTES"), array
    return name, datatype, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, array
