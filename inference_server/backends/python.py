"""A model that is a Python file: `model.py` with `infer`, and optionally `load` and `close`.

    load(context)                     once, before the first request; `context` is a `Context`
    infer(inputs)                     inputs: name -> numpy array; gives name -> array (or what numpy makes one of),
    infer(inputs, parameters)         or a pair of these and of parameters for the answer. As a generator it gives several answers.
    close()                           when the model leaves

It runs in a process of its own, one request at a time. What it says of its tensors stands in `model.toml` (or `config.pbtxt`). Texts are
arrays of `bytes`. An exception of the class `InvalidInput` (`from outboard_model import InvalidInput`) is the caller's fault, any other one
the model's.
"""

import inspect
import math
import runpy
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from idl.codes import ServingError
from idl.messages import TensorSpec
from idl.tensors import DTYPES, Array
from inference_server import errors
from inference_server.types import Answer, Signature

PLATFORM = "python"
API = "outboard_model"
_LONGEST_WORDS = 500


class InvalidInput(ValueError):
    """Raised by a model: the request cannot be answered as it is. Its words go to the caller."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a model is told. `folder`: its version's; `parameters`: those of its configuration."""

    model: str
    version: int
    folder: Path
    parameters: Mapping[str, str]


class PythonModel:
    """Satisfies `serving.Backend`. Raises invalid_model from the constructor."""

    providers: tuple[str, ...] = ()

    def __init__(
        self, file: Path, context: Context, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], batches: bool
    ) -> None:
        self._file = file
        self._specs = {spec.name: spec for spec in outputs}
        if not outputs:
            raise errors.invalid_model(
                context.model, "it does not say what it gives: model.toml needs [outputs.NAME] with datatype and shape"
            )
        found = self._loaded(context)
        self._infer: Callable[..., Any] = found["infer"]
        self._takes_parameters = _positional(self._infer) > 1
        self._close: Callable[[], None] = found.get("close") or _nothing
        streams = inspect.isgeneratorfunction(self._infer)
        self.signature = Signature(PLATFORM, inputs, outputs, 0 if batches and not streams else None, streams)

    def _loaded(self, context: Context) -> dict[str, Any]:
        api = types.ModuleType(API)
        api.InvalidInput = InvalidInput  # type: ignore[attr-defined]
        sys.modules[API] = api
        sys.path.insert(0, str(context.folder))
        try:
            found = runpy.run_path(str(self._file), run_name="model")
            infer = found.get("infer")
            if not callable(infer):
                raise errors.invalid_model(context.model, f"{self._file.name} has no function infer")
            if not 1 <= _positional(infer) <= 2:
                raise errors.invalid_model(context.model, f"infer in {self._file.name} takes (inputs) or (inputs, parameters)")
            if callable(load := found.get("load")):
                load(*([context] if _positional(load) else []))
        except ServingError:
            raise
        except BaseException as error:
            traceback.print_exc()
            raise errors.invalid_model(context.model, self._words(error)) from error
        return found

    def run(self, inputs: Mapping[str, Array], wanted: list[str]) -> list[Array]:
        """As `answer`, without parameters."""
        return list(self.answer(inputs, wanted, {}).outputs)

    def answer(self, inputs: Mapping[str, Array], wanted: list[str], parameters: Mapping[str, Any]) -> Answer:
        """Raises invalid_input where the model says so, model_failed for everything else that goes wrong in it."""
        try:
            given = self._infer(inputs, parameters) if self._takes_parameters else self._infer(inputs)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise self._failure(error) from error
        return self._answer(given, wanted)

    def answers(self, inputs: Mapping[str, Array], wanted: list[str], parameters: Mapping[str, Any]) -> Iterator[Answer]:
        """Of a generator. Raises as `answer`; closing it closes the model's own."""
        try:
            given = self._infer(inputs, parameters) if self._takes_parameters else self._infer(inputs)
            try:
                for each in given:
                    yield self._answer(each, wanted)
            finally:
                given.close()
        except ServingError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Raises nothing."""
        try:
            self._close()
            sys.stdout.flush()
        except Exception:  # noqa: BLE001 - it is on its way out
            traceback.print_exc()

    def _failure(self, error: BaseException) -> ServingError:
        if isinstance(error, InvalidInput):
            return errors.invalid_input(f"the model refuses its input: {str(error)[:_LONGEST_WORDS]}")
        traceback.print_exc()
        return errors.model_failed(self._words(error))

    def _words(self, error: BaseException) -> str:
        """What went wrong, and where in the owner's file."""
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        text = text.replace(f"{self._file.parent}/", "")[:_LONGEST_WORDS]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self._file)]
        return f"{self._file.name}{f', line {lines[-1]}' if lines else ''}: {text}"

    def _answer(self, given: Any, wanted: list[str]) -> Answer:
        outputs, parameters = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
        if not isinstance(outputs, Mapping):
            raise errors.model_failed(f"infer gave a {type(outputs).__name__}, not a dict of output name -> array")
        if not isinstance(parameters, Mapping) or not all(
            isinstance(key, str) and isinstance(value, (bool, int, float, str)) for key, value in parameters.items()
        ):
            raise errors.model_failed("the parameters of an answer are texts, numbers and truth values by their names")
        for key, value in parameters.items():
            if reason := _against(key) or _against(value):
                raise errors.model_failed(f"the parameter {ascii(key)[:80]} of an answer {reason}")
        return Answer([self._array(name, outputs) for name in wanted], dict(parameters))

    def _array(self, name: str, outputs: Mapping[str, Any]) -> Array:
        if name not in outputs:
            raise errors.model_failed(f"infer gave no output {name!r}; it gave {', '.join(map(repr, outputs)) or 'nothing'}")
        spec = self._specs[name]
        array = _texts(name, outputs[name]) if spec.datatype == "BYTES" else _numbers(name, outputs[name], spec)
        if len(array.shape) != len(spec.shape) or any(said not in (-1, got) for got, said in zip(array.shape, spec.shape, strict=True)):
            raise errors.model_failed(f"output {name!r} has shape {list(array.shape)}, and {list(spec.shape)} is declared")
        return array


