"""PMML models through pypmml: pmml4s in a Java machine inside this process (JPype), so no port and no second process.

Every field of the data that the model takes is an input of shape [-1], one value for each row, and every result an output. Missing values are
NaN, or empty texts; a result that is missing is the same.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idl.codes import ServingError
from idl.messages import TensorSpec
from idl.tensors import DTYPES, Array
from inference_server import errors
from inference_server.backends import pmml_file
from inference_server.types import Signature

PLATFORM = "pmml"
NEEDED = "PMML models need pypmml and Java 11 or later (pip install -e '.[pmml]' in the checkout; Debian: apt install default-jre-headless)"
_INPUTS = {
    "string": "BYTES",
    "integer": "INT64",
    "float": "FP32",
    "double": "FP64",
    "real": "FP64",
    "boolean": "BOOL",
    "date": "BYTES",
    "time": "BYTES",
    "dateTime": "BYTES",
}
"""PMML's data types -> the protocol's. Of an output every other one is a text."""
_LEAST_HEAP = 64 * 2**20
_LONGEST_WORDS = 300


class PmmlModel:
    """Satisfies `running.Backend`. `memory`: what the model may have, in bytes, 0 for no limit. Raises invalid_model, unsupported."""

    providers: tuple[str, ...] = ()

    def __init__(self, path: Path, name: str, memory: int = 0) -> None:
        text, fields = pmml_file.read(path, name)
        kind = _runtime(name, memory)
        try:
            self._model = kind.fromString(text)
            given = [(str(each.name), str(each.dataType)) for each in self._model.inputFields]
            results = [(str(each.name), str(each.dataType)) for each in self._model.outputFields]
        except Exception as error:
            raise errors.invalid_model(name, f"{path.name} is not PMML that is understood: {_words(error)}") from error
        for field, datatype in given:
            if datatype not in _INPUTS:
                raise errors.invalid_model(name, f"{path.name}: field {field!r} is a {datatype}, which is not carried")
        inputs = tuple(TensorSpec(field, _INPUTS[datatype], (-1,)) for field, datatype in given)
        outputs = tuple(TensorSpec(field, _INPUTS.get(datatype, "BYTES"), (-1,)) for field, datatype in results)
        if not inputs or not outputs:
            raise errors.invalid_model(name, f"{path.name} has no {'field that it takes' if not inputs else 'result'}")
        self.fields = {field: fields[field] for field, _ in given if field in fields}
        notes = {field: known.described() for field, known in self.fields.items()}
        self.signature = Signature(PLATFORM, inputs, outputs, 0, notes=notes)
        self._outputs = {spec.name: spec for spec in outputs}

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """Each output [rows]. Raises invalid_input for values that the file says are none, model_failed where the model fails."""
        rows = {len(array) for array in inputs.values()}
        if len(rows) > 1:
            told = ", ".join(f"{name!r} {len(array)}" for name, array in inputs.items())
            raise errors.invalid_input(f"the inputs have different numbers of rows: {told}")
        columns = {name: _column(name, array) for name, array in inputs.items()}
        for name, field in self.fields.items():
            field.check(inputs[name])
        answers = []
        for row in zip(*columns.values(), strict=True):
            try:
                answers.append(self._model.predict(dict(zip(columns, row, strict=True))))
            except Exception as error:
                raise errors.model_failed(f"the model fails on row {len(answers)}: {_words(error)}") from error
        return [self._output(self._outputs[name], answers) for name in wanted]

    @staticmethod
    def _output(spec: TensorSpec, answers: Sequence[Any]) -> Array:
        made: Array = np.empty(len(answers), object if spec.datatype == "BYTES" else DTYPES[spec.datatype])
        for index, answer in enumerate(answers):
            value = answer.get(spec.name)
            try:
                made[index] = _result(spec, value)
            except (TypeError, ValueError, OverflowError):
                what = "no value" if value is None else f"{str(value)[:100]!r}"
                raise errors.model_failed(f"output {spec.name!r} of row {index} is {what}, and {spec.datatype} was expected") from None
        return made


def _runtime(model: str, memory: int) -> Any:
    """pypmml's Model, over the Java machine of this process. Raises unsupported where a part is not installed."""
    try:
        import jpype
        from pypmml import Model
        from pypmml.base import PMMLContext
    except ImportError as missing:
        raise errors.unsupported(f"model {model!r}: {NEEDED}: {missing.name or missing} is missing") from missing
    # no signal handlers, no files, few threads; the heap below the process's own limit, so that Java says so before the process is ended
    options = ["-Xrs", "-XX:-UsePerfData", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
    if memory:
        options.append(f"-Xmx{max(_LEAST_HEAP, memory * 6 // 10)}")
    try:
        PMMLContext.getOrCreate(gateway="jpype", java_opts=options, java_path=jpype.getDefaultJVMPath())
    except jpype.JVMNotFoundException as missing:
        raise errors.unsupported(f"model {model!r}: {NEEDED}: Java is missing") from missing
    except Exception as error:
        raise errors.unsupported(f"model {model!r}: {NEEDED}: Java does not start: {_words(error)}") from error
    return Model


def _column(name: str, array: Array) -> list[Any]:
    """Python's own values: numpy's crash pypmml. None for what is missing."""
    if array.dtype.kind == "f":
        return [None if math.isnan(item) else item for item in array.tolist()]
    if array.dtype.kind != "O":
        return list(array.tolist())
    texts = []
    for index, item in enumerate(array.tolist()):
        try:
            texts.append(item.decode() or None)
        except UnicodeDecodeError:
            raise errors.invalid_input(f"input {name!r}: row {index} is not UTF-8, and the model takes text") from None
    return texts


def _result(spec: TensorSpec, value: Any) -> Any:
    if spec.datatype == "BYTES":
        return b"" if value is None else str(value).encode()
    if spec.datatype in ("FP32", "FP64"):
        return math.nan if value is None else float(value)
    if value is None:
        raise ValueError
    return bool(value) if spec.datatype == "BOOL" else int(value)


def _words(error: Exception) -> str:
    if isinstance(error, ServingError):
        return error.message
    return " ".join(str(part) for part in error.args).split("\n")[0][:_LONGEST_WORDS] or type(error).__name__
