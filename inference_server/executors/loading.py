"""Making the model of an executor, as the supervisor's load message describes it: load, warm up, find its batch size."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from idl.codes import Code, ServingError
from idl.tensors import Array
from inference_server import errors, input_declarations, label_files
from inference_server.backends.presented import presented
from inference_server.backends.sequenced import Sequenced
from inference_server.declared import Declared
from inference_server.executors.batcher import QueuePolicy
from inference_server.executors.running import Backend
from inference_server.executors.tuning import LEAST_QUEUE, Tuning, tune
from inference_server.types import MOST_SEQUENCES, SEQUENCE_IDLE_S, Signature
from inference_server.warmup_samples import warmup_inputs


def load(asked: dict[str, Any]) -> tuple[Backend, Tuning, QueuePolicy]:
    """Loads, warms up, tunes. Raises invalid_model; a model that does not take a generated warm-up input is loaded all the same.

    `asked`: name, backend, path, threads, memory, providers, device_id, session (see `OnnxOptions`), declared (see `Declared`, or None),
    parameters, named (what its settings say of single tensors: the kinds of `inputs`, and which have `labels`), warmup (see
    `warmup_samples`), cores (empty: all), queue (see `queue_policy`), tuning (what an earlier load found, or None).
    """
    if asked.get("cores"):
        os.sched_setaffinity(0, asked["cores"])
    kind = asked.get("backend", "onnx")
    model = _sequenced(backend(asked), asked)
    if asked.get("cache") is not None and model.signature.streams:
        raise errors.invalid_model(asked["name"], "it has a cache and gives several answers for a request, which are not kept")
    if named := asked.get("named"):
        input_declarations.check(asked["name"], named["inputs"], model.signature)
        label_files.check(asked["name"], named["labels"], model.signature)
    samples = asked.get("warmup") or []
    first = _warm_up(model, asked["name"], samples) if samples or kind in _GUESSED else None
    tuning = _found(model, kind, asked, first)
    if samples or len(tuning.row_ns) > 1:
        _settle(model, asked["name"])
    return model, tuning, replace(queue_policy(asked["queue"], tuning), most_rows=_most_rows(asked, tuning))


def _onnx(asked: Mapping[str, Any]) -> Backend:
    from inference_server.backends.onnx import OnnxModel, OnnxOptions

    options = OnnxOptions(
        asked["threads"],
        tuple(asked["providers"]),
        asked.get("device_id") or 0,
        asked.get("session") or {},
        asked.get("host_memory") or 0,
    )
    model: Backend = OnnxModel(Path(asked["path"]), asked["name"], options)
    if asked.get("declared"):
        model = presented(model, asked["name"], Declared.from_json(asked["declared"]))
    return model


def _python(asked: Mapping[str, Any]) -> Backend:
    from inference_server.backends.python import Context, PythonModel

    file, declared = Path(asked["path"]), _declared(asked)
    context = Context(asked["name"], int(asked["version"]), file.parent, asked.get("parameters") or {})
    inputs, outputs = declared.specs(asked["name"])
    return PythonModel(file, context, inputs, outputs, (asked["queue"].get("max_batch_size") or 0) > 1)


def _pmml(asked: Mapping[str, Any]) -> Backend:
    from inference_server.backends.pmml import PmmlModel

    model: Backend = PmmlModel(Path(asked["path"]), asked["name"], asked.get("memory") or 0)
    return presented(model, asked["name"], _declared(asked)) if asked.get("declared") else model


def _pytorch(asked: Mapping[str, Any]) -> Backend:
    from inference_server.backends.pytorch import loaded

    return loaded(Path(asked["path"]), asked["name"], asked["threads"], asked["providers"], asked.get("device_id") or 0, _declared(asked))


def _script(asked: Mapping[str, Any]) -> Backend:
    from inference_server.executors.script_loading import boxed_script

    return boxed_script(asked)


def _pipeline(asked: Mapping[str, Any]) -> Backend:
    from inference_server.backends.pipeline import PipelineModel
    from inference_server.backends.pipeline_plan import Named, Plan

    signatures = [Signature.from_json(said) for said in asked["signatures"]]
    plan = Plan(asked["name"], asked["steps"], signatures, Named(**asked["tensors"]), _declared(asked))
    return PipelineModel(plan, asked["run_dir"], asked["limit"])


def _declared(asked: Mapping[str, Any]) -> Declared:
    return Declared.from_json(asked["declared"]) if asked.get("declared") else Declared()


_MADE_BY: dict[str, Callable[[Mapping[str, Any]], Backend]] = {
    "onnx": _onnx,
    "python": _python,
    "pmml": _pmml,
    "pytorch": _pytorch,
    "pipeline": _pipeline,
    "script": _script,
}
_GUESSED = frozenset({"onnx"})
"""Backends whose models may be run on inputs of the server's own making: an owner's code is only run on what somebody asked."""


def backend(asked: Mapping[str, Any]) -> Backend:
    """The model itself, loaded and not run. Raises invalid_model, unsupported."""
    return _MADE_BY[asked.get("backend", "onnx")](asked)


DEFAULT_SHARING = 16


def _sequenced(model: Backend, asked: Mapping[str, Any]) -> Backend:
    if not asked.get("state"):
        return model
    said = asked.get("sequence") or {}
    return Sequenced(
        model,
        asked["name"],
        asked["state"],
        idle_s=said.get("idle_timeout_s", SEQUENCE_IDLE_S),
        most=said.get("max_sequences", MOST_SEQUENCES),
    )


def _found(model: Backend, kind: str, asked: Mapping[str, Any], first: Mapping[str, Array] | None) -> Tuning:
    wanted = asked["queue"].get("max_batch_size")
    if isinstance(model, Sequenced):
        if not model.may_share:
            return Tuning(1, "its state, or an output, has no batch axis that is known (state.NAME.batch_axis)", {}, LEAST_QUEUE)
        size = DEFAULT_SHARING if wanted is None else max(1, wanted)
        return Tuning(size, "" if size > 1 else "its owner has turned it off", {}, LEAST_QUEUE)
    if kind == "pipeline":
        return Tuning(1, "requests are put together in the queues of its steps", {}, LEAST_QUEUE)
    if model.signature.is_open:
        return Tuning(1, "a script answers one request at a time", {}, LEAST_QUEUE)
    return _tuning(model, asked, first) if kind in _GUESSED or wanted else _untuned(model)


def _untuned(model: Backend) -> Tuning:
    reason = "it gives several answers for a request" if model.signature.streams else "its owner has not asked for it (max_batch_size)"
    return Tuning(1, reason, {}, LEAST_QUEUE)


def _warm_up(model: Backend, name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Array] | None:
    """Runs the model on its owner's samples, else on one of the server's own making. The first of the owner's, None where there is none."""
    outputs = [spec.name for spec in model.signature.outputs]
    first: dict[str, Array] | None = None
    for inputs in warmup_inputs(name, samples, model.signature):
        first = first or inputs
        try:
            model.run(inputs, outputs)
        except ServingError as error:
            if error.code is not Code.INVALID_INPUT and error.code is not Code.MODEL_FAILED:
                raise
            if samples:
                raise errors.invalid_model(name, f"it fails on its owner's warm-up sample: {error.message}") from error
    return first if samples else None


