"""Models that carry a state from one request to the next: the server keeps it for each sequence, so that callers need not send it.

`model.toml` says which output is which input the next time. Both disappear from what callers see. A request with `sequence_id` continues
that sequence; with `sequence_start` it begins one, from zeros; with `sequence_end` it is the last one (Triton's sequence extension). A
request without `sequence_id` stands alone and begins from zeros.

Where the state's batch axis is known, requests of different sequences that wait at the same time share a run. Requests of one sequence
never do, and are run in the order in which they came.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from idl.codes import Code, ServingError
from idl.messages import TensorSpec
from idl.tensors import DTYPES, Array
from inference_server import errors
from inference_server.types import Answer, Signature

Inputs = Mapping[str, Array]
ID, START, END = "sequence_id", "sequence_start", "sequence_end"
_NONE = (None, "", 0, "0")


class Model(Protocol):
    """What is wrapped."""

    signature: Signature
    providers: tuple[str, ...]

    def run(self, inputs: dict[str, Array], wanted: list[str]) -> list[Array]: ...


@dataclass(frozen=True, slots=True)
class State:
    """`output` becomes `input` of the next request. `axis` of the batch, -1 where there is none; `shape`, for one sequence, of the zeros that
    it begins with.
    """

    input: str
    output: str
    axis: int
    shape: tuple[int, ...]


@dataclass(slots=True)
class _Sequence:
    states: list[Array]
    used: float


@dataclass(slots=True)
class _Turn:
    """One request on its way through the model."""

    index: int
    inputs: Inputs
    key: Any
    states: list[Array]
    last: bool
    rows: int = 1
    group: tuple[bytes, ...] = field(default=())


class Sequenced:
    """Satisfies `running.Backend` and `running.Many`. Not thread-safe. `idle_s`: a sequence that is not continued for so long is forgotten;
    `most`: sequences at once. Raises invalid_model where the model has not the tensors that `said` names.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        said: Mapping[str, Mapping[str, Any]],
        *,
        idle_s: float,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._name = name
        self._idle_s, self._most, self._clock = idle_s, most, clock
        signature = model.signature
        inputs = {spec.name: spec for spec in signature.inputs}
        outputs = {spec.name: spec for spec in signature.outputs}
        self._states = [_state(name, key, each, inputs, outputs) for key, each in said.items()]
        self._dtypes = [DTYPES[inputs[state.input].datatype] for state in self._states]
        carried = {state.input for state in self._states}, {state.output for state in self._states}
        self.signature = replace(
            signature,
            inputs=tuple(spec for spec in signature.inputs if spec.name not in carried[0]),
            outputs=tuple(spec for spec in signature.outputs if spec.name not in carried[1]),
            batch_axis=None,
        )
        self.providers = model.providers
        self._shared = [spec.name for spec in self.signature.inputs if spec.shape[:1] != (-1,)]
        """Inputs without a batch axis: requests that share a run must agree in them."""
        self.may_share = all(state.axis >= 0 for state in self._states) and all(spec.shape[:1] == (-1,) for spec in self.signature.outputs)
        self._sequences: dict[Any, _Sequence] = {}

    def run(self, inputs: Inputs, wanted: list[str]) -> list[Array]:
        """One that stands alone."""
        return list(self.answer(inputs, wanted, {}).outputs)

    def answer(self, inputs: Inputs, wanted: list[str], parameters: Mapping[str, Any]) -> Answer:
        (answer,) = self.answer_many([(inputs, parameters)], wanted)
        if isinstance(answer, ServingError):
            raise answer
        return answer

    def answer_many(self, many: Sequence[tuple[Inputs, Mapping[str, Any]]], wanted: list[str]) -> list[Answer | ServingError]:
        """In the order of `many`; requests of one sequence one after the other."""
        answers: list[Answer | ServingError | None] = [None] * len(many)
        waiting = list(enumerate(many))
        while waiting:
            turns: list[_Turn] = []
            later = []
            taken = set()
            for index, (inputs, parameters) in waiting:
                key = _key(parameters)
                if key is not None and key in taken:
                    later.append((index, (inputs, parameters)))
                    continue
                taken.add(key)
                try:
                    turns.append(self._turn(index, inputs, parameters, key))
                except ServingError as error:
                    answers[index] = error
            for group in self._groups(turns):
                self._run_group(group, wanted, answers)
            waiting = later
        return [answer if answer is not None else errors.model_failed("no answer") for answer in answers]

    def _turn(self, index: int, inputs: Inputs, parameters: Mapping[str, Any], key: Any) -> _Turn:
        start, end = _flag(parameters, START), _flag(parameters, END)
        if key is None and (start or end):
            raise errors.invalid_input(f"{START if start else END} needs a {ID}")
        rows = max((inputs[spec.name].shape[0] for spec in self.signature.inputs if spec.name not in self._shared), default=1)
        group = tuple(np.ascontiguousarray(inputs[name]).tobytes() for name in self._shared)
        states = self._fresh(rows) if key is None or start else self._kept(key)
        for state, kept in zip(self._states, states, strict=True):
            if state.axis >= 0 and kept.shape[state.axis] != rows:
                raise errors.invalid_input(
                    f"sequence {str(key)[:80]} has gone on with {kept.shape[state.axis]} rows and this request has {rows}: the state has one "
                    "for each"
                )
        return _Turn(index, inputs, key, states, end, rows, group)

    def _fresh(self, rows: int) -> list[Array]:
        made = []
        for state, dtype in zip(self._states, self._dtypes, strict=True):
            shape = list(state.shape)
            if state.axis >= 0:
                shape[state.axis] = rows
            made.append(np.zeros(shape, dtype))
        return made

    def _kept(self, key: Any) -> list[Array]:
        known = self._sequences.get(key)
        if known is None or self._clock() - known.used > self._idle_s:
            self._sequences.pop(key, None)
            raise ServingError(
                Code.CONFLICT,
                f"sequence {str(key)[:80]} of model {self._name!r} is not known here: it has ended, was idle for {self._idle_s:g} s, or its "
                f"process began anew; begin it with {START}",
            )
        return known.states

    def _groups(self, turns: list[_Turn]) -> list[list[_Turn]]:
        if not self.may_share:
            return [[turn] for turn in turns]
        groups: dict[tuple[bytes, ...], list[_Turn]] = {}
        for turn in turns:
            groups.setdefault(turn.group, []).append(turn)
        return list(groups.values())

    def _run_group(self, group: list[_Turn], wanted: list[str], answers: list[Answer | ServingError | None]) -> None:
        try:
            found = self._run_together(group, wanted)
        except ServingError as error:
            if len(group) > 1:
                for turn in group:
                    self._run_group([turn], wanted, answers)
            else:
                answers[group[0].index] = error
            return
        for turn, (outputs, states) in zip(group, found, strict=True):
            answers[turn.index] = Answer(outputs)
            try:
                self._keep(turn, states)
            except ServingError as error:
                answers[turn.index] = error

    def _run_together(self, group: list[_Turn], wanted: list[str]) -> list[tuple[list[Array], list[Array]]]:
        feed: dict[str, Array] = {}
        for name in group[0].inputs:
            feed[name] = (
                group[0].inputs[name] if name in self._shared or len(group) == 1 else np.concatenate([turn.inputs[name] for turn in group])
            )
        for number, state in enumerate(self._states):
            many = [turn.states[number] for turn in group]
            feed[state.input] = many[0] if len(many) == 1 else np.concatenate(many, axis=state.axis)
        outputs = self._model.run(feed, [*wanted, *(state.output for state in self._states)])
        if len(group) == 1:
            return [(outputs[: len(wanted)], outputs[len(wanted) :])]
        found, begin = [], 0
        for turn in group:
            end = begin + turn.rows
            parts = [output[begin:end] for output in outputs[: len(wanted)]]
            states = [
                np.ascontiguousarray(np.take(output, range(begin, end), axis=state.axis))
                for state, output in zip(self._states, outputs[len(wanted) :], strict=True)
            ]
            found.append((parts, states))
            begin = end
        return found

    def _keep(self, turn: _Turn, states: list[Array]) -> None:
        if turn.key is None:
            return
        if turn.last:
            self._sequences.pop(turn.key, None)
            return
        if turn.key not in self._sequences and len(self._sequences) >= self._most:
            self._forget_idle()
            if len(self._sequences) >= self._most:
                raise errors.overloaded(f"{self._most} sequences of model {self._name!r} are under way already", 1000)
        self._sequences[turn.key] = _Sequence(states, self._clock())

    def _forget_idle(self) -> None:
        now = self._clock()
        for key in [key for key, sequence in self._sequences.items() if now - sequence.used > self._idle_s]:
            del self._sequences[key]

    @property
    def sequences(self) -> int:
        """How many are under way."""
        return len(self._sequences)

    def settle(self, inputs: Inputs, wanted: Sequence[str]) -> None:
        """As the model's own, where it has one."""
        settle = getattr(self._model, "settle", None)
        if settle is not None:
            feed = {**inputs, **{state.input: array for state, array in zip(self._states, self._fresh(1), strict=True)}}
            settle(feed, wanted)


