"""The graph of an ONNX file, read for drawing it: operators with their attributes, and shapes of weights, never the weights themselves.

The file is a stranger's. It is taken apart here by hand: what is read is bounded by `Bounds`, texts are cut, and nothing of it is run.
Field numbers: onnx.proto of ONNX 1.17.
"""

import mmap
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idl.codes import Code, ServingError
from idl.protobuf_fields import COUNTED, FOUR, VARINT, Buffer, Field, Malformed, varint, walk

_TYPES = (
    *("", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16", "float64", "uint32", "uint64"),
    *(
        "complex64",
        "complex128",
        "bfloat16",
        "float8e4m3fn",
        "float8e4m3fnuz",
        "float8e5m2",
        "float8e5m2fnuz",
        "uint4",
        "int4",
        "float4e2m1",
    ),
)
_LONGEST = 200
_MOST_ENDS = 256
_MOST_ATTRIBUTES = 64
_MOST_NUMBERS = 16
_MOST_AXES = 32
_SIGN = 1 << 63

Shaped = dict[str, Any]
"""{"type", "shape"}: of each axis its size, its name, or "?"."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`fields`: of all messages together, about a microsecond each."""

    nodes: int = 50_000
    fields: int = 2_000_000


@dataclass(slots=True)
class Node:
    """`attributes`: (name, value as text). `graphs`: (attribute's name, operators in it) of a loop's or a condition's own graphs."""

    operator: str = ""
    domain: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    graphs: list[tuple[str, int]] = field(default_factory=list)


@dataclass(slots=True)
class Graph:
    """`values` and `weights` by name; `cut`: it has more operators than were read."""

    name: str = ""
    nodes: list[Node] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    values: dict[str, Shaped] = field(default_factory=dict)
    weights: dict[str, Shaped] = field(default_factory=dict)
    cut: bool = False


def read(path: Path, bounds: Bounds | None = None) -> Graph:
    """Raises invalid_model for what is no ONNX file, too_large for a graph beyond the bounds, OSError."""
    if not path.stat().st_size:
        raise _refused()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return read_from(data, bounds)


def read_from(data: Buffer, bounds: Bounds | None = None) -> Graph:
    """The same of what is in memory."""
    reading = _Reading(data, bounds or Bounds())
    try:
        for number, kind, begin, end in reading.walk(0, len(data)):
            if number == 7 and kind == COUNTED:
                reading.graph(begin, end)
    except Malformed:
        raise _refused() from None
    return reading.found


def _refused() -> ServingError:
    return ServingError(Code.INVALID_MODEL, "the file is not an ONNX file, or is cut off")


class _Reading:
    def __init__(self, data: Buffer, bounds: Bounds) -> None:
        self._data = data
        self._left = bounds.fields
        self._most = bounds.nodes
        self.found = Graph()

    def walk(self, begin: int, end: int) -> Iterator[Field]:
        for each in walk(self._data, begin, end):
            self._left -= 1
            if self._left < 0:
                raise ServingError(Code.TOO_LARGE, "the graph has too many parts to be drawn")
            yield each

    def graph(self, begin: int, end: int) -> None:
        found = self.found
        for number, kind, start, stop in self.walk(begin, end):
            if kind != COUNTED:
                continue
            if number == 1:
                if len(found.nodes) >= self._most:
                    found.cut = True
                else:
                    found.nodes.append(self._node(start, stop))
            elif number == 2:
                found.name = self._text(start, stop)
            elif number == 5:
                self._weight(start, stop)
            elif number == 15:
                self._sparse(start, stop)
            elif number in (11, 12, 13):
                name = self._value(start, stop)
                if number != 13:
                    (found.inputs if number == 11 else found.outputs).append(name)
        found.inputs = [name for name in found.inputs if name not in found.weights]  # old files list weights as inputs, too

    def _node(self, begin: int, end: int) -> Node:
        made = Node()
        for number, kind, start, stop in self.walk(begin, end):
            if kind != COUNTED:
                continue
            if number in (1, 2):
                ends = made.inputs if number == 1 else made.outputs
                if len(ends) < _MOST_ENDS:
                    ends.append(self._text(start, stop))
            elif number == 3:
                made.name = self._text(start, stop)
            elif number == 4:
                made.operator = self._text(start, stop)
            elif number == 5 and len(made.attributes) < _MOST_ATTRIBUTES:
                self._attribute(start, stop, made)
            elif number == 7:
                made.domain = self._text(start, stop)
        return made

    def _attribute(self, begin: int, end: int, node: Node) -> None:
        """Only the first of many values are looked at: the rest of the message is passed over."""
        name, shown, many = "", list[str](), False
        for number, kind, start, stop in self.walk(begin, end):
            if number == 1 and kind == COUNTED:
                name = self._text(start, stop)
            elif number == 6 and kind == COUNTED:
                node.graphs.append((name, sum(1 for each in self.walk(start, stop) if each[0] == 1)))
            elif number == 5 and kind == COUNTED:
                described = self._tensor(start, stop)[1]
                shown.append(f"{described['type']} {_spelled(described['shape'])}")
            elif number in (2, 3, 4, 7, 8, 9):
                many |= number in (7, 8, 9)
                shown += self._values(number, kind, start, stop)
                if len(shown) > _MOST_NUMBERS:
                    break
        text = ", ".join(shown[:_MOST_NUMBERS]) + (", …" if len(shown) > _MOST_NUMBERS else "")
        if shown:
            node.attributes.append((name, (f"[{text}]" if many else text)[: 4 * _LONGEST]))

    def _values(self, number: int, kind: int, start: int, stop: int) -> list[str]:
        """Of one field of an attribute: a number, a text, or packed numbers."""
        if kind == VARINT:
            return [str(_signed(start))]
        if number in (4, 9) and kind == COUNTED:
            return [self._text(start, stop)]
        if number in (2, 7) and kind in (FOUR, COUNTED):
            most = start + 4 * min((stop - start) // 4, _MOST_NUMBERS + 1)
            return [f"{each[0]:g}" for each in struct.iter_unpack("<f", self._data[start:most])]
        found: list[str] = []
        while number == 8 and kind == COUNTED and start < stop and len(found) <= _MOST_NUMBERS:
            value, start = varint(self._data, start, stop)
            found.append(str(_signed(value)))
        return found

    def _weight(self, begin: int, end: int) -> None:
        name, described = self._tensor(begin, end)
        self.found.weights[name] = described

    def _sparse(self, begin: int, end: int) -> None:
        """SparseTensorProto: its values' name, and its own dims."""
        name, sizes, kind_of = "", list[int](), ""
        for number, kind, start, stop in self.walk(begin, end):
            if number == 1 and kind == COUNTED:
                name, described = self._tensor(start, stop)
                kind_of = described["type"]
            elif number == 3:
                sizes += self._sizes(kind, start, stop)
        self.found.weights[name] = {"type": kind_of, "shape": sizes[:_MOST_AXES]}

    def _tensor(self, begin: int, end: int) -> tuple[str, Shaped]:
        name, kind_of, sizes = "", 0, list[int]()
        for number, kind, start, stop in self.walk(begin, end):
            if number == 1 and len(sizes) < _MOST_AXES:
                sizes += self._sizes(kind, start, stop)
            elif (number, kind) == (2, VARINT):
                kind_of = start
            elif (number, kind) == (8, COUNTED):
                name = self._text(start, stop)
        return name, {"type": _type(kind_of), "shape": sizes[:_MOST_AXES]}

    def _sizes(self, kind: int, start: int, stop: int) -> list[int]:
        if kind == VARINT:
            return [_signed(start)]
        found: list[int] = []
        while kind == COUNTED and start < stop and len(found) < _MOST_AXES:
            value, start = varint(self._data, start, stop)
            found.append(_signed(value))
        return found

    def _value(self, begin: int, end: int) -> str:
        """ValueInfoProto; only tensors have a shape. Its name."""
        name, described = "", None
        for number, kind, start, stop in self.walk(begin, end):
            if (number, kind) == (1, COUNTED):
                name = self._text(start, stop)
            elif (number, kind) == (2, COUNTED):
                tensor = next((each for each in self.walk(start, stop) if each[:2] == (1, COUNTED)), None)
                described = self._shaped(*tensor[2:]) if tensor is not None else {"type": "", "shape": None}
        if described is not None:
            self.found.values[name] = described
        return name

    def _shaped(self, begin: int, end: int) -> Shaped:
        """TypeProto.Tensor."""
        made: Shaped = {"type": "", "shape": None}
        for number, kind, start, stop in self.walk(begin, end):
            if (number, kind) == (1, VARINT):
                made["type"] = _type(start)
            elif (number, kind) == (2, COUNTED):
                axes = [self._axis(*each[2:]) for each in self.walk(start, stop) if each[:2] == (1, COUNTED)]
                made["shape"] = axes[:_MOST_AXES]
        return made

    def _axis(self, begin: int, end: int) -> int | str:
        found: int | str = "?"
        for number, kind, start, stop in self.walk(begin, end):
            if (number, kind) == (1, VARINT):
                found = _signed(start)
            elif (number, kind) == (2, COUNTED):
                found = self._text(start, stop) or "?"
        return found

    def _text(self, begin: int, end: int) -> str:
        return self._data[begin : min(end, begin + _LONGEST)].decode("utf-8", "replace")


def _type(number: int) -> str:
    return _TYPES[number] if 0 <= number < len(_TYPES) else ""


def _signed(value: int) -> int:
    return value - (_SIGN << 1) if value & _SIGN else value


def _spelled(shape: list[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def size(graph: Graph) -> int:
    """About how many bytes of memory it takes."""
    texts = [name for named in (graph.values, graph.weights) for name in named]
    parts = 8 * (len(graph.inputs) + len(graph.outputs))
    for node in graph.nodes:
        texts += (node.operator, node.domain, node.name, *node.inputs, *node.outputs)
        texts += [text for each in node.attributes for text in each]
        texts += [name for name, _ in node.graphs]
        parts += 600 + 80 * (len(node.attributes) + len(node.graphs))
    for each in (*graph.values.values(), *graph.weights.values()):
        parts += 500 + 60 * len(each["shape"] or ())
    return parts + sum(map(sys.getsizeof, texts)) + 8 * len(texts)


# pieces of it ------------------------------------------------------------------------------------------------------------------------


def window(graph: Graph, first: int, most: int, find: str = "", after: int = -1) -> dict[str, Any]:
    """`most` operators from number `first` on, or with `find` those around the first after number `after` that has this text in its
    operator, its name or its outputs (`found`: its number, None for none). With what is known of the values that they name."""
    found = None
    if find:
        found = next((at for at in range(after + 1, len(graph.nodes)) if _has(graph.nodes[at], find.lower())), None)
        first = first if found is None else found - found % most
    first = max(0, min(first, max(0, len(graph.nodes) - 1)))
    shown = graph.nodes[first : first + most]
    named = {name for node in shown for name in (*node.inputs, *node.outputs)}
    return {
        "name": graph.name,
        "total": len(graph.nodes),
        "cut": graph.cut,
        "first": first,
        "found": found,
        "inputs": [name for name in graph.inputs if name in named][:most],
        "outputs": [name for name in graph.outputs if name in named][:most],
        "nodes": [
            {
                "op": node.operator,
                "domain": node.domain,
                "name": node.name,
                "in": node.inputs,
                "out": node.outputs,
                "attributes": node.attributes,
                "graphs": node.graphs,
            }
            for node in shown
        ],
        "values": {name: each for name, each in graph.values.items() if name in named},
        "weights": {name: each for name, each in graph.weights.items() if name in named},
    }


def _has(node: Node, text: str) -> bool:
    return any(text in each.lower() for each in (node.operator, node.name, *node.outputs))
