"""`/v2`: shared memory, trace and log settings, for operators. They are the model server's; the gateway passes them on."""

from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from gateway.blueprints.calls import current_call, note, read_body
from gateway.context import services
from gateway.operations import inference, tensor_json
from idl.codes import Code, ServingError
from idl.messages import SharedRegion
from idl.tensors import invalid

blueprint = Blueprint("v2_run_time", __name__)

_REGION_FIELDS = {"key", "offset", "byte_size"}


@blueprint.get("/v2/systemsharedmemory/status")
@blueprint.get("/v2/systemsharedmemory/region/<region>/status")
def shared_memory_status(region: str = "") -> ResponseReturnValue:
    """The regions that are registered, or one of them."""
    _require_operator("shared memory")
    return [
        {"name": found.name, "key": found.key, "offset": found.offset, "byte_size": found.byte_size}
        for found in services().models.shared_memory_status(region)
    ]


@blueprint.post("/v2/systemsharedmemory/region/<region>/register")
def shared_memory_register(region: str) -> ResponseReturnValue:
    """Registers POSIX shared memory of the model's host."""
    _require_operator("shared memory")
    given = _json()
    if unknown := sorted(given.keys() - _REGION_FIELDS):
        raise invalid(f"the body has an unknown field {unknown[0][:80]!r}")
    key = given.get("key")
    if not isinstance(key, str):
        raise invalid("key is not a text")
    said = SharedRegion(region, key, _bytes("offset", given.get("offset", 0)), _bytes("byte_size", given.get("byte_size")))
    note("host.region", region, {"key": key[:200], "byte_size": said.byte_size})
    services().models.register_shared_memory(said)
    return {}


def _bytes(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise invalid(f"{name} is not a number of bytes")
    return value


@blueprint.post("/v2/systemsharedmemory/unregister")
@blueprint.post("/v2/systemsharedmemory/region/<region>/unregister")
def shared_memory_unregister(region: str = "") -> ResponseReturnValue:
    """One region, or every one."""
    _require_operator("shared memory")
    note("host.region_removed", region or "every region")
    services().models.unregister_shared_memory(region)
    return {}


@blueprint.get("/v2/cudasharedmemory/status")
@blueprint.get("/v2/cudasharedmemory/region/<region>/status")
@blueprint.post("/v2/cudasharedmemory/region/<region>/register")
@blueprint.post("/v2/cudasharedmemory/unregister")
@blueprint.post("/v2/cudasharedmemory/region/<region>/unregister")
def cuda_shared_memory(region: str = "") -> ResponseReturnValue:
    """Shared memory of GPUs is refused."""
    raise ServingError(Code.UNSUPPORTED, "CUDA shared memory is not supported by this server; system shared memory is")


@blueprint.route("/v2/trace/setting", methods=["GET", "POST"])
@blueprint.route("/v2/models/<model>/trace/setting", methods=["GET", "POST"])
def trace_setting(model: str = "") -> ResponseReturnValue:
    """Which requests are traced, of the server or of one model; POST changes what it names, null takes a setting back."""
    _require_operator("trace settings")
    given = _json() if request.method == "POST" else {}
    changes = {name: _texts(name, value) for name, value in given.items()}
    if changes:
        note("host.trace", model or "every model", {name[:200]: [text[:200] for text in texts] for name, texts in changes.items()})
    told = services().models.trace_settings(model, changes)
    return {name: values if name == "trace_level" else values[0] for name, values in told.items()}


def _texts(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (str, int)) and not isinstance(each, bool) for each in values):
        raise invalid(f"the trace setting {name[:40]!r} is not a text, a whole number, a list of them, or null")
    return [str(each) for each in values]


@blueprint.route("/v2/logging", methods=["GET", "POST"])
def logging() -> ResponseReturnValue:
    """What is logged; POST changes what it names."""
    _require_operator("log settings")
    given = _json() if request.method == "POST" else {}
    for name, value in given.items():
        if not isinstance(value, (bool, int, str)):
            raise invalid(f"the log setting {name[:40]!r} is not true, false, a whole number or a text")
    if given:
        note("host.log", "every model", {name[:200]: str(value)[:200] for name, value in given.items()})
    return dict(services().models.log_settings(given))


def _require_operator(what: str) -> None:
    inference.require_operator(current_call(), what)


def _json() -> dict[str, Any]:
    body = read_body()
    given = tensor_json.parse(body) if body else {}
    if not isinstance(given, dict):
        raise invalid("the body is not a JSON object")
    return given
