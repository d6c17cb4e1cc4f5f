"""What goes between a script's box and the process that owns it: one question and one answer for each call, over a stream socket.

    question   bytes of head u32 | of code u32 | of body u64 | head, code, body
    answer     bytes of head u32 | of body u64 | head, body

Heads are those of the local lane (`idl.lane`): tensors with their places in the body, and parameters. The box is not trusted: whoever reads
an answer looks at every length and name. Layout and byte order are private to one machine and one release.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idl import lane, tensors
from idl.codes import ServingError
from idl.messages import Tensor

QUESTION, ANSWER = struct.Struct("=IIQ"), struct.Struct("=IQ")
FILE, FOLDER = "script.py", "/script"
"""The script's name in messages; where its version's folder is in the box."""
NO_WAY_OUT = 70
"""Exit status of a call's process that cannot send its answer."""
MOST_HEAD = 1 << 20
MOST_TENSORS = 1000
LONGEST_NAME = 256
_LENGTH = struct.Struct("<I")

PREPROCESS, POSTPROCESS, CHECK = "preprocess", "postprocess", "check"
FUNCTIONS = (PREPROCESS, POSTPROCESS)
"""What a script may have. CHECK: it is looked at, and no function of it is called."""

Parts = list[bytes | memoryview]


class Unusable(Exception):
    """The answer is none; the message says why, in the words of the script's owner."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`said`: what became of it, see `executors.script_worker`; `data`: bytes beside the tensors."""

    said: Mapping[str, Any]
    outputs: tuple[Tensor, ...] = ()


def question(code: bytes, given: Sequence[Tensor], said: Mapping[str, Any]) -> Parts:
    """Its bytes in pieces; `code` is the script's source, or what an earlier CHECK made of it."""
    head, offsets, size = lane.pack_head([(t.name, t.datatype, t.shape, len(t.data)) for t in given], (), said)
    return [QUESTION.pack(len(head), len(code), size), head, code, *_laid_out(offsets, [t.data for t in given])]


def answer(outputs: Sequence[tuple[str, str, tuple[int, ...], bytes | memoryview]], said: Mapping[str, Any]) -> Parts:
    """`outputs`: name, datatype, shape, contents."""
    head, offsets, size = lane.pack_head([(name, kind, shape, len(data)) for name, kind, shape, data in outputs], (), said)
    return [ANSWER.pack(len(head), size), head, *_laid_out(offsets, [data for *_, data in outputs])]


def _laid_out(offsets: Sequence[int], contents: Sequence[bytes | memoryview]) -> Parts:
    parts: Parts = []
    at = 0
    for offset, data in zip(offsets, contents, strict=True):
        if offset > at:
            parts.append(bytes(offset - at))
        parts.append(data)
        at = offset + len(data)
    return parts


def read_answer(head: bytes, body: memoryview) -> Answer:
    """Of an answer's bytes; its tensors are views of `body`. Raises Unusable."""
    try:
        found = lane.unpack_head(head)
    except lane.LaneError as error:
        raise Unusable("it gave something that is no answer") from error
    if len(found.tensors) > MOST_TENSORS:
        raise Unusable(f"it gave {len(found.tensors)} outputs, at most {MOST_TENSORS} are taken")
    if found.body_size > len(body):
        raise Unusable("it gave something that is no answer")
    names: set[str] = set()
    for each in found.tensors:
        _check(each, body[each.offset : each.offset + each.size])
        if each.name in names:
            raise Unusable(f"it gave output {each.name!r} twice")
        names.add(each.name)
    outputs = tuple(Tensor(t.name, t.datatype, t.shape, body[t.offset : t.offset + t.size]) for t in found.tensors)
    return Answer(found.parameters, outputs)


def _check(tensor: lane.TensorHead, data: memoryview) -> None:
    if not tensor.name or len(tensor.name) > LONGEST_NAME:
        raise Unusable(f"an output's name has 1 to {LONGEST_NAME} characters")
    try:
        tensors.check_size(tensor.name, tensor.datatype, tensor.shape, tensor.size)
        if tensor.datatype == "BYTES":
            check_texts(tensor.name, tensors.element_count(tensor.name, tensor.shape), data)
    except ServingError as error:
        raise Unusable(f"it gave an output that is none: {error.message}") from error


def check_texts(name: str, count: int, data: memoryview | bytes) -> None:
    """Raises invalid_input unless `data` holds `count` elements of BYTES."""
    position, end = 0, len(data)
    for _ in range(count):
        if end - position < 4:
            raise tensors.invalid(f"tensor {name!r} ends inside the length of an element")
        position += 4 + int(_LENGTH.unpack_from(data, position)[0])
    if position != end:
        raise tensors.invalid(f"tensor {name!r} has {end} bytes, and its {count} elements have {position}")
