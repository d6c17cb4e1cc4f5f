"""Making the model of an executor, as the supervisor's load message describes it: load, warm up, find its batch size."""

import ctypes
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from idl.codes import Code, ServingError
from idl.tensors import Array
from inference_server import errors, input_declarations, label_files
from inference_server.backends.onnx import OnnxModel, OnnxOptions
from inference_server.backends.presented import presented
from inference_server.declared import Declared
from inference_server.executors.batcher import QueuePolicy
from inference_server.executors.serving import Backend
from inference_server.executors.tuning import Tuning, tune
from inference_server.warmup_samples import warmup_inputs

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def be_an_executor(name: str, parent: int) -> None:
    """Process-wide set-up: dies with its parent, whose pid is `parent`, is told apart in `ps`, and leaves Ctrl-C and SIGTERM to the supervisor."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be told that we die with it
        os._exit(1)
    libc.prctl(_PR_SET_NAME, name.encode()[:15])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def load_onnx(asked: dict[str, Any]) -> tuple[Backend, Tuning, QueuePolicy]:
    """Loads, warms up, tunes. Raises invalid_model; a model that does not take a generated warm-up input is loaded all the same.

    `asked`: name, path, threads, providers, session (see `OnnxOptions`), declared (see `Declared`, or None), named (what its settings say
    of single tensors: the kinds of `inputs`, and which have `labels`), warmup (see `warmup_samples`), cores (empty: all), queue (see
    `queue_policy`), tuning (what an earlier load found, or None).
    """
    if asked.get("cores"):
        os.sched_setaffinity(0, asked["cores"])
    options = OnnxOptions(asked["threads"], tuple(asked["providers"]), asked.get("session") or {})
    model: Backend = OnnxModel(Path(asked["path"]), asked["name"], options)
    if asked.get("declared"):
        model = presented(model, asked["name"], Declared.from_json(asked["declared"]))
    if named := asked.get("named"):
        input_declarations.check(asked["name"], named["inputs"], model.signature)
        label_files.check(asked["name"], named["labels"], model.signature)
    tuning = _tuning(model, asked, _warm_up(model, asked["name"], asked.get("warmup") or []))
    return model, tuning, replace(queue_policy(asked["queue"], tuning), most_rows=_most_rows(asked, tuning))


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
