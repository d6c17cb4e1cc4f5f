"""The routes that are described by hand for the OpenAPI document: `/v2`, what stands beside `/v1`, and those of `/v1` that are no `Rest` ones.

A test compares this table with the application's routes. The form API describes its own: `gateway.blueprints.openapi_forms`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.blueprints import async_calls, tokens
from gateway.blueprints import openapi_v2_shapes as v2
from gateway.blueprints.prediction_body import BODIES
from gateway.blueprints.rest import ANYBODY, OPERATOR, WHOEVER, Answer, Operation
from gateway.operations.v2_messages import BINARY_TYPE, HEADER_LENGTH, JSON_TYPE
from gateway.shapes import Field, Free, Items, Object, Shape, Text, Whole, answer, optional, required
from gateway.types import Scope
from idl.codes import Code

_SEEN = (Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.NOT_READY, Code.DEPLOYMENT_PAUSED)
_CALLED = (
    *(*_SEEN, Code.NOT_FOUND, Code.CONFLICT, Code.TOO_LARGE, Code.UNSUPPORTED_MEDIA, Code.UNSUPPORTED, Code.INVALID_INPUT),
    *(Code.INVALID_MODEL, Code.CANCELLED, Code.GONE, Code.MODEL_FAILED),
)
_CHANGED = (Code.INVALID_INPUT, Code.TOO_LARGE, Code.UNSUPPORTED_MEDIA, Code.CONFLICT)
_BINARY_HEADERS = {
    HEADER_LENGTH: optional(Whole(0, 10**18 - 1), "where the JSON ends and binary tensors begin; 0: the body is the only input's contents")
}
HTML = "text/html"
METRICS_TEXT = "text/plain"
OPTIONAL_BODIES = frozenset({"v2_index", "v2_load", "v2_unload", "v2_change_trace", "v2_change_model_trace", "v2_change_logging"})
"""Routes whose body may be left out."""
TABLE: list[Operation] = []


def _told(
    method: str,
    path: str,
    name: str,
    tag: str,
    summary: str,
    answers: Mapping[int, Answer],
    *,
    who: str = WHOEVER,
    query: Mapping[str, Field] | None = None,
    raw: Mapping[str, Mapping[str, Any]] | None = None,
    headers: Mapping[str, Field] | None = None,
    errors: Sequence[Code] = (),
) -> None:
    given = Object(query or {})
    TABLE.append(
        Operation(
            method, path, name, tag, summary, who, Scope.READ, given, None, raw or {}, headers or {}, answers, tuple(errors), False, False
        )
    )


def _one(text: str, shape: Shape) -> dict[int, Answer]:
    return {200: Answer(text, shape)}


def _json(shape: Shape) -> dict[str, Mapping[str, Any]]:
    return {JSON_TYPE: shape.schema()}


# beside the API ----------------------------------------------------------------------------------------------------------------------

_IN_BOTH = answer("InBothLanguages", {"en": (Text(), ""), "zh": (Text(), "")})
_ERROR_KIND = answer(
    "ErrorKind",
    {
        "code": (Text(choices=tuple(code.value for code in Code)), ""),
        "status": (Whole(400, 599), "over HTTP"),
        "title": (_IN_BOTH, ""),
        "description": (_IN_BOTH, ""),
        "hint": (_IN_BOTH, "what to do"),
    },
)
_CHECK = answer(
    "HealthCheck",
    {"kind": (Text(), ""), "name": (Text(), ""), "ready": (Free({"type": "boolean"}), ""), "reason": (Text(), "")},
)
_HEALTH = answer("Health", {"status": (Text(choices=("ready", "not_ready")), ""), "checks": (Items(_CHECK), "")})
_told(
    "GET",
    "/v1/errors",
    "list_errors",
    "service",
    "every error code with its meaning and what to do",
    _one("all of them", Object({"errors": required(Items(_ERROR_KIND))}, "ErrorKinds")),
)
_told("GET", "/livez", "livez", "service", "this process answers", _one("it does", Object({"status": required(Text(choices=("alive",)))})))
_told(
    "GET",
    "/readyz",
    "readyz",
    "service",
    "whether work can be sent here, with each check",
    {200: Answer("it can", _HEALTH), 503: Answer("it cannot", _HEALTH)},
)
_told(
    "GET",
    "/metrics",
    "metrics",
    "service",
    "Prometheus's text format; behind nginx for this machine only",
    {200: Answer("the metrics", types=(METRICS_TEXT,))},
    errors=(Code.FORBIDDEN,),
)
_told("GET", "/openapi.json", "openapi", "service", "this document", _one("OpenAPI 3.1", Free({"type": "object", "required": ["openapi"]})))
_told("GET", "/docs", "docs", "service", "this document as a page", {200: Answer("a page", types=(HTML,))})

# /v1 ---------------------------------------------------------------------------------------------------------------------------------

_told(
    "POST",
    "/v1/models/<model>/predictions",
    "predict_with_model",
    "models",
    "one prediction of an operator's model, or of a deployment by its full name",
    {200: Answer("the prediction", Free({"type": "object", "required": ["id", "model", "version", "outputs"]})), 202: async_calls.LATER},
    who=ANYBODY,
    headers=async_calls.HEADERS,
    query={"version": optional(Text(), "of those that serve")},
    raw=BODIES,
    errors=_CALLED,
)

_told(
    "GET",
    "/v1/oidc/login",
    "begin_openid",
    "sign-in",
    "sends a browser to the OpenID provider, where there is one",
    {302: Answer("to the provider")},
    errors=(Code.UNSUPPORTED, Code.NOT_FOUND),
)
_told(
    "GET",
    "/v1/oidc/callback",
    "end_openid",
    "sign-in",
    "the browser comes back from the provider: tokens",
    _one("as POST /v1/tokens answers", tokens.TOKENS),
    query=dict.fromkeys(("state", "code", "iss", "error"), optional(Text(), "from the provider")),
    errors=(Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.ALREADY_EXISTS, Code.CONFLICT, Code.UNSUPPORTED, Code.NOT_FOUND),
)

# /v2 ---------------------------------------------------------------------------------------------------------------------------------

_told("GET", "/v2", "v2_server", "open protocol", "the server's name, version and extensions", _one("the server", v2.SERVER))
_told(
    "GET",
    "/v2/health/live",
    "v2_live",
    "open protocol",
    "whether a model host answers",
    {200: Answer("it does", v2.LIVE), 503: Answer("it does not", v2.LIVE)},
)
_told(
    "GET",
    "/v2/health/ready",
    "v2_ready",
    "open protocol",
    "whether every model that should be loaded is ready",
    {200: Answer("they are", v2.READY), 503: Answer("they are not", v2.READY)},
)
_told(
    "GET",
    "/v2/models/stats",
    "v2_all_statistics",
    "open protocol",
    "statistics of every model that the caller may see",
    _one("the statistics", v2.STATISTICS),
    who=ANYBODY,
)


def _of_model(method: str, verb: str, name: str, summary: str, answers: Mapping[int, Answer], **more: Any) -> None:
    """The route, and the same for one version."""
    end = f"/{verb}" if verb else ""
    _told(method, f"/v2/models/<model>{end}", name, "open protocol", summary, answers, who=ANYBODY, **more)
    versioned = f"/v2/models/<model>/versions/<version>{end}"
    _told(method, versioned, f"{name}_of_version", "open protocol", f"{summary}; of one version", answers, who=ANYBODY, **more)


_of_model("GET", "", "v2_model", "a model's inputs and outputs", _one("the model", v2.METADATA), errors=(*_SEEN, Code.INVALID_MODEL))
_of_model(
    "GET",
    "ready",
    "v2_model_ready",
    "whether a model takes requests",
    _one("it does", v2.MODEL_READY),
    errors=(*_SEEN, Code.INVALID_MODEL),
)
_of_model("GET", "config", "v2_model_config", "a model's configuration", _one("it", v2.CONFIG), errors=(*_SEEN, Code.INVALID_MODEL))
_of_model("GET", "stats", "v2_model_statistics", "a model's statistics", _one("it", v2.STATISTICS), errors=(*_SEEN, Code.INVALID_MODEL))
_of_model(
    "POST",
    "infer",
    "v2_infer",
    "one inference: tensors in JSON, or as binary data behind it",
    {200: Answer("the outputs; as binary data where the request wants it", v2.INFERRED, (JSON_TYPE, BINARY_TYPE))},
    raw={JSON_TYPE: v2.INFER.schema(), BINARY_TYPE: {}},
    headers=_BINARY_HEADERS,
    errors=_CALLED,
)
_of_model(
    "POST",
    "generate",
    "v2_generate",
    "texts in, texts out: one answer",
    _one("the answer", v2.GENERATED),
    raw=_json(v2.GENERATE),
    errors=_CALLED,
)
_of_model(
    "POST",
    "generate_stream",
    "v2_generate_stream",
    "texts in, texts out: every answer as a server-sent event",
    {200: Answer("events whose data is a V2GenerateResponse, or at its end an error", types=("text/event-stream",))},
    raw=_json(v2.GENERATE),
    errors=_CALLED,
)
_told(
    "POST",
    "/v2/repository/index",
    "v2_index",
    "repository",
    "every version that the caller may see, with its state",
    _one("all of them", v2.INDEX),
    who=ANYBODY,
    raw=_json(v2.INDEX_REQUEST),
)
for _verb, _text in (("load", "loads a model, or loads it again"), ("unload", "unloads a model")):
    _told(
        "POST",
        f"/v2/repository/models/<model>/{_verb}",
        f"v2_{_verb}",
        "repository",
        _text,
        _one("it is done", v2.EMPTY),
        who=OPERATOR,
        raw=_json(v2.LOAD),
        errors=(*_CHANGED, Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.INVALID_MODEL, Code.NOT_READY, Code.UNSUPPORTED),
    )

# what operators set while everything runs ----------------------------------------------------------------------------------------------

_RUN_TIME = "run time"
for _kind, _way in (("one", "/region/<region>"), ("all", "")):
    _name = "_region" if _kind == "one" else "_regions"
    _told(
        "GET",
        f"/v2/systemsharedmemory{_way}/status",
        f"v2_read{_name}",
        _RUN_TIME,
        f"shared memory that is registered: {_kind}",
        _one("regions", v2.REGIONS),
        who=OPERATOR,
        errors=(Code.NOT_FOUND, Code.UNSUPPORTED),
    )
    _told(
        "POST",
        f"/v2/systemsharedmemory{_way}/unregister",
        f"v2_unregister{_name}",
        _RUN_TIME,
        f"takes shared memory back: {_kind}",
        _one("it is done", v2.EMPTY),
        who=OPERATOR,
        errors=(Code.NOT_FOUND, Code.UNSUPPORTED),
    )
    for _method, _verb in (("GET", "status"), ("POST", "unregister")):
        _told(
            _method,
            f"/v2/cudasharedmemory{_way}/{_verb}",
            f"v2_cuda_{_verb}{_name}",
            _RUN_TIME,
            "shared memory of GPUs is not supported",
            {},
            errors=(Code.UNSUPPORTED,),
        )
_told(
    "POST",
    "/v2/systemsharedmemory/region/<region>/register",
    "v2_register_region",
    _RUN_TIME,
    "registers shared memory of the model's host",
    _one("it is done", v2.EMPTY),
    who=OPERATOR,
    raw=_json(v2.REGION),
    errors=(*_CHANGED, Code.ALREADY_EXISTS, Code.NOT_FOUND, Code.UNSUPPORTED),
)
_told(
    "POST",
    "/v2/cudasharedmemory/region/<region>/register",
    "v2_cuda_register",
    _RUN_TIME,
    "shared memory of GPUs is not supported",
    {},
    errors=(Code.UNSUPPORTED,),
)
for _kind, _way in (("", ""), ("_model", "/models/<model>")):
    _whose = "of one model" if _kind else "of the server"
    _told(
        "GET",
        f"/v2{_way}/trace/setting",
        f"v2_read{_kind}_trace",
        _RUN_TIME,
        f"which requests are traced, {_whose}",
        _one("the settings", v2.TRACE),
        who=OPERATOR,
        errors=(Code.MODEL_NOT_FOUND, Code.UNSUPPORTED),
    )
    _told(
        "POST",
        f"/v2{_way}/trace/setting",
        f"v2_change{_kind}_trace",
        _RUN_TIME,
        f"changes which requests are traced, {_whose}",
        _one("the settings", v2.TRACE),
        who=OPERATOR,
        raw=_json(v2.TRACE_CHANGE),
        errors=(*_CHANGED, Code.MODEL_NOT_FOUND, Code.UNSUPPORTED),
    )
_told("GET", "/v2/logging", "v2_read_logging", _RUN_TIME, "what is logged", _one("the settings", v2.LOGGING), who=OPERATOR)
_told(
    "POST",
    "/v2/logging",
    "v2_change_logging",
    _RUN_TIME,
    "changes what is logged",
    _one("the settings", v2.LOGGING),
    who=OPERATOR,
    raw=_json(v2.LOGGING),
    errors=(*_CHANGED, Code.UNSUPPORTED),
)
