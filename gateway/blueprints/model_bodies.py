"""What models look like on the wire of `/v1`, and what may be said of one."""

from collections.abc import Mapping
from typing import Any

from gateway.operations import names
from gateway.operations.host_models import HostModel
from gateway.operations.models import VISIBILITIES, Found
from gateway.operations.uploads import Upload
from gateway.shapes import Free, Items, Number, Object, OrNull, Shape, Text, Whole, answer, optional, required
from gateway.storage.model_records import VersionRecord

SHA256 = Text(64, 64, r"[0-9a-f]{64}", "must be 64 hexadecimal digits, small letters")
NAME = Text(1, 64, names.PATTERN, names.RULE)
_ABOUT = {
    "type": optional(Text(0, 64), "what it is for, in a word of the owner's own"),
    "description": optional(Text(0, 2000, lines=True)),
    "card": optional(Text(0, 20_000, lines=True), "a model card: Markdown"),
    "tags": optional(Items(Text(1, 40), 20)),
    "visibility": optional(Text(choices=VISIBILITIES), "private by default"),
    "team": optional(OrNull(Text(1, 64)), "the team's name; its members may do what their role says"),
}
CHANGE = Object({"name": optional(NAME), **_ABOUT}, "ModelChange")
CREATE = Object({"name": required(NAME), "upload": required(Text(1, 64), "the id of an upload that is whole"), **_ABOUT}, "ModelCreation")
CREATE_FORM = Object({"name": required(NAME), **_ABOUT})
VERSION = Object({"upload": required(Text(1, 64), "the id of an upload that is whole")}, "VersionCreation")
UPLOAD = Object(
    {
        "file_name": required(Text(1, 255)),
        "size": required(Whole(1, 1 << 45), "bytes"),
        "sha256": optional(SHA256, "checked when all of it has come"),
    },
    "UploadCreation",
)

_COUNT = Whole(0, 2**63 - 1)
_TENSOR = answer(
    "ModelTensor",
    {
        "name": (Text(), ""),
        "type": (Text(), "as the Open Inference Protocol names it, such as FP32"),
        "shape": (Items(Free({"type": ["integer", "string"]})), "of each axis its size, its name in the file, or -1"),
        "range": (OrNull(Items(OrNull(Number()), 2)), "least and most, where the file says so"),
        "optype": (Text(), "PMML: continuous, categorical or ordinal"),
        "values": (Items(Text()), "the only ones that the file allows"),
    },
)
_LATENCY = answer("ModelLatency", {"batch": (_COUNT, ""), "runs": (_COUNT, ""), "p50_ms": (Number(), ""), "p99_ms": (Number(), "")})
_MEASURED = answer(
    "ModelMeasurement",
    {
        "memory_bytes": (_COUNT, "the most that one process had for it"),
        "load_ms": (Number(), ""),
        "latency": (Items(_LATENCY), "on one thread"),
        "proposed": (answer("ModelProposal", {"cpus": (Number(), ""), "memory": (_COUNT, "bytes")}), "for a deployment"),
    },
)
_OF_VERSION: dict[str, tuple[Shape, str]] = {
    "version": (Whole(), ""),
    "format": (Text(), "onnx, pmml, python, torchscript or torch_export"),
    "inputs": (Items(_TENSOR, 4096), ""),
    "outputs": (Items(_TENSOR, 4096), ""),
    "algorithm": (Text(), ""),
    "engine": (Text(), "what runs it"),
    "producer": (Text(), ""),
    "opset": (OrNull(Whole()), "ONNX"),
    "parameter_count": (OrNull(_COUNT), "weights"),
    "size": (OrNull(_COUNT), "bytes of all files"),
    "sha256": (OrNull(Text()), "of the file that was sent"),
    "file_name": (OrNull(Text()), "what its sender called it"),
    "measured": (OrNull(_MEASURED), ""),
    "warnings": (Items(Text()), ""),
}
_NOT_OF_ALL: dict[str, tuple[Shape, str]] = {"version": (OrNull(Whole()), "the newest; of an operators' model the newest that serves")}
MODEL_VERSION = answer("ModelVersion", {**_OF_VERSION, "created_at": (Text(), "")})
MODEL = answer(
    "Model",
    {
        "name": (Text(), ""),
        "owner": (OrNull(Text()), "null: a model of the operators"),
        "visibility": (Text(choices=VISIBILITIES), ""),
        "team": (OrNull(Text()), ""),
        "type": (Text(), ""),
        "description": (Text(), ""),
        "card": (OrNull(Text()), "Markdown; null in lists"),
        "tags": (Items(Text()), ""),
        **_OF_VERSION,
        **_NOT_OF_ALL,
        "created_at": (OrNull(Text()), ""),
        "updated_at": (OrNull(Text()), ""),
        "deleted_at": (OrNull(Text()), "null: it is there"),
    },
)
UPLOADED = answer(
    "Upload",
    {
        "id": (Text(), ""),
        "file_name": (Text(), ""),
        "size": (Whole(), "bytes, as announced"),
        "offset": (Whole(), "bytes that have come: where to go on"),
        "sha256": (OrNull(Text()), "as announced"),
        "created_at": (Text(), ""),
        "expires_at": (Text(), ""),
    },
)

