"""Thrift's binary protocol over bytes that are already here, checked against their end.

thriftpy2's own decoder reads short without noticing when a length inside a frame lies (it hands out whatever the memory held
before, or loops two thousand million times), so frames from callers are decoded here: every length is checked before a byte is
taken or a list is begun. Classes and field numbers still come from thriftpy2's reading of the IDL.

Source of the layout: the Apache Thrift binary protocol specification, "strict" message header.
"""

import struct
from typing import Any

BOOL, BYTE, DOUBLE, I16, I32, I64, STRING, STRUCT, MAP, SET, LIST = 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15
BINARY = 18
"""thriftpy2's mark for a string of bytes; on the wire it is a STRING."""
CALL, REPLY, EXCEPTION, ONEWAY = 1, 2, 3, 4
VERSION_1 = 0x80010000
MAX_DEPTH = 32

_I16, _I32, _I64, _U32 = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q"), struct.Struct(">I")
_DOUBLE, _FIELD, _SEQUENCE, _PAIRS = struct.Struct(">d"), struct.Struct(">bh"), struct.Struct(">bi"), struct.Struct(">bbi")
_NUMBERS = {BYTE: struct.Struct(">b"), I16: _I16, I32: _I32, I64: _I64, DOUBLE: _DOUBLE}
_FIXED = {BOOL: 1, BYTE: 1, DOUBLE: 8, I16: 2, I32: 4, I64: 8}
_LEAST = {**_FIXED, STRING: 4, STRUCT: 1, MAP: 6, SET: 5, LIST: 5}
"""The fewest bytes that a value of each type takes: what bounds a list's length by the bytes that are left."""


class MalformedThrift(ValueError):
    """The bytes are not what the protocol allows; the message says where."""


class Reader:
    """Reads values from `data`, from `position` on. Raises MalformedThrift instead of reading past the end."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes | bytearray | memoryview, position: int = 0) -> None:
        self.data = memoryview(data)
        self.position = position
        self.end = len(data)

    def _take(self, size: int) -> int:
        start = self.position
        if size < 0 or size > self.end - start:
            raise MalformedThrift(f"{size} bytes are wanted at byte {start}, {self.end - start} are left")
        self.position = start + size
        return start

    def message_begin(self) -> tuple[str, int, int]:
        """(method, message type, sequence id) of a strict header."""
        (version,) = _U32.unpack_from(self.data, self._take(4))
        if version & 0xFFFF0000 != VERSION_1:
            raise MalformedThrift("not a strict Thrift binary message")
        name = self._text()
        (sequence,) = _I32.unpack_from(self.data, self._take(4))
        return name, version & 0xFF, sequence

    def _text(self) -> str:
        try:
            return str(self._bytes(), "utf-8")
        except UnicodeDecodeError:
            raise MalformedThrift(f"the text before byte {self.position} is not UTF-8") from None

    def _bytes(self) -> memoryview:
        (size,) = _I32.unpack_from(self.data, self._take(4))
        start = self._take(size)
        return self.data[start : self.position]

    def struct(self, into: Any, depth: int = MAX_DEPTH) -> Any:
        """Fills `into`, an instance of a class with thriftpy2's `thrift_spec`. Unknown fields are skipped."""
        if depth <= 0:
            raise MalformedThrift(f"structures nest deeper than {MAX_DEPTH}")
        spec, data = into.thrift_spec, self.data
        while True:
            kind = data[self._take(1)]
            if kind == 0:
                return into
            (number,) = _I16.unpack_from(data, self._take(2))
            field = spec.get(number)
            if field is None or (STRING if field[0] == BINARY else field[0]) != kind:
                self.skip(kind, depth)
                continue
            setattr(into, field[1], self.value(field[0], field[2] if len(field) > 3 else None, depth))

    def value(self, kind: int, spec: Any, depth: int) -> Any:
        """One value of thriftpy2's type `kind`; `spec` describes what a container or a structure holds."""
        if kind == STRING:
            return self._text()
        if kind == BINARY:
            return bytes(self._bytes())
        if kind == BOOL:
            return self.data[self._take(1)] != 0
        number = _NUMBERS.get(kind)
        if number is not None:
            return number.unpack_from(self.data, self._take(number.size))[0]
        if kind == STRUCT:
            return self.struct(spec(), depth - 1)
        if depth <= 0:
            raise MalformedThrift(f"containers nest deeper than {MAX_DEPTH}")
        if kind == MAP:
            return self._map(spec, depth)
        return self._list(spec, depth)

    def _length(self, count: int, least: int) -> int:
        if count < 0 or count * least > self.end - self.position:
            raise MalformedThrift(f"{count} elements are announced at byte {self.position}, {self.end - self.position} bytes are left")
        return count

    def _list(self, spec: Any, depth: int) -> list[Any]:
        kind, count = _SEQUENCE.unpack_from(self.data, self._take(5))
        want, inner = _kind_and_spec(spec)
        wire = STRING if want == BINARY else want
        if kind != wire:
            raise MalformedThrift(f"a list of type {kind} stands where type {wire} belongs")
        self._length(count, _LEAST[wire])
        if want == I64:
            return list(struct.unpack_from(f">{count}q", self.data, self._take(8 * count)))
        return [self.value(want, inner, depth - 1) for _ in range(count)]

    def _map(self, spec: Any, depth: int) -> dict[Any, Any]:
        key_kind, value_kind, count = _PAIRS.unpack_from(self.data, self._take(6))
        (want_key, key_spec), (want_value, value_spec) = _kind_and_spec(spec[0]), _kind_and_spec(spec[1])
        if count and (key_kind, value_kind) != (want_key, want_value):
            raise MalformedThrift(f"a map of types {key_kind}, {value_kind} stands where {want_key}, {want_value} belong")
        self._length(count, _LEAST[want_key] + _LEAST[want_value])
        return {self.value(want_key, key_spec, depth - 1): self.value(want_value, value_spec, depth - 1) for _ in range(count)}

    def skip(self, kind: int, depth: int) -> None:
        """Passes over a value of wire type `kind`."""
        if depth <= 0:
            raise MalformedThrift(f"values nest deeper than {MAX_DEPTH}")
        size = _FIXED.get(kind)
        if size is not None:
            self._take(size)
        elif kind == STRING:
            self._bytes()
        elif kind == STRUCT:
            self._skip_struct(depth)
        elif kind in (LIST, SET):
            inner, count = _SEQUENCE.unpack_from(self.data, self._take(5))
            for _ in range(self._length(count, _least(inner, count))):
                self.skip(inner, depth - 1)
        elif kind == MAP:
            key, value, count = _PAIRS.unpack_from(self.data, self._take(6))
            for _ in range(self._length(count, _least(key, count) + _least(value, count))):
                self.skip(key, depth - 1)
                self.skip(value, depth - 1)
        else:
            raise MalformedThrift(f"type {kind} before byte {self.position} is none of the protocol's")

    def _skip_struct(self, depth: int) -> None:
        while True:
            kind = self.data[self._take(1)]
            if kind == 0:
                return
            self._take(2)
            self.skip(kind, depth - 1)


