"""`[inputs.NAME]` and `[outputs.NAME]` of `model.toml`: how something that a person sends, a picture say, becomes that tensor, and, where
the model's file does not say it, what the tensor is.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from idl.tensors import DTYPES, MAX_RANK
from inference_server import errors
from inference_server.setting_checks import InvalidModelSettings, bad, is_number, is_whole, shown
from inference_server.types import Signature

INPUT_KINDS = ("tensor", "image", "text", "audio", "video")


def inputs(key: str, value: Any, folder: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise bad(key, value, "a table of input name = declaration")
    return {str(name): _input(f"inputs.{name}", declared) for name, declared in value.items()}


def outputs(key: str, value: Any, folder: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise bad(key, value, "a table of output name = declaration")
    return {str(name): _checked(f"outputs.{name}", declared, TENSOR_CHECKS) for name, declared in value.items()}


def published(declared: Mapping[str, Any]) -> dict[str, Any]:
    """What callers are told of an input: the signature says the rest."""
    return {key: value for key, value in declared.items() if key not in TENSOR_CHECKS}


def _input(key: str, declared: Any) -> dict[str, Any]:
    return {"kind": "tensor", **_checked(key, declared, INPUT_CHECKS)}


def _checked(key: str, declared: Any, checks: Mapping[str, tuple[Callable[[Any], bool], str]]) -> dict[str, Any]:
    if not isinstance(declared, dict):
        raise bad(key, declared, "a table")
    for name, value in declared.items():
        check = checks.get(name)
        if check is None:
            raise InvalidModelSettings(f"{key} has an unknown key {shown(name)}; known are {', '.join(sorted(checks))}")
        is_right, want = check
        if not is_right(value):
            raise bad(f"{key}.{name}", value, want)
    return dict(declared)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_pixels(item) for item in value)


def _is_pixels(value: Any) -> bool:
    return is_whole(value, 1, 16384)


def _is_numbers(value: Any) -> bool:
    return is_number(value) or (isinstance(value, list) and len(value) in (1, 3) and all(is_number(item) for item in value))


def _is_divisor(value: Any) -> bool:
    return _is_numbers(value) and all(item != 0 for item in (value if isinstance(value, list) else [value]))


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_RANK and all(is_whole(item, -1, 2**40) for item in value)


TENSOR_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "datatype": (lambda value: isinstance(value, str) and value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "shape": (_is_shape, "a list of sizes, -1 for any"),
}
"""Key of any tensor -> (whether a value is right, what it should be)."""

INPUT_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **TENSOR_CHECKS,
    "kind": (lambda value: value in INPUT_KINDS, f"one of {', '.join(INPUT_KINDS)}"),
    "size": (_is_size, "[height, width] in pixels"),
    "resize_short": (_is_pixels, "a number of pixels"),
    "crop": (lambda value: value == "center", '"center"'),
    "layout": (lambda value: value in ("NCHW", "NHWC"), '"NCHW" or "NHWC"'),
    "colour": (lambda value: value in ("RGB", "BGR", "L"), '"RGB", "BGR" or "L"'),
    "mean": (_is_numbers, "a number, or one for each channel"),
    "rate": (lambda value: is_number(value) and 0 < value <= 1000, "a number of frames a second, above 0 and at most 1000"),
    "std": (_is_divisor, "a number other than 0, or one for each channel"),
}
"""Key of an input -> (whether a value is right, what it should be)."""


def check(model: str, kinds: Mapping[str, str], signature: Signature) -> None:
    """`kinds`: input name -> its kind. Raises invalid_model for an input that the model has not, or that cannot hold its kind."""
    specs = {spec.name: spec for spec in signature.inputs}
    for name, kind in kinds.items():
        spec = specs.get(name)
        if spec is None:
            have = f"its inputs are {', '.join(map(repr, specs))}" if specs else "it has no inputs"
            raise errors.invalid_model(model, f"inputs.{name}: the model has no input {name!r}; {have}")
        if kind == "image" and (len(spec.shape) not in (3, 4) or spec.datatype in ("BYTES", "BOOL")):
            raise errors.invalid_model(
                model,
                f'inputs.{name}.kind = "image" wants numbers of 3 axes, or of 4 with the batch; '
                f"the model's input {name!r} is {spec.datatype} {list(spec.shape)}",
            )