_ENGINES = {"onnx": "onnxruntime", "pmml": "pypmml", "python": "python", "torchscript": "pytorch", "torch_export": "pytorch"}


def engine(kind: str, platform: str) -> str:
    """What runs models of a format."""
    return _ENGINES.get(kind, platform)


def of_version(version: VersionRecord | None) -> dict[str, Any]:
    if version is None:
        empty: dict[str, Any] = dict.fromkeys(_OF_VERSION)
        return empty | {"format": "", "inputs": [], "outputs": [], "algorithm": "", "engine": "", "producer": "", "warnings": []}
    facts = version.facts
    return {
        "version": version.number,
        "format": version.format,
        "inputs": version.signature["inputs"],
        "outputs": version.signature["outputs"],
        "algorithm": facts["algorithm"],
        "engine": engine(version.format, facts["platform"]),
        "producer": facts["producer"],
        "opset": facts["opset"],
        "parameter_count": facts["parameter_count"],
        "size": facts["size_bytes"],
        "sha256": version.sha256,
        "file_name": version.file_name,
        "measured": version.measured,
        "warnings": facts["warnings"],
    }


def model_version(version: VersionRecord) -> dict[str, Any]:
    return of_version(version) | {"created_at": version.created_at}


def model(found: Found, *, short: bool = False) -> dict[str, Any]:
    """`short`: without the card."""
    record = found.model
    return {
        "name": record.name,
        "owner": record.owner,
        "visibility": record.visibility,
        "team": record.team,
        "type": record.type,
        "description": record.description,
        "card": None if short else record.card,
        "tags": list(record.tags),
        **of_version(found.version),
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "deleted_at": record.deleted_at,
    }


def host_model(found: HostModel) -> dict[str, Any]:
    """The same for a model of the operators'."""
    metadata = found.metadata
    tensors = {side: [] if metadata is None else [_spec(spec) for spec in getattr(metadata, side)] for side in ("inputs", "outputs")}
    platform = metadata.platform if metadata is not None else ""
    return {
        "name": found.name,
        "owner": None,
        "visibility": "public" if found.public else "private",
        "team": None,
        "type": "",
        "description": found.description,
        "card": None,
        "tags": [],
        **of_version(None),
        **tensors,
        "engine": platform.partition("_")[0],
        "format": "",
        "version": int(found.version) if found.version.isdigit() else None,
        "created_at": None,
        "updated_at": None,
        "deleted_at": None,
    }


def _spec(spec: Any) -> Mapping[str, Any]:
    return {"name": spec.name, "type": spec.datatype, "shape": list(spec.shape), "range": None, "optype": "", "values": []}


def upload(given: Upload) -> dict[str, Any]:
    record = given.record
    return {
        "id": record.id,
        "file_name": record.file_name,
        "size": record.size,
        "offset": given.offset,
        "sha256": record.sha256,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
    }
