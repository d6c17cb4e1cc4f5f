"""Several requests as one run: their inputs put together along the first axis, the outputs taken apart again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from idl import lane, tensors
from idl.tensors import Array
from inference_server.executors.prepared import Prepared

Encoded = tuple[bytes, list[tuple[int, Any]], int]
"""(head, parts, size) for the lane."""
Heads = dict[tuple[Any, ...], tuple[bytes, tuple[int, ...], int]]
SMALL_BYTES = 16 * 1024
_MOST_HEADS = 1024


class NotSplittable(Exception):
    """An output does not have one row for each row that went in."""


def decode(prepared: Prepared, body: memoryview) -> dict[str, Array]:
    """One request's inputs, as views of `body` where the type allows. Raises invalid_input."""
    if prepared.layout:
        return {
            name: np.ndarray(shape, dtype, body, offset) if count else np.empty(shape, dtype)
            for name, dtype, count, offset, shape in prepared.layout
        }
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
    """What one run gave, to be handed out whole or in rows. `datatypes`: of each output. `heads` remembers, for the life of a model, how
    outputs of the same shapes were described. `parameters`: what the model said besides.
    """

    def __init__(
        self,
        datatypes: Mapping[str, str],
        wanted: Sequence[str],
        arrays: Sequence[Array],
        heads: Heads,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._datatypes, self._wanted, self._arrays, self._heads = datatypes, wanted, arrays, heads
        self._parameters = parameters

    def whole(self) -> Encoded:
        """Everything."""
        return self._encoded(self._arrays)

    def check_rows(self, rows: int) -> None:
        """Raises NotSplittable unless every output has this many rows."""
        for name, array in zip(self._wanted, self._arrays, strict=True):
            if not array.ndim or array.shape[0] != rows:
                raise NotSplittable(f"output {name!r} has shape {list(array.shape)} for {rows} rows")

    def rows(self, begin: int, end: int) -> Encoded:
        """Rows `begin` to `end`."""
        return self._encoded([array[begin:end] for array in self._arrays])

    def _encoded(self, arrays: Sequence[Array]) -> Encoded:
        if self._parameters:
            return self._described(arrays)
        if len(arrays) == 1 and (known := self._heads.get((self._wanted[0], arrays[0].shape))) is not None:
            return known[0], [(0, _content(arrays[0]))], known[2]
        return self._described(arrays)

    def _described(self, arrays: Sequence[Array]) -> Encoded:
        contents = [
            tensors.encode(array, "BYTES") if self._datatypes[name] == "BYTES" else _content(array)
            for name, array in zip(self._wanted, arrays, strict=True)
        ]
        if self._parameters:
            head, offsets, size = lane.pack_head(self._tensors(arrays, contents), (), self._parameters)
            return head, list(zip(offsets, contents, strict=True)), size
        key = (*self._wanted, *[array.shape for array in arrays], *map(len, contents))
        known = self._heads.get(key)
        if known is None:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            known = self._heads[key] = lane.pack_head(self._tensors(arrays, contents), (), {})
            if len(arrays) == 1 and self._datatypes[self._wanted[0]] != "BYTES":  # nearly always: its size follows from its shape
                self._heads[self._wanted[0], arrays[0].shape] = known
        head, offsets, size = known
        return head, list(zip(offsets, contents, strict=True)), size

    def _tensors(self, arrays: Sequence[Array], contents: Sequence[Any]) -> list[tuple[str, str, tuple[int, ...], int]]:
        return [
            (name, self._datatypes[name], array.shape, len(data)) for name, array, data in zip(self._wanted, arrays, contents, strict=True)
        ]


def _content(array: Array) -> Any:
    """A buffer of its bytes: a copy of a small one, which is cheaper than a view."""
    if array.nbytes <= SMALL_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
