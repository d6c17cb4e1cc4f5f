"""Tensor bytes <-> numpy, by the Open Inference Protocol's rules.

Bytes are little-endian and in C order. An element of a BYTES tensor is a 4-byte little-endian length and that many bytes; in numpy
it is an object array of `bytes`. BF16 has no numpy type: it travels as `uint16` bit patterns. Every refusal is a `ServingError`
with `invalid_input` whose message names the tensor and both values.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from idl.codes import Code, ServingError

Array = NDArray[np.generic]

DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
    "BYTES": np.dtype(object),
}
"""Datatype -> the numpy type that holds its elements."""

_DATATYPES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
_SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items() if name != "BYTES"}
MAX_RANK = 32
_INT64_MAX = 2**63 - 1
_LENGTH = struct.Struct("<I")


def invalid(message: str) -> ServingError:
    """The refusal for input that is wrong."""
    return ServingError(Code.INVALID_INPUT, message)


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's type; text and `bytes` arrays are BYTES. Raises invalid_input for any other type."""
    dtype = array.dtype
    if dtype.kind in "SUO":
        return "BYTES"
    name = _DATATYPES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if name is None:
        raise invalid(f"numpy type {dtype} has no datatype in the protocol")
    return name


def element_count(name: str, shape: Sequence[int]) -> int:
    """How many elements `shape` holds. Raises invalid_input on a negative dimension, a rank above 32, or more than int64 can count."""
    if len(shape) > MAX_RANK:
        raise invalid(f"tensor {name!r} has rank {len(shape)}, at most {MAX_RANK} is allowed")
    for size in shape:
        if size < 0:
            raise invalid(f"tensor {name!r} has a negative dimension in shape {list(shape)}")
    count = math.prod(shape)
    # also where one factor is 0: no size that the arithmetic of a backend would wrap around on gets past here
    if count > _INT64_MAX or math.prod(size for size in shape if size) > _INT64_MAX // 8:
        raise invalid(f"tensor {name!r} has shape {list(shape)}, more elements than can be counted")
    return count


def check_size(name: str, datatype: str, shape: Sequence[int], size: int) -> None:
    """Raises invalid_input unless `size` bytes are what a tensor of this datatype and shape has. BYTES: a lower bound only."""
    count = element_count(name, shape)
    item = _SIZES.get(datatype)
    if item is not None:
        if size != count * item:
            raise invalid(f"tensor {name!r} of {datatype} {list(shape)} needs {count * item} bytes, got {size}")
    elif datatype != "BYTES":
        raise invalid(f"tensor {name!r} has datatype {datatype!r}, which is none of the protocol's")
    elif size < count * 4:
        raise invalid(f"tensor {name!r} of BYTES {list(shape)} needs at least {count * 4} bytes, got {size}")


def decode(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """Raw contents -> array of `shape`. Fixed-size types are a read-only view of `data`, BYTES a fresh object array."""
    check_size(name, datatype, shape, len(data))
    if datatype == "BYTES":
        return _decode_bytes(name, shape, data)
    return np.frombuffer(data, DTYPES[datatype]).reshape(tuple(shape))


def _decode_bytes(name: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    count = math.prod(shape)
    array = np.empty(count, object)
    position, end = 0, len(data)
    for index in range(count):
        if end - position < 4:
            raise invalid(f"tensor {name!r} ends inside the length of element {index} of {count}")
        (length,) = _LENGTH.unpack_from(data, position)
        position += 4
        if length > end - position:
            raise invalid(f"tensor {name!r}: element {index} says {length} bytes, {end - position} are left")
        array[index] = bytes(data[position : position + length])
        position += length
    if position != end:
        raise invalid(f"tensor {name!r} has {end - position} bytes after its {count} elements")
    return array.reshape(tuple(shape))


def encode(array: Array, datatype: str | None = None) -> bytes:
    """Array -> raw contents. Text elements are written as UTF-8. Raises invalid_input for an element that is neither text nor bytes."""
    if datatype == "BYTES" or (datatype is None and array.dtype.kind in "SUO"):
        return b"".join(_bytes_parts(array))
    dtype = DTYPES[datatype] if datatype else array.dtype.newbyteorder("<")
    return np.ascontiguousarray(array, dtype).tobytes()


def _bytes_parts(array: Array) -> list[bytes]:
    parts: list[bytes] = []
    for item in array.ravel(order="C").tolist():
        if isinstance(item, str):
            item = item.encode()
        elif not isinstance(item, bytes):
            raise invalid(f"an element of a BYTES tensor is {type(item).__name__}, not text or bytes")
        parts.append(_LENGTH.pack(len(item)))
        parts.append(item)
    return parts
