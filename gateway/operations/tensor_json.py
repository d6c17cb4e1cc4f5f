"""Numbers and texts of a JSON document <-> tensors.

Nothing is converted in silence: a fraction for an integer tensor, a number outside the datatype, a ragged list and a wrong type are
refused with the tensor's name. Lists are walked level by level, never by recursion: how deep a caller nests must not matter.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import Tensor
from idl.tensors import Array, invalid

MAX_CONTAINERS = 500_000
MAX_VALUES = 5_000_000
"""What one document may hold. Python spends about 60 bytes on each `[]` and over 200 on an object, 32 on a number: 64 MiB of nothing
but those would take gigabytes. Counted by their brackets and commas before anything is parsed."""
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How numbers that JSON cannot write are spelled as strings."""

_INTEGERS = {"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"}
_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d", "BF16": "f"}
_FORMATS: Mapping[str, str] = {"BOOL": "?", **_INTEGERS, **_FLOATS}
"""Datatype -> how `struct` calls it; BF16 goes through FP32."""
_ALLOWED: Mapping[str, frozenset[type]] = {
    "BOOL": frozenset({bool}),
    **dict.fromkeys(_INTEGERS, frozenset({int})),
    **dict.fromkeys(_FLOATS, frozenset({int, float})),
}
"""Datatype -> the types that its elements may have in a JSON document."""
_decode = json.JSONDecoder().decode
_spell = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one for each call
_PIECE = 64 * 1024
"""Bytes of a tensor that are written as JSON at a time: in between, other threads have their turn."""
_SPACE = " \t\n\r"
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # what `decode` calls; typeshed does not list it
_B64 = frozenset({"b64"})


