"""ModelInfer's frames by their layout: what a caller sends over and over is taken apart in one step, and so is its answer put together.

Frames of one caller differ in the sequence number, the id, the time left, the tensors' bytes. One that is laid out in a way not seen
before is read by `thrift_infer`, and remembered; a test holds both to the same values and bytes.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from idl import lane as frames
from idl.lane import LaneError
from idl.layouts import Layouts
from idl.thrift_binary import CALL, VERSION_1
from inference_server.transports import thrift_infer
from inference_server.transports.framing import Buffer
from inference_server.transports.thrift_infer import DATA, ID, TIMEOUT, TOKEN, TRACEPARENT

_U32: Final = struct.Struct(">I")
_CALL: Final = _U32.pack(VERSION_1 | CALL) + _U32.pack(10) + b"ModelInfer"
_ARGUMENTS: Final = len(_CALL) + 4


class Described(NamedTuple):
    """What a request says besides what differs from call to call, ready for the lane: `offsets` and `size` are bytes of the body."""

    model: str
    version: str
    head: bytes
    offsets: tuple[int, ...]
    size: int


class Call(NamedTuple):
    """A frame taken apart. `sequence` as it came; `timeout_ms` 0 where there is none, texts "" where absent."""

    described: Described
    sequence: bytes
    contents: Sequence[Buffer]
    id: str
    timeout_ms: int
    token: str
    traceparent: str


class _Places(NamedTuple):
    """Which of the differing pieces is what; 0, the sequence number's, where there is none."""

    described: Described
    contents: tuple[int, ...]
    id: int
    timeout: int
    token: int
    traceparent: int


class Calls:
    """Takes ModelInfer frames apart. Thread-safe."""

    def __init__(self) -> None:
        self._layouts: Layouts[_Places] = Layouts()

    def read(self, frame: Buffer) -> Call | None:
        """None for what is no ModelInfer, is laid out in an unusual way, or does not fit the lane: the general reader knows."""
        try:
            found = self._layouts.find(frame)
            return _call(*found) if found is not None else self._survey(frame)
        except (struct.error, TypeError, ValueError):
            return None

    def _survey(self, frame: Buffer) -> Call | None:
        marks: thrift_infer.Marks = []
        if frame[: len(_CALL)] != _CALL or (request := thrift_infer.read(frame, _ARGUMENTS, marks)) is None:
            return None
        tensors = request.inputs or ()
        places = {name: number for number, (_, _, name) in enumerate(marks, 1)}
        contents = tuple(number for number, mark in enumerate(marks, 1) if mark[2] == DATA)
        if len(contents) != len(tensors) or len(marks) != len(contents) + len(places.keys() - {DATA}):
            return None  # a field is missing, or there twice
        inputs = [(tensor.name or "", tensor.datatype or "", tuple(tensor.shape or ()), len(tensor.data)) for tensor in tensors]
        head, offsets, size = frames.pack_head(inputs, tuple(request.outputs or ()), request.parameters or {})
        described = Described(request.model_name or "", request.model_version or "", head, offsets, size)
        where = [places.get(name, 0) for name in (ID, TIMEOUT, TOKEN, TRACEPARENT)]
        spans = [(len(_CALL), _ARGUMENTS), *((begin, end) for begin, end, _ in marks)]
        self._layouts.remember(frame, spans, _Places(described, contents, *where))
        sequence, data = bytes(frame[len(_CALL) : _ARGUMENTS]), [tensor.data for tensor in tensors]
        rest = request.id or "", request.timeout_ms or 0, request.token or "", request.traceparent or ""
        return Call(described, sequence, data, *rest)


def _call(places: _Places, pieces: tuple[bytes, ...]) -> Call:
    described, contents, name, timeout, token, traceparent = places
    return Call(
        described,
        pieces[0],
        [pieces[index] for index in contents],
        pieces[name].decode() if name else "",
        int.from_bytes(pieces[timeout], "big", signed=True) if timeout else 0,
        pieces[token].decode() if token else "",
        pieces[traceparent].decode() if traceparent else "",
    )


class Answers(NamedTuple):
    """Replies that say the same of their tensors: what stands between their sequence, id, tensors' bytes and times."""

    before_id: bytes
    before: tuple[tuple[bytes, int, int], ...]
    """Of each tensor: what stands before its bytes, and where those lie in the frame's body."""
    behind: bytes
    body_size: int


@lru_cache(maxsize=1024)
def answers(head: bytes, model: str, version: str) -> Answers:
    """Of a RESULT frame's head. Raises LaneError."""
    known = frames.unpack_head(head)
    tensors = [(tensor.name, tensor.datatype, tensor.shape, tensor.size) for tensor in known.tensors]
    before = thrift_infer.tensor_heads(tensors)
    kept = {name: thrift_infer.text_of(value) for name, value in known.parameters.items() if name not in thrift_infer.TIMES}
    spans = [(tensor.offset, tensor.offset + tensor.size) for tensor in known.tensors]
    return Answers(
        thrift_infer.before_id(model, version),
        tuple((text, *span) for text, span in zip(before, spans, strict=True)),
        thrift_infer.before_times(kept, bool(tensors)),
        known.body_size,
    )


def reply(said: Answers, sequence: bytes, request_id: str, body: memoryview, queue_us: int, compute_us: int) -> tuple[list[Buffer], int]:
    """(the parts of a reply, its length first; that length). Parts lie in `body`. Raises LaneError where that is too short."""
    if len(body) < said.body_size:
        raise LaneError("the body is shorter than its tensors")
    name = request_id.encode()
    parts: list[Buffer] = [b"", thrift_infer.RESULT, sequence, said.before_id, _U32.pack(len(name)), name]
    for text, begin, end in said.before:
        parts += (text, body[begin:end])
    parts += (said.behind, *thrift_infer.times(queue_us, compute_us))
    size = sum(map(len, parts))
    parts[0] = _U32.pack(size)
    return parts, size
