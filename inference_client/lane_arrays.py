"""numpy in, numpy out over the local lane, in few steps: for small arrays of fixed-size types, asked again and again in the same shapes.

How such a request looks on the lane depends on names, types and shapes only, so it is worked out once and remembered; the same for its
answer. Anything else goes the longer way, which has every case.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from idl import lane
from idl.codes import ServingError
from idl.lane_calls import LaneConnection, read_answer
from idl.lane_routes import LocalLane, response
from idl.messages import InferRequest
from idl.tensors import DTYPES, Array, datatype_of
from inference_client.result import InferResult, to_result

MOST_BYTES = 16 * 1024
_MOST_KEPT = 256
_KINDS = frozenset("biuf")


class _Asking(NamedTuple):
    """A request but for its contents: `offsets` and `size` of the body in bytes."""

    head: bytes
    offsets: tuple[int, ...]
    size: int


class _Answer(NamedTuple):
    """An answer but for its contents. `layout`: name, numpy type, shape, offset of each output."""

    layout: tuple[tuple[str, Any, tuple[int, ...], int], ...]
    datatypes: Mapping[str, str]
    size: int


class LaneArrays:
    """Thread-safe: what is remembered is only ever added, and worked out again where it was lost."""

    def __init__(self) -> None:
        self._asking: dict[tuple[Any, ...], _Asking] = {}
        self._answers: dict[bytes, _Answer] = {}

    def infer(
        self,
        local: LocalLane,
        model: str,
        version: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        request_id: str,
        deadline: float,
    ) -> InferResult | None:
        """None where it is not that case, or the lane declines: then nothing has run. Raises ServingError."""
        key: list[Any] = [*outputs]
        parts = []
        for name, array in inputs.items():
            if type(array) is not np.ndarray:
                return None
            dtype = array.dtype
            if dtype.kind not in _KINDS or array.nbytes > MOST_BYTES:
                return None
            key += (name, dtype, array.shape)
            parts.append(array.tobytes())
        asking = self._asking.get(tuple(key)) or self._prepare(tuple(key), inputs, outputs)
        if asking is None:
            return None
        pieces = list(zip(asking.offsets, parts, strict=True))

        def use(connection: LaneConnection) -> tuple[_Answer | None, Any, tuple[int, int, int, int]]:
            frame = connection.ask(asking.head, pieces, asking.size, deadline)
            answer = self._answers.get(frame.head) or self._read(frame.head)
            if answer is None or len(frame.body) < answer.size:
                return None, read_answer(frame), frame.numbers
            return answer, bytes(frame.body), frame.numbers

        found = local.lend(model, version, asking.size, use)
        if found is None:
            return None
        served, (answer, body, numbers) = found
        if answer is None:
            request = InferRequest(model, (), id=request_id)
            return to_result(response(request, served, body))
        arrays = {name: np.ndarray(shape, dtype, body, offset) for name, dtype, shape, offset in answer.layout}
        return InferResult(
            model, served, request_id, arrays, answer.datatypes, {"queue_us": numbers[0] // 1000, "compute_us": numbers[2] // 1000}
        )

    def _prepare(self, key: tuple[Any, ...], inputs: Mapping[str, Array], outputs: Sequence[str]) -> _Asking | None:
        try:
            described = [(name, datatype_of(array), array.shape, array.nbytes) for name, array in inputs.items() if array.dtype.isnative]
            if len(described) != len(inputs):
                return None
            made = _Asking(*lane.pack_head(described, tuple(outputs), {}))
        except (ServingError, struct.error):
            return None  # the longer way says what is wrong with it
        if len(self._asking) >= _MOST_KEPT:
            self._asking.clear()
        self._asking[key] = made
        return made

    def _read(self, head: bytes) -> _Answer | None:
        """None for an answer that needs the longer way."""
        described = lane.unpack_head(head)
        if described.parameters or any(tensor.datatype == "BYTES" or 0 in tensor.shape for tensor in described.tensors):
            return None
        layout = tuple((tensor.name, DTYPES[tensor.datatype], tensor.shape, tensor.offset) for tensor in described.tensors)
        made = _Answer(layout, {tensor.name: tensor.datatype for tensor in described.tensors}, described.body_size)
        if len(self._answers) >= _MOST_KEPT:
            self._answers.clear()
        self._answers[head] = made
        return made
