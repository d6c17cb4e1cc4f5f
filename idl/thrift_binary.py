"""Thrift's binary protocol over bytes that are already here, checked against their end.

thriftpy2's own decoder reads short without noticing when a length inside a frame lies (it hands out whatever the memory held
before, or loops two thousand million times), so frames from callers are decoded here: every length is checked before a byte is
taken or a list is begun, and the number of values in a message is bounded, because an empty structure is one byte in a frame and
hundreds in memory. Classes and field numbers still come from thriftpy2's reading of the IDL; what is to be done for each field is
worked out once per class.

Source of the layout: the Apache Thrift binary protocol specification, "strict" message header.
"""

import struct
from collections.abc import Callable
from functools import cache
from typing import Any

BOOL, BYTE, DOUBLE, I16, I32, I64, STRING, STRUCT, MAP, SET, LIST = 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15
BINARY = 18
"""thriftpy2's mark for a string of bytes; on the wire it is a STRING."""
CALL, REPLY, EXCEPTION, ONEWAY = 1, 2, 3, 4
VERSION_1 = 0x80010000
MAX_DEPTH = 32
MAX_FIELDS = 1024
"""Fields that one structure may have in a message, the unknown ones included."""
MAX_VALUES = 1 << 18
"""Values that one message may have: fields, list elements, keys. A list of numbers counts as one value."""

_I16, _I32, _I64, _U32 = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q"), struct.Struct(">I")
_FIELD, _SEQUENCE, _PAIRS = struct.Struct(">bh"), struct.Struct(">bi"), struct.Struct(">bbi")
_NUMBERS = {BYTE: struct.Struct(">b"), I16: _I16, I32: _I32, I64: _I64, DOUBLE: struct.Struct(">d")}
_FIXED = {BOOL: 1, BYTE: 1, DOUBLE: 8, I16: 2, I32: 4, I64: 8}
_LEAST = {**_FIXED, STRING: 4, STRUCT: 1, MAP: 6, SET: 5, LIST: 5}
"""The fewest bytes that a value of each type takes: what bounds a list's length by the bytes that are left."""


class MalformedThrift(ValueError):
    """The bytes are not what the protocol allows; the message says where."""


