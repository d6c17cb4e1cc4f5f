"""What a PMML file says of the fields that it takes: read here, before any other reader sees the file.

A document type, and with it every entity, is refused before anything is expanded: no bomb, no file or address of somebody else's choosing.
Source: PMML 4.4, "Data Dictionary" and "Mining Schema" (dmg.org).
"""

import codecs
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from idl.tensors import Array
from inference_server import errors

_DECLARATION = re.compile(r"<\?xml\s[^>]*?\?>")
_ENCODING = re.compile(rb"""<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_ENCODINGS = frozenset({"utf-8", "utf-16", "ascii", "iso8859-1", "cp1252"})
_NO_MODELS = frozenset({"Header", "MiningBuildTask", "DataDictionary", "TransformationDictionary", "Extension"})
_DEEPEST = 2000
"""Elements inside one another: the reader in Java takes some of its stack for each."""


@dataclass(frozen=True, slots=True)
class Interval:
    left: float
    right: float
    open_left: bool
    open_right: bool

    def __str__(self) -> str:
        return f"{'(' if self.open_left else '['}{self.left:g}, {self.right:g}{')' if self.open_right else ']'}"


@dataclass(slots=True)
class Field:
    """`intervals`, `values`: what is valid, empty for everything; `strict`: what is not is no input for the model."""

    name: str
    optype: str
    datatype: str
    intervals: list[Interval] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    strict: bool = True

    def described(self) -> str:
        """ "continuous double, [0, 120]"."""
        parts = [f"{self.optype} {self.datatype}".strip()]
        if self.intervals:
            parts.append(" or ".join(map(str, self.intervals)))
        if self.values:
            more = f" and {len(self.values) - 20} more" if len(self.values) > 20 else ""
            parts.append("one of " + ", ".join(map(repr, self.values[:20])) + more)
        return ", ".join(parts)

    def check(self, array: Array) -> None:
        """`array`: [rows], BYTES as objects; NaN and empty texts are missing values, which the model may deal with. Raises invalid_input."""
        if not self.strict or not len(array):
            return
        if self.values and self.optype != "continuous":
            self._check_values(array)
        elif self.intervals and array.dtype.kind in "fiu":
            self._check_intervals(array)

    def _check_values(self, array: Array) -> None:
        valid: set[Any] = {*self.values, *self.missing}
        if array.dtype.kind == "b":
            valid = {each.lower() in ("true", "1") for each in valid}
        elif array.dtype.kind in "fiu":
            valid = {number for each in valid if (number := _number(each)) is not None}
        for row, item in enumerate(array.tolist()):
            given = item.decode() if isinstance(item, bytes) else item
            is_missing = given == "" or (isinstance(given, float) and math.isnan(given))
            if not is_missing and given not in valid:
                raise errors.invalid_input(f"input {self.name!r}: row {row} is {_short(given)}, and the model takes {self.described()}")

    def _check_intervals(self, array: Array) -> None:
        right: np.ndarray[Any, np.dtype[np.bool_]] = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, np.bool_)
        for each in self.intervals:
            above = np.greater(array, each.left) if each.open_left else np.greater_equal(array, each.left)
            right |= above & (np.less(array, each.right) if each.open_right else np.less_equal(array, each.right))
        for number in map(_number, self.missing):
            if number is not None:
                right |= array == number
        if not right.all():
            row = int(np.argmin(right))
            raise errors.invalid_input(f"input {self.name!r}: row {row} is {array[row].item():g}, and the model takes {self.described()}")


def read(path: Path, model: str) -> tuple[str, Mapping[str, Field]]:
    """(the file's text without its XML declaration, name -> field of its data dictionary). Raises invalid_model."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise errors.invalid_model(model, f"{path.name} cannot be read: {error.strerror}") from error
    if not raw.strip():
        raise errors.invalid_model(model, f"{path.name} is empty: it has {len(raw)} bytes")
    text = _DECLARATION.sub("", _decoded(raw, path, model), count=1)
    return text, _Reading(model, path.name).fields(text)


def described(path: Path, model: str) -> tuple[str, str]:
    """(the element that is the model, such as "TreeModel"; what wrote the file, "" where it does not say). Raises invalid_model."""
    text, _ = read(path, model)
    elements: list[str] = []
    found, maker = "", ""

    def begin(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal found, maker
        name = tag.rpartition(":")[2]
        elements.append(name)
        if elements == ["PMML", name] and name not in _NO_MODELS and not found:
            found = name
        elif elements == ["PMML", "Header", "Application"]:
            maker = " ".join(filter(None, (attributes.get("name", ""), attributes.get("version", ""))))

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda tag: elements.pop()
    parser.Parse(text.encode(), True)  # `read` has refused what could go wrong
    return found[:64] or "none", maker[:256]


def _decoded(raw: bytes, path: Path, model: str) -> str:
    """One decoding, here, for every reader after it: two readers that took a file's encoding for different ones could see different files."""
    said = _ENCODING.match(raw.removeprefix(codecs.BOM_UTF8).lstrip())
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), said[1].decode() if said else "utf-8")
    try:
        if codecs.lookup(encoding).name.removesuffix("-sig") not in _ENCODINGS:
            raise LookupError(encoding)
        return raw.decode(encoding).strip()
    except (LookupError, UnicodeError) as error:
        why = str(error) if isinstance(error, UnicodeError) else "only UTF-8, UTF-16 and ISO 8859-1 are read"
        raise errors.invalid_model(model, f"{path.name} cannot be read as {encoding}: {why}") from error


class _Reading:
    """One pass over the text."""

    def __init__(self, model: str, file: str) -> None:
        self._model, self._file = model, file
        self._stack: list[str] = []
        self._fields: dict[str, Field] = {}
        self._current: Field | None = None

    def fields(self, text: str) -> dict[str, Field]:
        parser = expat.ParserCreate("utf-8")
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.ExternalEntityRefHandler = self._refuse
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        try:
            parser.Parse(text.encode(), True)
        except expat.ExpatError as error:
            raise self._wrong(f"is not XML: {error}") from error
        return self._fields

    def _wrong(self, why: str) -> Exception:
        return errors.invalid_model(self._model, f"{self._file} {why}")

    def _refuse(self, *_: Any) -> Any:
        raise self._wrong("has a document type or an entity (<!DOCTYPE ...>), which is not read: take it out")

    def _begin(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = tag.rpartition(":")[2]
        if not self._stack and name != "PMML":
            raise self._wrong(f"is not PMML: its outermost element is {_short(name)}")
        self._stack.append(name)
        if len(self._stack) > _DEEPEST:
            raise self._wrong(f"has more than {_DEEPEST} elements inside one another")
        if handler := _HANDLERS.get("/".join(self._stack[-2:])):
            handler(self, attributes)

    def _end(self, tag: str) -> None:
        self._stack.pop()

    def _field(self, said: Mapping[str, str]) -> None:
        self._current = Field(said.get("name", ""), said.get("optype", ""), said.get("dataType", ""))
        self._fields[self._current.name] = self._current

    def _interval(self, said: Mapping[str, str]) -> None:
        if self._current is not None:
            left, right = _number(said.get("leftMargin", "")), _number(said.get("rightMargin", ""))
            closure = said.get("closure", "closedClosed")
            self._current.intervals.append(
                Interval(
                    -math.inf if left is None else left,
                    math.inf if right is None else right,
                    closure.startswith("open"),
                    closure.endswith("Open"),
                )
            )

    def _value(self, said: Mapping[str, str]) -> None:
        if self._current is not None and "value" in said:
            kind = said.get("property", "valid")
            if kind == "valid":
                self._current.values.append(said["value"])
            elif kind == "missing":
                self._current.missing.append(said["value"])

    def _mined(self, said: Mapping[str, str]) -> None:
        """Of the outermost model: those of inner ones are fed by it."""
        known = self._fields.get(said.get("name", ""))
        if known is not None and len(self._stack) == 4:
            known.strict = said.get("invalidValueTreatment", "returnInvalid") == "returnInvalid"


_HANDLERS: dict[str, Callable[[_Reading, Mapping[str, str]], None]] = {
    "DataDictionary/DataField": _Reading._field,
    "DataField/Interval": _Reading._interval,
    "DataField/Value": _Reading._value,
    "MiningSchema/MiningField": _Reading._mined,
}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
