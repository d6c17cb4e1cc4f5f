"""ModelInfer's messages by hand: the ones whose microseconds count.

What callers send over and over differs in its id and its raw contents only. `read` cuts those out; what is left is decoded by protobuf
once and remembered. A request that is laid out in another way is declined (None), and `grpc_codec` then reads it or says what is
wrong with it; a test holds both to the same values. `answer` is the way
back.

Field numbers: `idl/inference.proto`. Wire format: Protocol Buffers, "Encoding".
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from idl.codes import ServingError
from idl.generated import inference_pb2 as pb
from inference_server.transports import grpc_codec as codec

Buffer = bytes | memoryview

_ID, _RAW_INPUT = 0x1A, 0x3A  # fields 3 and 7, with a length
_REMEMBERED_BYTES = 1024
_DOUBLE = struct.Struct("<d")


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """What a request says besides its id and contents. `tensors` are (name, datatype, shape). Equal ones are often the same object."""

    model_name: str
    model_version: str
    outputs: tuple[str, ...]
    parameters: Mapping[str, Any]
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


class _Unusual(Exception):
    """Not for this reader."""


def read(data: Buffer, begin: int = 0) -> tuple[Described, str, list[Buffer]] | None:
    """(what it describes, id, contents of each input) of the `ModelInferRequest` in `data` from `begin` on; None: declined.

    The contents are slices of `data`: copies of bytes, views of a memoryview.
    """
    try:
        end, position, name, start = len(data), begin, "", begin
        before = b""
        while position < end and (tag := data[position]) != _RAW_INPUT:
            size, value = _length(data, position + 1)
            if tag == _ID:
                name = str(data[value : value + size], "utf-8")
                before += bytes(data[start:position])
                start = value + size
            elif tag & 7 != 2 or tag > _RAW_INPUT:
                return None
            position = value + size
        contents: list[Buffer] = []
        described = _describe(before + bytes(data[start:position]))
        while position < end:
            if data[position] != _RAW_INPUT:
                return None
            size, value = _length(data, position + 1)
            position = value + size
            contents.append(data[value:position])
    except (IndexError, UnicodeDecodeError, DecodeError, ServingError, _Unusual):
        return None
    # a length that reaches too far ends behind the data; without contents the tensors are typed, or there are none
    return (described, name, contents) if position == end and len(contents) == len(described.tensors) > 0 else None


def _length(data: Buffer, position: int) -> tuple[int, int]:
    """(the varint at `position`, where it ends). No message has more than four bytes of it."""
    size = data[position]
    if size < 0x80:
        return size, position + 1
    size &= 0x7F
    for shift in (7, 14, 21, 28):
        position += 1
        byte = data[position]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return size, position + 1
    raise _Unusual


def _describe(message: bytes) -> Described:
    return _remembered(message) if len(message) <= _REMEMBERED_BYTES else _decoded(message)


def _decoded(message: bytes) -> Described:
    """Raises DecodeError, ServingError, _Unusual."""
    request = pb.ModelInferRequest.FromString(message)
    codec.check_counts(request)
    if codec.is_extended(request) or any(tensor.HasField("contents") for tensor in request.inputs):
        raise _Unusual
    return Described(
        request.model_name,
        request.model_version,
        tuple(str(output.name) for output in request.outputs),
        codec.parameters(request.parameters),
        tuple((str(tensor.name), str(tensor.datatype), tuple(tensor.shape)) for tensor in request.inputs),
    )


_remembered = lru_cache(maxsize=512)(_decoded)


def answer(
    model_name: str, model_version: str, name: str, parameters: Mapping[str, Any], outputs: "Outputs", contents: Iterable[Buffer]
) -> list[Buffer]:
    """The parts of a `ModelInferResponse`; `name` is its id. Every part of `contents` is one output's and is in the list as it stands."""
    parts: list[Buffer] = [_heading(model_name, model_version)]
    if name:
        text = name.encode()
        parts += (b"\x1a", varint(len(text)), text)
    for key, value in parameters.items():
        if type(value) is int and 0 <= value < 1 << 14:
            number = _VARINTS[value]
            parts += (_int_parameter(key, len(number)), number)
        else:
            parts.append(_parameter(key, value))
    parts.append(outputs)
    for data in contents:
        parts += (b"\x32", varint(len(data)), data)
    return parts


Outputs = bytes


@lru_cache(maxsize=512)
def outputs(tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> Outputs:
    """The description of an answer's tensors: (name, datatype, shape) each."""
    return b"".join(_output(*tensor) for tensor in tensors)


def _output(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(varint(size) for size in shape)
    body = _text(0x0A, name) + _text(0x12, datatype) + (b"\x1a" + varint(len(sizes)) + sizes if sizes else b"")
    return b"\x2a" + varint(len(body)) + body


@lru_cache(maxsize=512)
def _heading(model_name: str, model_version: str) -> bytes:
    return _text(0x0A, model_name) + _text(0x12, model_version)


def _text(tag: int, text: str) -> bytes:
    """A field that is not there where it is empty."""
    data = text.encode()
    return bytes((tag,)) + varint(len(data)) + data if data else b""


@lru_cache(maxsize=512)
def _int_parameter(key: str, size: int) -> bytes:
    """What comes before the varint, of `size` bytes, of an entry that is a whole number."""
    name = _key(key)
    return b"".join((b"\x22", varint(len(name) + 3 + size), name, b"\x12", varint(1 + size), b"\x10"))


def _parameter(key: str, value: Any) -> bytes:
    """An entry of the map `parameters`."""
    choice = _choice(value)
    name = _key(key)
    size = varint(len(choice))
    entry = len(name) + 1 + len(size) + len(choice)
    return b"".join((b"\x22", varint(entry), name, b"\x12", size, choice))


@lru_cache(maxsize=512)
def _key(key: str) -> bytes:
    return _text(0x0A, key)


def _choice(value: Any) -> bytes:
    """`InferParameter`; as `grpc_codec` chooses among its fields."""
    if isinstance(value, bool):
        return b"\x08\1" if value else b"\x08\0"
    if isinstance(value, int):
        return b"\x10" + varint(value) if value < 1 << 63 else b"\x28" + varint(value)
    if isinstance(value, float):
        return b"\x21" + _DOUBLE.pack(value)
    text = str(value).encode()
    return b"\x1a" + varint(len(text)) + text


_VARINTS = tuple(bytes((low,)) for low in range(128)) + tuple(bytes((low & 0x7F | 0x80, low >> 7)) for low in range(128, 1 << 14))


def varint(value: int) -> bytes:
    """Base-128; negative numbers as their 64-bit two's complement."""
    if 0 <= value < 1 << 14:
        return _VARINTS[value]
    value &= (1 << 64) - 1
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
