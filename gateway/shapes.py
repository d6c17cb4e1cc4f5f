"""What a JSON body, a query string or an answer looks like: one description that checks what comes in and is told in the OpenAPI document.

`check` returns the value as it is to be used and writes down what is wrong by the field's path (`canary.percent`), in the words of an error
message; it stops at nothing, so that one answer names every wrong field. `schema` is JSON Schema 2020-12, which OpenAPI 3.1 takes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Reasons = dict[str, str]
_MOST_TEXT = 10_000


class Shape(Protocol):
    def check(self, value: Any, where: str, reasons: Reasons) -> Any: ...

    def schema(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Text:
    """`pattern` holds for the whole text, and `says` is what is told where it does not. Lengths are characters."""

    low: int = 0
    high: int = _MOST_TEXT
    pattern: str = ""
    says: str = ""
    choices: tuple[str, ...] = ()
    format: str = ""
    lines: bool = False
    """Whether control characters such as line ends may stand in it."""

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        if not isinstance(value, str):
            reasons[where] = "must be text"
        elif self.choices and value not in self.choices:
            reasons[where] = f"must be one of {', '.join(self.choices)}"
        elif not is_unicode(value):
            reasons[where] = "is not valid Unicode text"
        elif not self.low <= len(value) <= self.high:
            reasons[where] = f"has {len(value)} characters, it must have {self._length()}"
        elif self.pattern and not re.fullmatch(self.pattern, value, re.ASCII):
            reasons[where] = self.says
        elif "\0" in value or (not self.lines and any(ord(character) < 32 or ord(character) == 127 for character in value)):
            reasons[where] = "holds a control character"
        return value

    def _length(self) -> str:
        return f"{self.low} to {self.high}" if self.low else f"at most {self.high}"

    def schema(self) -> dict[str, Any]:
        if self.choices:
            return {"type": "string", "enum": list(self.choices)}
        made: dict[str, Any] = {"type": "string"}
        made |= {"minLength": self.low} if self.low else {}
        made |= {"maxLength": self.high} if self.high != _MOST_TEXT else {}
        made |= {"pattern": f"^(?:{self.pattern})$"} if self.pattern else {}
        return made | ({"format": self.format} if self.format else {})


@dataclass(frozen=True, slots=True)
class Whole:
    low: int = 0
    high: int = 2**53 - 1

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        if type(value) is not int or not self.low <= value <= self.high:
            reasons[where] = f"must be a whole number from {self.low} to {self.high}"
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Number:
    """Finite."""

    low: float = -math.inf
    high: float = math.inf

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        number = _finite(value)
        if number is None or not self.low <= number <= self.high:
            reasons[where] = "must be a number" + self._range()
            return value
        return number

    def _range(self) -> str:
        parts = [f" from {self.low:g}"] if math.isfinite(self.low) else []
        return "".join(parts + ([f" to {self.high:g}"] if math.isfinite(self.high) else []))

    def schema(self) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "number"}
        made |= {"minimum": self.low} if math.isfinite(self.low) else {}
        return made | ({"maximum": self.high} if math.isfinite(self.high) else {})


@dataclass(frozen=True, slots=True)
class Flag:
    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        if not isinstance(value, bool):
            reasons[where] = "must be true or false"
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Free:
    """Any JSON value; what it means is looked at later. `more`: what the document says besides."""

    more: Mapping[str, Any] = field(default_factory=dict)

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        return value

    def schema(self) -> dict[str, Any]:
        return dict(self.more)


BYTES = Free({"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"})
"""A file of a form, in the document."""
TEXT_OR_BYTES = Free({"anyOf": [{"type": "string"}, BYTES.schema()]})


@dataclass(frozen=True, slots=True)
class Items:
    of: Shape
    most: int = 1000
    least: int = 0

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        if not isinstance(value, list):
            reasons[where] = "must be a list"
            return value
        if not self.least <= len(value) <= self.most:
            reasons[where] = f"has {len(value)} entries, it must have {self.least} to {self.most}"
            return value
        return [self.of.check(item, f"{where}[{number}]", reasons) for number, item in enumerate(value)]

    def schema(self) -> dict[str, Any]:
        made = {"type": "array", "items": self.of.schema(), "maxItems": self.most}
        return made | ({"minItems": self.least} if self.least else {})


@dataclass(frozen=True, slots=True)
class OrNull:
    of: Shape

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        return None if value is None else self.of.check(value, where, reasons)

    def schema(self) -> dict[str, Any]:
        made = self.of.schema()
        if isinstance(made.get("type"), str):
            made = made | {"type": [made["type"], "null"]}
            return made | ({"enum": [*made["enum"], None]} if "enum" in made else {})
        return {"anyOf": [made, {"type": "null"}]} if made else {}


@dataclass(frozen=True, slots=True)
class Field:
    """One of an object. `text`: what the documentation says about it."""

    shape: Shape
    text: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Object:
    """Every field that is not named is an error. `name`: under which the OpenAPI document keeps it, "" for in place."""

    fields: Mapping[str, Field]
    name: str = ""

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        if not isinstance(value, dict):
            reasons[where] = "must be an object"
            return value
        prefix = f"{where}." if where else ""
        for name, known in self.fields.items():
            if known.required and name not in value:
                reasons[prefix + name] = "is missing"
        made = {}
        for name, given in value.items():
            if name in self.fields:
                made[name] = self.fields[name].shape.check(given, prefix + name, reasons)
            else:
                reasons[prefix + name[:80].encode(errors="replace").decode()] = "is unknown here"
        return made

    def schema(self) -> dict[str, Any]:
        properties = {
            name: known.shape.schema() | ({"description": known.text} if known.text else {}) for name, known in self.fields.items()
        }
        made: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        required = [name for name, known in self.fields.items() if known.required]
        made |= {"required": required} if required else {}
        return made | ({"title": self.name} if self.name else {})


@dataclass(frozen=True, slots=True)
class Dictionary:
    """An object whose names are the caller's."""

    of: Shape
    most: int = 1000

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        if not isinstance(value, dict):
            reasons[where] = "must be an object"
            return value
        if len(value) > self.most:
            reasons[where] = f"has {len(value)} fields, at most {self.most} may be there"
            return value
        return {name: self.of.check(given, f"{where}.{name[:80]}", reasons) for name, given in value.items()}

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.of.schema()}


