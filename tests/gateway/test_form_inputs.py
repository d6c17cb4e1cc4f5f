"""`input` and `filetype` -> a body for each sample; files that lie, and files that are too much."""

import base64
import io
import json
import struct
import time
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from gateway.errors import InvalidFields
from gateway.model_declaration import Declaration, ImageDeclaration
from gateway.operations import form_inputs, prediction_inputs, sample_answers
from gateway.operations.form_inputs import Samples
from gateway.operations.images import Limits
from gateway.operations.input_files import FormLimits
from gateway.operations.prediction_bodies import Files, Nested, PredictionBody
from idl.codes import Code, ServingError
from idl.messages import ModelMetadata, TensorSpec

ROWS = TensorSpec("x", "FP32", (-1, 3))
NUMBER = TensorSpec("n", "INT64", (-1, 1))
TEXT = TensorSpec("t", "BYTES", (-1,))
PICTURE = TensorSpec("p", "FP32", (-1, 3, 8, 8))
NOTHING = Declaration()


def limits(**changes: Any) -> FormLimits:
    return replace(FormLimits(1000, 1 << 22, Limits(1_000_000, 1 << 24, time.monotonic() + 30)), **changes)


def decode(specs: list[TensorSpec], filetype: str, fields: Mapping[str, str] | None = None, /, **more: Any) -> Samples:
    metadata = ModelMetadata("m", ("1",), "onnxruntime_onnx", tuple(specs), ())
    given: dict[str, Any] = {"files": {}, "declaration": NOTHING, "limits": limits()} | more
    return form_inputs.decode(filetype, fields or {}, given["files"], metadata, given["declaration"], given["limits"])


def bodies(*arguments: Any, **more: Any) -> list[dict[str, Any]]:
    """Input name -> value of each sample."""
    return [
        {name: given.value if isinstance(given, Nested) else given.contents for name, given in body.inputs.items()}  # type: ignore[union-attr]
        for body in decode(*arguments, **more).bodies
    ]


