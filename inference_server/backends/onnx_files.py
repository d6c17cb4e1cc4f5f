"""What of the disk an ONNX file asks for, looked at before onnxruntime opens it: its external data, and how large all of it is.

Field numbers: onnx.proto of ONNX 1.17. A file without the word "location" has no external data, and costs one search.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from idl.codes import ServingError
from idl.protobuf_fields import COUNTED, EIGHT, FOUR, VARINT, Malformed, varint
from inference_server import errors

MOST_BYTES = 2**31 - 1
"""Of one protobuf message."""
_DEEPEST = 200
_BELOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
"""Message -> its fields that lead to a tensor."""
_KEY, _VALUE = 1, 2


def check(path: Path, name: str, host_memory: int) -> None:
    """Raises invalid_model where the file asks for what is not in its own folder, or for more than `host_memory` bytes (0: any number), and
    OSError as it comes. What a model's own limit allows is not judged here: that is the kernel's or the watcher's word.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise _refused(name, f"{path.name} has {size} bytes, an ONNX file at most {MOST_BYTES}: larger weights lie in files beside it")
    beside: dict[Path, int] = {}
    if size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            if data.find(b"location") >= 0:
                try:
                    for entry in _external(data, size):
                        _check_entry(entry, path, name, beside)
                except Malformed:
                    raise _refused(name, f"{path.name} is not an ONNX file, or is cut off") from None
    needed = size + sum(beside.values())
    if host_memory and needed > host_memory:
        raise _refused(name, f"its files have {needed} bytes, and this host has {host_memory} bytes of memory")


def _check_entry(entry: list[tuple[str, str]], path: Path, name: str, beside: dict[Path, int]) -> None:
    """`entry`: what one tensor says of its external data, in the order in which it stands there."""
    for location in (value for key, value in entry if key == "location"):
        if location.startswith("/") or ".." in Path(location).parts or "\0" in location:
            raise _refused(name, f"{path.name} asks for weights outside its folder: {location[:128]!r}")
        try:
            found = (path.parent / location).resolve()
            if not found.is_relative_to(path.parent.resolve()):
                raise _refused(name, f"{path.name} asks for weights in {location[:128]!r}, a link that leads out of its folder")
            there = found.stat().st_size if found.is_file() else -1
        except (OSError, RuntimeError):  # no such name can be; a loop of links
            there = -1
        if there < 0:
            raise _refused(name, f"{path.name} asks for weights in {location[:128]!r}, and there is no such file beside it")
        beside[found] = there
        wanted = sum(_number(entry, key) for key in ("offset", "length"))
        if wanted > there:
            raise _refused(name, f"{path.name} asks for bytes up to {wanted} of {location[:128]!r}, which has {there}")


def _number(entry: list[tuple[str, str]], key: str) -> int:
    return max((int(value) for name, value in entry if name == key and value.isascii() and value.isdigit() and len(value) < 20), default=0)


def _refused(name: str, why: str) -> ServingError:
    return errors.invalid_model(name, why)


def _external(data: mmap.mmap, size: int) -> Iterator[list[tuple[str, str]]]:
    """For each tensor that has some: (key, value) of its external data. Raises Malformed."""
    waiting = [("model", 0, size, 0)]
    while waiting:
        kind, begin, end, depth = waiting.pop()
        if depth > _DEEPEST:
            raise Malformed
        below = _BELOW[kind]
        entry = []
        for number, start, stop in _fields(data, begin, end):
            inner = below.get(number)
            if inner == "external":
                entry.append(_pair(data, start, stop))
            elif inner is not None:
                waiting.append((inner, start, stop, depth + 1))
        if entry:
            yield entry


def _pair(data: mmap.mmap, begin: int, end: int) -> tuple[str, str]:
    texts = {number: data[start:stop].decode("utf-8", "replace") for number, start, stop in _fields(data, begin, end)}
    return texts.get(_KEY, ""), texts.get(_VALUE, "")


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of the fields with a length. Raises Malformed."""
    while position < end:
        tag, position = varint(data, position, end)
        kind = tag & 7
        if kind == COUNTED:
            size, position = varint(data, position, end)
            if size > end - position:
                raise Malformed
            yield tag >> 3, position, position + size
            position += size
        elif kind == VARINT:
            _, position = varint(data, position, end)
        elif kind in (EIGHT, FOUR):
            position += 8 if kind == EIGHT else 4
        else:
            raise Malformed
    if position != end:
        raise Malformed
