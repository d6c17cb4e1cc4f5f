"""Protobuf messages taken apart without their schema, without a copy, and without trust: field by field, in memory that may be a mapped file."""

import mmap
from collections.abc import Iterator

VARINT, EIGHT, COUNTED, FOUR = 0, 1, 2, 5
Buffer = mmap.mmap | bytes
Field = tuple[int, int, int, int]
"""(field number, wire type, begin or the number itself, end)."""


class Malformed(Exception):
    """Not protobuf, or not whole."""


def varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """(value, where it ends). Raises Malformed."""
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise Malformed


def walk(data: Buffer, position: int, end: int) -> Iterator[Field]:
    """Every field of one message. Raises Malformed."""
    while position < end:
        tag, position = varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, position = varint(data, position, end)
            yield number, kind, value, position
        elif kind == COUNTED:
            size, position = varint(data, position, end)
            if size > end - position:
                raise Malformed
            yield number, kind, position, position + size
            position += size
        elif kind in (EIGHT, FOUR):
            size = 8 if kind == EIGHT else 4
            if size > end - position:
                raise Malformed
            yield number, kind, position, position + size
            position += size
        else:
            raise Malformed
