"""What a script's function gave, as tensors: numpy arrays, Python's numbers and texts, bytes, and lists of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from idl import tensors
from idl.tensors import Array

Described = tuple[str, str, tuple[int, ...], bytes | memoryview]
"""Name, datatype, shape, contents."""
_TEXTS = (str, bytes, bytearray, memoryview)


class NotATensor(Exception):
    """The message says what is wrong, in the words of the script's owner."""


def described(given: Any, function: str) -> list[Described]:
    """The outputs that `function` gave, in its order. Raises NotATensor."""
    if not isinstance(given, Mapping):
        raise NotATensor(f"{function} gave a {_kind(given)}, not a dict of name -> array")
    return [_described(name, value, function) for name, value in given.items()]


def _described(name: Any, value: Any, function: str) -> Described:
    if not isinstance(name, str) or not name:
        raise NotATensor(f"{function} gave an output whose name is {name!r:.100}, not a text")
    array = _array(name, value)
    if array.dtype.kind in "SUO":
        return name, "BYTES", array.shape, _texts(name, array)
    try:
        datatype = tensors.datatype_of(array)
    except Exception as error:
        raise NotATensor(f"output {name!r} is {array.dtype}, which no datatype is for") from error
    return name, datatype, array.shape, _contents(array, datatype)


def _contents(array: Array, datatype: str) -> bytes | memoryview:
    plain = np.ascontiguousarray(array, tensors.DTYPES[datatype])
    return plain.reshape(-1).view(np.uint8).data if plain.size else b""


def _array(name: str, value: Any) -> Array:
    if isinstance(value, _TEXTS):  # numpy would cut zeros off their ends
        array = np.empty((), object)
        array[()] = value
        return array
    try:
        array = np.asarray(value)
        if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
            array = np.array(value, dtype=object)
    except (ValueError, TypeError, OverflowError) as error:
        raise NotATensor(f"output {name!r} cannot be made an array: {error}") from error
    return array


def _texts(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for index, item in enumerate(array.ravel().tolist()):
        if isinstance(item, str):
            content = item.encode("utf-8", "surrogateescape")
        elif isinstance(item, (bytes, bytearray, memoryview)):
            content = bytes(item)
        else:
            raise NotATensor(f"output {name!r}: element {index} is a {_kind(item)}, not a number, a text or bytes")
        parts += (len(content).to_bytes(4, "little"), content)
    return b"".join(parts)


def _kind(value: Any) -> str:
    return type(value).__name__[:100]