def _tuning(model: Backend, asked: Mapping[str, Any], samples: Mapping[str, Array] | None) -> Tuning:
    wanted = asked["queue"].get("max_batch_size")
    kept = asked.get("tuning")
    if kept is not None and wanted is None:
        return Tuning.from_json(kept)
    alone = asked["threads"] == 1 and model.providers == ("CPUExecutionProvider",)
    return tune(model.run, model.signature, wanted, samples, time.thread_time_ns if alone else time.monotonic_ns)


def _settle(model: Backend, name: str) -> None:
    """What trying and measuring have left in memory goes back, by a run of the smallest size."""
    settle = getattr(model, "settle", None)
    if settle is not None:
        (inputs,) = warmup_inputs(name, [], model.signature)
        settle(inputs, [spec.name for spec in model.signature.outputs])


def _most_rows(asked: Mapping[str, Any], tuning: Tuning) -> int:
    """What the owner says that a request may have at most, where the first axis is a batch; 0: nothing, what was measured refuses nobody."""
    is_batch = (asked.get("declared") or {}).get("max_batch_size") or tuning.max_batch_size > 1
    return asked["queue"].get("most_rows") or 0 if is_batch else 0


def queue_policy(queue: Mapping[str, Any], tuning: Tuning) -> QueuePolicy:
    """What the owner says, and what was found where the owner says nothing."""
    size = tuning.max_batch_size
    preferred = tuple(sorted(rows for rows in queue.get("preferred_batch_sizes") or () if rows <= size))
    return QueuePolicy(
        size,
        preferred if size > 1 else (),
        1000 * (queue.get("max_queue_delay_us") or 0) if size > 1 else 0,
        queue.get("max_queue_size") or tuning.max_queue_size,
        queue.get("priority_levels") or 0,
        queue.get("default_priority") or 0,
        1000 * (queue.get("default_timeout_us") or 0),
    )
