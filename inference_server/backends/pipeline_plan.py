"""Which step of a pipeline takes what from which: made and checked when it is loaded, against what its models take and give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idl.messages import TensorSpec
from inference_server import errors
from inference_server.declared import Declared
from inference_server.model_settings import FILE
from inference_server.pipeline_steps import PLATFORM
from inference_server.types import Signature


@dataclass(frozen=True, slots=True)
class Link:
    """One step, tied in. `inputs`: its model's tensor -> the pipeline's; `outputs`: the pipeline's tensor -> the model's own; `after`: the
    steps (by index) whose outputs it takes.
    """

    index: int
    name: str
    model: str
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, TensorSpec]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """Inputs and outputs that `source`, a file, names, in that order; empty where it names none."""

    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    source: str = FILE

    def all_of(self, side: str) -> str:
        """Where all inputs, or all outputs, are named."""
        return f"[{side}s]" if self.source == FILE else f"{side} of {self.source}"

    def one(self, side: str, tensor: str) -> str:
        """Where `tensor` is named."""
        return f"{side}s.{tensor}" if self.source == FILE else f"{side} {tensor!r} of {self.source}"


class Plan:
    """`steps`: as `pipeline_steps.Step.to_json` has them; `signatures`: of their models, in that order; `declared`: what is said of types
    and shapes. Raises invalid_model, with names.
    """

    def __init__(
        self,
        model: str,
        steps: Sequence[Mapping[str, Any]],
        signatures: Sequence[Signature],
        named: Named,
        declared: Declared,
    ) -> None:
        self._model = model
        ties = [self._tie(step, signature) for step, signature in zip(steps, signatures, strict=True)]
        made = self._made(steps, ties)
        free = self._inputs(steps, ties, made, named)
        for step, tie in zip(steps, ties, strict=True):
            for spec, tensor in tie[0]:
                if tensor in made:
                    maker = made[tensor]
                    self._agree(tensor, f"step {steps[maker[0]]['name']!r}", maker[1], f"step {step['name']!r}", spec)
        self.links = tuple(
            Link(
                index,
                step["name"],
                step["model"],
                step["version"],
                {spec.name: tensor for spec, tensor in tie[0]},
                {tensor: spec for spec, tensor in tie[1]},
                tuple(sorted({made[tensor][0] for _, tensor in tie[0] if tensor in made})),
            )
            for index, (step, tie) in enumerate(zip(steps, ties, strict=True))
        )
        self._check_order()
        outputs = self._outputs(ties, made, named)
        self._makers = {tensor: index for tensor, (index, _) in made.items()}
        self._needed: dict[tuple[str, ...], tuple[Link, ...]] = {}
        ins = tuple(self._seen("inputs", spec, declared) for spec in free)
        outs = tuple(self._seen("outputs", spec, declared) for spec in outputs)
        axis = 0 if all(spec.shape[:1] == (-1,) for spec in (*ins, *outs)) else None
        self.signature = Signature(PLATFORM, ins, outs, axis)

    def needed(self, wanted: tuple[str, ...]) -> tuple[Link, ...]:
        """The steps without which the wanted outputs cannot be made."""
        known = self._needed.get(wanted)
        if known is None:
            found: set[int] = set()
            todo = [self._makers[name] for name in wanted]
            while todo:
                index = todo.pop()
                if index not in found:
                    found.add(index)
                    todo += self.links[index].after
            if len(self._needed) > 1000:
                self._needed.clear()
            known = self._needed[wanted] = tuple(self.links[index] for index in sorted(found))
        return known

    # what is checked -------------------------------------------------------------------------------------------------------------

    def _wrong(self, why: str) -> Exception:
        return errors.invalid_model(self._model, why)

    def _tie(self, step: Mapping[str, Any], signature: Signature) -> tuple[list[tuple[TensorSpec, str]], list[tuple[TensorSpec, str]]]:
        """([(input, the pipeline's tensor)], [(output, the pipeline's tensor)])."""
        name = step["name"]
        if signature.streams:
            raise self._wrong(f"step {name!r}: model {step['model']!r} gives several answers for a request, and a step must give one")
        found = []
        for what, said, specs in (("input", step["inputs"], signature.inputs), ("output", step["outputs"], signature.outputs)):
            have = {spec.name: spec for spec in specs}
            said = {tensor: tensor for tensor in have} if said is None else said
            for tensor in said:
                if tensor not in have:
                    raise self._wrong(
                        f"step {name!r}: model {step['model']!r} has no {what} {tensor!r}; it has {', '.join(map(repr, have)) or 'none'}"
                    )
            found.append([(have[tensor], target) for tensor, target in said.items()])
        missing = [spec.name for spec in signature.inputs if all(spec is not tied for tied, _ in found[0])]
        if missing:
            raise self._wrong(f"step {name!r} does not say where input {missing[0]!r} of model {step['model']!r} comes from")
        if not found[1]:
            raise self._wrong(f"step {name!r} gives nothing: its outputs name no tensor")
        return found[0], found[1]

    def _made(self, steps: Sequence[Mapping[str, Any]], ties: Sequence[Any]) -> dict[str, tuple[int, TensorSpec]]:
        made: dict[str, tuple[int, TensorSpec]] = {}
        for index, (_, outputs) in enumerate(ties):
            for spec, tensor in outputs:
                if tensor in made:
                    raise self._wrong(
                        f"tensor {tensor!r} is made twice: by step {steps[made[tensor][0]]['name']!r} and {steps[index]['name']!r}"
                    )
                made[tensor] = (index, TensorSpec(tensor, spec.datatype, spec.shape))
        return made

    def _inputs(self, steps: Sequence[Mapping[str, Any]], ties: Sequence[Any], made: Mapping[str, Any], named: Named) -> list[TensorSpec]:
        """What nobody makes comes from the caller: what all who take it agree on."""
        free: dict[str, tuple[str, TensorSpec]] = {}
        for step, (inputs, _) in zip(steps, ties, strict=True):
            who = f"step {step['name']!r}"
            for spec, tensor in inputs:
                if tensor in made:
                    continue
                if named.inputs and tensor not in named.inputs:
                    raise self._wrong(
                        f"{who} takes tensor {tensor!r}, which no step makes, and which is none of its inputs ({named.all_of('input')})"
                    )
                first = free.get(tensor, (who, spec))
                free[tensor] = (first[0], TensorSpec(tensor, spec.datatype, self._agree(tensor, first[0], first[1], who, spec)))
        for tensor in named.inputs:
            if tensor in made:
                raise self._wrong(f"{named.one('input', tensor)}: step {steps[made[tensor][0]]['name']!r} makes it")
            if tensor not in free:
                raise self._wrong(f"{named.one('input', tensor)}: no step takes it")
        return [free[tensor][1] for tensor in (named.inputs or free)]

    def _agree(self, tensor: str, who: str, one: TensorSpec, other_who: str, other: TensorSpec) -> tuple[int, ...]:
        """The shape that both allow."""
        fits = len(one.shape) == len(other.shape) and all(
            -1 in sizes or sizes[0] == sizes[1] for sizes in zip(one.shape, other.shape, strict=True)
        )
        if one.datatype != other.datatype or not fits:
            raise self._wrong(
                f"tensor {tensor!r} is {one.datatype} {list(one.shape)} for {who} and {other.datatype} {list(other.shape)} for {other_who}"
            )
        return tuple(max(sizes) for sizes in zip(one.shape, other.shape, strict=True))

    def _check_order(self) -> None:
        """Raises where steps wait for each other."""
        left = {link.index: set(link.after) for link in self.links}
        while left:
            ready = [index for index, after in left.items() if not after & left.keys()]
            if not ready:
                circle = ", ".join(repr(self.links[index].name) for index in left)
                raise self._wrong(f"its steps wait for each other in a circle: {circle}")
            for index in ready:
                del left[index]

    def _outputs(self, ties: Sequence[Any], made: Mapping[str, tuple[int, TensorSpec]], named: Named) -> list[TensorSpec]:
        """Those that are named, else those that no step takes."""
        taken = {tensor for inputs, _ in ties for _, tensor in inputs}
        for tensor in named.outputs:
            if tensor not in made:
                raise self._wrong(f"{named.one('output', tensor)}: no step makes it; made are {', '.join(map(repr, made))}")
        found = named.outputs or [tensor for tensor in made if tensor not in taken]
        return [made[tensor][1] for tensor in found]

    def _seen(self, where: str, spec: TensorSpec, declared: Declared) -> TensorSpec:
        """As callers see it: a declaration may fix sizes that are open, and must agree with the rest."""
        said = next((t for t in (declared.inputs if where == "inputs" else declared.outputs) if t.name == spec.name), None)
        if said is None:
            return spec
        shape = spec.shape if said.dims is None else declared.whole(said.dims)
        wanted = TensorSpec(spec.name, said.datatype or spec.datatype, shape)
        return TensorSpec(spec.name, spec.datatype, self._agree(spec.name, "its steps", spec, f"{declared.source} ({where})", wanted))
