"""What a model is run on before it takes requests: an owner's samples, or one that is made from the signature.

The supervisor reads the samples out of the settings and sends them on as plain JSON values; the executor makes arrays of them, for only
there the signature is known. numpy only: this is imported into the process that executors are forked from.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from idl import tensors
from idl.codes import ServingError
from idl.messages import TensorSpec
from idl.tensors import Array
from inference_server import errors
from inference_server.setting_checks import PLAIN_NAME, InvalidModelSettings, bad, boolean, is_number, is_whole, table, whole
from inference_server.types import Signature

FOLDER = "warmup"
"""Below a model's folder: where a Triton repository keeps the contents of samples."""
MOST_SAMPLES, MOST_RUNS = 100, 1000
MOST_BYTES = 2**30
"""Of one sample's tensors: a slip of the pen in a shape must not take the host's memory."""
_MOST_SIZE = 2**40


@dataclass(frozen=True, slots=True)
class SampleInput:
    """One tensor of a sample: `value` everywhere, or `random`, or what `file` holds (relative to the model's folder), else zeros.

    `shape` None: the file's own, or the model's with 1 for every open size. `datatype` "": the model's.
    """

    shape: tuple[int, ...] | None = None
    datatype: str = ""
    value: float | str | bool | None = None
    random: bool = False
    file: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """`batch`: this many items on a first axis that `shape` leaves out; None: shapes are whole. `count`: how often it is run."""

    inputs: dict[str, SampleInput] = field(default_factory=dict)
    batch: int | None = None
    count: int = 1


# in the supervisor ---------------------------------------------------------------------------------------------------------------


def reader(key: str, value: Any, folder: Path) -> tuple[Sample, ...]:
    """Of the key `warmup`: a list of tables."""
    if not isinstance(value, list) or len(value) > MOST_SAMPLES:
        raise bad(key, value, f"a list of at most {MOST_SAMPLES} tables")
    found = [table(f"{key}[{index}]", item, SAMPLE_READERS, folder) for index, item in enumerate(value)]
    return tuple(Sample(item.get("inputs", {}), item.get("batch"), item.get("count", 1)) for item in found)


def _inputs(key: str, value: Any, folder: Path) -> dict[str, SampleInput]:
    if not isinstance(value, dict):
        raise bad(key, value, "a table of input name = content")
    return {str(name): _input(f"{key}.{name}", content, folder) for name, content in value.items()}


def _input(key: str, value: Any, folder: Path) -> SampleInput:
    found = table(key, value, INPUT_READERS, folder)
    if len(found.keys() & {"value", "random", "file"}) > 1:
        raise InvalidModelSettings(f"{key} has more than one of value, random and file")
    return SampleInput(**found)


def _shape(key: str, value: Any, folder: Path) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > tensors.MAX_RANK or not all(is_whole(size, 0, _MOST_SIZE) for size in value):
        raise bad(key, value, "a shape: a list of sizes from 0")
    return tuple(value)


def _value(key: str, value: Any, folder: Path) -> float | str | bool:
    if not isinstance(value, (bool, str)) and not is_number(value):
        raise bad(key, value, "a number, a text, or true or false")
    return value  # type: ignore[no-any-return]


