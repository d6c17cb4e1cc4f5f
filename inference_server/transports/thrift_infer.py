"""ModelInfer's arguments and result by hand: the one message whose microseconds count.

`read` and `write` do what `idl.thrift_binary` does for any structure, in less than half the time. What is laid out in an unusual way
is declined (None), and the general decoder then reads it or says what is wrong with it; a test holds both to the same values and bytes.
"""

import struct
from typing import Any

from idl.thrift_binary import BINARY, I32, I64, LIST, MAP, REPLY, STRING, STRUCT, VERSION_1
from idl.thrift_schema import schema

_FIELD = struct.Struct(">bhi")
"""A field's type and number, and what follows: a length, or an i32 itself."""
_LIST_FIELD, _MAP_FIELD, _SEQUENCE = struct.Struct(">bhbi"), struct.Struct(">bhbbi"), struct.Struct(">bi")
_I32, _U32 = struct.Struct(">i"), struct.Struct(">I")
_SHAPES = tuple(struct.Struct(f">{rank}q") for rank in range(9))
_MOST_TENSORS = 64
_ARGUMENTS = b"\x0c\0\1"
_RESULT = _U32.pack(VERSION_1 | REPLY) + _I32.pack(len(b"ModelInfer")) + b"ModelInfer"
_SUCCESS = b"\x0c\0\0"
_REQUEST = {number: field[1] for number, field in schema.InferRequest.thrift_spec.items() if field[0] == STRING}
_TENSOR = {number: field[1] for number, field in schema.Tensor.thrift_spec.items() if field[0] in (STRING, BINARY)}
_DATA = next(number for number, name in _TENSOR.items() if name == "data")
_INPUTS, _OUTPUTS, _TIMEOUT, _SHAPE = 4, 5, 7, 3


class _Unusual(Exception):
    """Not for this reader."""


def read(frame: memoryview, begin: int) -> Any | None:
    """The `schema.InferRequest` of the arguments that begin at `begin` and end with the frame; its data are views. None: declined."""
    try:
        if frame[begin : begin + 3] != _ARGUMENTS:
            return None
        request, position = _request(frame, begin + 3)
        return request if frame[position] == 0 and position + 1 == len(frame) else None
    except (IndexError, KeyError, UnicodeDecodeError, struct.error, _Unusual):
        return None


def _request(frame: memoryview, position: int) -> tuple[Any, int]:
    # a length that reaches too far is noticed by the next look at the frame: nothing is there
    request = schema.InferRequest()
    while frame[position]:
        kind, number, size = _FIELD.unpack_from(frame, position)
        if kind == STRING and size >= 0:
            start, position = position + 7, position + 7 + size
            setattr(request, _REQUEST[number], str(frame[start:position], "utf-8"))
        elif kind == I32 and number == _TIMEOUT:
            request.timeout_ms = size
            position += 7
        elif kind == LIST and number == _INPUTS:
            request.inputs, position = _tensors(frame, position + 3)
        elif kind == LIST and number == _OUTPUTS:
            request.outputs, position = _texts(frame, position + 3)
        else:
            raise _Unusual
    return request, position + 1


def _head(frame: memoryview, position: int, kind: int, most: int) -> int:
    found, count = _SEQUENCE.unpack_from(frame, position)
    if found != kind or not 0 <= count <= most:
        raise _Unusual
    return int(count)


def _tensors(frame: memoryview, position: int) -> tuple[list[Any], int]:
    tensors = []
    count = _head(frame, position, STRUCT, _MOST_TENSORS)
    position += 5
    for _ in range(count):
        tensor = schema.Tensor()
        while frame[position]:
            kind, number, size = _FIELD.unpack_from(frame, position)
            if kind == STRING and size >= 0:
                start, position = position + 7, position + 7 + size
                piece = frame[start:position]
                setattr(tensor, _TENSOR[number], piece if number == _DATA else str(piece, "utf-8"))
            elif kind == LIST and number == _SHAPE:
                rank = _head(frame, position + 3, I64, len(_SHAPES) - 1)
                tensor.shape = list(_SHAPES[rank].unpack_from(frame, position + 8))
                position += 8 + 8 * rank
            else:
                raise _Unusual
        tensors.append(tensor)
        position += 1
    return tensors, position


def _texts(frame: memoryview, position: int) -> tuple[list[str], int]:
    texts = []
    count = _head(frame, position, STRING, _MOST_TENSORS)
    position += 5
    for _ in range(count):
        (size,) = _U32.unpack_from(frame, position)
        start, position = position + 4, position + 4 + size
        texts.append(str(frame[start:position], "utf-8"))
    return texts, position


def write(response: Any, sequence: int) -> list[bytes]:
    """The parts of the reply with a whole `schema.InferResponse`, the frame's length first; data are parts of their own."""
    head = [_RESULT, _I32.pack(sequence), _SUCCESS, _text(1, response.model_name), _text(2, response.model_version), _text(3, response.id)]
    head.append(_LIST_FIELD.pack(LIST, 4, STRUCT, len(response.outputs)))
    parts = [b"", b"".join(head)]
    for tensor in response.outputs:
        parts.append(_tensor(tensor))
        parts.append(tensor.data)
        parts.append(b"\0")
    pairs = [_MAP_FIELD.pack(MAP, 5, STRING, STRING, len(response.parameters))]
    for name, value in response.parameters.items():
        pairs += (_string(name), _string(value))
    parts.append(b"".join(pairs) + b"\0\0")
    parts[0] = _U32.pack(sum(map(len, parts)))
    return parts


def _tensor(tensor: Any) -> bytes:
    shape = tensor.shape
    return b"".join(
        (
            _text(1, tensor.name),
            _text(2, tensor.datatype),
            _LIST_FIELD.pack(LIST, 3, I64, len(shape)),
            struct.pack(f">{len(shape)}q", *shape),
            _FIELD.pack(STRING, 4, len(tensor.data)),
        )
    )


def _text(number: int, text: str) -> bytes:
    data = text.encode()
    return _FIELD.pack(STRING, number, len(data)) + data


def _string(text: str) -> bytes:
    data = text.encode()
    return _I32.pack(len(data)) + data
