"""The life of the process that tries a model: it loads it, runs it on inputs of its own making, tells what it saw, and waits for its end.

Everything in it is a stranger's: what it tells is believed by nobody beyond the one who sent the model, and it can send nothing else.
"""

import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from idl.codes import ServingError
from inference_server.executors import thread_limit

MODEL = "model"
"""The name that the model has meanwhile."""
PIECE = 32 * 1024
_MOST_TENSORS, _LONGEST, _MOST_VALUES = 4096, 256, 100
_RUNS, _BUDGET_S = 30, 2.0
_BATCHES = (1, 8)
_TRIES = 15
NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "MemoryError", "OutOfMemoryError")
"""What runtimes say where they get no memory."""
_BACKENDS = {"onnx": "onnx", "pmml": "pmml", "python": "python", "torchscript": "pytorch", "torch_export": "pytorch"}
"""Format -> what runs it."""
_FILE_BYTES = 64 * 2**20


def main(arguments: Sequence[str]) -> None:
    """`arguments`: what it is told, as JSON, then the descriptor of its control socket. Never returns."""
    status = 1
    try:
        told = json.loads(arguments[0])
        control = socket.socket(fileno=int(arguments[1]))
        from inference_server.executors.becoming import be_an_executor

        be_an_executor("outboard:trial", told["parent"] or os.getppid())
        control.send(b'{"born": true}')
        _limit_itself(told["cpu_s"], told["most_threads"])
        _import(told["format"])
        control.send(b'{"ready": true}')
        if control.recv(64):
            _limit_memory(told["memory"], told["format"])
            _send(control, _answer(told))
            control.recv(64)  # until the other side has measured and closes it
        status = 0
    finally:
        os._exit(status)


def _limit_itself(cpu_s: int, threads: int) -> None:
    os.nice(10)
    thread_limit.hold(threads)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_NOFILE, 256),
    ):
        hard = resource.getrlimit(limit)[1]
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (wanted, wanted))


def _limit_memory(memory: int, kind: str) -> None:
    """What is asked for beyond the limit is refused at once, where the runtime asks for no more than it uses; a watcher looks besides."""
    if kind in ("onnx", "python"):
        now = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (now * 1024 + memory, now * 1024 + memory))


def _import(kind: str) -> None:
    """What the model needs whatever it is, so that it is not counted as the model's."""
    import inference_server.executors.loading
    import inference_server.user_models

    if kind == "onnx":
        import inference_server.backends.onnx
    del inference_server


def _send(control: socket.socket, report: Mapping[str, Any]) -> None:
    data = json.dumps(report).encode()
    for start in range(0, len(data), PIECE):
        control.send(data[start : start + PIECE])
    control.send(b"\n")


