"""What a model's owner declares about it (`model.toml`), as the model host publishes it inside the model's configuration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from idl.codes import Code, ServingError

PARAMETER = "outboard"
"""The configuration's parameter that holds the declaration as JSON text."""
DEFAULT_TOP_K = 5
_PICTURES = ("image", "video")
_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


@dataclass(frozen=True, slots=True)
class ImageSteps:
    """How a picture becomes a tensor: resize, crop, `(x - mean) / std`, layout.

    `size` is (height, width), None for the picture's own; `resize_short` is the short side after resizing, 0 to resize straight to
    `size`; `crop`: cut `size` out of the middle. `mean` and `std` have one value for each channel.
    """

    size: tuple[int, int] | None
    resize_short: int
    crop: bool
    layout: str
    colour: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return _CHANNELS[self.colour]


@dataclass(frozen=True, slots=True)
class ImageDeclaration:
    """The same with what the owner left open as None: the model's own shape decides those."""

    size: tuple[int, int] | None = None
    resize_short: int = 0
    crop: bool = False
    layout: str | None = None
    colour: str | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class Declaration:
    """`labels`: output name -> one label for each index. `images`: the inputs that take pictures; `rates`: frames a second, of those that
    take videos and say it."""

    public: bool = True
    description: str = ""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    top_k: int = DEFAULT_TOP_K
    images: Mapping[str, ImageDeclaration] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    user: bool = False
    """Whether it is a user's, and so not for everybody who is signed in."""


def read(model: str, config: Mapping[str, Any]) -> Declaration:
    """Reads the declaration out of a model configuration; one that has none declares nothing and is public.

    Raises invalid_model for a declaration that cannot be used: never a guess about who may call the model.
    """
    text = config.get("parameters", {}).get(PARAMETER, {}).get("string_value", "")
    if not text:
        return Declaration()
    try:
        given = json.loads(text)
        return Declaration(
            public=given.get("public", True) is True,
            description=str(given.get("description", "")),
            labels={str(name): [str(label) for label in labels] for name, labels in given.get("labels", {}).items()},
            top_k=int(given.get("top_k", DEFAULT_TOP_K)),
            images={str(name): _image(value) for name, value in given.get("inputs", {}).items() if value.get("kind") in _PICTURES},
            rates={str(name): float(value["rate"]) for name, value in given.get("inputs", {}).items() if value.get("rate")},
            user=given.get("user", False) is True,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ServingError(Code.INVALID_MODEL, f"model {model!r}: its declaration cannot be read: {type(error).__name__}") from error


def _image(given: Mapping[str, Any]) -> ImageDeclaration:
    colour, layout, size = given.get("colour"), given.get("layout"), given.get("size")
    if colour is not None and colour not in _CHANNELS:
        raise ValueError("colour")
    if layout not in (None, "NCHW", "NHWC"):
        raise ValueError("layout")
    height_width = None if size is None else (int(size[0]), int(size[1]))
    resize_short = int(given.get("resize_short", 0))
    return ImageDeclaration(
        size=height_width,
        resize_short=resize_short,
        crop=given.get("crop") == "center" or bool(resize_short and height_width),
        layout=layout,
        colour=colour,
        mean=_numbers(given.get("mean", 0.0)),
        std=_numbers(given.get("std", 1.0)),
    )


def _numbers(given: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in given) if isinstance(given, list) else (float(given),)


def complete(model: str, name: str, declared: ImageDeclaration | None, shape: Sequence[int]) -> ImageSteps | None:
    """The steps for input `name`: what is declared, the rest from the model's `shape` (with its batch axis).

    None where nothing is declared and the shape is not one of a picture: [N, 3, H, W], [N, H, W, 3], or 1 channel instead of 3.
    Raises invalid_model where declaration and shape contradict each other.
    """
    found = _layout_of(shape)
    if declared is None:
        if found is None:
            return None
        declared = ImageDeclaration()
    layout = declared.layout or (found[0] if found else "NCHW")
    colour = declared.colour or ("L" if found and found[1] == 1 else "RGB")
    channels = _CHANNELS[colour]
    if len(declared.mean) not in (1, channels) or len(declared.std) not in (1, channels):
        raise ServingError(
            Code.INVALID_MODEL, f"model {model!r}: input {name!r} has {channels} channels, its mean or std has another number"
        )
    size = declared.size
    if size is None and len(shape) == 4:
        height, width = (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])
        size = (height, width) if height > 0 and width > 0 else None
    if size is not None and declared.resize_short and declared.resize_short < max(size):
        raise ServingError(Code.INVALID_MODEL, f"model {model!r}: input {name!r} has a size above its resize_short")
    return ImageSteps(
        size=size,
        resize_short=declared.resize_short,
        crop=declared.crop or bool(declared.resize_short and size),
        layout=layout,
        colour=colour,
        mean=_for_each(declared.mean, channels),
        std=_for_each(declared.std, channels),
    )


def _layout_of(shape: Sequence[int]) -> tuple[str, int] | None:
    if len(shape) != 4:
        return None
    for channels in (3, 1):
        if shape[1] == channels:
            return "NCHW", channels
        if shape[3] == channels:
            return "NHWC", channels
    return None


def _for_each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values
