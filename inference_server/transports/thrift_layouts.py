"""ModelInfer's frames by their layout: what a caller sends over and over is taken apart in one step, and so is its answer put together.

Frames of one caller differ in a few places only: the sequence number, the id, the time left, the tensors' bytes. What lies between those
places is remembered with what it says; a frame that has the same bytes there says the same, lengths included. A frame that is laid out
in another way is read by `thrift_infer`, and remembered; a test holds both to the same values and bytes.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from idl import lane as frames
from idl.lane import LaneError
from idl.thrift_binary import CALL, VERSION_1
from inference_server.transports import thrift_infer
from inference_server.transports.framing import Buffer
from inference_server.transports.thrift_infer import DATA, ID, TIMEOUT, TOKEN, TRACEPARENT

_U32: Final = struct.Struct(">I")
_CALL: Final = _U32.pack(VERSION_1 | CALL) + _U32.pack(10) + b"ModelInfer"
_ARGUMENTS: Final = len(_CALL) + 4
_REMEMBERED_BYTES: Final = 64 * 1024
"""A larger frame is read each time, so that its tensors need not be copied out of it."""
_FIXED_BYTES: Final = 4096
_LAYOUTS, _OF_ONE_SIZE = 512, 8


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


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """`pieces` cuts a frame into what is `fixed` and what differs, in turns."""

    described: Described
    pieces: struct.Struct
    fixed: tuple[bytes, ...]
    contents: tuple[int, ...]
    """Which of the differing pieces; -1 where there is none."""
    id: int
    timeout: int
    token: int
    traceparent: int

    def take(self, frame: Buffer) -> Call | None:
        """None where the frame is laid out in another way. Raises UnicodeDecodeError."""
        pieces = self.pieces.unpack(frame)
        if pieces[::2] != self.fixed:
            return None
        parts = pieces[1::2]
        return Call(
            self.described,
            parts[0],
            [parts[index] for index in self.contents],
            str(parts[self.id], "utf-8") if self.id > 0 else "",
            int.from_bytes(parts[self.timeout], "big", signed=True) if self.timeout > 0 else 0,
            str(parts[self.token], "utf-8") if self.token > 0 else "",
            str(parts[self.traceparent], "utf-8") if self.traceparent > 0 else "",
        )


class Layouts:
    """The layouts seen last. Not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[int, list[_Layout]] = {}
        self._count = 0

    def read(self, frame: Buffer) -> Call | None:
        """None for what is no ModelInfer, is laid out in an unusual way, or does not fit the lane: the general reader knows."""
        try:
            for layout in self._known.get(len(frame), ()):
                call = layout.take(frame)
                if call is not None:
                    return call
            return self._survey(frame)
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
        if len(frame) <= _REMEMBERED_BYTES:
            self._remember(bytes(frame), described, marks, contents, places)
        return Call(
            described,
            bytes(frame[len(_CALL) : _ARGUMENTS]),
            [tensor.data for tensor in tensors],
            request.id or "",
            request.timeout_ms or 0,
            request.token or "",
            request.traceparent or "",
        )

    def _remember(
        self, frame: bytes, described: Described, marks: thrift_infer.Marks, contents: tuple[int, ...], places: Mapping[str, int]
    ) -> None:
        fixed, sizes, end = [], [], 0
        for begin, stop in [(len(_CALL), _ARGUMENTS), *((begin, stop) for begin, stop, _ in marks)]:
            fixed.append(frame[end:begin])
            sizes += [begin - end, stop - begin]
            end = stop
        fixed.append(frame[end:])
        sizes.append(len(frame) - end)
        if sum(map(len, fixed)) > _FIXED_BYTES:
            return
        if self._count >= _LAYOUTS:
            self._known.clear()
            self._count = 0
        pieces = struct.Struct("".join(f"{size}s" for size in sizes))
        where = [places.get(name, -1) for name in (ID, TIMEOUT, TOKEN, TRACEPARENT)]
        same_size = self._known.setdefault(len(frame), [])
        if len(same_size) >= _OF_ONE_SIZE:
            same_size.pop()
            self._count -= 1
        same_size.insert(0, _Layout(described, pieces, tuple(fixed), contents, *where))
        self._count += 1


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
