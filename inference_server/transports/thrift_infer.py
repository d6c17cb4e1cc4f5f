"""ModelInfer's arguments and result by hand: the one message whose microseconds count.

`read` and `write` do what `idl.thrift_binary` does for any structure, in less than half the time. What is laid out in an unusual way
is declined (None), and the general decoder then reads it or says what is wrong with it; a test holds both to the same values and bytes.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from idl.thrift_binary import BINARY, I32, I64, LIST, MAP, REPLY, STRING, STRUCT, VERSION_1
from idl.thrift_schema import schema
from inference_server.transports.framing import Buffer

_FIELD = struct.Struct(">bhi")
"""A field's type and number, and what follows: a length, or an i32 itself."""
_LIST_FIELD, _MAP_FIELD, _SEQUENCE = struct.Struct(">bhbi"), struct.Struct(">bhbbi"), struct.Struct(">bi")
_PAIRS = struct.Struct(">bbi")
_I32, _U32 = struct.Struct(">i"), struct.Struct(">I")
_SHAPES = tuple(struct.Struct(f">{rank}q") for rank in range(9))
_MOST_TENSORS = 64
_ARGUMENTS = b"\x0c\0\1"
RESULT = _U32.pack(VERSION_1 | REPLY) + _I32.pack(len(b"ModelInfer")) + b"ModelInfer"
_SUCCESS = b"\x0c\0\0"
_REQUEST = {number: field[1] for number, field in schema.InferRequest.thrift_spec.items() if field[0] == STRING}
_TENSOR = {number: field[1] for number, field in schema.Tensor.thrift_spec.items() if field[0] in (STRING, BINARY)}
_DATA = next(number for number, name in _TENSOR.items() if name == "data")
_INPUTS, _OUTPUTS, _PARAMETERS, _TIMEOUT, _SHAPE = 4, 5, 6, 7, 3
ID, TOKEN, TRACEPARENT, TIMEOUT, DATA = "id", "token", "traceparent", "timeout_ms", "data"
_VARYING = {number: name for number, name in _REQUEST.items() if name in (ID, TOKEN, TRACEPARENT)}

Marks = list[tuple[int, int, str]]
"""(begin, end, which) of what differs from call to call: DATA as often as there are inputs with some."""


class _Unusual(Exception):
    """Not for this reader."""


def read(frame: Buffer, begin: int, marks: Marks | None = None) -> Any | None:
    """The `schema.InferRequest` of the arguments that begin at `begin` and end with the frame; its data are slices. None: declined.

    `marks` gets where in the frame lies what differs from call to call.
    """
    try:
        if frame[begin : begin + 3] != _ARGUMENTS:
            return None
        request, position = _request(frame, begin + 3, marks if marks is not None else [])
        return request if frame[position] == 0 and position + 1 == len(frame) else None
    except (IndexError, KeyError, UnicodeDecodeError, struct.error, _Unusual):
        return None


def _request(frame: Buffer, position: int, marks: Marks) -> tuple[Any, int]:
    # a length that reaches too far is noticed by the next look at the frame: nothing is there
    request = schema.InferRequest()
    while frame[position]:
        kind, number, size = _FIELD.unpack_from(frame, position)
        if kind == STRING and size >= 0:
            start, position = position + 7, position + 7 + size
            setattr(request, _REQUEST[number], str(frame[start:position], "utf-8"))
            if number in _VARYING:
                marks.append((start, position, _VARYING[number]))
        elif kind == I32 and number == _TIMEOUT:
            request.timeout_ms = size
            position += 7
            marks.append((position - 4, position, TIMEOUT))
        elif kind == LIST and number == _INPUTS:
            request.inputs, position = _tensors(frame, position + 3, marks)
        elif kind == LIST and number == _OUTPUTS:
            request.outputs, position = _texts(frame, position + 3)
        elif kind == MAP and number == _PARAMETERS:
            request.parameters, position = _pairs(frame, position + 3)
        else:
            raise _Unusual
    return request, position + 1


def _head(frame: Buffer, position: int, kind: int, most: int) -> int:
    found, count = _SEQUENCE.unpack_from(frame, position)
    if found != kind or not 0 <= count <= most:
        raise _Unusual
    return int(count)


def _tensors(frame: Buffer, position: int, marks: Marks) -> tuple[list[Any], int]:
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
                if number == _DATA:
                    tensor.data = piece
                    marks.append((start, position, DATA))
                else:
                    setattr(tensor, _TENSOR[number], str(piece, "utf-8"))
            elif kind == LIST and number == _SHAPE:
                rank = _head(frame, position + 3, I64, len(_SHAPES) - 1)
                tensor.shape = list(_SHAPES[rank].unpack_from(frame, position + 8))
                position += 8 + 8 * rank
            else:
                raise _Unusual
        tensors.append(tensor)
        position += 1
    return tensors, position


