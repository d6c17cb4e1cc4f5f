"""Tensor bytes: round trips for every datatype, and a refusal that names the tensor for everything else."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from idl import tensors
from idl.codes import Code, ServingError

NUMBERS = [name for name in tensors.DTYPES if name != "BYTES"]
fixed = settings(derandomize=True, deadline=None)
"""The same examples every time, however busy the machine is."""
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def refused(call: object) -> str:
    with pytest.raises(ServingError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code is Code.INVALID_INPUT
    return caught.value.message


@pytest.mark.parametrize("datatype", NUMBERS)
@fixed
@given(st.data())
def test_numbers_come_back_bit_for_bit(datatype: str, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    size = int(np.prod(shape, dtype=int)) * tensors.DTYPES[datatype].itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    array = tensors.decode("x", datatype, shape, raw)
    assert array.shape == shape and array.dtype == tensors.DTYPES[datatype]
    assert tensors.encode(array) == raw and tensors.encode(array, datatype) == raw


@fixed
@given(hnp.arrays(object, SHAPES, elements=st.binary(max_size=20), fill=st.nothing()))
def test_bytes_come_back_and_agree_with_the_official_client(array: np.ndarray) -> None:
    raw = tensors.encode(array)
    assert raw == (serialize_byte_tensor(array).item() if array.size else b"")
    back = tensors.decode("x", "BYTES", array.shape, raw)
    assert back.shape == array.shape and back.tolist() == array.tolist()
    assert array.size == 0 or deserialize_bytes_tensor(raw).tolist() == array.ravel().tolist()


def test_layouts_and_byte_orders_of_numpy_do_not_show_on_the_wire() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    wire = np.arange(6, dtype="<i4").tobytes()
    assert tensors.encode(array) == wire and tensors.datatype_of(array) == "INT32"
    assert tensors.encode(np.asfortranarray(array)) == wire
    assert tensors.encode(np.arange(12, dtype="<i4")[::2], "INT32") == np.arange(0, 12, 2, dtype="<i4").tobytes()
    assert tensors.encode(np.array(["\u03c0", "a"])) == b"\2\0\0\0\xcf\x80\1\0\0\0a"
    assert not tensors.decode("x", "INT32", (6,), wire).flags.writeable


@pytest.mark.parametrize("array", [np.zeros(1, np.complex64), np.zeros(1, "datetime64[s]"), np.zeros(1, "V4")])
def test_types_without_a_name_are_refused(array: np.ndarray) -> None:
    assert "has no datatype" in refused(lambda: tensors.datatype_of(array))


def test_elements_that_are_neither_text_nor_bytes_are_refused() -> None:
    assert "int" in refused(lambda: tensors.encode(np.array([b"a", 3], object)))


BAD = [
    ("FP32", (2,), 7, "needs 8 bytes, got 7"),
    ("FP32", (2,), 9, "needs 8 bytes, got 9"),
    ("FP32", (), 0, "needs 4 bytes, got 0"),
    ("FP32", (0, 3), 4, "needs 0 bytes, got 4"),
    ("INT8", (-1,), 1, "negative dimension in shape [-1]"),
    ("INT8", (0, -2), 0, "negative dimension"),
    ("INT8", (2**32, 2**32), 0, "more elements than can be counted"),
    ("INT8", (0, 2**62, 2**62), 0, "more elements than can be counted"),
    ("INT8", (1,) * 33, 1, "rank 33, at most 32"),
    ("FLOAT", (1,), 4, "datatype 'FLOAT', which is none"),
    ("", (1,), 4, "datatype '', which is none"),
    ("BYTES", (2,), 7, "at least 8 bytes, got 7"),
]


@pytest.mark.parametrize(("datatype", "shape", "size", "says"), BAD)
def test_wrong_sizes_are_refused_by_name(datatype: str, shape: tuple[int, ...], size: int, says: str) -> None:
    message = refused(lambda: tensors.decode("pixels", datatype, shape, bytes(size)))
    assert "'pixels'" in message and says in message


BAD_BYTES = [
    (1, struct.pack("<I", 5) + b"abcd", "element 0 says 5 bytes, 4 are left"),
    (1, b"\xff\xff\xff\xff", "element 0 says 4294967295 bytes, 0 are left"),
    (2, struct.pack("<I", 4) + b"abcd", "ends inside the length of element 1 of 2"),
    (1, struct.pack("<I", 1) + b"ab", "has 1 bytes after its 1 elements"),
    (0, b"a", "has 1 bytes after its 0 elements"),
]


@pytest.mark.parametrize(("count", "data", "says"), BAD_BYTES)
def test_lying_lengths_of_bytes_elements_are_refused_by_name(count: int, data: bytes, says: str) -> None:
    message = refused(lambda: tensors.decode("text", "BYTES", (count,), data))
    assert "'text'" in message and says in message


@fixed
@given(st.binary(max_size=60), st.integers(0, 6))
def test_any_bytes_are_a_tensor_or_a_refusal(data: bytes, count: int) -> None:
    try:
        array = tensors.decode("x", "BYTES", (count,), data)
    except ServingError as error:
        assert error.code is Code.INVALID_INPUT
    else:
        assert tensors.encode(array) == data
