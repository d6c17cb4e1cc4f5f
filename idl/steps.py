"""What a pipeline says of its steps to whoever asked it and traces: one text for each that was asked, which nobody else looks at."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

MOST_BYTES = 16 * 1024
"""Of all texts of an answer together; what does not fit is left out."""


class Step(NamedTuple):
    """`begun_ns` of CLOCK_MONOTONIC, `ns` until its answer was there; `queue_ns` and `compute_ns` as its executor says, 0 where it said
    nothing. `error`: a code of the contract, "" for none. `steps`: of a pipeline in the pipeline."""

    name: str
    model: str
    version: str
    begun_ns: int
    ns: int
    queue_ns: int
    compute_ns: int
    error: str = ""
    steps: "tuple[Step, ...]" = ()


def write(steps: Sequence[Step]) -> tuple[str, ...]:
    """In the order in which they began, as many as there is room for; steps of steps go first where there is little."""
    found, size = [], 0
    for step in sorted(steps, key=lambda step: step.begun_ns):
        for each in (step, step._replace(steps=())):
            text = json.dumps(each)
            if size + len(text) <= MOST_BYTES:
                found.append(text)
                size += len(text)
                break
    return tuple(found)


def read(texts: Sequence[str]) -> list[Step]:
    """What cannot be read is left out."""
    found = []
    for text in texts:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            found.append(_step(json.loads(text)))
    return found


def _step(said: Any) -> Step:
    """Raises ValueError, TypeError."""
    name, model, version, begun, ns, queue, compute, error, steps = said
    numbers = (int(begun), int(ns), int(queue), int(compute))
    return Step(str(name), str(model), str(version), *numbers, str(error), tuple(_step(step) for step in steps))
