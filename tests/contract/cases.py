"""The one list of requests that every face is asked, with what each must give: outputs to the last bit, or a code."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from idl import tensors
from idl.codes import Code
from idl.messages import InferRequest, Tensor

LIMIT = 2 << 20
"""Bytes of a message that every face of the tests takes."""
KINDS = {
    "BOOL": 9,
    "UINT8": 2,
    "UINT16": 4,
    "UINT32": 12,
    "UINT64": 13,
    "INT8": 3,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "FP16": 10,
    "FP32": 1,
    "FP64": 11,
    "BF16": 16,
    "BYTES": 8,
}
"""Datatype -> onnx's number of it. For each there are the models `same-X` (x [n] -> y) and `scalar-X` (x [] -> y)."""


@dataclass(frozen=True, slots=True)
class Case:
    """`code` None: the answer has exactly `outputs`. `says`: what the message must hold. `raw`: cannot be said but in raw contents.

    `not_over`: how the names of faces begin whose wire cannot carry the case.
    """

    name: str
    request: InferRequest
    outputs: tuple[Tensor, ...] = ()
    code: Code | None = None
    says: str = ""
    raw: bool = False
    not_over: frozenset[str] = frozenset()


def tensor(datatype: str, values: Sequence[Any] | bytes, shape: Sequence[int] | None = None, name: str = "x") -> Tensor:
    """`values`: elements, or raw contents; `shape`: by default that of a vector of them."""
    if isinstance(values, bytes):
        size = tensors.DTYPES[datatype].itemsize if datatype != "BYTES" else 1
        return Tensor(name, datatype, tuple(shape if shape is not None else (len(values) // size,)), values)
    array = np.empty(len(values), tensors.DTYPES[datatype])
    array[:] = values
    return Tensor(name, datatype, tuple(shape if shape is not None else (len(values),)), tensors.encode(array, datatype))


def ask(model: str, *inputs: Tensor, **fields: Any) -> InferRequest:
    return InferRequest(model, inputs, **{"id": "case-7", **fields})


def same(name: str, model: str, given: Tensor, **more: Any) -> Case:
    """A model that gives `x` back as `y`."""
    return Case(name, ask(model, given), (replace(given, name="y"),), **more)


EXTREMES: dict[str, Sequence[Any]] = {
    "BOOL": [True, False, True],
    "FP16": [0.0, -0.0, 65504.0, 6e-8, float("nan"), float("inf"), float("-inf")],
    "FP32": [0.0, -0.0, 3.4028235e38, 1e-45, 0.1, float("nan"), float("inf"), float("-inf")],
    "FP64": [0.0, -0.0, 1.7976931348623157e308, 5e-324, 0.1, float("nan"), float("inf"), float("-inf")],
    "BF16": [0x0000, 0x8000, 0x3F80, 0x7F7F, 0x0001, 0x7FC0, 0x7F80, 0xFF80],
    "BYTES": [b"", b"a", b"with a\0NUL", "\u6f22\u5b57 \u03c0 \U0001f6a4".encode(), b"x" * 1000],
}
for _name, _dtype in tensors.DTYPES.items():
    if _dtype.kind in "iu" and _name != "BF16":
        EXTREMES[_name] = [0, 1, int(np.iinfo(_dtype).min), int(np.iinfo(_dtype).max)]
FLOAT = tensor("FP32", [1.5, -2.0])
PAIR = (tensor("FP32", [1.0, 2.0], name="a"), tensor("INT64", [3, 4, 5, 6], (2, 2), "b"))
PROBE = Case("probe", ask("triple", tensor("FP32", [1.0, 2.0], (1, 2))), (tensor("FP32", [3.0, 6.0], (1, 2), "y"),))
"""A good request: asked after every case."""
PAYLOADS = struct.pack("<4I", 0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000001)
"""NaNs that carry something, an infinity and a number below the normal ones: nothing on the way may look at them."""


def good() -> Iterator[Case]:
    for datatype in KINDS:
        yield same(f"{datatype}, extremes", f"same-{datatype}", tensor(datatype, EXTREMES[datatype]))
        yield same(f"{datatype}, empty", f"same-{datatype}", tensor(datatype, []))
        yield same(f"{datatype}, scalar", f"scalar-{datatype}", tensor(datatype, EXTREMES[datatype][-1:], ()))
    yield same("FP32, bits of NaNs", "same-FP32", tensor("FP32", PAYLOADS), raw=True)
    yield Case("zero-size batch", ask("triple", tensor("FP32", [], (0, 2))), (tensor("FP32", [], (0, 2), "y"),))
    yield Case("two inputs", ask("pair", *PAIR), (replace(PAIR[0], name="c"), replace(PAIR[1], name="d")))
    yield Case("two inputs the other way round", ask("pair", *PAIR[::-1]), (replace(PAIR[0], name="c"), replace(PAIR[1], name="d")))
    yield Case("one output of two", ask("pair", *PAIR, outputs=("d",)), (replace(PAIR[1], name="d"),))
    yield Case(
        "outputs in the order asked for", ask("pair", *PAIR, outputs=("d", "c")), (replace(PAIR[1], name="d"), replace(PAIR[0], name="c"))
    )
    yield Case("a version by its number", ask("same-FP32", FLOAT, model_version="1"), (replace(FLOAT, name="y"),))
    yield Case("no id", ask("same-FP32", FLOAT, id=""), (replace(FLOAT, name="y"),))
    yield Case("an odd id", ask("same-FP32", FLOAT, id='a\0b \u6f22 " \\ \n' + "i" * 300), (replace(FLOAT, name="y"),))
    yield same("a large tensor", "same-UINT8", tensor("UINT8", bytes(range(256)) * 1024, (1 << 18,)))
    yield same("a tensor close to the limit", "same-UINT8", tensor("UINT8", bytes(LIMIT - 4096)), not_over=frozenset({"HTTP, JSON"}))


def refused(
    name: str, code: Code, says: str, model: str, *inputs: Tensor, raw: bool = False, not_over: Sequence[str] = (), **fields: Any
) -> Case:
    return Case(name, ask(model, *inputs, **fields), code=code, says=says, raw=raw, not_over=frozenset(not_over))


def bad_models() -> Iterator[Case]:
    yield refused("unknown model", Code.MODEL_NOT_FOUND, "nobody", "nobody", FLOAT)
    yield refused("a model's name with a NUL", Code.MODEL_NOT_FOUND, "", "same-FP32\0", FLOAT)
    yield refused("a model's name that climbs", Code.MODEL_NOT_FOUND, "", "..", FLOAT)
    yield refused("unknown version", Code.VERSION_NOT_FOUND, "99", "same-FP32", FLOAT, model_version="99")
    yield refused("a version that is no number", Code.VERSION_NOT_FOUND, "one", "same-FP32", FLOAT, model_version="one")
    yield refused("a version with a sign", Code.VERSION_NOT_FOUND, "-1", "same-FP32", FLOAT, model_version="-1")


def bad_names() -> Iterator[Case]:
    invalid = Code.INVALID_INPUT
    yield refused("missing input", invalid, "'b'", "pair", PAIR[0])
    yield refused("no input at all", invalid, "'x'", "same-FP32")
    yield refused("extra input", invalid, "'z'", "same-FP32", FLOAT, replace(FLOAT, name="z"))
    yield refused("unknown input", invalid, "'z'", "same-FP32", replace(FLOAT, name="z"))
    yield refused("an input's name with a NUL", invalid, "", "same-FP32", replace(FLOAT, name="x\0"))
    yield refused("an input twice", invalid, "'x'", "same-FP32", FLOAT, FLOAT)
    yield refused("unknown output", invalid, "'z'", "same-FP32", FLOAT, outputs=("z",))
    yield refused("an output twice", invalid, "twice", "same-FP32", FLOAT, outputs=("y", "y"))


def bad_shapes() -> Iterator[Case]:
    invalid = Code.INVALID_INPUT
    yield refused("wrong type", invalid, "FP64", "same-FP32", tensor("FP64", [1.0]))
    yield refused("wrong type of the same size", invalid, "INT32", "same-FP32", tensor("INT32", [1]))
    yield refused("unknown type", invalid, "'FLOAT'", "same-FP32", replace(FLOAT, datatype="FLOAT"))
    yield refused("no type", invalid, "'x'", "same-FP32", replace(FLOAT, datatype=""))
    yield refused("wrong size of a fixed dimension", invalid, "[1, 3]", "triple", tensor("FP32", [1.0, 2.0, 3.0], (1, 3)))
    yield refused("a dimension too many", invalid, "[2, 1]", "same-FP32", replace(FLOAT, shape=(2, 1)))
    yield refused("a dimension too few", invalid, "[2]", "triple", FLOAT)
    yield refused("a vector for a scalar", invalid, "[1]", "scalar-FP32", tensor("FP32", [1.0]))
    yield refused("negative dimension", invalid, "'x'", "same-FP32", replace(FLOAT, shape=(-2,)))
    yield refused("two negative dimensions", invalid, "'x'", "triple", tensor("FP32", [1.0, 2.0], (-1, -2)))
    yield refused("the least dimension", invalid, "'x'", "same-FP32", replace(FLOAT, shape=(-(2**63),)))
    yield refused("the greatest dimension", invalid, "'x'", "same-FP32", replace(FLOAT, shape=(2**63 - 1,)))
    yield refused("overflowing dimensions", invalid, "'x'", "triple", tensor("FP32", [], (2**62, 2)))
    yield refused("dimensions that wrap around to the right size", invalid, "'x'", "cube-UINT8", tensor("UINT8", [1], (2**32, 2**32, 1)))
    yield refused("overflowing dimensions and a zero", invalid, "'x'", "cube-UINT8", tensor("UINT8", [], (0, 2**62, 2**62)))
    yield refused("rank of 1000", invalid, "'x'", "same-FP32", tensor("FP32", [1.0], (1,) * 1000))
    yield refused("fewer elements than the shape has", invalid, "'x'", "same-FP32", replace(FLOAT, shape=(3,)))
    yield refused("more elements than the shape has", invalid, "'x'", "same-FP32", replace(FLOAT, shape=(1,)))


def bad_contents() -> Iterator[Case]:
    invalid = Code.INVALID_INPUT
    for datatype in KINDS:
        if datatype != "BYTES":
            data = bytes(3 * tensors.DTYPES[datatype].itemsize)
            yield refused(f"{datatype}, a byte short", invalid, "'x'", f"same-{datatype}", tensor(datatype, data[1:], (3,)), raw=True)
            yield refused(
                f"{datatype}, a byte too many", invalid, "'x'", f"same-{datatype}", tensor(datatype, data + b"\0", (3,)), raw=True
            )
    yield refused("no contents", invalid, "'x'", "same-FP32", tensor("FP32", b"", (3,)), raw=True)
    lying = {
        "longer than what is there": struct.pack("<I", 5) + b"abcd",
        "longer than any memory": b"\xff\xff\xff\xffabcd",
        "shorter than what is there": struct.pack("<I", 3) + b"abcd",
        "of a second element that is not there": struct.pack("<I", 4) + b"abcd" + struct.pack("<I", 0),
        "cut off": b"\4\0",
        "none": b"",
    }
    for what, data in lying.items():
        yield refused(f"BYTES, a length {what}", invalid, "'x'", "same-BYTES", tensor("BYTES", data, (1,)), raw=True)
    yield refused("BYTES, not text", invalid, "'x'", "same-BYTES", tensor("BYTES", [b"\xff\xfe"]), not_over=["HTTP, JSON"])


def bad_sizes() -> Iterator[Case]:
    over = tensor("UINT8", bytes(LIMIT + 1))
    yield refused("message over the limit", Code.TOO_LARGE, "", "same-UINT8", over)
    yield refused(
        "message far over the limit", Code.TOO_LARGE, "", "same-UINT8", tensor("UINT8", bytes(4 * LIMIT)), not_over=["HTTP, JSON"]
    )
    yield refused("not loaded", Code.NOT_READY, "unloaded", "unloaded", FLOAT)


CASES = (*good(), *bad_models(), *bad_names(), *bad_shapes(), *bad_contents(), *bad_sizes())