def _pairs(frame: Buffer, position: int) -> tuple[dict[str, str], int]:
    pairs = {}
    key, value, count = _PAIRS.unpack_from(frame, position)
    if not 0 <= count <= _MOST_TENSORS or (count and (key, value) != (STRING, STRING)):
        raise _Unusual
    position += 6
    for _ in range(count):
        name, position = _counted(frame, position)
        pairs[name], position = _counted(frame, position)
    return pairs, position


def _counted(frame: Buffer, position: int) -> tuple[str, int]:
    (size,) = _U32.unpack_from(frame, position)
    start, position = position + 4, position + 4 + size
    return str(frame[start:position], "utf-8"), position


def _texts(frame: Buffer, position: int) -> tuple[list[str], int]:
    texts = []
    count = _head(frame, position, STRING, _MOST_TENSORS)
    position += 5
    for _ in range(count):
        text, position = _counted(frame, position)
        texts.append(text)
    return texts, position


def write(response: Any, sequence: int) -> list[bytes]:
    """The parts of the reply with a whole `schema.InferResponse`, the frame's length first; data are parts of their own."""
    head = [RESULT, _I32.pack(sequence), _SUCCESS, _text(1, response.model_name), _text(2, response.model_version), _text(3, response.id)]
    head.append(_LIST_FIELD.pack(LIST, 4, STRUCT, len(response.outputs)))
    parts = [b"", b"".join(head)]
    for tensor in response.outputs:
        parts.append(_tensor_head(tensor.name, tensor.datatype, tensor.shape, len(tensor.data)))
        parts.append(tensor.data)
        parts.append(b"\0")
    pairs = [_MAP_FIELD.pack(MAP, 5, STRING, STRING, len(response.parameters))]
    for name, value in response.parameters.items():
        pairs += (_string(name), _string(value))
    parts.append(b"".join(pairs) + b"\0\0")
    parts[0] = _U32.pack(sum(map(len, parts)))
    return parts


def _tensor_head(name: str, datatype: str, shape: Sequence[int], size: int) -> bytes:
    return b"".join(
        (
            _text(1, name),
            _text(2, datatype),
            _LIST_FIELD.pack(LIST, 3, I64, len(shape)),
            struct.pack(f">{len(shape)}q", *shape),
            _FIELD.pack(STRING, 4, size),
        )
    )


def _text(number: int, text: str) -> bytes:
    data = text.encode()
    return _FIELD.pack(STRING, number, len(data)) + data


def _string(text: str) -> bytes:
    data = text.encode()
    return _I32.pack(len(data)) + data


def text_of(value: Any) -> str:
    """A parameter as Thrift's `map<string, string>` has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# a reply in pieces: what `write` puts together, for those who remember the pieces ---------------------------------------------------

TIMES = ("queue_us", "compute_us")
"""The last parameters of every reply, in this order."""
_BETWEEN_TIMES = _string(TIMES[1])
_ID_FIELD = b"\x0b\0\3"


def before_id(model: str, version: str) -> bytes:
    """What stands between the sequence number and the id's length."""
    return _SUCCESS + _text(1, model) + _text(2, version) + _ID_FIELD


def tensor_heads(tensors: Sequence[tuple[str, str, tuple[int, ...], int]]) -> list[bytes]:
    """What stands before the bytes of each tensor, given as (name, datatype, shape, bytes)."""
    heads = []
    between = _LIST_FIELD.pack(LIST, 4, STRUCT, len(tensors))
    for name, datatype, shape, size in tensors:
        heads.append(between + _tensor_head(name, datatype, shape, size))
        between = b"\0"
    return heads


def before_times(parameters: Mapping[str, str], tensors: bool) -> bytes:
    """What stands between the last tensor's bytes, or the id where there are no tensors, and the values of `TIMES`."""
    pairs = [_string(name) + _string(value) for name, value in parameters.items()]
    end = b"\0" if tensors else _LIST_FIELD.pack(LIST, 4, STRUCT, 0)
    return end + _MAP_FIELD.pack(MAP, 5, STRING, STRING, len(pairs) + len(TIMES)) + b"".join(pairs) + _string(TIMES[0])


def times(queue_us: int, compute_us: int) -> tuple[bytes, bytes, bytes, bytes]:
    """The values of `TIMES`, to the end of the reply."""
    return _string(str(queue_us)), _BETWEEN_TIMES, _string(str(compute_us)), b"\0\0"
