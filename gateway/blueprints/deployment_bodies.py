"""What deployments look like on the wire of `/v1`, and what may be said of one."""

import json
from typing import Any

from gateway.operations import names
from gateway.operations.deployment_errors import FORM, TASK, V1, V2
from gateway.operations.sharing import VISIBILITIES
from gateway.shapes import Dictionary, Flag, Free, Items, Number, Object, OrNull, Shape, Text, Whole, answer, optional, required
from gateway.storage.deployment_errors import KEPT, CallError
from gateway.storage.deployments import DeploymentRecord
from gateway.storage.golden import GoldenRecord

STATES = ("starting", "running", "pausing", "paused", "sleeping", "failed", "deleting")
DESIRED = ("running", "paused")
NAME = Text(1, 64, names.PATTERN, names.RULE)
_VERSION = Whole(1, 10**9 - 1)
_COUNT = Whole(0, 2**63 - 1)
_SCRIPT = Object({"name": required(NAME), "version": optional(_VERSION, "the newest by default")}, "DeploymentScript")
_CANARY = Object({"version": required(_VERSION), "percent": required(Whole(0, 100), "of the calls that name no version")}, "Canary")
_SAID = {
    "desired_state": optional(Text(choices=DESIRED)),
    "version": optional(_VERSION, "of the model; the newest by default"),
    "instances": optional(Whole(1, 1024), "processes, which take calls side by side"),
    "min_instances": optional(OrNull(Whole(1, 1024)), "with max_instances: their number follows the wait in the queue"),
    "max_instances": optional(OrNull(Whole(1, 1024))),
    "cpus": optional(OrNull(Number(0.01, 4096)), "cores that are reserved for each instance"),
    "memory": optional(OrNull(Whole(1 << 20, 1 << 50)), "bytes that each instance may have, and that are reserved"),
    "sleep_after_s": optional(
        OrNull(Whole(1, 30 * 86_400)), "seconds without a call after which its processes end; the next call wakes it"
    ),
    "script": optional(OrNull(_SCRIPT), "one of the caller's own, before and after each prediction"),
    "golden_tolerance": optional(
        Number(0, 1e9), "how far answers to golden requests may differ: |new - old| / max(1, |old|); 0.001 by default"
    ),
    "visibility": optional(Text(choices=VISIBILITIES), "private by default"),
    "team": optional(OrNull(Text(1, 64)), "the team's name; its members may do what their role says"),
}
CREATE = Object(
    {
        "name": required(NAME),
        "model": required(Text(1, 140), "a model that the caller may change"),
        "time": optional(Text(0, 64), "kept as given, for display"),
        **_SAID,
    },
    "DeploymentCreation",
)
CHANGE = Object({**_SAID, "canary": optional(OrNull(_CANARY), "another version that gets some of the calls")}, "DeploymentChange")

