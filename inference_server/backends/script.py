"""A model that is a script of a user: `script.py` with `preprocess(inputs)`, `postprocess(outputs)` or both, around somebody's model.

What it takes and gives is open: any names, types and shapes. A request says with the parameter `function` which of the two is meant; one that
the script has not got gives back what it was given. Each call runs in a process of its own in a box (`executors.script_box`), so one call
leaves nothing to the next, and whatever it does costs itself only.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from idl.codes import Code, ServingError
from idl.messages import Tensor
from idl.tensors import Array
from inference_server import errors
from inference_server.backends import script_frames as frames
from inference_server.reservations import in_units
from inference_server.types import Signature

PLATFORM = "script"
MOST_SOURCE = 256 * 1024
"""Bytes of a script."""
MOST_IMPORTS, MOST_LESSONS = 2000, 8
"""Modules that are imported for it beforehand; how often calls that import further ones change them."""
_CHOICE = " or ".join(f'"{name}"' for name in frames.FUNCTIONS)
_ROOTS = sorted({sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parent.parent.parent)}, key=len, reverse=True)

_CLOSED = "the script has closed the way that its answer goes"

Outcome = tuple[list[Tensor], dict[str, Any]] | ServingError
Done = Callable[[Outcome, tuple[str, ...]], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one call: seconds, bytes besides what the interpreter has, bytes of the answer's tensors."""

    timeout_s: float
    memory: int
    answer: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended: `why`, the `status` of its process as wait gives it, and its answer where it is ANSWERED."""

    ANSWERED: ClassVar[str] = "answered"
    LATE: ClassVar[str] = "late"
    DEADLINE: ClassVar[str] = "deadline"
    GONE: ClassVar[str] = "gone"
    LARGE: ClassVar[str] = "large"
    HUNG_UP: ClassVar[str] = "hung up"
    CLOSED: ClassVar[str] = "closed"
    """HUNG_UP: its process has ended; CLOSED: it had not, and went on without a way to answer."""

    why: str
    status: int
    head: bytes
    body: memoryview


class BoxEnded(Exception):
    """The box as a whole has ended, or could not begin; the message says why."""


class Box(Protocol):
    """Where scripts run: see `executors.script_box.ScriptBox`."""

    def call(self, parts: Sequence[bytes | memoryview], deadline: float | None, watch: int) -> Ended: ...

    def settle(self) -> None:
        """Waits until nothing of the last call is left. Raises nothing."""
        ...

    def prepare(self, modules: Sequence[str]) -> None:
        """Raises nothing."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Checked:
    """What a script was found to be. `code`: what the box makes of it; `imports`: modules that loading it brought; `load_ms`: how long that took."""

    functions: tuple[str, ...]
    code: bytes
    imports: tuple[str, ...]
    load_ms: float


class Unfit(Exception):
    """The script cannot be used; the message says why, with the line where there is one."""


def checked(source: bytes, box: Box, limits: Limits) -> Checked:
    """Looks at a script: it is compiled and loaded in `box`, and none of its functions is called. Raises Unfit, BoxEnded, unsupported."""
    if len(source) > MOST_SOURCE:
        raise Unfit(f"it has {len(source)} bytes, at most {MOST_SOURCE} are taken")
    try:
        source.decode()
    except UnicodeDecodeError as error:
        raise Unfit(f"it is not UTF-8: byte {error.start} is 0x{source[error.start]:02x}") from error
    ended = box.call(frames.question(source, (), {"function": frames.CHECK, "limit": limits.answer}), None, -1)
    try:
        answer = _answer_of(ended, limits)
        found = answer.said.get("found")
        if not isinstance(found, dict) or len(answer.outputs) != 1:
            raise Unfit("it gave something that is no answer")
        functions = tuple(name for name in frames.FUNCTIONS if name in found["functions"])
        imports = tuple(str(name) for name in found["imports"])[:MOST_IMPORTS]
        checked = Checked(functions, bytes(answer.outputs[0].data), imports, float(found["load_ms"]))
    except ServingError as error:
        raise Unfit(error.message) from error
    except (KeyError, TypeError, ValueError) as error:
        raise Unfit("it gave something that is no answer") from error
    if not functions:
        raise Unfit(f"it has neither {' nor '.join(frames.FUNCTIONS)}")
    return checked