def _least(kind: int, count: int) -> int:
    if count and kind not in _LEAST:
        raise MalformedThrift(f"type {kind} is none of the protocol's")
    return _LEAST.get(kind, 0)


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


def _write_struct(parts: list[bytes], value: Any) -> None:
    for number, field in value.thrift_spec.items():
        inner = getattr(value, field[1], None)
        if inner is None:
            continue
        kind = field[0]
        parts.append(_FIELD.pack(STRING if kind == BINARY else kind, number))
        _write_value(parts, kind, field[2] if len(field) > 3 else None, inner)
    parts.append(b"\0")


def _write_value(parts: list[bytes], kind: int, spec: Any, value: Any) -> None:
    number = _NUMBERS.get(kind)
    if number is not None:
        parts.append(number.pack(value))
    elif kind in (STRING, BINARY):
        data = value.encode() if isinstance(value, str) else value
        parts.append(_I32.pack(len(data)))
        parts.append(data)
    elif kind == STRUCT:
        _write_struct(parts, value)
    elif kind == BOOL:
        parts.append(b"\1" if value else b"\0")
    elif kind == MAP:
        (key_kind, key_spec), (value_kind, value_spec) = _kind_and_spec(spec[0]), _kind_and_spec(spec[1])
        parts.append(_PAIRS.pack(key_kind, value_kind, len(value)))
        for key, item in value.items():
            _write_value(parts, key_kind, key_spec, key)
            _write_value(parts, value_kind, value_spec, item)
    else:
        inner_kind, inner_spec = _kind_and_spec(spec)
        parts.append(_SEQUENCE.pack(STRING if inner_kind == BINARY else inner_kind, len(value)))
        if inner_kind == I64:
            parts.append(struct.pack(f">{len(value)}q", *value))
        else:
            for item in value:
                _write_value(parts, inner_kind, inner_spec, item)