def refused(*arguments: Any, **more: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        list(decode(*arguments, **more).bodies)
    return caught.value


def picture(colour: str = "red", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def archive(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return file.getvalue()


def video(frames: int = 30, rate: int = 10, size: tuple[int, int] = (64, 48)) -> bytes:
    """Each frame is a grey that grows with its number."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = Fraction(1, rate)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), number * 8, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


# one word ----------------------------------------------------------------------------------------------------------------------------


def test_none_is_json_with_or_without_the_batch_axis() -> None:
    for value in ([1, 2, 3], [[1, 2, 3]]):
        assert bodies([ROWS], "none", {"input": json.dumps({"x": value})}) == [{"x": [[1, 2, 3]]}]
    assert bodies([ROWS], "none", {"input": "[[1, 2, 3], [4, 5, 6]]"}) == [{"x": [[1, 2, 3], [4, 5, 6]]}], "the model's only input"
    assert bodies([NUMBER], "none", {"input": "7"}) == [{"n": [[7]]}]
    assert bodies([TEXT, NUMBER], "none", {"input": '{"t": "a", "n": 1}'}) == [{"t": ["a"], "n": [[1]]}]
    assert decode([ROWS], "none", {"input": "{}"}).single


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "nonsense", '{"x": }', "\ud800"])
def test_none_that_is_no_json(text: str) -> None:
    assert refused([ROWS], "none", {"input": text}).code is Code.INVALID_INPUT


def test_what_is_missing_is_another_error_than_what_is_wrong() -> None:
    for kind in form_inputs.FILE_TYPES:
        assert isinstance(refused([ROWS], kind), InvalidFields), kind
    for kind in ("", "jpg", "None", "{}", "{", '{"x": "jpg"}', '{"x": 1}', "[]"):
        assert refused([ROWS], kind, {"input": "1"}).code is Code.INVALID_INPUT, kind
    assert "names 'y'" in refused([ROWS], '{"y": "none"}', {"input": "{}"}).message


def test_a_picture_as_base64_and_as_a_file() -> None:
    data = picture(kind="JPEG")
    text = base64.b64encode(data).decode()
    for given in (
        text,
        f"data:image/jpeg;base64,{text}",
        text.rstrip("="),
        "\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
    ):
        assert bodies([PICTURE], "jpgbase64", {"input": given}) == [{"p": (data,)}]
    assert bodies([PICTURE], "jpgbase64", files={"input": data}) == bodies([PICTURE], "jpgbase64", files={"input": text.encode()})
    assert bodies([PICTURE, NUMBER], "jpgbase64", {"input": text}) == [{"image": (data,)}], "the only picture of several inputs"
    for wrong in ("", "%%%", "äöü"):
        assert refused([PICTURE], "jpgbase64", {"input": wrong}).code is Code.INVALID_INPUT


def test_csv_by_names_and_by_columns() -> None:
    both = b'\xef\xbb\xbfn, t \r\n1,one\r\n\r\n-2,"two, three"\r\n'
    assert bodies([TEXT, NUMBER], "csv", files={"input": both}) == [{"n": [[1]], "t": ["one"]}, {"n": [[-2]], "t": ["two, three"]}]
    assert bodies([ROWS], "csv", files={"input": b"a;b;c\n1;2.5;1e3\nNaN;inf;-0\n"}) == [
        {"x": [[1.0, 2.5, 1000.0]]},
        {"x": [["NaN", "Infinity", -0.0]]},
    ]
    assert bodies([ROWS], "csv", {"input": 'x\n"[1, 2, 3]"'}) == [{"x": [[1, 2, 3]]}], "a list in a cell; a text field"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"a,b,c\n", "no rows"),
        (b"a,a,b\n1,2,3\n", "twice"),
        (b"a,b,c\n1,2\n", "line 2: 2 cells"),
        (b"a,b,c\n1,2,x\n", "'x' is no value"),
        (b"a,b,c\n1,2,\n", "empty"),
        (b"a,b,c\n1,2,1_0\n", "no value"),
        (b'a,b,c\n1,2,"3\n', "line"),
        (b"a,b,c\n1,2,\xff\n", "UTF-8"),
        (b"a,b,c\n1,2,3\x00\n", "no value"),
        (b"\xff\xd8\xff\xe0 jpeg", "JPEG"),
        (b"a,b,c\n" + b"9" * (2 << 20), "line 2"),
    ],
)
def test_csv_that_is_none(data: bytes, word: str) -> None:
    error = refused([ROWS], "csv", files={"input": data})
    assert error.code is Code.INVALID_INPUT and word in error.message, error.message


def test_a_csv_that_fits_no_input() -> None:
    assert "input 'n' is missing" in refused([TEXT, NUMBER], "csv", files={"input": b"t\na\n"}).message
    assert "'INT64'" not in refused([NUMBER], "csv", files={"input": b"n\n1.5\n"}).message
    assert "which is INT64" in refused([NUMBER], "csv", files={"input": b"n\n1.5\n"}).message


def test_txt_line_by_line() -> None:
    assert bodies([TEXT], "txt", files={"input": "eins\r\n\nzwei ü\n\n".encode()}) == [{"t": ["eins"]}, {"t": [""]}, {"t": ["zwei ü"]}]
    assert bodies([ROWS], "txt", files={"input": b"1 2 3\n4,5;6\n[7, 8, 9]"}) == [
        {"x": [[1, 2, 3]]},
        {"x": [[4, 5, 6]]},
        {"x": [[7, 8, 9]]},
    ]
    assert bodies([TEXT, NUMBER], "txt", files={"input": b'{"t": "a", "n": 1}\n'}) == [{"t": ["a"], "n": [[1]]}]
    for wrong in (b"", b"\n", b"1 2 x", b"\xff", b"\x00"):
        assert refused([ROWS], "txt", files={"input": wrong}).code is Code.INVALID_INPUT, wrong


def test_too_many_samples_and_too_little_time() -> None:
    few = limits(samples=2)
    for kind, data in (
        ("csv", b"a,b,c\n" + b"1,2,3\n" * 3),
        ("txt", b"1 2 3\n" * 3),
        ("zip", archive({f"{n}.txt": b"1 2 3" for n in range(3)})),
    ):
        assert refused([ROWS], kind, files={"input": data}, limits=few).code is Code.TOO_LARGE
        late = limits(pictures=Limits(1000, 1000, time.monotonic() - 1))
        assert refused([ROWS], kind, files={"input": data}, limits=late).code is Code.DEADLINE_EXCEEDED


# archives ----------------------------------------------------------------------------------------------------------------------------


def test_a_zip_of_pictures_and_one_of_texts() -> None:
    red, blue = picture("red"), picture("blue")
    files = {"b/红 (1).png": red, "a.png": blue, "__MACOSX/a.png": b"x", ".DS_Store": b"x", "b/": b""}
    assert bodies([PICTURE], "zip", files={"input": archive(files)}) == [{"p": (red,)}, {"p": (blue,)}]
    assert bodies([TEXT], "zip", files={"input": archive({"a.txt": b"one", "b.TXT": b"two\nlines"})}) == [
        {"t": ["one"]},
        {"t": ["two\nlines"]},
    ]
    assert bodies([ROWS], "zip", files={"input": archive({"a.txt": b"1 2 3\n"})}) == [{"x": [[1, 2, 3]]}]


def bomb() -> bytes:
    return archive({"a.txt": bytes(8 << 20)})


def lying() -> bytes:
    """The directory says 10 bytes, there are many more."""
    data = bytearray(archive({"a.txt": b"x" * 5000}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)
    return bytes(data)


def linked() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        info = zipfile.ZipInfo("a.txt")
        info.external_attr = 0o120777 << 16
        made.writestr(info, "/etc/passwd")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"no zip",
        archive({}),
        archive({"../a.txt": b"x"}),
        archive({"a.exe": b"MZ"}),
        archive({"a.txt": b"\xff\xfe\xfd"}),
        archive({"a.txt": b"x"}, zipfile.ZIP_LZMA),
        archive({"inner.zip": archive({"a.txt": b"x"})}),
        archive({"a.txt": b"x" * 1000})[:-30],
        bomb(),
        lying(),
        linked(),
        b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65535, 65535, 2**32 - 1, 0, 0),
    ],
    ids=range(14),
)
def test_archives_that_are_refused(data: bytes) -> None:
    assert refused([TEXT], "zip", files={"input": data}, limits=limits(unpacked=1 << 20)).code in (Code.INVALID_INPUT, Code.TOO_LARGE)


def test_a_text_is_no_picture() -> None:
    declared = Declaration(images={"p": ImageDeclaration()})
    error = refused([PICTURE], "zip", files={"input": archive({"a.txt": b"x"})}, declaration=declared)
    assert "'a.txt' is a text" in error.message


# videos ------------------------------------------------------------------------------------------------------------------------------


def greys(files: list[dict[str, Any]]) -> list[int]:
    return [round(float(np.asarray(Image.open(io.BytesIO(each["p"][0]))).mean()) / 8) for each in files]


def test_a_video_frame_by_frame() -> None:
    data = video()
    made = decode([PICTURE], "mp4", files={"input": data})
    assert not made.single and made.assumed == {"p": {"rate": "every frame"}}
    assert greys(bodies([PICTURE], "mp4", files={"input": data})) == list(range(30))
    declared = Declaration(images={"p": ImageDeclaration()}, rates={"p": 2.0})
    assert greys(bodies([PICTURE], "mp4", files={"input": data}, declaration=declared)) == [0, 5, 10, 15, 20, 25]
    text = base64.b64encode(data).decode()
    assert greys(bodies([PICTURE], "mp4base64", {"input": text}, declaration=declared)) == [0, 5, 10, 15, 20, 25]
    first = Image.open(io.BytesIO(bodies([PICTURE], "mp4", files={"input": data})[0]["p"][0]))
    assert first.size == (64, 48)
    declared = Declaration(images={"p": ImageDeclaration(size=(8, 8))})
    metadata = ModelMetadata("m", ("1",), "", (PICTURE,), ())
    body = next(made.bodies)
    tensor = prediction_inputs.prepare(metadata, declared, body, limits().pictures).tensors[0]
    assert tensor.shape == (1, 3, 8, 8)
    made.close()


def test_videos_that_are_refused() -> None:
    data = video(frames=5)
    assert refused([PICTURE], "mp4", files={"input": data}, limits=limits(samples=3)).code is Code.TOO_LARGE
    small = limits(pictures=Limits(100, 1 << 24, time.monotonic() + 30))
    assert refused([PICTURE], "mp4", files={"input": data}, limits=small).code is Code.TOO_LARGE
    late = limits(pictures=Limits(10**6, 1 << 24, time.monotonic() + 0.01))
    assert refused([PICTURE], "mp4", files={"input": data}, limits=late).code is Code.DEADLINE_EXCEEDED
    assert "JPEG" in refused([PICTURE], "mp4", files={"input": picture(kind="JPEG")}).message
    playlist = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"#EXTM3U\nfile:///etc/passwd\n"
    for wrong in (b"", b"\0\0\0\x18ftypmp42", data[: len(data) // 2], playlist, data[:40] + bytes(4000)):
        assert refused([PICTURE], "mp4", files={"input": wrong}).code is Code.INVALID_INPUT, wrong[:20]


# a word for each input ---------------------------------------------------------------------------------------------------------------


def test_each_input_in_its_own_way() -> None:
    data = picture()
    text = base64.b64encode(data).decode()
    kinds = json.dumps({"n": "none", "p": "jpgbase64"})
    expected = [{"n": [[4]], "p": (data,)}]
    assert bodies([NUMBER, PICTURE], kinds, {"input": '{"n": 4}', "inputfile_p": text}) == expected
    assert bodies([NUMBER, PICTURE], kinds, {"input": '{"n": 4}'}, files={"inputfile_p": data}) == expected
    assert bodies([NUMBER, PICTURE], kinds, {"inputfile_n": "4"}, files={"inputfile_p": data}) == expected
    assert isinstance(refused([NUMBER, PICTURE], kinds, {"input": '{"n": 4}'}), InvalidFields)
    assert "neither" in refused([NUMBER, PICTURE], kinds, {"inputfile_p": text}).message
    many = json.dumps({"t": "txt", "n": "csv", "x": "none"})
    made = bodies([TEXT, NUMBER, ROWS], many, {"input": '{"x": [1, 2, 3]}'}, files={"inputfile_t": b"a\nb", "inputfile_n": b"n\n1\n2\n"})
    assert made == [{"t": ["a"], "n": [[1]], "x": [[1, 2, 3]]}, {"t": ["b"], "n": [[2]], "x": [[1, 2, 3]]}]
    uneven = json.dumps({"t": "txt", "n": "csv"})
    assert "2 samples" in refused([TEXT, NUMBER], uneven, files={"inputfile_t": b"a\nb", "inputfile_n": b"n\n1\n2\n3\n"}).message


# answers -----------------------------------------------------------------------------------------------------------------------------


def test_one_answer_of_many() -> None:
    def run(body: PredictionBody) -> dict[str, Any]:
        given = body.inputs["x"]
        assert isinstance(given, Nested)
        if given.value == [[0, 0, 0]]:
            raise ServingError(Code.INVALID_INPUT, "nothing")
        return {"id": "i", "model": "m", "outputs": {"y": given.value, "s": 1.0}, "labels": [[{"label": "a"}]], "timing_ms": {}}

    made = sample_answers.answered(decode([ROWS], "txt", {"input": "1 2 3\n4 5 6"}), run)
    assert made["outputs"] == {"y": [[1, 2, 3], [4, 5, 6]], "s": [1.0, 1.0]} and made["samples"] == 2 and len(made["labels"]) == 2
    single = sample_answers.answered(decode([ROWS], "none", {"input": "[1, 2, 3]"}), run)
    assert single["outputs"]["y"] == [[1, 2, 3]] and "samples" not in single
    with pytest.raises(ServingError, match="sample 2: nothing"):
        sample_answers.answered(decode([ROWS], "txt", {"input": "1 2 3\n0 0 0"}), run)


def test_files_are_for_pictures_and_bytes() -> None:
    assert isinstance(next(decode([PICTURE], "jpgbase64", files={"input": picture()}).bodies).inputs["p"], Files)
