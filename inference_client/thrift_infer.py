"""ModelInfer's messages by hand: the ones whose microseconds count. A test holds them to what the general writer and reader do.

A client asks for the same thing over and over: what of a call stays the same is put together once, and replies are taken apart by their
layout. A reply that is laid out in another way, and every error, is left to the general reader.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from idl.layouts import Layouts
from idl.messages import InferRequest, InferResponse, Tensor
from idl.thrift_binary import CALL, I32, I64, LIST, MAP, REPLY, STRING, STRUCT, VERSION_1, MalformedThrift, Reader
from inference_client.thrift_codec import MAX_TIMEOUT_MS, TIMES, text_of

Buffer = bytes | memoryview

_FIELD, _U32, _I32 = struct.Struct(">bhI"), struct.Struct(">I"), struct.Struct(">i")
_LIST, _MAP = struct.Struct(">bhbI"), struct.Struct(">bhbbI")
_NAME: Final = _U32.pack(10) + b"ModelInfer"
_CALL: Final = _U32.pack(VERSION_1 | CALL) + _NAME
_REPLY: Final = _U32.pack(VERSION_1 | REPLY) + _NAME
_SEQUENCE_AT: Final = len(_REPLY)


class _Call(NamedTuple):
    """What stands between a call's sequence number, id, tensors' bytes, time left and traceparent."""

    before_id: bytes
    before_data: tuple[bytes, ...]
    before_timeout: bytes
    before_traceparent: bytes


def write(request: InferRequest, token: str, timeout_ms: int, sequence: int) -> list[Buffer]:
    """The parts of a call, its length first; tensors' bytes are parts of their own. Raises ValueError, TypeError and their like."""
    tensors = request.inputs
    described = tuple([(tensor.name, tensor.datatype, tuple(tensor.shape), len(tensor.data)) for tensor in tensors])
    parameters = tuple(_texts(request.parameters)) if request.parameters else ()
    call = _call(request.model_name, request.model_version, described, tuple(request.outputs), parameters, token)
    name, trace = request.id.encode(), request.traceparent.encode()
    parts: list[Buffer] = [b"", _CALL, _I32.pack(sequence), call.before_id, _U32.pack(len(name)), name]
    for before, tensor in zip(call.before_data, tensors, strict=True):
        parts += (before, tensor.data)
    parts += (
        call.before_timeout,
        _I32.pack(min(timeout_ms, MAX_TIMEOUT_MS)),
        call.before_traceparent,
        _U32.pack(len(trace)),
        trace,
        b"\0\0",
    )
    parts[0] = _U32.pack(sum(map(len, parts)))
    return parts


def _texts(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, text_of(value)) for name, value in parameters.items()]


@lru_cache(maxsize=512)
def _call(
    model: str,
    version: str,
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...],
    outputs: tuple[str, ...],
    parameters: tuple[tuple[str, str], ...],
    token: str,
) -> _Call:
    between = _LIST.pack(LIST, 4, STRUCT, len(tensors))
    before = []
    for name, datatype, shape, size in tensors:
        sizes = _LIST.pack(LIST, 3, I64, len(shape)) + struct.pack(f">{len(shape)}q", *shape)
        before.append(between + _text(1, name) + _text(2, datatype) + sizes + _FIELD.pack(STRING, 4, size))
        between = b"\0"
    wanted = _LIST.pack(LIST, 5, STRING, len(outputs)) + b"".join(map(_string, outputs))
    said = _MAP.pack(MAP, 6, STRING, STRING, len(parameters)) + b"".join(_string(text) for pair in parameters for text in pair)
    begin, middle = b"\x0c\0\1" + _text(1, model) + _text(2, version) + _head(3), between + wanted + said + bytes((I32, 0, 7))
    end = _text(8, token) + _head(9)
    return _Call(begin, tuple(before), middle, end)


def _head(number: int) -> bytes:
    return bytes((STRING, 0, number))


def _text(number: int, text: str) -> bytes:
    return _head(number) + _string(text)


def _string(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data


class _Said(NamedTuple):
    """What replies of one layout say. `tensors`: (name, datatype, shape, which of the differing pieces has the bytes)."""

    model: str
    version: str
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]
    parameters: tuple[tuple[str, str], ...]
    times: tuple[tuple[str, int], ...]
    """(name, which piece)."""


class Replies:
    """Takes replies apart. Thread-safe."""

    def __init__(self) -> None:
        self._layouts: Layouts[_Said] = Layouts()

    def read(self, frame: Buffer, sequence: int) -> InferResponse | None:
        """None for a reply that is not laid out as one before, or not the one to this call: the general reader knows."""
        found = self._layouts.find(frame)
        if found is None:
            return None
        said, pieces = found
        try:
            if pieces[0] != _I32.pack(sequence):
                return None
            outputs = tuple([Tensor(name, datatype, shape, pieces[index]) for name, datatype, shape, index in said.tensors])
            parameters: dict[str, Any] = dict(said.parameters)
            for name, index in said.times:
                parameters[name] = int(pieces[index])
            return InferResponse(said.model, said.version, pieces[1].decode(), outputs, parameters)
        except ValueError:
            return None

    def remember(self, frame: Buffer, response: InferResponse) -> None:
        """The layout of a reply that the general reader has read."""
        try:
            data, times, places = _places(Reader(frame))
        except (MalformedThrift, _Unusual):
            return
        if len(data) != len(response.outputs) or {name for name, _ in times} != set(TIMES) & response.parameters.keys():
            return
        tensors = tuple((tensor.name, tensor.datatype, tensor.shape, at) for tensor, at in zip(response.outputs, data, strict=True))
        kept = tuple((name, value) for name, value in response.parameters.items() if name not in TIMES)
        self._layouts.remember(frame, places, _Said(response.model_name, response.model_version, tensors, kept, tuple(times)))


class _Unusual(Exception):
    """Not laid out as our servers do it."""


def _places(reader: Reader) -> tuple[list[int], list[tuple[str, int]], list[tuple[int, int]]]:
    """(which pieces are tensors' bytes, which are times, where every piece lies) of a reply whose fields come once and in their order."""
    reader.message_begin()
    places = [(_SEQUENCE_AT, _SEQUENCE_AT + 4)]
    _expect(reader, STRUCT, 0)
    for number in (1, 2, 3):
        _expect(reader, STRING, number)
        place = _skipped(reader)
    places.append(place)
    data: list[int] = []
    _expect(reader, LIST, 4)
    for _ in range(reader.sequence(STRUCT)):
        for number, kind in ((1, STRING), (2, STRING), (3, LIST)):
            _expect(reader, kind, number)
            reader.skip(kind, 2)
        _expect(reader, STRING, 4)
        data.append(len(places))
        places.append(_skipped(reader))
        _end(reader)
    times: list[tuple[str, int]] = []
    _expect(reader, MAP, 5)
    for _ in range(reader.pairs(STRING, STRING)):
        name, place = reader.text(), _skipped(reader)
        if name in TIMES:
            times.append((name, len(places)))
            places.append(place)
    _end(reader)
    _end(reader)
    return data, times, places


def _expect(reader: Reader, kind: int, number: int) -> None:
    start = reader.take(3)
    if reader.data[start : start + 3] != bytes((kind, 0, number)):
        raise _Unusual


def _end(reader: Reader) -> None:
    if reader.data[reader.take(1)]:
        raise _Unusual


def _skipped(reader: Reader) -> tuple[int, int]:
    """Where the bytes lie that come next."""
    start = reader.position + 4
    reader.skip(STRING, 1)
    return start, reader.position
