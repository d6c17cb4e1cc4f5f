"""`model.toml` of a deployment: what its model's owner declares, and above it what the deployment wants."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from idl import toml_text
from idl.codes import Code, ServingError

_DELETE = chr(127)


def merged(declared: bytes, versions: Sequence[int], cpus: float | None, memory: int | None) -> bytes:
    """The file's bytes: `versions` are loaded and no others, the host's is who decides between them, and nobody calls it without us.

    `declared` is TOML, b"" for nothing. Raises invalid_model where it is not.
    """
    try:
        said = toml_text.loads(declared)
    except ValueError as error:
        raise ServingError(Code.INVALID_MODEL, f"model.toml cannot be read: {error}") from None
    for key in ("instances", "version_labels", "canary_percent", "public", "version_policy"):
        said.pop(key, None)
    said |= {"public": False, "version_policy": {"specific": sorted(set(versions))}}
    if cpus is not None:
        said["cpus"] = cpus
    if memory is not None:
        said["memory"] = f"{memory}B"
    return written(said)


def of_script(*versions: int) -> bytes:
    """That of a deployment's script, of which these versions serve."""
    return written({"public": False, "version_policy": {"specific": sorted(versions)}})


def written(values: Mapping[str, Any]) -> bytes:
    """TOML of texts, numbers, truth values, lists and tables: each key on a line of its own."""
    return "".join(f"{_text(key)} = {_value(value)}\n" for key, value in values.items()).encode()


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    return value.isoformat()  # type: ignore[no-any-return]  # TOML's dates and times


def _text(text: str) -> str:
    """JSON's escapes are TOML's, but for the one character that JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace(_DELETE, "\\u007f")
