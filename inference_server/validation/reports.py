"""What a trial's process told -> the answer to its caller. It is a stranger's word: every value is checked and bounded."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from idl.messages import Latency, ValidatedTensor, Validation
from idl.tensors import DTYPES
from inference_server.validation.trials import Tried

_LONGEST, _MOST_TENSORS, _MOST_VALUES, _MOST_WARNINGS, _MOST_AXES = 256, 4096, 100, 20, 32
_LONGEST_WARNING = 600
_STEP = 16 * 2**20
_SPARE = 32 * 2**20
_LEAST = 64 * 2**20
_CPUS = ((10.0, 0.25), (50.0, 0.5), (500.0, 1.0))
"""(p50 of one row up to this many milliseconds on one thread, cpus to begin with)."""
_MOST_CPUS = 2.0


def validation(kind: str, tried: Tried, model_file: str, files: Sequence[str], size: int) -> Validation:
    """Raises KeyError, TypeError, ValueError or OverflowError for what is no report."""
    said = tried.report
    latencies = tuple(_latency(each) for each in said["latencies"][:8])
    count = said["parameter_count"]
    return Validation(
        format=kind,
        platform=_text(said["platform"]),
        algorithm=_text(said["algorithm"]),
        producer=_text(said["producer"]),
        opset=_whole(said["opset"]),
        parameter_count=None if count is None else _whole(count),
        size_bytes=size,
        inputs=_tensors(said["inputs"]),
        outputs=_tensors(said["outputs"]),
        memory_bytes=tried.memory_bytes,
        load_ms=_number(said["load_ms"]),
        latencies=latencies,
        proposed_cpus=_cpus(latencies),
        proposed_memory_bytes=_memory(tried.memory_bytes),
        warnings=tuple(_text(each, _LONGEST_WARNING) for each in said["warnings"][:_MOST_WARNINGS]),
        model_file=model_file,
        files=tuple(files),
    )


def _cpus(latencies: Sequence[Latency]) -> float:
    """What one instance should reserve, by how long one row takes; 1 where nothing ran."""
    one = next((each.p50_ms for each in latencies if each.batch == 1), None)
    return 1.0 if one is None else next((cpus for limit, cpus in _CPUS if one <= limit), _MOST_CPUS)


def _memory(measured: int) -> int:
    """Half as much again as was seen, for larger requests, and something for the lanes; in steps of 16 MiB."""
    return max(_LEAST, math.ceil((measured * 1.5 + _SPARE) / _STEP) * _STEP)


def _latency(said: Sequence[Any]) -> Latency:
    batch, runs, p50, p99 = said
    return Latency(_whole(batch), _whole(runs), _number(p50), _number(p99))


def _tensors(said: Sequence[Mapping[str, Any]]) -> tuple[ValidatedTensor, ...]:
    return tuple(_tensor(each) for each in said[:_MOST_TENSORS])


def _tensor(said: Mapping[str, Any]) -> ValidatedTensor:
    if said["datatype"] not in DTYPES:
        raise ValueError
    low, high = (None if said.get(key) is None else _number(said[key], signed=True) for key in ("low", "high"))
    shape = tuple(_text(axis, 64) for axis in said["shape"][:_MOST_AXES])
    values = tuple(_text(each) for each in said.get("values", [])[:_MOST_VALUES])
    return ValidatedTensor(_text(said["name"]), said["datatype"], shape, low, high, _text(said.get("optype", ""), 32), values)


def _text(value: Any, longest: int = _LONGEST) -> str:
    if not isinstance(value, str):
        raise TypeError
    return "".join(letter for letter in value[:longest] if letter.isprintable())


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError
    return value


def _number(value: Any, *, signed: bool = False) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or (value < 0 and not signed):
        raise ValueError
    return float(value)