class Reader:
    """Reads values from `data`, from `position` on. Raises MalformedThrift instead of reading past the end.

    `views`: binary values are read-only views of `data`, which must then not change; otherwise they are copied.
    """

    __slots__ = ("data", "end", "position", "values_left", "views")

    def __init__(self, data: bytes | bytearray | memoryview, position: int = 0, *, views: bool = False) -> None:
        self.data = memoryview(data).toreadonly()
        self.position = position
        self.end = len(data)
        self.views = views
        self.values_left = MAX_VALUES

    def message_begin(self) -> tuple[str, int, int]:
        """(method, message type, sequence id) of a strict header."""
        (version,) = _U32.unpack_from(self.data, self.take(4))
        if version & 0xFFFF0000 != VERSION_1:
            raise MalformedThrift("not a strict Thrift binary message")
        name = self.text()
        (sequence,) = _I32.unpack_from(self.data, self.take(4))
        return name, version & 0xFF, sequence

    def struct(self, into: Any, depth: int = MAX_DEPTH) -> Any:
        """Fills `into`, an instance of a class with thriftpy2's `thrift_spec`. Unknown fields are skipped."""
        if depth <= 0:
            raise MalformedThrift(f"structures nest deeper than {MAX_DEPTH}")
        plan, data = _read_plan(into.__class__), self.data
        for count in range(MAX_FIELDS + 1):
            start = self.take(1)
            kind = data[start]
            if kind == 0:
                self.count(count)
                return into
            self.take(2)
            wire, name, read = plan.get(data[start + 1] << 8 | data[start + 2], _UNKNOWN)
            if wire == kind:
                setattr(into, name, read(self, depth))
            else:
                self.skip(kind, depth)
        raise MalformedThrift(f"a structure has more than {MAX_FIELDS} fields")

    def take(self, size: int) -> int:
        """Passes over `size` bytes and returns where they start."""
        start = self.position
        if size < 0 or size > self.end - start:
            raise MalformedThrift(f"{size} bytes are wanted at byte {start}, {self.end - start} are left")
        self.position = start + size
        return start

    def count(self, values: int) -> None:
        """Counts values against what one message may have."""
        self.values_left -= values
        if self.values_left < 0:
            raise MalformedThrift(f"more than {MAX_VALUES} values are in the message")

    def bytes(self) -> memoryview:
        """A length and that many bytes, as a view."""
        (size,) = _I32.unpack_from(self.data, self.take(4))
        start = self.take(size)
        return self.data[start : self.position]

    def text(self, depth: int = 0) -> str:
        try:
            return str(self.bytes(), "utf-8")
        except UnicodeDecodeError:
            raise MalformedThrift(f"the text before byte {self.position} is not UTF-8") from None

    def sequence(self, kind: int) -> int:
        """The head of a list whose elements are of wire type `kind`: how many follow."""
        got, count = self._sequence()
        if got != kind:
            raise MalformedThrift(f"a list of type {got} stands where type {kind} belongs")
        return self._length(count, _LEAST[kind])

    def _sequence(self) -> tuple[int, int]:
        kind, count = _SEQUENCE.unpack_from(self.data, self.take(5))
        return int(kind), int(count)

    def pairs(self, key: int, value: int) -> int:
        """The head of a map of wire types `key` and `value`: how many pairs follow."""
        got_key, got_value, count = self._pairs()
        if count and (got_key, got_value) != (key, value):
            raise MalformedThrift(f"a map of types {got_key}, {got_value} stands where {key}, {value} belong")
        self.count(2 * self._length(count, _LEAST[key] + _LEAST[value]))
        return count

    def _pairs(self) -> tuple[int, int, int]:
        key, value, count = _PAIRS.unpack_from(self.data, self.take(6))
        return int(key), int(value), int(count)

    def _length(self, count: int, least: int) -> int:
        if count < 0 or count * least > self.end - self.position:
            raise MalformedThrift(f"{count} elements are announced at byte {self.position}, {self.end - self.position} bytes are left")
        return count

    def skip(self, kind: int, depth: int) -> None:
        """Passes over a value of wire type `kind`."""
        if depth <= 0:
            raise MalformedThrift(f"values nest deeper than {MAX_DEPTH}")
        if kind in _FIXED:
            self.take(_FIXED[kind])
        elif kind == STRING:
            self.bytes()
        elif kind == STRUCT:
            self._skip_struct(depth)
        elif kind in (LIST, SET):
            self._skip_list(depth)
        elif kind == MAP:
            self._skip_map(depth)
        else:
            raise MalformedThrift(f"type {kind} before byte {self.position} is none of the protocol's")

    def _skip_struct(self, depth: int) -> None:
        for count in range(MAX_FIELDS + 1):
            kind = self.data[self.take(1)]
            if kind == 0:
                self.count(count)
                return
            self.take(2)
            self.skip(kind, depth - 1)
        raise MalformedThrift(f"a structure has more than {MAX_FIELDS} fields")

    def _skip_list(self, depth: int) -> None:
        kind, count = self._sequence()
        self._length(count, _least(kind, count))
        if kind in _FIXED:
            self.take(_FIXED[kind] * count)
            return
        self.count(count)
        for _ in range(count):
            self.skip(kind, depth - 1)

    def _skip_map(self, depth: int) -> None:
        key, value, count = self._pairs()
        self.count(2 * self._length(count, _least(key, count) + _least(value, count)))
        for _ in range(count):
            self.skip(key, depth - 1)
            self.skip(value, depth - 1)


def _least(kind: int, count: int) -> int:
    if count and kind not in _LEAST:
        raise MalformedThrift(f"type {kind} is none of the protocol's")
    return _LEAST.get(kind, 0)


_Read = Callable[[Reader, int], Any]
_UNKNOWN: tuple[int, str, Any] = (-1, "", None)


@cache
def _read_plan(kind: Any) -> dict[int, tuple[int, str, _Read]]:
    """Field number -> (its wire type, its name, what reads it)."""
    fields = kind.thrift_spec.items()
    return {number: (_wire(field[0]), field[1], _read(field[0], field[2] if len(field) > 3 else None)) for number, field in fields}


def _wire(kind: int) -> int:
    return STRING if kind == BINARY else kind


def _read(kind: int, spec: Any) -> _Read:
    """What reads a value of thriftpy2's type `kind`; `spec` describes what a container or a structure holds."""
    if kind == STRING:
        return Reader.text
    if kind == BINARY:
        return _read_binary
    if kind == BOOL:
        return lambda reader, _: reader.data[reader.take(1)] != 0
    if kind in _NUMBERS:
        return _read_number(_NUMBERS[kind])
    if kind == STRUCT:
        return lambda reader, depth: reader.struct(spec(), depth - 1)
    if kind == MAP:
        return _read_map(*_kind_and_spec(spec[0]), *_kind_and_spec(spec[1]))
    inner, inner_spec = _kind_and_spec(spec)
    return _read_numbers if inner == I64 else _read_list(inner, inner_spec)


def _read_binary(reader: Reader, _: int) -> bytes | memoryview:
    return reader.bytes() if reader.views else bytes(reader.bytes())


