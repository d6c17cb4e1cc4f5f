"""`[labels]` of `model.toml`: what the numbers of an output mean, one text for each index."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inference_server import errors
from inference_server.setting_checks import InvalidModelSettings, bad
from inference_server.types import Signature

_MAX_BYTES = 8 * 2**20


def labels(key: str, value: Any, folder: Path) -> dict[str, tuple[str, ...]]:
    """Output name -> its labels. Each is the name of a file beside the settings, or, where the settings travel as JSON, the list itself."""
    if not isinstance(value, dict):
        raise bad(key, value, "a table of output name = label file")
    return {str(output): _labels(f"labels.{output}", given, folder) for output, given in value.items() if output != "top_k"}


def _labels(key: str, given: Any, folder: Path) -> tuple[str, ...]:
    if isinstance(given, list) and all(isinstance(label, str) for label in given):
        return tuple(given)
    if not isinstance(given, str) or not given or Path(given).name != given:
        raise bad(key, given, "the plain name of a file beside model.toml")
    return read_file(key, folder / given)


def read_file(key: str, path: Path) -> tuple[str, ...]:
    """One label per line, or a JSON list of texts. Raises InvalidModelSettings."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        text = raw.decode()
    except FileNotFoundError:
        raise InvalidModelSettings(f"{key}: file {path.name!r} is not there") from None
    except UnicodeDecodeError as error:
        raise InvalidModelSettings(f"{key}: file {path.name!r} is not text: byte {error.start} is not UTF-8") from error
    except (OSError, ValueError) as error:
        raise InvalidModelSettings(f"{key}: file {path.name!r} cannot be read as text: {type(error).__name__}") from error
    if len(raw) > _MAX_BYTES:
        raise InvalidModelSettings(f"{key}: file {path.name!r} is over {_MAX_BYTES} bytes")
    if not text.lstrip().startswith("["):
        return tuple(text.splitlines())
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModelSettings(f"{key}: file {path.name!r} is not JSON: {error}") from error
    if not all(isinstance(label, str) for label in found):
        raise InvalidModelSettings(f"{key}: file {path.name!r} is not a JSON list of texts")
    return tuple(found)


def check(model: str, labelled: Iterable[str], signature: Signature) -> None:
    """`labelled`: names of outputs that have labels. Raises invalid_model for one that the model has not."""
    outputs = [spec.name for spec in signature.outputs]
    for name in labelled:
        if name not in outputs:
            have = f"its outputs are {', '.join(map(repr, outputs))}" if outputs else "it has no outputs"
            raise errors.invalid_model(model, f"labels.{name}: the model has no output {name!r}; {have}")
