"""Pictures -> tensors, as a model's declaration says.

A picture is opened by its content, never by its name, turned upright (EXIF), made 8-bit in the declared colours, resized (bicubic),
cropped, normalised. Rules where a file can be read in more than one way: transparency is laid on white; 16-bit values are divided by
257; CMYK is converted without a colour profile; of an animation or a file with several pages the first picture counts.
"""

import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gateway.model_declaration import ImageSteps
from gateway.operations.file_kinds import kind_of
from gateway.operations.tensor_json import to_bfloat16
from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import Tensor, TensorSpec
from idl.tensors import Array, invalid

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Pillow warns about what is odd in a file, and Python remembers each distinct text for ever: callers decide those texts.
warnings.filterwarnings("ignore", module=r"PIL\.")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_16_BIT = 65535
_16_TO_8_BIT = 257  # 65535 / 255
_INTEGERS = frozenset({"UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"})


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_pixels`: of one picture; `max_bytes`: of the tensor made of all; `deadline` is in seconds of `time.monotonic()`."""

    max_pixels: int
    max_bytes: int
    deadline: float


def to_tensor(spec: TensorSpec, steps: ImageSteps, files: Sequence[bytes], limits: Limits) -> Tensor:
    """One picture for each sample -> the tensor of input `spec`. Raises invalid_input, too_large, deadline_exceeded; each names the input."""
    made: list[NDArray[np.float32]] = []
    size = 0
    for number, data in enumerate(files, 1):
        if time.monotonic() > limits.deadline:
            raise ServingError(
                Code.DEADLINE_EXCEEDED, f"input {spec.name!r}: {number - 1} of {len(files)} pictures were read in the time allowed"
            )
        where = f"input {spec.name!r}" if len(files) == 1 else f"input {spec.name!r}, picture {number}"
        image = _resized(where, read(where, data, steps.colour, limits.max_pixels), steps, limits.max_pixels)
        size += image.width * image.height * steps.channels * tensors.DTYPES[spec.datatype].itemsize
        if size > limits.max_bytes:
            raise ServingError(Code.TOO_LARGE, f"{where} makes the tensor larger than {limits.max_bytes} bytes")
        if made and made[0].shape[:2] != (image.height, image.width):
            raise invalid(
                f"{where} is {image.width} x {image.height}, the first one {made[0].shape[1]} x {made[0].shape[0]}; one batch has one size"
            )
        made.append(_normalised(image, steps))
    batch = np.stack(made)
    if steps.layout == "NCHW":
        batch = batch.transpose(0, 3, 1, 2)
    if len(spec.shape) == 3:  # a model without a batch axis
        if len(files) > 1:
            raise invalid(f"input {spec.name!r} takes one picture, {len(files)} are given")
        batch = batch[0]
    return Tensor(spec.name, spec.datatype, batch.shape, tensors.encode(_as_datatype(batch, spec.datatype), spec.datatype))


def read(where: str, data: bytes, colour: str, max_pixels: int) -> Image.Image:
    """The picture in a file: upright, 8 bits a channel, mode L for the colour "L", else RGB. Raises invalid_input and too_large."""
    opened = _opened(where, data)
    width, height = opened.size
    if width * height > max_pixels:
        raise _too_many_pixels(where, max_pixels, f" ({width} x {height})")
    try:
        opened.load()
        flat = _flat(_eight_bit(where, _upright(opened)))
        mode = "L" if colour == "L" else "RGB"
        return flat if flat.mode == mode else flat.convert(mode)  # convert copies even where there is nothing to do
    except ServingError:
        raise
    except Exception as error:
        # the decoders raise all sorts of things on damaged files: OSError, SyntaxError, IndexError, struct.error, ...
        raise _damaged(where, opened.format) from error


def _opened(where: str, data: bytes) -> Image.Image:
    if not data:
        raise invalid(f"{where}: the file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(where, Image.MAX_IMAGE_PIXELS or 0, "") from error
    except Exception as error:
        kind = kind_of(data)
        if kind in FORMATS:
            raise _damaged(where, kind) from error
        raise invalid(f"{where}: the file is {kind or 'no known picture'}; {', '.join(FORMATS)} are read") from error


def _damaged(where: str, kind: str | None) -> ServingError:
    return invalid(f"{where}: the {kind} file is cut off or damaged")


def _too_many_pixels(where: str, limit: int, size: str) -> ServingError:
    return ServingError(Code.TOO_LARGE, f"{where}: the picture{size} has over {limit} pixels")


def _upright(image: Image.Image) -> Image.Image:
    """Asked after loading: Pillow turns a TIFF while it loads and then takes the mark away."""
    try:
        transpose = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged notes about a picture do not make it unreadable
        return image
    return image if transpose is None else image.transpose(transpose)


def _eight_bit(where: str, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise invalid(f"{where}: the picture has floating-point values, of which nobody says what is white")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > _MAX_16_BIT):
        raise invalid(f"{where}: the picture has values beyond 16 bits")
    return Image.fromarray(np.rint(values / _16_TO_8_BIT).astype(np.uint8))


def _flat(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    coloured = image.convert("RGBA")
    paper = Image.new("RGBA", coloured.size, "white")
    paper.alpha_composite(coloured)
    return paper


def _resized(where: str, image: Image.Image, steps: ImageSteps, max_pixels: int) -> Image.Image:
    target = _target(image, steps)
    if target[0] * target[1] > max_pixels:
        raise invalid(f"{where}: the picture ({image.width} x {image.height}) is too narrow to be resized to {target[0]} x {target[1]}")
    if target != image.size:
        image = image.resize(target, Image.Resampling.BICUBIC)
    if not (steps.crop and steps.size):
        return image
    height, width = steps.size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _target(image: Image.Image, steps: ImageSteps) -> tuple[int, int]:
    """(width, height) after resizing, before cropping."""
    if steps.resize_short:
        scale = steps.resize_short / min(image.size)
        return max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if steps.size is None:
        return image.size
    height, width = steps.size
    if not steps.crop:
        return width, height
    scale = max(width / image.width, height / image.height)
    return max(width, round(image.width * scale)), max(height, round(image.height * scale))


def _normalised(image: Image.Image, steps: ImageSteps) -> NDArray[np.float32]:
    """[height, width, channels]"""
    pixels = np.asarray(image, np.float32)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if steps.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = np.asarray(steps.mean, np.float32), np.asarray(steps.std, np.float32)
    normalised: NDArray[np.float32] = (pixels - mean) / std
    return normalised


def _as_datatype(batch: NDArray[np.float32], datatype: str) -> Array:
    if datatype == "BF16":
        return to_bfloat16(batch)
    dtype = tensors.DTYPES[datatype]
    if datatype in _INTEGERS:
        limits = np.iinfo(dtype)  # type: ignore[type-var]
        return np.rint(batch).clip(limits.min, limits.max).astype(dtype)
    return batch.astype(dtype, copy=False)