def _file(key: str, value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not PLAIN_NAME.fullmatch(value.removeprefix(f"{FOLDER}/")):
        raise bad(key, value, f"the plain name of a file beside the settings, or of one in the folder {FOLDER}")
    return value


INPUT_READERS = {"shape": _shape, "value": _value, "random": boolean, "file": _file}
SAMPLE_READERS = {"batch": whole(1, 65536), "count": whole(1, MOST_RUNS), "inputs": _inputs}


def warmup_samples(samples: Sequence[Sample], folder: Path) -> list[dict[str, Any]]:
    """Samples as JSON values for an executor, files with their whole path. `folder`: the model's."""
    return [
        {
            "batch": sample.batch,
            "count": sample.count,
            "inputs": {
                name: {
                    "shape": content.shape,
                    "datatype": content.datatype,
                    "value": content.value,
                    "random": content.random,
                    "file": str(folder / content.file) if content.file else "",
                }
                for name, content in sample.inputs.items()
            },
        }
        for sample in samples
    ]


# in the executor -----------------------------------------------------------------------------------------------------------------


def warmup_inputs(model: str, samples: Sequence[Mapping[str, Any]], signature: Signature) -> Iterator[dict[str, Array]]:
    """The inputs of each run of a warm-up; without samples of one, on zeros. Raises invalid_model for a sample that does not fit."""
    for index, said in enumerate(samples or [{"batch": None, "count": 1, "inputs": {}}]):
        where = f"warm-up sample {index + 1}"
        try:
            arrays = _sample(said, signature, np.random.default_rng(index))
        except ServingError as error:
            raise errors.invalid_model(model, f"{where} cannot be used: {error.message}") from error
        except (OSError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
            raise errors.invalid_model(model, f"{where} cannot be used: {_reason(error)}") from error
        for _ in range(said["count"]):
            yield arrays


def _reason(error: Exception) -> str:
    """Without the path that an OSError has in its text."""
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)[:200] or type(error).__name__


def _sample(said: Mapping[str, Any], signature: Signature, random: np.random.Generator) -> dict[str, Array]:
    specs = {spec.name: spec for spec in signature.inputs}
    if unknown := [name for name in said["inputs"] if name not in specs]:
        raise ValueError(f"the model has no input {unknown[0]!r}; it has {', '.join(map(repr, specs)) or 'none'}")
    contents = {name: SampleInput(**said["inputs"].get(name, {})) for name in specs}
    made, size = {}, 0
    for name, spec in specs.items():
        made[name] = array = _array(f"input {name!r}", spec, contents[name], said["batch"], random, MOST_BYTES - size)
        size += array.nbytes
    return made


def _array(where: str, spec: TensorSpec, content: SampleInput, batch: int | None, random: np.random.Generator, room: int) -> Array:
    if content.datatype not in ("", spec.datatype):
        raise ValueError(f"{where} is {content.datatype} there, the model takes {spec.datatype}")
    item = None if content.shape is None else tuple(content.shape)
    if item is None:
        item = tuple(1 if size < 0 else size for size in (spec.shape if batch is None else spec.shape[1:]))
    array = _from_file(where, spec, content, item, room) if content.file else None
    shape = item if array is None else array.shape
    if batch is not None:
        shape = (batch, *shape)
    if len(shape) != len(spec.shape) or any(want not in (-1, got) for want, got in zip(spec.shape, shape, strict=True)):
        raise ValueError(f"{where} has shape {list(shape)}, the model takes {list(spec.shape)}")
    if math.prod(shape) * tensors.DTYPES[spec.datatype].itemsize > room:
        raise ValueError(f"{where} has shape {list(shape)}, and a sample may have at most {MOST_BYTES} bytes")
    return _filled(spec.datatype, content, shape, random) if array is None else np.ascontiguousarray(np.broadcast_to(array, shape))


def _filled(datatype: str, content: SampleInput, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    dtype = tensors.DTYPES[datatype]
    if content.random:
        return _random(datatype, shape, random)
    value = content.value
    if datatype == "BYTES":
        if value is not None and not isinstance(value, str):
            raise ValueError(f"value = {value!r} is not a text")
        return np.full(shape, (value or "").encode(), dtype)
    if isinstance(value, str) or isinstance(value, bool) is not (datatype == "BOOL" and value is not None):
        raise ValueError(f"value = {value!r} is not a {datatype}")
    if datatype == "BF16":
        return _bfloat16(np.full(shape, value or 0, np.float32))
    if dtype.kind in "iu" and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"value = {value!r} is not a {datatype}")
    return np.full(shape, int(value or 0) if dtype.kind in "iu" else value or 0, dtype)


def _random(datatype: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Numbers from 0 to 1: as whole numbers 0 and 1, which an index into whatever table the model has can be."""
    dtype = tensors.DTYPES[datatype]
    if datatype == "BYTES":
        texts = np.empty(shape, object)
        texts.reshape(-1)[:] = [bytes(random.integers(97, 123, 8, np.uint8)) for _ in range(math.prod(shape))]
        return texts
    if datatype == "BF16":
        return _bfloat16(random.random(shape, np.float32))
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def _bfloat16(values: Array) -> Array:
    """float32 -> the upper halves of its bits, which is how BF16 travels."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _from_file(where: str, spec: TensorSpec, content: SampleInput, item: tuple[int, ...], room: int) -> Array:
    path = Path(content.file)
    try:
        if path.stat().st_size > room:
            raise ValueError(f"it is over {MOST_BYTES} bytes")
        if path.suffix == ".npy":
            array: Array = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            array = _from_json(spec.datatype, json.loads(path.read_bytes()))
        else:
            return tensors.decode(spec.name, spec.datatype, item, path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{where}: file {path.name!r} is not there") from None
    except ServingError as error:
        raise ValueError(f"{where}: file {path.name!r}: {error.message}") from error
    except (OSError, ValueError, TypeError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"{where}: file {path.name!r}: {_reason(error)}") from error
    if spec.datatype == "BYTES" and array.dtype.kind in "SUO":
        array = tensors.decode(spec.name, "BYTES", array.shape, tensors.encode(array, "BYTES"))
    if array.dtype != tensors.DTYPES[spec.datatype]:
        raise ValueError(f"{where}: file {path.name!r} holds {array.dtype}, the model takes {spec.datatype}")
    if content.shape is not None and array.shape != item:
        raise ValueError(f"{where}: file {path.name!r} holds shape {list(array.shape)}, {list(item)} is said")
    return array


def _from_json(datatype: str, values: Any) -> Array:
    if datatype == "BYTES":
        return np.array(values, object)
    dtype = np.dtype(np.float32) if datatype == "BF16" else tensors.DTYPES[datatype]
    kind = np.array(values).dtype.kind
    if (kind == "f" and dtype.kind in "iu") or (kind == "b") is not (dtype.kind == "b"):
        raise ValueError(f"its JSON holds other values than {datatype}")
    array = np.array(values, dtype)
    return _bfloat16(array) if datatype == "BF16" else array