def parse(body: bytes | memoryview, what: str = "the body") -> Any:
    """The document's value. `what` it is, for messages. Raises invalid_input for what is not JSON, too_large over MAX_CONTAINERS lists and objects or MAX_VALUES values.

    The numbers NaN, Infinity and -Infinity are taken, as the reference implementation of the open protocol does.
    """
    data = bytes(body)
    if len(data) > MAX_CONTAINERS:
        _refuse_too_many(data)
    try:
        text = data.decode().rstrip(_SPACE)
        try:
            value, end = _scan(text, 0)
        except StopIteration:
            end = -1
        return value if end == len(text) else _decode(text)  # which allows for space before it, and has words for what is wrong
    except RecursionError:
        raise invalid("the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise invalid(f"the JSON is not UTF-8: byte {error.start}") from None
    except ValueError as error:
        raise invalid(f"{what} is not JSON: {error}" if data.strip() else f"{what} is empty") from None


def _refuse_too_many(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise ServingError(Code.TOO_LARGE, f"the JSON has over {MAX_CONTAINERS} lists and objects; send large tensors as binary data")
    if data.count(b",") > MAX_VALUES:
        raise ServingError(Code.TOO_LARGE, f"the JSON has over {MAX_VALUES} values; send large tensors as binary data")


def flatten(name: str, data: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Nested lists -> their elements in C order and their shape; a value that is no list has the shape (). Raises invalid_input."""
    if type(data) is list and list not in set(map(type, data)):  # most are
        return data, (len(data),)
    level: list[Any] = [data]
    shape: list[int] = []
    while level and _is_level_of_lists(name, level):
        if len(shape) == tensors.MAX_RANK:
            raise invalid(f"input {name!r} is nested deeper than {tensors.MAX_RANK} lists")
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise invalid(f"input {name!r} is ragged: lists at depth {len(shape) + 1} have {min(sizes)} to {max(sizes)} elements")
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
    return level, tuple(shape)


def _is_level_of_lists(name: str, level: Sequence[Any]) -> bool:
    types = set(map(type, level))
    if list not in types:
        return False
    if len(types) > 1:
        raise invalid(f"input {name!r} is ragged: a list and {_kind(types - {list})} stand side by side")
    return True


def _kind(types: set[type]) -> str:
    return next(name for kind, name in _KINDS.items() if kind in types)


_KINDS: Mapping[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
    dict: "an object",
    list: "a list",
}


def to_tensor(name: str, datatype: str, flat: Sequence[Any], shape: tuple[int, ...]) -> Tensor:
    """JSON values, as many as `shape` holds, -> tensor. Raises invalid_input."""
    allowed = _ALLOWED.get(datatype)
    if allowed is None:
        if datatype != "BYTES":
            raise invalid(f"input {name!r} has datatype {datatype!r}, which is none of the protocol's")
        return Tensor(name, datatype, shape, tensors.encode(_texts(name, flat), datatype))
    types = set(map(type, flat))
    if not types <= allowed:
        flat = _only(name, datatype, flat, types)
    return Tensor(name, datatype, shape, _pack(name, datatype, flat))


def _only(name: str, datatype: str, flat: Sequence[Any], types: set[type]) -> Sequence[Any]:
    """The elements, numbers that are spelled as strings replaced. Raises invalid_input where one has a type that the datatype has not."""
    if str in types and datatype in _FLOATS:
        flat = [NON_FINITE.get(item, item) if type(item) is str else item for item in flat]
        types = set(map(type, flat))
    wrong = types - _ALLOWED[datatype]
    if wrong:
        detail = "a fraction" if wrong == {float} and datatype in _INTEGERS else _kind(wrong)
        raise invalid(f"input {name!r} is {datatype} and has an element that is {detail}")
    return flat


def _pack(name: str, datatype: str, flat: Sequence[Any]) -> bytes:
    """Raw contents. Faster than numpy at any length, which would go over an array of its own."""
    try:
        packed = struct.pack(f"<{len(flat)}{_FORMATS[datatype]}", *flat)
    except (struct.error, OverflowError):
        raise invalid(f"input {name!r} is {datatype} and has a number {_beyond(datatype)}") from None
    return packed if datatype != "BF16" else _bfloat16(name, packed)


def _beyond(datatype: str) -> str:
    if datatype in _FLOATS:
        return "that is too large for it"
    limits: Any = np.iinfo(tensors.DTYPES[datatype])
    return f"outside {limits.min} to {limits.max}"


def _bfloat16(name: str, packed: bytes) -> bytes:
    exact = np.frombuffer(packed, "<f4")
    bits = to_bfloat16(exact)
    if (np.isinf(_from_bfloat16(bits)) & np.isfinite(exact)).any():
        raise invalid(f"input {name!r} is BF16 and has a number {_beyond('BF16')}")
    return tensors.encode(bits, "BF16")


def to_bfloat16(array: Array) -> Array:
    """FP32 -> BF16 bit patterns, rounded to the nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _texts(name: str, flat: Sequence[Any]) -> Array:
    array = np.empty(len(flat), object)
    for index, item in enumerate(flat):
        if isinstance(item, str):
            array[index] = encode_text(f"input {name!r}", item)
        elif isinstance(item, dict) and item.keys() == _B64:
            array[index] = decode_base64(f"input {name!r}", item["b64"])
        else:
            raise invalid(f"input {name!r} is BYTES and has an element that is {_kind({type(item)})}, not a text")
    return array


def encode_text(where: str, text: str) -> bytes:
    """UTF-8. Raises invalid_input for half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise invalid(f"{where} has a text that is not Unicode: half of a surrogate pair") from None


def is_base64(value: Any) -> bool:
    """True for {"b64": ...}."""
    return isinstance(value, dict) and value.keys() == _B64


def decode_base64(where: str, text: Any) -> bytes:
    """The bytes of a base64 text (RFC 4648, padded). Raises invalid_input."""
    if not isinstance(text, str):
        raise invalid(f"{where}: b64 is {_kind({type(text)})}, not a text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{where}: b64 is not base64") from None


def to_array(tensor: Tensor) -> Array:
    """The tensor with elements that JSON has a type for: BF16 becomes FP32."""
    array = tensors.decode(tensor.name, tensor.datatype, tensor.shape, tensor.data)
    return _from_bfloat16(array) if tensor.datatype == "BF16" else array


def _from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_json(tensor: Tensor) -> str:
    """A JSON list of the elements in C order; not for BYTES and BF16. Raises invalid_input where the contents do not have their size.

    NaN and infinities stand bare, which JSON proper has no word for: the reference implementation of the open protocol writes them so, and
    its clients read them. Whoever has a strict parser asks for binary data.
    """
    data, datatype = tensor.data, tensor.datatype
    size = len(data)
    if size != _size(datatype, tensor.shape):
        tensors.check_size(tensor.name, datatype, tensor.shape, size)  # which names the tensor and both sizes
    if size <= _PIECE:
        return f"[{_numbers(datatype, data)}]"
    view = memoryview(data)
    return f"[{','.join(_numbers(datatype, view[at : at + _PIECE]) for at in range(0, size, _PIECE))}]"


@lru_cache(maxsize=1024)
def _size(datatype: str, shape: tuple[int, ...]) -> int:
    """Bytes; -1 for a shape that cannot be."""
    try:
        return tensors.element_count("", shape) * tensors.DTYPES[datatype].itemsize
    except ServingError:
        return -1


def _numbers(datatype: str, data: bytes | memoryview) -> str:
    """Elements as JSON, commas between them. Python writes numbers so, but for true, false and what is not finite, and faster than `json`."""
    flat = struct.unpack(f"<{len(data) // tensors.DTYPES[datatype].itemsize}{_FORMATS[datatype]}", data)
    text = repr(list(flat))
    return (_spell(flat) if datatype == "BOOL" or "n" in text else text.replace(" ", ""))[1:-1]


def to_nested(tensor: Tensor) -> Any:
    """Nested lists; numbers that JSON cannot write are their names as strings, bytes that are no text are {"b64": ...}."""
    array = to_array(tensor)
    if tensor.datatype == "BYTES":
        return _spelled(array, [_text_or_base64(item) for item in array.ravel().tolist()])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _spelled(array, [finite_or_name(item) for item in array.ravel().tolist()])
    return array.tolist()


def _spelled(array: Array, items: Sequence[Any]) -> Any:
    spelled = np.empty(len(items), object)
    spelled[:] = items
    return spelled.reshape(array.shape).tolist()


def finite_or_name(number: float) -> float | str:
    """The number, or its name where JSON has no spelling for it."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _text_or_base64(item: bytes) -> str | dict[str, str]:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(item).decode("ascii")}