def required(shape: Shape, text: str = "") -> Field:
    return Field(shape, text, required=True)


def optional(shape: Shape, text: str = "") -> Field:
    return Field(shape, text)


def answer(name: str, fields: Mapping[str, tuple[Shape, str]]) -> Object:
    """What an answer looks like: every field is always there."""
    return Object({key: Field(shape, text, required=True) for key, (shape, text) in fields.items()}, name)


def texts_of(shape: Object, given: Sequence[tuple[str, str]], where: str, reasons: Reasons) -> dict[str, Any]:
    """The same for a query string or form fields, where every value is text: numbers and flags are read first."""
    values: dict[str, Any] = {}
    for name, text in given:
        if name in values:
            reasons[where + name[:80]] = "is there twice"
        known = shape.fields.get(name)
        values[name] = _read(known.shape, text) if known else text
    return dict(shape.check(values, where, reasons))


def _read(shape: Shape, text: str) -> Any:
    if isinstance(shape, OrNull):
        return _read(shape.of, text)
    if isinstance(shape, Whole) and re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII):
        return int(text)
    if isinstance(shape, Number) and re.fullmatch(r"[-+0-9.eE]{1,40}", text, re.ASCII):
        try:
            return float(text)
        except ValueError:
            return text
    if isinstance(shape, Flag):
        return {"true": True, "1": True, "false": False, "0": False}.get(text, text)
    return text


def _finite(value: Any) -> float | None:
    """None for what is no number that a float can hold: JSON's whole numbers have no end."""
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_unicode(text: str) -> bool:
    """False for half of a surrogate pair: JSON can spell it, nothing can store it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