def _answer(told: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _tried(told)
    except ServingError as error:
        return {"failed": error.code.value, "message": error.message}
    except MemoryError:
        return {"failed": "invalid_model", "message": "it needs more memory than a trial may take", "memory": True}
    except Exception as error:  # noqa: BLE001  whatever a stranger's model makes of the code that reads it
        return {"failed": "invalid_model", "message": f"it cannot be loaded ({type(error).__name__})"}


def _tried(told: Mapping[str, Any]) -> dict[str, Any]:
    from inference_server import errors, repository_model, user_models
    from inference_server.executors import loading
    from inference_server.warmup_samples import warmup_inputs, warmup_samples

    folder = Path(told["folder"])
    model = user_models.restricted(repository_model.read(MODEL, folder))
    if model.problem:
        raise errors.invalid_model(MODEL, model.problem)
    if model.backend(1) != _BACKENDS[told["format"]]:
        raise errors.invalid_model(MODEL, f"its settings name the backend {model.backend(1)!r}, and the file is {told['format']}")
    model = replace(model, settings=replace(model.settings, device="cpu"))
    asked = {
        "name": MODEL,
        "version": 1,
        "backend": model.backend(1),
        "path": str(model.file(1)),
        "threads": 1,
        "memory": told["memory"],
        "providers": ("CPUExecutionProvider",),
        "session": dict(model.settings.onnxruntime),
        "parameters": {**model.parameters, **model.settings.parameters},
        "declared": model.declared.to_json() if model.declared is not None else None,
        "queue": {"max_batch_size": model.settings.max_batch_size},
        "host_memory": told["memory"],
    }
    begun = time.monotonic()
    made = loading.backend(asked)
    load_ms = (time.monotonic() - begun) * 1000
    samples = warmup_samples(model.settings.warmup, folder)
    given = next(warmup_inputs(MODEL, samples, made.signature)) if samples else None
    latencies, warnings = _measured(made, given)
    report = _described(told["format"], model.file(1), made)
    report["warnings"] = [*report["warnings"], *warnings]
    return report | {"platform": made.signature.platform, "load_ms": load_ms, "latencies": latencies}


# running ---------------------------------------------------------------------------------------------------------------------------


def _measured(model: Any, given: Mapping[str, Any] | None) -> tuple[list[list[float]], list[str]]:
    """([batch, runs, p50 ms, p99 ms] for each size that was run, warnings)."""
    wanted = [spec.name for spec in model.signature.outputs]
    run = _runner(model, wanted)
    make, why = _maker(model, run, given)
    if make is None:
        return [], [f"no input of the server's own making runs on it, so nothing was measured: {why}"[:600]]
    signature = model.signature
    specs = (*signature.inputs, *signature.outputs)
    is_open = bool(specs) and not signature.streams and all(spec.shape and spec.shape[0] == -1 for spec in specs)
    sizes = _BATCHES if is_open else _BATCHES[:1]
    found, warnings = [], []
    for size in sizes:
        try:
            inputs = make(size)
            run(inputs)
        except ServingError as error:
            warnings.append(f"it does not take {size} rows at once: {error.message}"[:600])
            continue
        found.append([size, *_times(lambda inputs=inputs: run(inputs))])  # type: ignore[misc]
    if not is_open and not signature.streams:
        warnings.append("requests are run one by one: the first dimension is not open on every input and output")
    return found, warnings


def _runner(model: Any, wanted: list[str]) -> Callable[[Any], object]:
    if not model.signature.streams:
        return lambda inputs: model.run(inputs, wanted)
    return lambda inputs: list(islice(model.answers(inputs, wanted, {}), 64))


def _maker(model: Any, run: Callable[[Any], object], given: Mapping[str, Any] | None) -> tuple[Callable[[int], Any] | None, str]:
    """What makes inputs of so many rows that the model takes, or None and the last reason."""
    why = "there is none"
    for make in islice(_makers(model, given), _TRIES):
        try:
            run(make(1))
            return make, ""
        except ServingError as error:
            why = error.message
            if any(sign in why for sign in NO_MEMORY):
                raise MemoryError from error
    return None, why


def _makers(model: Any, given: Mapping[str, Any] | None) -> Iterator[Callable[[int], Any]]:
    from inference_server.executors.tuning import makers

    if fields := getattr(model, "fields", None):
        yield lambda rows: {spec.name: _valid(spec.datatype, fields.get(spec.name), rows) for spec in model.signature.inputs}
    for made in makers(model.signature, given):
        yield lambda rows, made=made: made(rows, 0)  # type: ignore[misc]


def _valid(datatype: str, field: Any, rows: int) -> Any:
    """[rows] of one value that a PMML field says is valid."""
    import numpy as np

    from idl.tensors import DTYPES

    low, high = _range(field)
    number = next(
        each for each in (((low + high) / 2 if low is not None and high is not None else None), low, high, 1.0) if each is not None
    )
    text = field.values[0] if field is not None and field.values else ""
    if datatype == "BYTES":
        made = np.empty(rows, object)
        made[:] = text.encode() or b"a"
        return made
    try:
        value = float(text) if text else number
    except ValueError:
        value = 1.0
    return np.full(rows, value).astype(DTYPES[datatype])


def _times(call: Callable[[], object]) -> tuple[int, float, float]:
    """(runs, p50, p99) in milliseconds: as many as the budget allows, at least three."""
    taken: list[float] = []
    begun = time.monotonic()
    while len(taken) < _RUNS and (len(taken) < 3 or time.monotonic() - begun < _BUDGET_S):
        start = time.monotonic()
        call()
        taken.append((time.monotonic() - start) * 1000)
    taken.sort()
    return len(taken), taken[len(taken) // 2], taken[min(len(taken) - 1, len(taken) * 99 // 100)]


# telling ---------------------------------------------------------------------------------------------------------------------------


def _described(kind: str, path: Path, model: Any) -> dict[str, Any]:
    from inference_server.backends import onnx_summary, pmml_file

    said: dict[str, Any] = {"algorithm": kind, "producer": "", "opset": 0, "parameter_count": None, "warnings": []}
    axes: Mapping[str, tuple[str, ...]] = {}
    fields = getattr(model, "fields", {})
    if kind == "onnx":
        found = onnx_summary.read(path)
        axes = found.axes
        said |= {"algorithm": found.algorithm, "producer": found.producer, "opset": found.opset, "parameter_count": found.parameters}
    elif kind == "pmml":
        said["algorithm"], said["producer"] = pmml_file.described(path, MODEL)
    elif kind != "python":
        said["algorithm"] = "neural network"
    for side, specs in (("inputs", model.signature.inputs), ("outputs", model.signature.outputs)):
        said[side] = [
            _tensor(spec, onnx_summary.shape_of(spec.name, spec.shape, axes), fields.get(spec.name) if side == "inputs" else None)
            for spec in specs[:_MOST_TENSORS]
        ]
        if len(specs) > _MOST_TENSORS:
            said["warnings"].append(f"it has {len(specs)} {side}, of which {_MOST_TENSORS} are told")
    return said


def _tensor(spec: Any, shape: list[str], field: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": spec.name[:_LONGEST], "datatype": spec.datatype, "shape": shape}
    if field is not None:
        low, high = _range(field)
        values = [each[:_LONGEST] for each in field.values[:_MOST_VALUES]]
        made |= {"low": low, "high": high, "optype": field.optype[:32], "values": values}
    return made


def _range(field: Any) -> tuple[float | None, float | None]:
    """The least and the greatest valid number, where there are such."""
    if field is None or not field.intervals:
        return None, None
    low, high = min(each.left for each in field.intervals), max(each.right for each in field.intervals)
    return (low if abs(low) != float("inf") else None), (high if abs(high) != float("inf") else None)