def _state(model: str, name: str, said: Mapping[str, Any], inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> State:
    spec, out = inputs.get(name), outputs.get(said["output"])
    if spec is None:
        raise errors.invalid_model(model, f"state.{name}: the model has no input {name!r}; it has {', '.join(map(repr, inputs)) or 'none'}")
    if out is None:
        have = ", ".join(map(repr, outputs)) or "none"
        raise errors.invalid_model(model, f"state.{name}.output: the model has no output {said['output']!r}; it has {have}")
    if spec.datatype != out.datatype:
        raise errors.invalid_model(model, f"state.{name} is {spec.datatype}, and its output {out.name!r} is {out.datatype}")
    axis = said.get("batch_axis", -1)
    shape = tuple(said.get("shape") or spec.shape)
    if len(shape) != len(spec.shape) or any(own not in (-1, size) for own, size in zip(spec.shape, shape, strict=True)):
        raise errors.invalid_model(model, f"state.{name}.shape is {list(shape)}, and the model's input has {list(spec.shape)}")
    if axis >= len(shape):
        raise errors.invalid_model(model, f"state.{name}.batch_axis is {axis}, and the model's input has shape {list(spec.shape)}")
    open_axes = [index for index, size in enumerate(shape) if size < 0 and index != axis]
    if open_axes:
        raise errors.invalid_model(
            model, f"state.{name}: size {open_axes[0]} of {list(shape)} is open: say the batch_axis, or the shape that it begins with"
        )
    return State(name, said["output"], axis, shape)


def _key(parameters: Mapping[str, Any]) -> Any:
    """The sequence's id, None for a request that stands alone. A text of digits is that number: Thrift's parameters are texts."""
    given = parameters.get(ID)
    if given in _NONE or isinstance(given, bool):
        return None
    return int(given) if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 20 else given


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if value in (True, "true", 1, "1"):
        return True
    if value in (False, "false", 0, "0", None):
        return False
    raise errors.invalid_input(f"parameter {name!r} is {value!r}, not true or false")
