"""What a request's head asks for: read and checked once, and remembered, because callers send the same head again and again."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from idl import lane
from idl.tensors import DTYPES
from inference_server import errors
from inference_server.request_checks import check
from inference_server.types import Signature

_MOST_KEPT = 1024
SCHEDULING = frozenset({"priority", "timeout"})
"""Parameters that say when a request is run, and nothing to the model."""
_LONGEST_TIMEOUT_US = 10**12


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked head. Requests of one `key` may share a run, None runs alone; `rows`: its share of the batch; `timeout_ns` 0: none."""

    tensors: tuple[lane.TensorHead, ...]
    layout: tuple[tuple[str, Any, int, int, tuple[int, ...]], ...]
    """Of each input: name, numpy type, number of elements, offset, shape. Empty where one is BYTES, which is decoded element by element."""
    wanted: list[str]
    parameters: Mapping[str, Any]
    body_size: int
    key: Hashable
    rows: int
    priority: int
    timeout_ns: int


class Preparer:
    """Heads -> what they ask of one model. `batching`: whether requests may share a run. `limit`: bytes of one request's tensors;
    `most_rows`: of its batch, 0 for any number. `sequences`: the model keeps a state for each. Not thread-safe.
    """

    def __init__(
        self,
        model: str,
        signature: Signature,
        *,
        batching: bool,
        limit: int,
        most_rows: int = 0,
        default_timeout_ns: int = 0,
        sequences: bool = False,
    ) -> None:
        self._sequences = sequences
        self._model = model
        self._signature = signature
        self._batching = batching
        self._limit = limit
        self._most_rows = most_rows
        self._default_timeout_ns = default_timeout_ns
        self._all = tuple(spec.name for spec in signature.outputs)
        self.kept: dict[bytes, Prepared] = {}
        """Head -> what it asks, of those seen lately."""

    def __call__(self, head: bytes) -> Prepared:
        """Raises ServingError where the model cannot be asked that, LaneError where the head is not one."""
        prepared = self.kept.get(head)
        if prepared is None:
            prepared = self._prepare(lane.unpack_head(head))
            if len(head) <= lane.REMEMBERED_BYTES:
                if len(self.kept) >= _MOST_KEPT:
                    self.kept.clear()
                self.kept[head] = prepared
        return prepared

    def stop_batching(self) -> None:
        """From now on every request runs alone."""
        self._batching = False
        self.kept.clear()

    def _prepare(self, head: lane.Head) -> Prepared:
        if not self._sequences and head.parameters.get("sequence_id") not in (None, 0, "", "0"):
            raise errors.unsupported(
                "this model has no sequences: it would forget what the request before told it (model.toml: [state.NAME])"
            )
        check(self._signature, self._model, head.tensors, head.wanted)
        if (size := sum(tensor.size for tensor in head.tensors)) > self._limit:
            raise errors.too_large(f"the request has {size} bytes of tensors, at most {self._limit} are taken")
        if self._most_rows and (rows := max((tensor.shape[0] for tensor in head.tensors if tensor.shape), default=0)) > self._most_rows:
            raise errors.invalid_input(
                f"the request has {rows} rows, and model {self._model!r} takes at most {self._most_rows} (max_batch_size)"
            )
        timeout_ns = 1000 * _whole(head.parameters, "timeout", _LONGEST_TIMEOUT_US) or self._default_timeout_ns
        wanted = head.wanted or self._all
        key, rows = self._key(head, wanted)
        priority = _whole(head.parameters, "priority", 2**32)
        return Prepared(head.tensors, _layout(head), list(wanted), head.parameters, head.body_size, key, rows, priority, timeout_ns)

    def _key(self, head: lane.Head, wanted: tuple[str, ...]) -> tuple[Hashable, int]:
        if not self._batching:
            return None, 1
        if self._sequences:  # the model itself puts them together
            most = max((tensor.shape[0] for tensor in head.tensors if tensor.shape), default=1)
            return (wanted, tuple((t.name, t.datatype, t.shape) for t in head.tensors)), max(1, most)
        if not SCHEDULING.issuperset(head.parameters):
            return None, 1
        rows = {tensor.shape[0] for tensor in head.tensors}
        if len(rows) != 1 or 0 in rows:
            return None, 1
        return (wanted, tuple((t.name, t.datatype, t.shape[1:]) for t in head.tensors)), rows.pop()


def _layout(head: lane.Head) -> tuple[tuple[str, Any, int, int, tuple[int, ...]], ...]:
    if any(tensor.datatype == "BYTES" for tensor in head.tensors):
        return ()
    return tuple((t.name, DTYPES[t.datatype], math.prod(t.shape), t.offset, t.shape) for t in head.tensors)


def _whole(parameters: Mapping[str, Any], name: str, most: int) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:20])  # Thrift's parameters are texts
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise errors.invalid_input(f"parameter {name!r} is {value!r}, not a whole number from 0 to {most}")
    return value
