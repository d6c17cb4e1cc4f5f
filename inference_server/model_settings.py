"""`model.toml`: what a model's owner says about it besides the file itself. Every key is optional, an unknown one is an error."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INPUT_KINDS = ("tensor", "image", "text", "audio", "video")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MAX_LABELS_BYTES = 8 * 2**20


class InvalidModelSettings(ValueError):
    """The file cannot be used; the message names the key and the value."""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are loaded: the `latest` n, or the `specific` ones, or, where both are empty, all."""

    latest: int = 1
    specific: tuple[int, ...] = ()

    def choose(self, versions: tuple[int, ...]) -> tuple[int, ...]:
        """Of `versions`, ascending, those to load."""
        if self.specific:
            return tuple(version for version in versions if version in self.specific)
        return versions[-self.latest :] if self.latest else versions


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`memory` is in bytes, 0 for no limit. `labels`: output name -> one label per index. `inputs`: input name -> its declaration."""

    public: bool = True
    description: str = ""
    max_batch_size: int | None = None
    max_queue_delay_us: int | None = None
    max_queue_size: int | None = None
    instances: int = 1
    executor: str = "process"
    cpus: float = 0.0
    memory: int = 0
    version_policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    top_k: int = 5
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def not_used_yet(self) -> tuple[str, ...]:
        """The keys that were given and that this release does not act on: the log names them, so that nobody is misled."""
        given = {
            "max_batch_size": self.max_batch_size is not None,
            "max_queue_delay_us": self.max_queue_delay_us is not None,
            "max_queue_size": self.max_queue_size is not None,
            "instances": self.instances != 1,
            "executor": self.executor != "process",
            "memory": self.memory != 0,
        }
        return tuple(name for name, is_given in given.items() if is_given)

    def published(self) -> dict[str, Any]:
        """What callers and the gateway are told, as JSON values."""
        return {
            "public": self.public,
            "description": self.description,
            "labels": {name: list(values) for name, values in self.labels.items()},
            "top_k": self.top_k,
            "inputs": {name: dict(value) for name, value in self.inputs.items()},
        }


def read(folder: Path) -> ModelSettings:
    """Reads `folder/model.toml` and the label files that it names. Raises InvalidModelSettings."""
    path = folder / "model.toml"
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return ModelSettings()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelSettings(f"model.toml cannot be read: {type(error).__name__}") from error
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidModelSettings(f"model.toml is not TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in given.items():
        reader = _READERS.get(key)
        if reader is None:
            raise InvalidModelSettings(f"model.toml has an unknown key {key!r}; known are {', '.join(sorted(_READERS))}")
        values[key] = reader(key, value, folder)
    if "top_k" in given.get("labels", {}):
        values["top_k"] = _whole(1, 100_000)("labels.top_k", given["labels"]["top_k"], folder)
    return ModelSettings(**values)


def _bad(key: str, value: Any, want: str) -> InvalidModelSettings:
    return InvalidModelSettings(f"model.toml: {key} = {value!r} is not {want}")


def _bool(key: str, value: Any, folder: Path) -> bool:
    if not isinstance(value, bool):
        raise _bad(key, value, "true or false")
    return value


def _text(key: str, value: Any, folder: Path) -> str:
    if not isinstance(value, str):
        raise _bad(key, value, "a text")
    return value


def _whole(least: int, most: int) -> Callable[[str, Any, Path], int]:
    def reader(key: str, value: Any, folder: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _bad(key, value, f"a whole number from {least} to {most}")
        return value

    return reader


def _executor(key: str, value: Any, folder: Path) -> str:
    if value not in ("process", "thread"):
        raise _bad(key, value, '"process" or "thread"')
    return str(value)


def _cpus(key: str, value: Any, folder: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise _bad(key, value, "a number above 0")
    return float(value)


def _memory(key: str, value: Any, folder: Path) -> int:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise _bad(key, value, 'a size such as "2GiB"')
    return int(float(found[1]) * _UNITS[found[2] or "B"])


def _version_policy(key: str, value: Any, folder: Path) -> VersionPolicy:
    want = '"all", { latest = N } or { specific = [N, ...] }'
    if value == "all":
        return VersionPolicy(latest=0)
    if not isinstance(value, dict) or len(value) != 1:
        raise _bad(key, value, want)
    ((kind, inner),) = value.items()
    if kind == "latest" and isinstance(inner, int) and not isinstance(inner, bool) and inner >= 1:
        return VersionPolicy(latest=inner)
    if kind == "specific" and isinstance(inner, list) and inner and all(type(item) is int and item >= 1 for item in inner):
        return VersionPolicy(specific=tuple(sorted(set(inner))))
    raise _bad(key, value, want)


def _labels(key: str, value: Any, folder: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise _bad(key, value, "a table of output name = label file")
    return {str(output): _label_file(f"labels.{output}", name, folder) for output, name in value.items() if output != "top_k"}


def _label_file(key: str, name: Any, folder: Path) -> tuple[str, ...]:
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise _bad(key, name, "the plain name of a file beside model.toml")
    try:
        with (folder / name).open("rb") as file:
            raw = file.read(_MAX_LABELS_BYTES + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelSettings(f"model.toml: {key}: file {name!r} cannot be read as text: {type(error).__name__}") from error
    if len(raw) > _MAX_LABELS_BYTES:
        raise InvalidModelSettings(f"model.toml: {key}: file {name!r} is over {_MAX_LABELS_BYTES} bytes")
    if not text.lstrip().startswith("["):
        return tuple(text.splitlines())
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise InvalidModelSettings(f"model.toml: {key}: file {name!r} is not JSON: {error}") from error
    if not all(isinstance(label, str) for label in labels):
        raise InvalidModelSettings(f"model.toml: {key}: file {name!r} is not a JSON list of texts")
    return tuple(labels)


def _inputs(key: str, value: Any, folder: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise _bad(key, value, "a table of input name = declaration")
    return {str(name): _input(f"inputs.{name}", declared) for name, declared in value.items()}


def _input(key: str, declared: Any) -> dict[str, Any]:
    if not isinstance(declared, dict):
        raise _bad(key, declared, "a table")
    for name, value in declared.items():
        check = _INPUT_CHECKS.get(name)
        if check is None:
            raise InvalidModelSettings(f"model.toml: {key} has an unknown key {name!r}; known are {', '.join(sorted(_INPUT_CHECKS))}")
        is_right, want = check
        if not is_right(value):
            raise _bad(f"{key}.{name}", value, want)
    return {"kind": "tensor", **declared}


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_pixels(item) for item in value)


def _is_pixels(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 16384


def _is_numbers(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, list) and len(value) in (1, 3) and all(_is_number(item) for item in value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_divisor(value: Any) -> bool:
    return _is_numbers(value) and all(item != 0 for item in (value if isinstance(value, list) else [value]))


_INPUT_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda value: value in INPUT_KINDS, f"one of {', '.join(INPUT_KINDS)}"),
    "size": (_is_size, "[height, width] in pixels"),
    "resize_short": (_is_pixels, "a number of pixels"),
    "crop": (lambda value: value == "center", '"center"'),
    "layout": (lambda value: value in ("NCHW", "NHWC"), '"NCHW" or "NHWC"'),
    "colour": (lambda value: value in ("RGB", "BGR", "L"), '"RGB", "BGR" or "L"'),
    "mean": (_is_numbers, "a number, or one for each channel"),
    "std": (_is_divisor, "a number other than 0, or one for each channel"),
}

_READERS: dict[str, Callable[[str, Any, Path], Any]] = {
    "public": _bool,
    "description": _text,
    "max_batch_size": _whole(0, 65536),
    "max_queue_delay_us": _whole(0, 60_000_000),
    "max_queue_size": _whole(1, 1_000_000),
    "instances": _whole(1, 1024),
    "executor": _executor,
    "cpus": _cpus,
    "memory": _memory,
    "version_policy": _version_policy,
    "labels": _labels,
    "inputs": _inputs,
}