def _read_number(layout: struct.Struct) -> _Read:
    size, unpack = layout.size, layout.unpack_from
    return lambda reader, _: unpack(reader.data, reader.take(size))[0]


def _read_numbers(reader: Reader, _: int) -> list[int]:
    count = reader.sequence(I64)
    return list(struct.unpack_from(f">{count}q", reader.data, reader.take(8 * count)))


def _read_list(kind: int, spec: Any) -> _Read:
    read, wire = _read(kind, spec), _wire(kind)

    def run(reader: Reader, depth: int) -> list[Any]:
        if depth <= 0:
            raise MalformedThrift(f"containers nest deeper than {MAX_DEPTH}")
        count = reader.sequence(wire)
        reader.count(count)
        return [read(reader, depth - 1) for _ in range(count)]

    return run


def _read_map(key: int, key_spec: Any, value: int, value_spec: Any) -> _Read:
    read_key, read_value, wires = _read(key, key_spec), _read(value, value_spec), (_wire(key), _wire(value))

    def run(reader: Reader, depth: int) -> dict[Any, Any]:
        if depth <= 0:
            raise MalformedThrift(f"containers nest deeper than {MAX_DEPTH}")
        return {read_key(reader, depth - 1): read_value(reader, depth - 1) for _ in range(reader.pairs(*wires))}

    return run


def _kind_and_spec(spec: Any) -> tuple[int, Any]:
    return (spec, None) if isinstance(spec, int) else (spec[0], spec[1])


def message(name: str, kind: int, sequence: int, body: Any) -> list[bytes]:
    """The parts of one message, its 4-byte frame length first; `body` is an instance of a class with `thrift_spec`.

    Large binary values are parts of their own: nothing is copied until the parts are joined or sent.
    """
    method = name.encode()
    parts = [b"", _U32.pack(VERSION_1 | kind), _I32.pack(len(method)), method, _I32.pack(sequence)]
    _write_struct(parts, body)
    parts[0] = _U32.pack(sum(map(len, parts)))
    return parts


_Write = Callable[[list[bytes], Any], None]


def _write_struct(parts: list[bytes], value: Any) -> None:
    for name, head, write in _write_plan(value.__class__):
        inner = getattr(value, name, None)
        if inner is not None:
            parts.append(head)
            write(parts, inner)
    parts.append(b"\0")


@cache
def _write_plan(kind: Any) -> tuple[tuple[str, bytes, _Write], ...]:
    """For each field: its name, its head on the wire, what writes it."""
    fields = kind.thrift_spec.items()
    return tuple((f[1], _FIELD.pack(_wire(f[0]), number), _write(f[0], f[2] if len(f) > 3 else None)) for number, f in fields)


def _write(kind: int, spec: Any) -> _Write:
    """What writes a value of thriftpy2's type `kind`."""
    if kind == STRING:
        return _write_text
    if kind == BINARY:
        return _write_binary
    if kind == BOOL:
        return lambda parts, value: parts.append(b"\1" if value else b"\0")
    if kind in _NUMBERS:
        pack = _NUMBERS[kind].pack
        return lambda parts, value: parts.append(pack(value))
    if kind == STRUCT:
        return _write_struct
    if kind == MAP:
        return _write_map(*_kind_and_spec(spec[0]), *_kind_and_spec(spec[1]))
    inner, inner_spec = _kind_and_spec(spec)
    return _write_numbers if inner == I64 else _write_list(inner, inner_spec)


def _write_text(parts: list[bytes], value: str) -> None:
    data = value.encode()
    parts.append(_I32.pack(len(data)) + data)


def _write_binary(parts: list[bytes], value: bytes) -> None:
    parts.append(_I32.pack(len(value)))
    parts.append(value)


def _write_numbers(parts: list[bytes], value: Any) -> None:
    parts.append(_SEQUENCE.pack(I64, len(value)))
    parts.append(struct.pack(f">{len(value)}q", *value))


def _write_list(kind: int, spec: Any) -> _Write:
    write, wire = _write(kind, spec), _wire(kind)

    def run(parts: list[bytes], value: Any) -> None:
        parts.append(_SEQUENCE.pack(wire, len(value)))
        for item in value:
            write(parts, item)

    return run


def _write_map(key: int, key_spec: Any, value: int, value_spec: Any) -> _Write:
    write_key, write_value, wires = _write(key, key_spec), _write(value, value_spec), (_wire(key), _wire(value))

    def run(parts: list[bytes], pairs: Any) -> None:
        parts.append(_PAIRS.pack(*wires, len(pairs)))
        for name, item in pairs.items():
            write_key(parts, name)
            write_value(parts, item)

    return run
