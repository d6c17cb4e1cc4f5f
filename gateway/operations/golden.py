"""Pinned requests with their answers, and what another version makes of them."""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from gateway.models_rpc import Models
from gateway.operations import deployment_calls, deployments, kept_bodies, tensor_json
from gateway.operations.inference import Call
from gateway.operations.kept_bodies import KEPT
from gateway.operations.prediction_bodies import PredictionBody
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.deployments import DeploymentRecord
from gateway.storage.golden import GoldenRecord
from idl.codes import Code, ServingError
from idl.tensors import invalid

MOST = 100
"""Of one deployment."""


def difference(pinned: Mapping[str, Any], answer: Mapping[str, Any], tolerance: float) -> str:
    """How the outputs of an answer are further from the pinned ones than `tolerance`; "" where they are not.

    Numbers differ by |new - old| / max(1, |old|): absolutely where they are small, relatively where they are large. NaN is like NaN.
    """
    if missing := sorted(pinned.keys() - answer.keys()):
        return f"there is no output {missing[0]!r} any more"
    for name in pinned:
        if reason := _of_output(name, pinned[name], answer[name], tolerance):
            return reason
    return ""


def _of_output(name: str, pinned: Any, answer: Any, tolerance: float) -> str:
    try:
        old, old_shape = tensor_json.flatten(name, pinned)
        new, new_shape = tensor_json.flatten(name, answer)
    except ServingError:
        return f"output {name!r} cannot be compared"
    if old_shape != new_shape:
        return f"output {name!r} has shape {list(new_shape)}, and had {list(old_shape)}"
    left, right = _numbers(old), _numbers(new)
    if left is None or right is None:
        return _of_texts(name, old, new)
    if not left.size:
        return ""
    with np.errstate(invalid="ignore"):
        apart: Any = np.abs(right - left) / np.maximum(1.0, np.abs(left))
    apart[(left == right) | (np.isnan(left) & np.isnan(right))] = 0.0
    apart[np.isnan(apart)] = np.inf
    worst = int(apart.argmax())
    if apart[worst] <= tolerance:
        return ""
    return f"output {name!r} differs by {apart[worst]:.6g} at element {worst} ({right[worst]:.6g}, and was {left[worst]:.6g})"


def _of_texts(name: str, old: Sequence[Any], new: Sequence[Any]) -> str:
    for place, (left, right) in enumerate(zip(old, new, strict=True)):
        if left != right:
            return f"output {name!r} differs at element {place} ({str(right)[:60]!r}, and was {str(left)[:60]!r})"
    return ""


def _numbers(flat: Sequence[Any]) -> Any:
    """None where one of them is none."""
    values = [tensor_json.NON_FINITE.get(item, item) if isinstance(item, str) else item for item in flat]
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    return np.array(values, np.float64)


def replay(storage: Storage, models: Models, settings: Settings, record: DeploymentRecord, version: int) -> str:
    """Why a version, which is loaded, answers the deployment's golden requests otherwise; "" where it does not.

    Raises unavailable and the like where that cannot be known now.
    """
    target = deployments.target_of(record, wanted=True)
    for pinned in storage.golden.of(record.id):
        call = Call(None, f"golden-{record.id}-{pinned.id}", time.monotonic() + settings.request_timeout_s)
        body, answer = (
            kept_bodies.decode(KEPT, storage.blobs.read(pinned.request_sha256)),
            json.loads(storage.blobs.read(pinned.answer_sha256)),
        )
        try:
            said = deployment_calls.predict(models, settings, call, target, body, str(version))
        except ServingError as error:
            if error.code in (Code.UNAVAILABLE, Code.OVERLOADED):
                raise
            return f"golden request {pinned.name!r}: {error.message}"
        if reason := difference(answer, said["outputs"], record.golden_tolerance):
            return f"golden request {pinned.name!r}: {reason} (tolerance {record.golden_tolerance:g})"
    return ""


def pin(
    storage: Storage,
    models: Models,
    settings: Settings,
    call: Call,
    record: DeploymentRecord,
    name: str,
    body: PredictionBody,
    content_type: str,
    doer: Doer,
    now: datetime,
) -> tuple[GoldenRecord, Mapping[str, Any]]:
    """Keeps a request with the outputs that it has now. Raises already_exists, insufficient_capacity, and what a prediction raises."""
    if body.form is not None:
        raise invalid("a golden request is one call: say its inputs by name, without filetype")
    known = storage.golden.of(record.id)
    if any(pinned.name.lower() == name.lower() for pinned in known):  # before the costly part; the store asks again
        raise ServingError(Code.ALREADY_EXISTS, f"name: there is a golden request {name!r}; delete it first")
    # never with what a canary answers: that is to be measured by it
    version = str(record.serving_version) if record.canary_version is not None and record.serving_version else ""
    outputs = deployment_calls.predict(models, settings, call, deployments.target_of(record), body, version)["outputs"]
    request, _ = storage.blobs.put([kept_bodies.encode(body)], now)
    answer, _ = storage.blobs.put([json.dumps(outputs).encode()], now)
    return storage.golden.pin(record.id, name, request, content_type, answer, doer, now, MOST), outputs