def _nothing() -> None:
    pass


def _positional(function: Callable[..., Any]) -> int:
    """How many arguments it takes in order, 2 for any number."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 2
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)


def _numbers(name: str, value: Any, spec: TensorSpec) -> Array:
    wanted = np.dtype(DTYPES[spec.datatype])
    try:
        array = np.asarray(value)
        if array.dtype != wanted:
            if not np.can_cast(array.dtype, wanted, "same_kind") and not _is_plain(value, array, wanted):
                raise errors.model_failed(f"output {name!r} is {array.dtype}, and {spec.datatype} is declared")
            array = array.astype(wanted)
    except (ValueError, TypeError, OverflowError) as error:
        raise errors.model_failed(f"output {name!r} cannot be made an array: {error}") from error
    return array


def _is_plain(value: Any, array: Array, wanted: "np.dtype[Any]") -> bool:
    """Python's own whole numbers fit where their values do."""
    if isinstance(value, np.ndarray) or array.dtype.kind not in "iu" or wanted.kind not in "iuf":
        return False
    return wanted.kind == "f" or bool(array.size == 0 or (array.min() >= np.iinfo(wanted).min and array.max() <= np.iinfo(wanted).max))


def _against(value: Any) -> str:
    """Why no protocol can carry it, "" where each of them can."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "holds half a surrogate pair, which is no text"
    elif isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which JSON has no word for"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "does not fit 64 bits"
    return ""


def _texts(name: str, value: Any) -> Array:
    array = np.asarray(value, object)
    items = np.empty(array.size, object)
    for index, item in enumerate(array.ravel().tolist()):
        if isinstance(item, str):
            items[index] = item.encode()
        elif isinstance(item, (bytes, bytearray, memoryview)):
            items[index] = bytes(item)
        else:
            raise errors.model_failed(f"output {name!r}: element {index} is a {type(item).__name__}, not a text or bytes")
    return items.reshape(array.shape)
