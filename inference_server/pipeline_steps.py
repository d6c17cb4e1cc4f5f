"""`[[steps]]` of `model.toml`, and what Triton's `ensemble_scheduling` becomes: a model that is a graph of models of the same server."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inference_server.setting_checks import InvalidModelSettings, bad, is_whole, shown

PLATFORM = "ensemble"
"""What clients of the open protocol know a model by that is made of others."""
MOST_STEPS = 64
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_KEYS = ("name", "model", "version", "inputs", "outputs")


@dataclass(frozen=True, slots=True)
class Step:
    """One model of the graph. `version`: a number, a label, or "" for what the model serves by default. `inputs`, `outputs`: tensor of that
    model -> tensor of the pipeline; None: all of them, under their own names.
    """

    name: str
    model: str
    version: str = ""
    inputs: Mapping[str, str] | None = None
    outputs: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reader(key: str, value: Any, folder: Path) -> tuple[Step, ...]:
    """Raises InvalidModelSettings."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_STEPS:
        raise bad(key, value, f"a list of 1 to {MOST_STEPS} tables")
    steps: list[Step] = []
    for number, said in enumerate(value, 1):
        step = _step(f"{key}[{number}]", said)
        if any(step.name == other.name for other in steps):
            if "name" in said:
                raise InvalidModelSettings(f"{key}[{number}].name = {shown(step.name)} is the name of another step as well")
            step = Step(f"{step.name}#{number}", step.model, step.version, step.inputs, step.outputs)
        steps.append(step)
    return tuple(steps)


def _step(key: str, said: Any) -> Step:
    if not isinstance(said, dict):
        raise bad(key, said, "a table")
    for name in said:
        if name not in _KEYS:
            raise InvalidModelSettings(f"{key} has an unknown key {shown(name)}; known are {', '.join(sorted(_KEYS))}")
    model = said.get("model")
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise bad(f"{key}.model", model, "the name of a model")
    name, version = said.get("name", model), said.get("version", "")
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        raise bad(f"{key}.name", name, "a name")
    if is_whole(version, 1, 10**18):
        version = str(version)
    if not isinstance(version, str) or len(version) > 128:
        raise bad(f"{key}.version", version, "a version's number or a label")
    return Step(name, model, version, _tensors(f"{key}.inputs", said.get("inputs")), _tensors(f"{key}.outputs", said.get("outputs")))


def _tensors(key: str, said: Any) -> dict[str, str] | None:
    if said is None:
        return None
    if not isinstance(said, dict) or not all(isinstance(tensor, str) and tensor for tensor in said.values()):
        raise bad(key, said, "a table of tensor of the step = tensor of the pipeline")
    return {str(name): tensor for name, tensor in said.items()}


def tied(steps: Sequence[Step], tensors: Sequence[tuple[Sequence[str], Sequence[str]]]) -> tuple[Step, ...]:
    """`steps` with every tensor named, those too that keep their own names; `tensors`: of their models, (inputs, outputs)."""

    def named(said: Mapping[str, str] | None, names: Sequence[str]) -> Mapping[str, str]:
        return {name: name for name in names} if said is None else said

    return tuple(
        replace(step, inputs=named(step.inputs, inputs), outputs=named(step.outputs, outputs))
        for step, (inputs, outputs) in zip(steps, tensors, strict=True)
    )


def waves(needs: Mapping[str, Collection[str]]) -> list[list[str]]:
    """The keys of `needs` (model -> models that it is made of) such that each comes in a later wave than what it is made of. What is made of
    itself comes last.
    """
    left, found = dict(needs), []
    while left:
        wave = [name for name, inner in left.items() if not any(each in left for each in inner)]
        found.append(wave or list(left))
        for name in found[-1]:
            del left[name]
    return found
