"""Pictures of every kind that a camera, a browser or an attacker sends: the right tensor, or a refusal that says what is wrong."""

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from PIL import Image

from gateway.model_declaration import Declaration, ImageDeclaration, ImageSteps, complete, read
from gateway.operations import images
from gateway.operations.images import FORMATS, Limits
from idl.codes import Code, ServingError
from idl.messages import TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
PIXELS = 50_000_000
RNG = np.random.default_rng(1)
PICTURE = RNG.integers(0, 256, (5, 7, 3), np.uint8)
"""5 high, 7 wide, no two corners alike."""


def save(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes, colour: str = "RGB") -> np.ndarray:
    return np.asarray(images.read("input 'x'", data, colour, PIXELS))


def refused(data: bytes, code: Code = Code.INVALID_INPUT) -> str:
    with pytest.raises(ServingError) as caught:
        images.read("input 'x'", data, "RGB", PIXELS)
    assert caught.value.code is code
    assert caught.value.message.startswith("input 'x'")
    return caught.value.message


class TestColours:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
    def test_every_format(self, kind: str) -> None:
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
        flat = Image.new("RGB", (8, 6), (200, 30, 90))
        assert np.abs(pixels(save(flat, kind, **options)).astype(int) - (200, 30, 90)).max() <= 2

    def test_exact_where_the_format_is(self) -> None:
        for kind in ("PNG", "BMP", "TIFF"):
            assert (pixels(save(Image.fromarray(PICTURE), kind)) == PICTURE).all()

    def test_grey(self) -> None:
        grey = PICTURE[:, :, 0]
        assert (pixels(save(Image.fromarray(grey))) == grey[:, :, None]).all()
        assert (pixels(save(Image.fromarray(grey)), "L") == grey).all()

    def test_colour_to_grey_is_luma(self) -> None:
        assert pixels(save(Image.new("RGB", (1, 1), (255, 0, 0))), "L").tolist() == [[76]]

    def test_one_bit(self) -> None:
        assert pixels(save(Image.fromarray(np.array([[True, False]])))).tolist() == [[[255] * 3, [0] * 3]]

    def test_palette(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putdata([0, 1])
        assert pixels(save(image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]

    def test_transparent_palette_entry_is_white(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putdata([0, 1])
        for kind in ("PNG", "GIF"):
            assert pixels(save(image, kind, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]

    def test_alpha_is_laid_on_white(self) -> None:
        image = Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [200, 0, 0, 128]]], np.uint8), "RGBA")
        for kind in ("PNG", "TIFF"):
            nothing, black, half = pixels(save(image, kind))[0].tolist()
            assert (nothing, black) == ([255] * 3, [0] * 3)
            assert np.abs(np.array(half) - (227, 127, 127)).max() <= 1

    def test_grey_with_alpha(self) -> None:
        image = Image.fromarray(np.array([[[0, 0], [9, 255]]], np.uint8), "LA")
        assert pixels(save(image)).tolist() == [[[255] * 3, [9] * 3]]

    def test_transparent_colour_of_an_opaque_mode(self) -> None:
        image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
        assert pixels(save(image, transparency=(4, 5, 6))).tolist() == [[[1, 2, 3], [255, 255, 255]]]

    @pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
    def test_cmyk(self, kind: str) -> None:
        ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
        assert np.abs(pixels(save(ink, kind)).astype(int) - (255, 0, 0)).max() <= 6

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_sixteen_bits(self, kind: str) -> None:
        values = np.array([[0, 128, 129, 257, 65535]], np.uint16)
        assert pixels(save(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 0, 1, 1, 255]

    def test_sixteen_bit_colour(self) -> None:
        rows = b"\0" + struct.pack(">6H", 65535, 0, 32768, 257, 514, 771)
        assert pixels(png(2, 1, 16, 2, rows)).tolist() == [[[255, 0, 128], [1, 2, 3]]]

    def test_values_without_a_scale(self) -> None:
        assert "floating-point" in refused(save(Image.fromarray(np.float32([[0.5]])), "TIFF"))
        assert "beyond 16 bits" in refused(save(Image.fromarray(np.array([[70000]], np.int32)), "TIFF"))
        assert "beyond 16 bits" in refused(save(Image.fromarray(np.array([[-1]], np.int32)), "TIFF"))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG made by hand: what Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
"""EXIF orientation -> what it does to the stored pixels."""


class TestOrientation:
    @pytest.mark.parametrize("orientation", TURNS)
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
    def test_upright(self, orientation: int, kind: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = save(Image.fromarray(PICTURE), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        assert (pixels(data) == TURNS[orientation](PICTURE)).all()

    def test_jpeg(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        top_red = np.zeros((64, 32, 3), np.uint8)
        top_red[:32, :, 0] = 255
        upright = pixels(save(Image.fromarray(top_red), "JPEG", exif=exif, quality=95))
        assert upright.shape == (32, 64, 3)
        assert upright[:, 40:, 0].min() > 240 and upright[:, :24, 0].max() < 15

    @pytest.mark.parametrize(
        "exif",
        [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"],
    )
    def test_damaged_notes_do_not_matter(self, exif: bytes) -> None:
        assert (pixels(save(Image.fromarray(PICTURE), exif=exif)) == PICTURE).all()


class TestRefusals:
    def test_empty(self) -> None:
        assert "empty" in refused(b"")

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
            (b"PK\x03\x04" + bytes(26), "a ZIP archive"),
            (b"\0\0\0\x18ftypheic" + bytes(16), "a HEIC picture"),
            (b"\0\0\0\x18ftypavif" + bytes(16), "an AVIF picture"),
            (b"\0\0\0\x18ftypisom" + bytes(16), "an MP4 video"),
            (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
            (b"<!DOCTYPE html><p>", "an HTML page"),
            (b"RIFF\0\0\0\0WAVEfmt ", "a WAV file"),
            (b"hello", "plain text"),
            (bytes(range(200, 256)), "no known picture"),
        ],
    )
    def test_another_kind_of_file_is_named(self, data: bytes, kind: str) -> None:
        message = refused(data)
        assert kind in message and "JPEG, PNG" in message

    @pytest.mark.parametrize("kind", FORMATS)
    def test_cut_off(self, kind: str) -> None:
        whole = save(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), kind)
        for size in (len(whole) // 2, 40):
            assert f"the {kind} file is cut off or damaged" in refused(whole[:size])

    def test_formats_that_nobody_should_send(self) -> None:
        for kind in ("PPM", "ICO", "TGA", "EPS"):
            refused(save(Image.fromarray(PICTURE), kind))

    def test_every_flipped_byte_is_a_picture_or_a_refusal(self) -> None:
        for kind in FORMATS:
            whole = bytearray(save(Image.fromarray(PICTURE), kind))
            for position in RNG.integers(0, len(whole), 150):
                damaged = whole.copy()
                damaged[position] ^= int(RNG.integers(1, 256))
                try:
                    images.read("input 'x'", bytes(damaged), "RGB", 1_000_000)
                except ServingError as error:
                    assert error.code in (Code.INVALID_INPUT, Code.TOO_LARGE)

    def test_bomb_is_refused_from_its_head(self) -> None:
        begun = time.process_time()
        assert "9999 x 9999" in refused(png(9999, 9999, 8, 2, b""), Code.TOO_LARGE)
        refused(png(60_000, 60_000, 8, 2, b""), Code.TOO_LARGE)
        assert time.process_time() - begun < 1

    def test_limit_is_exact(self) -> None:
        data = save(Image.new("L", (10, 10)))
        assert images.read("x", data, "L", 100).size == (10, 10)
        with pytest.raises(ServingError):
            images.read("x", data, "L", 99)

    def test_animation_counts_by_its_first_frame(self) -> None:
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        for kind in ("GIF", "WEBP", "PNG", "TIFF"):
            options = {"lossless": True} if kind == "WEBP" else {}
            assert (pixels(save(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == (255, 0, 0)).all()


def steps(**changes: Any) -> ImageSteps:
    base = {"size": None, "resize_short": 0, "crop": False, "layout": "NCHW", "colour": "RGB", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return ImageSteps(**(base | changes))


def tensor(*files: bytes, spec: TensorSpec | None = None, limits: Limits | None = None, **changes: Any) -> np.ndarray:
    spec = spec or TensorSpec("x", "FP32", (-1, 3, -1, -1))
    made = images.to_tensor(spec, steps(**changes), files, limits or Limits(PIXELS, 1 << 26, time.monotonic() + 60))
    dtype = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "UINT8": "u1", "INT8": "i1", "INT64": "<i8", "BF16": "<u2"}[made.datatype]
    return np.frombuffer(made.data, dtype).reshape(made.shape)


class TestSteps:
    data = save(Image.fromarray(PICTURE))

    def test_layouts(self) -> None:
        assert (tensor(self.data) == PICTURE.transpose(2, 0, 1)[None]).all()
        assert (tensor(self.data, layout="NHWC") == PICTURE[None]).all()

    def test_colours(self) -> None:
        assert (tensor(self.data, colour="BGR", layout="NHWC") == PICTURE[None, :, :, ::-1]).all()
        assert tensor(self.data, colour="L", mean=(0.0,), std=(1.0,)).shape == (1, 1, 5, 7)

    def test_mean_and_std_for_each_channel(self) -> None:
        made = tensor(self.data, layout="NHWC", mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
        assert (made[0] == (PICTURE.astype(np.float32) - np.float32([1, 2, 3])) / np.float32([2, 4, 8])).all()

    def test_straight_to_the_size(self) -> None:
        expected = np.asarray(Image.fromarray(PICTURE).resize((4, 3), Image.Resampling.BICUBIC))
        assert (tensor(self.data, size=(3, 4), layout="NHWC")[0] == expected).all()

    def test_short_side_and_the_middle(self) -> None:
        made = tensor(self.data, size=(8, 8), resize_short=10, crop=True, layout="NHWC")
        whole = np.asarray(Image.fromarray(PICTURE).resize((14, 10), Image.Resampling.BICUBIC))
        assert (made[0] == whole[1:9, 3:11]).all()

    def test_crop_without_a_short_side_covers_the_size(self) -> None:
        assert tensor(self.data, size=(20, 9), crop=True).shape == (1, 3, 20, 9)
        assert tensor(self.data, size=(9, 20), crop=True).shape == (1, 3, 9, 20)

    def test_the_demo_models_steps_on_a_real_photograph(self) -> None:
        data = (Path(skimage.__file__).parent / "data" / "coffee.png").read_bytes()
        made = tensor(data, size=(224, 224), resize_short=256, crop=True, mean=(127.0,) * 3, std=(128.0,) * 3)
        assert made.shape == (1, 3, 224, 224)
        assert made.min() >= -127 / 128 and made.max() <= 1

    def test_several_files_are_one_batch(self) -> None:
        flipped = save(Image.fromarray(PICTURE[:, ::-1]))
        assert (tensor(self.data, flipped, layout="NHWC") == np.stack([PICTURE, PICTURE[:, ::-1]])).all()

    def test_one_batch_has_one_size(self) -> None:
        with pytest.raises(ServingError, match="picture 2 is 5 x 7, the first one 7 x 5"):
            tensor(self.data, save(Image.fromarray(PICTURE.transpose(1, 0, 2))))

    @pytest.mark.parametrize("datatype", ["UINT8", "INT64", "FP16", "FP64"])
    def test_other_datatypes(self, datatype: str) -> None:
        assert (tensor(self.data, spec=TensorSpec("x", datatype, (-1, -1, -1, 3)), layout="NHWC")[0] == PICTURE).all()

    def test_integers_are_rounded_and_kept_inside(self) -> None:
        spec = TensorSpec("x", "INT8", (-1, -1, -1, 3))
        made = tensor(save(Image.fromarray(np.array([[[0, 100, 255]]], np.uint8))), spec=spec, layout="NHWC", mean=(0.0, 0.4, 0.0))
        assert made.ravel().tolist() == [0, 100, 127]

    def test_model_without_a_batch_axis(self) -> None:
        spec = TensorSpec("x", "FP32", (3, 5, 7))
        assert tensor(self.data, spec=spec).shape == (3, 5, 7)
        with pytest.raises(ServingError, match="takes one picture"):
            tensor(self.data, self.data, spec=spec)

    def test_too_narrow(self) -> None:
        with pytest.raises(ServingError, match="too narrow") as caught:
            tensor(save(Image.new("RGB", (1, 9000))), size=(224, 224), resize_short=256, crop=True)
        assert caught.value.code is Code.INVALID_INPUT

    def test_the_tensor_is_bounded(self) -> None:
        limits = Limits(PIXELS, 5 * 7 * 3 * 4 * 2, time.monotonic() + 60)
        assert tensor(self.data, self.data, limits=limits).shape[0] == 2
        with pytest.raises(ServingError, match="picture 3") as caught:
            tensor(self.data, self.data, self.data, limits=limits)
        assert caught.value.code is Code.TOO_LARGE

    def test_reading_stops_at_the_deadline(self) -> None:
        with pytest.raises(ServingError, match="0 of 2") as caught:
            tensor(self.data, self.data, limits=Limits(PIXELS, 1 << 26, time.monotonic() - 1))
        assert caught.value.code is Code.DEADLINE_EXCEEDED


class TestDeclaration:
    def test_the_shape_decides_what_is_not_declared(self) -> None:
        found = complete("m", "x", None, (-1, 3, 24, 32))
        assert found == ImageSteps((24, 32), 0, False, "NCHW", "RGB", (0.0,) * 3, (1.0,) * 3)
        found = complete("m", "x", None, (-1, -1, -1, 3))
        assert found == ImageSteps(None, 0, False, "NHWC", "RGB", (0.0,) * 3, (1.0,) * 3)
        assert complete("m", "x", None, (-1, 1, 8, 8)) == ImageSteps((8, 8), 0, False, "NCHW", "L", (0.0,), (1.0,))
        for shape in ((), (3,), (-1, 4), (-1, 2, 8, 8), (-1, -1, -1, -1), (-1, 3, 8, 8, 8)):
            assert complete("m", "x", None, shape) is None

    def test_a_declaration_wins(self) -> None:
        declared = ImageDeclaration((8, 8), 10, True, "NHWC", "BGR", (1.0, 2.0, 3.0), (4.0,))
        assert complete("m", "x", declared, (-1, -1, -1, -1)) == ImageSteps((8, 8), 10, True, "NHWC", "BGR", (1.0, 2.0, 3.0), (4.0,) * 3)

    @pytest.mark.parametrize(
        "declared", [ImageDeclaration(mean=(1.0, 2.0)), ImageDeclaration((300, 300), 256), ImageDeclaration(colour="L", std=(1.0,) * 3)]
    )
    def test_contradictions(self, declared: ImageDeclaration) -> None:
        with pytest.raises(ServingError) as caught:
            complete("m", "x", declared, (-1, 3, -1, -1))
        assert caught.value.code is Code.INVALID_MODEL

    def test_a_model_without_one(self) -> None:
        assert read("m", {}) == Declaration() == read("m", {"parameters": {"other": {"string_value": "1"}}})

    def test_whole(self) -> None:
        text = (
            '{"public": false, "description": "d", "labels": {"y": ["a", "b"]}, "top_k": 2, "inputs": {"t": {"kind": "tensor"}, "x": {"kind": "image", '
            '"size": [1, 2], "resize_short": 3, "crop": "center", "layout": "NHWC", "colour": "BGR", "mean": [1, 2, 3], "std": 4}}}'
        )
        made = read("m", {"parameters": {"outboard": {"string_value": text}}})
        assert made.labels == {"y": ["a", "b"]} and made.top_k == 2 and not made.public and made.description == "d"
        assert made.images == {"x": ImageDeclaration((1, 2), 3, True, "NHWC", "BGR", (1.0, 2.0, 3.0), (4.0,))}

    @pytest.mark.parametrize(
        "text",
        ["{", "[]", '{"labels": 1}', '{"inputs": {"x": 1}}', '{"inputs": {"x": {"kind": "image", "colour": "CMYK"}}}', '{"top_k": "x"}'],
    )
    def test_unreadable_is_never_taken_for_public(self, text: str) -> None:
        with pytest.raises(ServingError) as caught:
            read("m", {"parameters": {"outboard": {"string_value": text}}})
        assert caught.value.code is Code.INVALID_MODEL