DEPLOYMENT = answer(
    "Deployment",
    {
        "name": (Text(), ""),
        "owner": (Text(), ""),
        "rpc_name": (Text(), "what /v2, gRPC and Thrift call it"),
        "model": (Text(), "the model's name"),
        "version": (Whole(), "the version that is wanted"),
        "serving_version": (OrNull(Whole()), "the version that serves, or served last"),
        "previous_version": (OrNull(Whole()), "what a rollback goes back to"),
        "desired_state": (Text(choices=(*DESIRED, "deleted")), ""),
        "state": (Text(choices=STATES), ""),
        "reason": (Text(), "why it is in its state, and what became of the last change"),
        "settled": (Flag(), "whether everything that was asked for has been carried out"),
        "instances": (Whole(), ""),
        "min_instances": (OrNull(Whole()), ""),
        "max_instances": (OrNull(Whole()), ""),
        "cpus": (OrNull(Number()), "of each instance"),
        "memory": (OrNull(_COUNT), "bytes, of each instance"),
        "sleep_after_s": (OrNull(Whole()), ""),
        "script": (
            OrNull(
                answer(
                    "DeployedScript",
                    {"name": (Text(), ""), "version": (Whole(), ""), "functions": (Items(Text()), "preprocess, postprocess or both")},
                )
            ),
            "",
        ),
        "canary": (OrNull(answer("DeployedCanary", {"version": (Whole(), ""), "percent": (Whole(), "")})), ""),
        "golden_tolerance": (Number(), ""),
        "visibility": (Text(choices=VISIBILITIES), ""),
        "team": (OrNull(Text()), ""),
        "time": (Text(), "as given"),
        "last_call_at": (OrNull(Text()), "within some seconds"),
        "created_at": (Text(), ""),
        "updated_at": (Text(), ""),
    },
)
GOLDEN = answer(
    "GoldenRequest",
    {"name": (Text(), ""), "content_type": (Text(), "of the request as it came"), "created_at": (Text(), "")},
)
GOLDEN_WITH_ANSWER = answer(
    "GoldenAnswer",
    {
        "name": (Text(), ""),
        "content_type": (Text(), ""),
        "outputs": (Dictionary(Free()), "the answer that is pinned"),
        "created_at": (Text(), ""),
    },
)
_MS = OrNull(Number())
_COUNTS: dict[str, tuple[Shape, str]] = {
    "requests": (_COUNT, ""),
    "errors": (Dictionary(_COUNT), "by code"),
    "latency_ms": (
        answer("Latencies", {"mean": (_MS, ""), "p50": (_MS, ""), "p95": (_MS, ""), "p99": (_MS, "")}),
        "of those that succeeded, within the model host; null where none did",
    ),
    "queue_ms": (_MS, "mean wait"),
    "compute_ms": (_MS, "mean time in the model"),
    "memory": (_COUNT, "bytes, the most that was seen"),
}
STATISTICS = answer(
    "DeploymentStatistics",
    {
        "span": (Text(choices=("10s", "minute", "hour")), "what each point is of"),
        "total": (answer("DeploymentTotal", _COUNTS), "of all points"),
        "points": (
            Items(answer("DeploymentPoint", {"begin": (Text(), "UTC"), **_COUNTS}), 10_000),
            "in their order; spans in which nobody looked are left out, and what happened then is in the next one",
        ),
    },
)
_ERROR = answer(
    "CallError",
    {
        "at": (Text(), "UTC"),
        "request_id": (Text(), "of the request, or of the task"),
        "way": (Text(choices=(V1, V2, FORM, TASK)), "how it was called"),
        "code": (Text(), "one of those of GET /v1/errors"),
        "message": (Text(), ""),
    },
)
ERRORS = answer("DeploymentErrors", {"items": (Items(_ERROR, KEPT), "")})


def deployment(record: DeploymentRecord) -> dict[str, Any]:
    canary = {"version": record.canary_version, "percent": record.canary_percent} if record.canary_version is not None else None
    return {
        "name": record.name,
        "owner": record.owner,
        "rpc_name": record.rpc_name,
        "model": record.model,
        "version": record.version,
        "serving_version": record.serving_version,
        "previous_version": record.previous_version,
        "desired_state": record.desired_state,
        "state": record.state,
        "reason": "; ".join(filter(None, (record.reason, record.notice))),
        "settled": record.generation == record.observed_generation and not record.failures,
        "instances": record.instances,
        "min_instances": record.min_instances,
        "max_instances": record.max_instances,
        "cpus": record.cpus,
        "memory": record.memory,
        "sleep_after_s": record.sleep_after_s,
        "script": _script(record),
        "canary": canary,
        "golden_tolerance": record.golden_tolerance,
        "visibility": record.visibility,
        "team": record.team,
        "time": record.shown_time,
        "last_call_at": record.last_call_at,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }


def error(one: CallError) -> dict[str, Any]:
    return {"at": one.at, "request_id": one.request_id, "way": one.way, "code": one.code, "message": one.message}


def _script(record: DeploymentRecord) -> dict[str, Any] | None:
    if record.script_version_id is None:
        return None
    return {"name": record.script, "version": record.script_version, "functions": json.loads(record.script_functions or "[]")}


def golden(record: GoldenRecord) -> dict[str, Any]:
    return {"name": record.name, "content_type": record.content_type, "created_at": record.created_at}
