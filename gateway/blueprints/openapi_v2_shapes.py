"""What `/v2` answers and takes, for the OpenAPI document. Source: the Open Inference Protocol and Triton's extensions."""

from gateway.shapes import Dictionary, Flag, Free, Items, Object, Shape, Text, Whole, answer, optional, required
from idl import tensors

_COUNT = Whole(0, 2**63 - 1)
_SIZES = Items(Whole(-1, 2**63 - 1), tensors.MAX_RANK)
_DATATYPE = Text(choices=tuple(tensors.DTYPES))
_PARAMETERS = Free({"type": "object", "description": "extensions"})
_DURATION = answer("V2Duration", {"count": (_COUNT, ""), "ns": (_COUNT, "nanoseconds in all")})


def _durations(name: str, parts: tuple[str, ...], more: dict[str, tuple[Shape, str]] | None = None) -> Object:
    return answer(name, {**(more or {}), **dict.fromkeys(parts, (_DURATION, ""))})


ERROR = answer("V2Error", {"error": (Text(), "what was wrong")})
EMPTY = Object({})
SERVER = answer("V2Server", {"name": (Text(), ""), "version": (Text(), ""), "extensions": (Items(Text()), "")})
LIVE = answer("V2Live", {"live": (Flag(), "")})
READY = answer("V2Ready", {"ready": (Flag(), "")})
MODEL_READY = answer("V2ModelReady", {"name": (Text(), ""), "ready": (Flag(), "")})
_SPEC = answer(
    "V2Tensor",
    {"name": (Text(), ""), "datatype": (_DATATYPE, ""), "shape": (_SIZES, "-1: any size")},
)
METADATA = answer(
    "V2Model",
    {
        "name": (Text(), ""),
        "versions": (Items(Text()), "those that serve"),
        "platform": (Text(), ""),
        "inputs": (Items(_SPEC, 4096), ""),
        "outputs": (Items(_SPEC, 4096), ""),
        "properties": (Dictionary(Text()), "what its owner says of it"),
    },
)
CONFIG = Free({"type": "object", "description": "the model configuration extension", "required": ["name"]})
_STATISTICS = answer(
    "V2ModelStatistics",
    {
        "name": (Text(), ""),
        "version": (Text(), ""),
        "last_inference": (_COUNT, "milliseconds since 1970"),
        "inference_count": (_COUNT, "samples"),
        "execution_count": (_COUNT, "runs"),
        "inference_stats": (
            _durations(
                "V2InferenceStatistics",
                ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss", "cancel"),
            ),
            "",
        ),
        "response_stats": (
            Dictionary(
                _durations("V2ResponseStatistics", ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"))
            ),
            "of models that give several answers, by the answer's place",
        ),
        "batch_stats": (
            Items(
                _durations("V2BatchStatistics", ("compute_input", "compute_infer", "compute_output"), {"batch_size": (_COUNT, "samples")})
            ),
            "",
        ),
        "memory_usage": (
            Items(answer("V2Memory", {"type": (Text(), ""), "id": (Whole(-1, 2**53 - 1), ""), "byte_size": (_COUNT, "")})),
            "",
        ),
    },
)
STATISTICS = answer("V2Statistics", {"model_stats": (Items(_STATISTICS, 1 << 20), "of each version")})

_INPUT = Object(
    {
        "name": required(Text()),
        "datatype": required(_DATATYPE),
        "shape": required(Items(_COUNT, tensors.MAX_RANK)),
        "data": optional(Free(), "nested or flat list; binary tensors and those in shared memory have none"),
        "parameters": optional(_PARAMETERS),
    },
    "V2InferInput",
)
INFER = Object(
    {
        "id": optional(Text()),
        "inputs": required(Items(_INPUT)),
        "outputs": optional(Items(Object({"name": required(Text()), "parameters": optional(_PARAMETERS)}))),
        "parameters": optional(_PARAMETERS),
    },
    "V2InferRequest",
)
_OUTPUT = Object(
    {
        "name": required(Text()),
        "datatype": required(_DATATYPE),
        "shape": required(_SIZES),
        "data": optional(Free({"type": "array"}), "flat; binary tensors and those in shared memory have none"),
        "parameters": optional(_PARAMETERS),
    },
    "V2InferOutput",
)
INFERRED = Object(
    {
        "model_name": required(Text()),
        "model_version": required(Text()),
        "id": optional(Text()),
        "outputs": required(Items(_OUTPUT, 4096)),
        "parameters": optional(_PARAMETERS),
    },
    "V2InferResponse",
)
GENERATE = Free(
    {
        "type": "object",
        "title": "V2GenerateRequest",
        "description": "a field for each input; further texts, numbers, true and false are parameters",
        "properties": {"id": {"type": "string"}, "parameters": {"type": "object"}},
    }
)
GENERATED = Free(
    {
        "type": "object",
        "title": "V2GenerateResponse",
        "description": "a field for each output",
        "properties": {"model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"}},
        "required": ["model_name", "model_version"],
    }
)

INDEX = Items(
    answer("V2IndexEntry", {"name": (Text(), ""), "version": (Text(), ""), "state": (Text(), ""), "reason": (Text(), "")}), 1 << 20
)
INDEX_REQUEST = Object({"ready": optional(Flag(), "true: only what is ready")}, "V2IndexRequest")
LOAD = Object(
    {
        "parameters": optional(
            Free(
                {
                    "type": "object",
                    "additionalProperties": {"type": ["string", "integer", "boolean"]},
                    "description": "`config`, and files as base64 under file:PATH",
                }
            )
        )
    },
    "V2LoadRequest",
)
REGIONS = Items(
    answer(
        "V2SharedMemoryRegion",
        {"name": (Text(), ""), "key": (Text(), ""), "offset": (_COUNT, "bytes"), "byte_size": (_COUNT, "")},
    ),
    1 << 20,
)
REGION = Object(
    {
        "key": required(Text(), "of shm_open, on the model host"),
        "offset": optional(_COUNT),
        "byte_size": required(_COUNT),
    },
    "V2RegionRegistration",
)
TRACE = Free({"type": "object", "title": "V2TraceSettings", "description": "each setting: a text, or a list of texts"})
TRACE_CHANGE = Free(
    {
        "type": "object",
        "title": "V2TraceSettingsChange",
        "description": "null takes a setting back",
        "additionalProperties": {
            "anyOf": [
                {"type": ["string", "integer", "null"]},
                {"type": "array", "items": {"type": ["string", "integer"]}},
            ]
        },
    }
)
LOGGING = Free({"type": "object", "title": "V2LogSettings", "additionalProperties": {"type": ["boolean", "integer", "string"]}})
