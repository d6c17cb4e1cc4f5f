"""What a model takes and gives, as pages show it: from the record of a user's version, or from what a model host says."""

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway import model_declaration
from gateway.model_declaration import Declaration, ImageDeclaration
from gateway.storage import Storage
from gateway.storage.model_records import VersionRecord
from idl import toml_text
from idl.codes import ServingError
from idl.messages import ModelMetadata

_SETTINGS = "model.toml"
_MOST_SETTINGS = 1 << 20
_SMALL = 32
"""Elements that a sample value spells out."""
_OPEN = 4
"""What a sample takes for an open axis other than the first."""
_PICTURE = 224
_WIDEST_GRID = 16

Axis = int | str


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape`: of each axis its size, its name, or -1. `picture`: files of pictures are taken for it. `values`: the only ones, "" for any."""

    name: str
    datatype: str
    shape: tuple[Axis, ...]
    low: float | None = None
    high: float | None = None
    optype: str = ""
    values: tuple[str, ...] = ()
    picture: bool = False

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample, with sizes for what is open."""
        wide = _PICTURE if self.picture else _OPEN
        return tuple(axis if isinstance(axis, int) and axis >= 0 else wide if at else 1 for at, axis in enumerate(self.shape))

    @property
    def is_small(self) -> bool:
        return math.prod(self.sample_shape) <= _SMALL

    @property
    def is_single(self) -> bool:
        """Whether a sample is one element."""
        return all(axis == 1 for axis in self.shape[1:]) and (not self.shape or not _fixed(self.shape[0]) or self.shape[0] == 1)

    @property
    def takes_rows(self) -> bool:
        """Whether more than one sample can be sent at once."""
        return bool(self.shape) and not _fixed(self.shape[0])


@dataclass(frozen=True, slots=True)
class Signature:
    """`labelled`: the output that labels are given for, "" for none. `streams`: it gives several answers to one request."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labelled: str = ""
    top_k: int = model_declaration.DEFAULT_TOP_K
    streams: bool = False


def of_version(storage: Storage, version: VersionRecord) -> Signature:
    """Of a user's version; what its owner declares is read out of its files."""
    declared = _declared(storage, version)
    return _made(
        [_recorded(each) for each in version.signature["inputs"]], [_recorded(each) for each in version.signature["outputs"]], declared
    )


def of_host(metadata: ModelMetadata, declaration: Declaration, config: Mapping[str, Any]) -> Signature:
    """Of a model as a model host has it; `config` is its configuration."""
    inputs, outputs = (
        [Tensor(spec.name, spec.datatype, tuple(spec.shape)) for spec in specs] for specs in (metadata.inputs, metadata.outputs)
    )
    streams = bool(config.get("model_transaction_policy", {}).get("decoupled"))
    return _made(inputs, outputs, declaration, streams=streams)


def _made(inputs: Sequence[Tensor], outputs: Sequence[Tensor], declared: Declaration, *, streams: bool = False) -> Signature:
    labelled = next((each.name for each in outputs if each.name in declared.labels and each.datatype != "BYTES"), "")
    return Signature(tuple(_with_picture(each, declared) for each in inputs), tuple(outputs), labelled, declared.top_k, streams)


def _recorded(given: Mapping[str, Any]) -> Tensor:
    low, high = map(_finite, given["range"] or (None, None))
    return Tensor(given["name"], given["type"], tuple(given["shape"]), low, high, given["optype"], tuple(given["values"]))


def _finite(number: float | None) -> float | None:
    """None for what JSON has no number for."""
    return number if number is not None and math.isfinite(number) else None


def _with_picture(tensor: Tensor, declared: Declaration) -> Tensor:
    if tensor.datatype in ("BYTES", "BOOL"):
        return tensor
    shape = [axis if _fixed(axis) else -1 for axis in tensor.shape]
    try:
        steps = model_declaration.complete("", tensor.name, declared.images.get(tensor.name), shape)  # type: ignore[arg-type]
    except ServingError:
        steps = None
    if steps is None:
        return tensor
    return Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.low, tensor.high, tensor.optype, tensor.values, True)


def _fixed(axis: Axis) -> bool:
    return isinstance(axis, int) and axis >= 0


def _declared(storage: Storage, version: VersionRecord) -> Declaration:
    """Which inputs take pictures and which outputs have labels; nothing where it cannot be read: then it is not needed for anything."""
    try:
        given = toml_text.loads(_settings(storage, version))
    except (OSError, ServingError, ValueError, zipfile.BadZipFile):
        return Declaration()
    inputs, labels = given.get("inputs", {}), given.get("labels", {})
    if not isinstance(inputs, dict) or not isinstance(labels, dict):
        return Declaration()
    pictures = [name for name, each in inputs.items() if isinstance(each, dict) and each.get("kind") in ("image", "video")]
    top_k = labels.get("top_k")
    return Declaration(
        labels={name: () for name in labels if name != "top_k"},
        top_k=top_k if isinstance(top_k, int) and top_k > 0 else model_declaration.DEFAULT_TOP_K,
        images={name: ImageDeclaration() for name in pictures},
    )


def _settings(storage: Storage, version: VersionRecord) -> bytes:
    """`model.toml` of a version, b"" where it has none. Raises OSError, ServingError (gone), BadZipFile."""
    if version.facts["archive"]:
        with storage.blobs.open(version.sha256) as file, zipfile.ZipFile(file) as archive:
            found = [each for each in archive.infolist() if each.filename.rpartition("/")[2] == _SETTINGS]
            shallow = min(found, key=lambda each: each.filename.count("/"), default=None)
            return archive.open(shallow).read(_MOST_SETTINGS) if shallow is not None else b""
    found_file = next((file for file in storage.models.files(version.id) if file.name == _SETTINGS and file.size <= _MOST_SETTINGS), None)
    return storage.blobs.read(found_file.sha256) if found_file is not None else b""


# sample values -----------------------------------------------------------------------------------------------------------------------


def sample(tensor: Tensor) -> Any:
    """One sample as nested lists, with its batch axis. Only for what is small."""
    count = math.prod(tensor.sample_shape)
    return _nested([element(tensor, at) for at in range(count)], tensor.sample_shape)


def element(tensor: Tensor, at: int = 0) -> Any:
    """A value that the tensor takes."""
    if tensor.values:
        return _value(tensor.datatype, tensor.values[at % len(tensor.values)])
    if tensor.datatype == "BYTES":
        return "a short text"
    if tensor.datatype == "BOOL":
        return True
    low, high = tensor.low, tensor.high
    if low is not None and high is not None:
        number = float(f"{low + (high - low) * (0.5 if high > low else 0):.4g}")
        number = min(max(number, low), high)
    else:
        number = low if low is not None else high if high is not None else 0.5 * (at % 8 + 1)
    return number if tensor.datatype in ("FP16", "FP32", "FP64", "BF16") else int(number) if low is not None or high is not None else 1


def _value(datatype: str, text: str) -> Any:
    if datatype == "BYTES":
        return text
    try:
        number = _finite(float(text))
    except ValueError:
        number = None
    if number is None:
        return 1
    return number if datatype.startswith(("FP", "BF")) else int(number)


def _nested(flat: Sequence[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return list(flat)
    step = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]


# for the form that tries a model -----------------------------------------------------------------------------------------------------


def for_form(signature: Signature) -> dict[str, Any]:
    """What static/try.js makes its form of."""
    return {
        "inputs": [
            {
                "name": each.name,
                "type": each.datatype,
                "shape": list(each.shape),
                "kind": kind(each),
                "low": each.low,
                "high": each.high,
                "values": list(each.values),
                "rows": each.takes_rows,
                "sample": sample(each) if each.is_small and not each.picture else None,
            }
            for each in signature.inputs
        ],
        "outputs": [{"name": each.name, "type": each.datatype, "shape": list(each.shape)} for each in signature.outputs],
        "labelled": signature.labelled,
        "top_k": signature.top_k,
        "streams": signature.streams,
    }


def kind(tensor: Tensor) -> str:
    """Which piece of the form it gets: picture, text, check, choice, number, grid (cells), lines (numbers, a sample in each line) or json."""
    if tensor.picture:
        return "picture"
    if tensor.is_single:
        if tensor.values:
            return "choice"
        return {"BYTES": "text", "BOOL": "check"}.get(tensor.datatype, "number")
    flat = tensor.shape[-1] if len(tensor.shape) == 2 or (len(tensor.shape) == 1 and _fixed(tensor.shape[0])) else None
    if flat is None or tensor.datatype in ("BYTES", "BOOL"):
        return "json"
    return "grid" if _fixed(flat) and int(flat) <= _WIDEST_GRID else "lines"
