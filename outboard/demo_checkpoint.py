"""Reads a PyTorch checkpoint in the format from before version 1.6, with numpy alone and without running anything from it.

Layout: five pickles one after the other (magic number, protocol version, system information, the table of weights, the keys of the
storages), then for each key, in that order, the number of elements as a little-endian int64 and the elements. A weight is a strided
view of a storage and need not be contiguous. Source: `torch.serialization` of PyTorch 1.5.
"""

import io
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_COUNT = struct.Struct("<q")
# fmt: off
_OPCODES = frozenset((
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "GLOBAL", "REDUCE", "BUILD", "BINPERSID",
))
# fmt: on
_MAX_MEMO = 100_000


class CheckpointError(ValueError):
    """The bytes are not a checkpoint that this module reads; the message says why."""


class _Storage(NamedTuple):
    kind: str
    key: str
    elements: int


class _View(NamedTuple):
    """Offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows the names that a table of weights needs and refuses every other one, so that nothing of a file's choosing is called.

    What it hands to the file is immutable where it is ours (text, named tuples, a bound method): the pickle opcode BUILD writes into
    whatever object the file points it at.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild
        if module == "torch" and name in _DTYPES:
            return name
        raise CheckpointError(f"it names {module}.{name}, which a table of weights has no use for")

    def _rebuild(self, storage: Any, offset: Any, shape: Any, strides: Any, *_gradient: Any) -> _View:
        if not isinstance(storage, _Storage) or type(offset) is not int or not _are_sizes(shape) or not _are_sizes(strides):
            raise CheckpointError("a weight is not a storage with an offset, a shape and strides")
        return _View(storage, offset, shape, strides)

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", str(kind), str(key), str(), int(elements), None) if kind in _DTYPES and elements >= 0:
                return _Storage(kind, key, elements)
        raise CheckpointError("a storage is described in a way that is not known")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(item) is int and item >= 0 for item in value)


def read_checkpoint(data: bytes) -> dict[str, Array]:
    """Every weight by its name, as read-only views of `data`. Raises CheckpointError."""
    stream = io.BytesIO(data)
    if _load(stream) != _MAGIC or _load(stream) != _PROTOCOL:
        raise CheckpointError("it does not begin as a checkpoint does")
    system, table, keys = _load(stream), _load(stream), _load(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it was not written on a little-endian machine")
    views = _views(table)
    storages = _storages(memoryview(data)[stream.tell() :], keys, {view.storage.key: view.storage for view in views.values()})
    return {name: _array(name, view, storages[view.storage.key]) for name, view in views.items()}


def _load(stream: io.BytesIO) -> Any:
    start = stream.tell()
    try:
        _check_opcodes(stream)
        stream.seek(start)
        return _Unpickler(stream).load()
    except CheckpointError:
        raise
    except Exception as error:  # pickle documents no closed list of what it raises on bad bytes
        raise CheckpointError(f"its pickle cannot be read: {error}") from error


def _check_opcodes(stream: io.BytesIO) -> None:
    """Reads one pickle without executing it. The unpickler reserves memory for what some opcodes announce, a memo index for one."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name not in _OPCODES or (opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_MEMO):
            raise CheckpointError(f"its pickle has the opcode {opcode.name} {argument}, which a table of weights has no use for")


def _views(table: Any) -> dict[str, _View]:
    if not isinstance(table, dict) or not all(isinstance(name, str) and isinstance(view, _View) for name, view in table.items()):
        raise CheckpointError("it holds something else than a table of weights")
    return dict(table)


def _storages(data: memoryview, keys: Any, wanted: Mapping[str, _Storage]) -> dict[str, memoryview]:
    """The bytes of each storage; they must fill `data` exactly."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(wanted):
        raise CheckpointError("its storages are not the ones that its weights need")
    storages: dict[str, memoryview] = {}
    for key in keys:
        storage = wanted[key]
        size = storage.elements * _DTYPES[storage.kind].itemsize
        if len(data) < _COUNT.size + size or _COUNT.unpack_from(data) != (storage.elements,):
            raise CheckpointError(f"storage {key} does not hold the {storage.elements} elements that its weights say it has")
        storages[key] = data[_COUNT.size : _COUNT.size + size]
        data = data[_COUNT.size + size :]
    if data:
        raise CheckpointError(f"{len(data)} bytes follow the last storage")
    return storages


def _array(name: str, view: _View, storage: memoryview) -> Array:
    """numpy's constructor checks the offset, the shape and the strides against the storage's end."""
    dtype = _DTYPES[view.storage.kind]
    try:
        array: Array = np.ndarray(
            view.shape, dtype, storage, view.offset * dtype.itemsize, [stride * dtype.itemsize for stride in view.strides]
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"weight {name} reaches outside its storage of {view.storage.elements} elements") from error
    if array.size > view.storage.elements:  # a stride of 0 makes a huge array of a few bytes
        raise CheckpointError(f"weight {name} has {array.size} elements, more than its storage of {view.storage.elements}")
    return array