class ScriptModel:
    """Satisfies `serving.Backend` and `side_by_side.Concurrent`: one request at a time, in a thread of its own. Takes `box` over."""

    providers: tuple[str, ...] = ()
    most = 1

    def __init__(self, name: str, source: bytes, box: Box, limits: Limits) -> None:
        """Raises invalid_model, unsupported, not_ready."""
        self._box, self._limits = box, limits
        try:
            found = checked(source, box, limits)
            box.prepare(found.imports)
        except Unfit as error:
            raise errors.invalid_model(name, str(error)) from error
        except BoxEnded as error:
            raise errors.not_ready(f"model {name!r}: {error}") from error
        self._code, self._imports = found.code, set(found.imports)
        self._lessons = MOST_LESSONS
        self.signature = Signature(PLATFORM, (), (), None, functions=found.functions)
        self._new: set[str] = set()
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="script", daemon=True)
        self._thread.start()

    def run(self, inputs: Mapping[str, Array], wanted: list[str]) -> list[Array]:
        """A script has no samples to be run on. Raises unsupported."""
        raise errors.unsupported("a script is run on what somebody asks")

    def start(
        self,
        given: Sequence[Tensor],
        wanted: Sequence[str],
        parameters: Mapping[str, Any],
        deadline: float | None,
        watch: int,
        done: Done,
        traced: bool = False,
    ) -> None:
        """As `backends.pipeline.PipelineModel.start`; it has no steps to tell of."""
        self._waiting.put(lambda: done(self._outcome(given, wanted, parameters, deadline, watch), ()))

    def close(self) -> None:
        """When no request is inside. Idempotent."""
        self._waiting.put(None)
        self._thread.join()
        self._box.close()

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            call()
            self._box.settle()
            self._learn()

    def _learn(self) -> None:
        """What the call before has imported is imported before the next."""
        new, self._new = self._new, set()
        if not new or not self._lessons or len(self._imports) + len(new) > MOST_IMPORTS:
            return
        self._lessons -= 1
        self._imports |= new
        self._box.prepare(sorted(self._imports))

    def _outcome(
        self, given: Sequence[Tensor], wanted: Sequence[str], parameters: Mapping[str, Any], deadline: float | None, watch: int
    ) -> Outcome:
        try:
            function = _function(parameters)
            if function in self.signature.functions:
                said = {"function": function, "limit": self._limits.answer}
                answer = _answer_of(self._box.call(frames.question(self._code, given, said), deadline, watch), self._limits)
                outputs = answer.outputs
                if isinstance(gave := answer.said.get("gave"), list):
                    self._new = {name for name in map(str, gave) if name not in self._imports}
            else:
                outputs = tuple(given)
            return _chosen(outputs, wanted, function), {}
        except ServingError as error:
            return error
        except BoxEnded as error:
            return errors.model_failed(f"the script could not be run: {error}")
        except Exception as error:  # noqa: BLE001 - its caller must hear something
            return ServingError(Code.INTERNAL, f"the script could not be run: {type(error).__name__}")


def _function(parameters: Mapping[str, Any]) -> str:
    said = parameters.get("function")
    if said is None:
        raise errors.invalid_input(f"the parameter 'function' is missing: {_CHOICE}")
    if said not in frames.FUNCTIONS:
        raise errors.invalid_input(f"parameter 'function' is {said!r:.100}, not {_CHOICE}")
    return str(said)


def _chosen(outputs: Sequence[Tensor], wanted: Sequence[str], function: str) -> list[Tensor]:
    if not wanted:
        return list(outputs)
    by_name = {tensor.name: tensor for tensor in outputs}
    for name in wanted:
        if name not in by_name:
            raise errors.invalid_input(f"{function} gave no output {name!r:.100}; it gave {', '.join(map(repr, by_name)) or 'nothing'}")
    return [by_name[name] for name in wanted]


# what went wrong, in the words of the script's owner -----------------------------------------------------------------------------------


def _answer_of(ended: Ended, limits: Limits) -> frames.Answer:
    """Raises model_failed, too_large, invalid_input, deadline_exceeded, cancelled."""
    if ended.why == Ended.DEADLINE:
        raise errors.deadline_exceeded("the deadline passed while the script ran")
    if ended.why == Ended.GONE:
        raise ServingError(Code.CANCELLED, "the caller has gone")
    if ended.why == Ended.LARGE:
        raise errors.too_large(f"the script gave more than {limits.answer} bytes, which is the most that is sent")
    if ended.why == Ended.CLOSED:
        raise errors.model_failed(_CLOSED)
    if ended.why != Ended.ANSWERED:
        raise errors.model_failed(_late(limits) if ended.why == Ended.LATE else _died(ended.status, limits))
    try:
        answer = frames.read_answer(ended.head, ended.body)
    except frames.Unusable as error:
        raise errors.model_failed(f"the script's answer cannot be used: {error}") from error
    _check(answer.said, limits)
    return answer


def _check(said: Mapping[str, Any], limits: Limits) -> None:
    """Raises what the call's process says that went wrong."""
    if isinstance(size := said.get("large"), int):
        raise errors.too_large(f"the script gave {size} bytes, at most {limits.answer} are sent")
    if "wrong" in said:
        raise errors.model_failed(_hidden(str(said["wrong"])))
    if "raised" not in said:
        return
    text, line, kind = _hidden(str(said["raised"])), said.get("line"), said.get("kind")
    if kind == "memory":
        raise errors.model_failed(f"the script used more memory than {in_units(limits.memory)}")
    if kind == "input":
        raise errors.invalid_input(f"the script refuses its input: {text}")
    where = f"{frames.FILE}, line {line}" if isinstance(line, int) and line > 0 else frames.FILE
    raise errors.model_failed(f"{where}: {text}" if kind == "syntax" else f"the script raised {text} ({where})")


def _late(limits: Limits) -> str:
    return f"the script took longer than {limits.timeout_s:g} s"


def _died(status: int, limits: Limits) -> str:
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == frames.NO_WAY_OUT:
        return _CLOSED
    if os.WIFEXITED(status):
        return f"the script ended its process (status {os.WEXITSTATUS(status)}) instead of giving an answer"
    ended_by = os.WTERMSIG(status)
    if ended_by == signal.SIGXCPU:
        return _late(limits)
    if ended_by == signal.SIGKILL:
        return "the script used more memory than there is for its model, or on its host"
    name = signal.Signals(ended_by).name if ended_by in {*signal.Signals} else str(ended_by)
    return f"the script's process died of {name}"


def _hidden(text: str) -> str:
    """Without where things lie on this host."""
    for root in _ROOTS:
        text = text.replace(f"{root}/", "")
    return text.replace(f"{frames.FOLDER}/", "")[:2000]
