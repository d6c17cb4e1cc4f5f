"""What an ONNX file says of itself, read without its weights: who made it, its operators, how many weights, the names of open axes.

Field numbers: onnx.proto of ONNX 1.17.
"""

import math
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from idl.protobuf_fields import COUNTED, FOUR, VARINT, Malformed, varint, walk

_DEEPEST = 64
_ML = "ai.onnx.ml"
_LEARNT = ("Classifier", "Regressor", "TreeEnsemble")
_LAYERS = frozenset(
    {
        *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv", "FusedConv"),
        *("MatMul", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "Gemm", "FusedMatMul", "FusedGemm", "Einsum"),
        *("LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention", "GroupQueryAttention", "DynamicQuantizeLSTM"),
    }
)
_MOST = 2**63 - 1


@dataclass(slots=True)
class OnnxSummary:
    """`parameters`: elements of weights; `axes`: input or output -> of each axis its name in the file, "" where it has none."""

    producer: str = ""
    opset: int = 0
    parameters: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    learnt: str = ""
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        """ "tree ensemble classifier", "neural network", or which operator there is most of."""
        if self.learnt:
            return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", self.learnt).replace("SVM", "svm").lower()
        if self.parameters and any(name in _LAYERS for name in self.operators):
            return "neural network"
        most = self.operators.most_common(1)
        return f"computation ({most[0][0]})" if most else "computation"


def read(path: Path) -> OnnxSummary:
    """Raises Malformed for what is not protobuf, OSError."""
    found = OnnxSummary()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        _Reading(data, found).model(len(data))
    return found


def looks_like_onnx(data: mmap.mmap, most_fields: int = 10_000) -> str:
    """Of the outermost message alone: "yes", "cut off", or "" for something else."""
    version, graph, at = 0, False, 0
    try:
        for number, kind, begin, _end in walk(data, 0, len(data)):
            at += 1
            if at > most_fields:
                return ""
            if (number, kind) == (1, VARINT):
                version = begin
            elif number == 7 and kind == COUNTED:
                graph = True
            elif number not in _OUTERMOST or (number in _OUTERMOST and _OUTERMOST[number] != kind):
                return ""
    except Malformed:
        return "cut off" if 1 <= version <= 100 and at >= 1 and data[0] == 8 else ""
    return "yes" if 1 <= version <= 100 and graph else ""


_OUTERMOST = {
    1: VARINT,
    2: COUNTED,
    3: COUNTED,
    4: COUNTED,
    5: VARINT,
    6: COUNTED,
    7: COUNTED,
    8: COUNTED,
    14: COUNTED,
} | dict.fromkeys((20, 25, 26), COUNTED)
"""ModelProto's fields with their wire types."""


class _Reading:
    def __init__(self, data: mmap.mmap, found: OnnxSummary) -> None:
        self._data = data
        self._found = found

    def model(self, size: int) -> None:
        texts: dict[int, str] = {}
        for number, kind, begin, end in walk(self._data, 0, size):
            if number in (2, 3) and kind == COUNTED:
                texts[number] = self._text(begin, end)
            elif number == 7 and kind == COUNTED:
                self._graph(begin, end, 0)
            elif number == 8 and kind == COUNTED:
                self._opset(begin, end)
        self._found.producer = " ".join(filter(None, (texts.get(2, ""), texts.get(3, ""))))[:256]

    def _opset(self, begin: int, end: int) -> None:
        domain, version = "", 0
        for number, kind, start, stop in walk(self._data, begin, end):
            if (number, kind) == (1, COUNTED):
                domain = self._text(start, stop)
            elif (number, kind) == (2, VARINT):
                version = start
        if domain in ("", "ai.onnx"):
            self._found.opset = max(self._found.opset, min(version, _MOST))

    def _graph(self, begin: int, end: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise Malformed
        for number, kind, start, stop in walk(self._data, begin, end):
            if kind != COUNTED:
                continue
            if number == 1:
                self._node(start, stop, depth)
            elif number == 5:
                self._tensor(start, stop)
            elif number in (11, 12) and not depth:
                self._value(start, stop)

    def _node(self, begin: int, end: int, depth: int) -> None:
        operator, domain, attributes = "", "", []
        for number, kind, start, stop in walk(self._data, begin, end):
            if number == 4 and kind == COUNTED:
                operator = self._text(start, stop)
            elif number == 7 and kind == COUNTED:
                domain = self._text(start, stop)
            elif number == 5 and kind == COUNTED:
                attributes.append((start, stop))
        self._found.operators[operator[:64]] += 1
        if domain == _ML and operator.endswith(_LEARNT):
            self._found.learnt = operator[:64]
        for start, stop in attributes:
            self._attribute(start, stop, depth, counts_floats=domain == _ML)

    def _attribute(self, begin: int, end: int, depth: int, *, counts_floats: bool) -> None:
        for number, kind, start, stop in walk(self._data, begin, end):
            if number in (5, 10) and kind == COUNTED:
                self._tensor(start, stop)
            elif number in (6, 11) and kind == COUNTED:
                self._graph(start, stop, depth + 1)
            elif number == 7 and counts_floats and kind in (COUNTED, FOUR):
                self._found.parameters += (stop - start) // 4

    def _tensor(self, begin: int, end: int) -> None:
        sizes: list[int] = []
        for number, kind, start, stop in walk(self._data, begin, end):
            if (number, kind) == (1, VARINT):
                sizes.append(start)
            elif (number, kind) == (1, COUNTED):
                while start < stop:
                    size, start = varint(self._data, start, stop)
                    sizes.append(size)
        self._found.parameters = min(_MOST, self._found.parameters + math.prod(sizes))

    def _value(self, begin: int, end: int) -> None:
        """ValueInfoProto: its name, and the names of the axes of its tensor type."""
        name, axes = "", []
        for number, kind, start, stop in walk(self._data, begin, end):
            if (number, kind) == (1, COUNTED):
                name = self._text(start, stop)
            elif (number, kind) == (2, COUNTED):
                axes = [self._axis(*each) for each in self._inside(start, stop, (1, 2, 1))]
        self._found.axes[name] = tuple(axes)

    def _inside(self, begin: int, end: int, path: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """The messages at a path of field numbers."""
        for number, kind, start, stop in walk(self._data, begin, end):
            if number == path[0] and kind == COUNTED:
                if len(path) == 1:
                    yield start, stop
                else:
                    yield from self._inside(start, stop, path[1:])

    def _axis(self, begin: int, end: int) -> str:
        named = [self._text(start, stop) for number, kind, start, stop in walk(self._data, begin, end) if (number, kind) == (2, COUNTED)]
        return named[-1][:64] if named else ""

    def _text(self, begin: int, end: int) -> str:
        return self._data[begin : min(end, begin + 1024)].decode("utf-8", "replace")


def shape_of(name: str, shape: tuple[int, ...], axes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Each axis as its size, its name or "-1"."""
    named = axes.get(name, ())
    return [(named[index] if index < len(named) and named[index] else "-1") if size < 0 else str(size) for index, size in enumerate(shape)]
