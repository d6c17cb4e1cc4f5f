"""JSON values <-> tensors: every datatype, and everything that must be refused rather than converted."""

import json
import math
from typing import Any

import numpy as np
import pytest

from gateway.operations import tensor_json
from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import Tensor


def there(datatype: str, data: Any) -> Tensor:
    flat, shape = tensor_json.flatten("x", data)
    return tensor_json.to_tensor("x", datatype, flat, shape)


def there_and_back(datatype: str, data: Any) -> Any:
    return tensor_json.to_nested(there(datatype, data))


def refused(datatype: str, data: Any) -> str:
    with pytest.raises(ServingError) as caught:
        there(datatype, data)
    assert caught.value.code is Code.INVALID_INPUT
    assert "'x'" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("datatype", [name for name in tensors.DTYPES if name.startswith(("INT", "UINT"))])
def test_integers_to_their_limits_and_no_further(datatype: str) -> None:
    limits = np.iinfo(tensors.DTYPES[datatype])
    data = [[int(limits.min), 0], [1, int(limits.max)]]
    assert there_and_back(datatype, data) == data
    assert str(int(limits.max)) in refused(datatype, [int(limits.max) + 1])
    assert str(int(limits.min)) in refused(datatype, [int(limits.min) - 1])
    assert "a fraction" in refused(datatype, [1.0])
    assert "true or false" in refused(datatype, [True])
    refused(datatype, [10**400])


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_floats(datatype: str) -> None:
    assert there_and_back(datatype, [1, -0.5, 0.0]) == [1.0, -0.5, 0.0]
    names = ["NaN", "Infinity", "-Infinity"]
    assert there_and_back(datatype, names) == names
    assert there_and_back(datatype, [math.nan, math.inf, -math.inf]) == names
    assert "a text" in refused(datatype, [1.0, "1.0"])
    assert "null" in refused(datatype, [None])
    assert "true or false" in refused(datatype, [1.0, True])
    assert "too large" in refused(datatype, [10**400])
    if datatype != "FP64":
        assert "too large" in refused(datatype, [1e300])


def test_float_rounding_is_numpys() -> None:
    values = [0.1, 1 / 3, 65519.0, 1e-8]
    for datatype in ("FP16", "FP32", "FP64"):
        assert there(datatype, values).data == np.array(values, tensors.DTYPES[datatype]).tobytes()


def test_bfloat16_rounds_to_nearest_even() -> None:
    import ml_dtypes

    rng = np.random.default_rng(5)
    values = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    assert (tensor_json.to_bfloat16(values) == expected.view(np.uint16)).all()
    assert tensor_json.to_nested(Tensor("x", "BF16", (2,), tensor_json.to_bfloat16(np.float32([np.nan, 0.3])).tobytes())) == [
        "NaN",
        0.30078125,
    ]


def test_booleans() -> None:
    assert there_and_back("BOOL", [[True], [False]]) == [[True], [False]]
    assert "a number" in refused("BOOL", [1])


def test_texts_and_bytes() -> None:
    assert there_and_back("BYTES", ["", "h\u00e4\0", "\u6f22"]) == ["", "h\u00e4\0", "\u6f22"]
    assert there_and_back("BYTES", [{"b64": "/wA="}, {"b64": "YQ=="}]) == [{"b64": "/wA="}, "a"]
    assert "surrogate" in refused("BYTES", ["\ud800"])
    assert "not base64" in refused("BYTES", [{"b64": "?"}])
    assert "not base64" in refused("BYTES", [{"b64": "YQ"}])
    assert "not base64" in refused("BYTES", [{"b64": "\u00e4"}])
    assert "a number" in refused("BYTES", [{"b64": 3}])
    assert "an object" in refused("BYTES", [{"b64": "", "more": 1}])
    assert "null" in refused("BYTES", [None])


def test_shapes() -> None:
    assert tensor_json.flatten("x", 3) == ([3], ())
    assert tensor_json.flatten("x", []) == ([], (0,))
    assert tensor_json.flatten("x", [[], []]) == ([], (2, 0))
    assert tensor_json.flatten("x", [[[1], [2]], [[3], [4]], [[5], [6]]]) == ([1, 2, 3, 4, 5, 6], (3, 2, 1))
    for zero_size in ((0,), (2, 0), (0, 3)):
        assert there("FP32", np.zeros(zero_size).tolist()).data == b""


@pytest.mark.parametrize("data", [[[1, 2], [3]], [1, [2]], [[1], 2], [[[1]], [2]], [[], [1]], [[1], "a"], [{}, [1]]])
def test_ragged(data: Any) -> None:
    assert "ragged" in refused("FP32", data)


def test_depth_and_size_are_bounded() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    assert "nested deeper than 32" in refused("FP32", deep)
    with pytest.raises(ServingError, match="nested too deeply"):
        tensor_json.parse(b"[" * 100_000)
    for piece, count in ((b"{},", tensor_json.MAX_CONTAINERS), (b"1,", tensor_json.MAX_VALUES + 1)):
        with pytest.raises(ServingError) as caught:
            tensor_json.parse(b"[" + piece * count + b"0]")
        assert caught.value.code is Code.TOO_LARGE


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}x", b"\xff", b'"\xed\xa0\x80"', b"[1,]", b"\xef\xbb\xbf{}", b"1" * 5000, b"{'a':1}", "[1]".encode("utf-16")]
)
def test_not_json(body: bytes) -> None:
    with pytest.raises(ServingError) as caught:
        tensor_json.parse(body)
    assert caught.value.code is Code.INVALID_INPUT


def test_an_empty_document_is_called_empty() -> None:
    for body in (b"", b" \n"):
        with pytest.raises(ServingError, match=r"^the body is empty$"):
            tensor_json.parse(body)


def test_the_answer_is_strict_json() -> None:
    answer = json.dumps(there_and_back("FP32", [[math.nan, 1.5], [math.inf, -math.inf]]), allow_nan=False)
    assert json.loads(answer) == [["NaN", 1.5], ["Infinity", "-Infinity"]]


def test_scalars_come_back_as_scalars() -> None:
    assert there_and_back("INT64", 7) == 7
    assert there_and_back("FP32", math.nan) == "NaN"
    assert there_and_back("BYTES", "a") == "a"


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT16", "INT64", "FP32", "FP64"])
@pytest.mark.parametrize("count", [0, 1, 8192, 100_003])
def test_numbers_are_written_as_json_whatever_their_number(datatype: str, count: int) -> None:
    array = (np.arange(count) % 100 - (0 if datatype == "UINT8" else 3)).astype(tensors.DTYPES[datatype])
    if datatype.startswith("FP"):
        array = array / array.dtype.type(7)
    text = tensor_json.to_json(Tensor("x", datatype, (count,), array.tobytes()))
    assert json.loads(text) == array.tolist() and " " not in text


def test_non_finite_numbers_in_the_middle_of_many() -> None:
    array = np.arange(50_000, dtype=np.float32)
    array[[0, 20_000, 49_999]] = [np.nan, np.inf, -np.inf]
    written = json.loads(tensor_json.to_json(Tensor("x", "FP32", (50_000,), array.tobytes())))
    np.testing.assert_array_equal(np.float32(written), array)


def test_contents_of_another_size_are_refused() -> None:
    for shape, size in (((3,), 8), ((2,), 12), ((-1,), 4)):
        with pytest.raises(ServingError, match="'x'"):
            tensor_json.to_json(Tensor("x", "FP32", shape, bytes(size)))
