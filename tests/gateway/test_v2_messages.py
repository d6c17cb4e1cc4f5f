"""Bodies of the open protocol: what is taken, what is refused and with which code, and what an answer looks like."""

import json
import math
from typing import Any

import numpy as np
import pytest

from gateway.operations import v2_messages
from gateway.operations.v2_messages import InferBody
from idl.codes import Code, ServingError
from idl.messages import InferResponse, ModelMetadata, Tensor, TensorSpec
from idl.shared_regions import Place


def decode(given: Any, binary: bytes = b"") -> InferBody:
    head = json.dumps(given).encode()
    return v2_messages.decode(head + binary, len(head))


def x(**changes: Any) -> dict[str, Any]:
    """A request with one good input, changed."""
    given = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return {"inputs": [{name: value for name, value in given.items() if value is not ...}]}


def refusal(given: Any, binary: bytes = b"") -> ServingError:
    with pytest.raises(ServingError) as caught:
        decode(given, binary)
    return caught.value


FLOATS = np.float32([1, 2]).tobytes()


class TestInputs:
    @pytest.mark.parametrize("data", [[1, 2], [[1, 2]]])
    def test_flat_and_nested(self, data: Any) -> None:
        (tensor,) = decode(x(data=data)).inputs
        assert tensor == Tensor("x", "FP32", (1, 2), FLOATS)

    def test_scalar(self) -> None:
        for data in (3, [3]):
            assert decode(x(shape=[], data=data)).inputs[0].shape == ()
        assert decode(x(shape=[1, 1], data=3)).inputs[0].shape == (1, 1)

    def test_empty(self) -> None:
        for shape, data in (([0, 2], []), ([2, 0], [[], []]), ([0], [])):
            assert decode(x(shape=shape, data=data)).inputs[0].data == b""

    def test_binary_is_a_view_of_the_body(self) -> None:
        body = decode(x(data=..., parameters={"binary_data_size": 8}), FLOATS)
        (tensor,) = body.inputs
        assert isinstance(tensor.data, memoryview) and bytes(tensor.data) == FLOATS

    def test_json_and_binary_mixed(self) -> None:
        given = {
            "inputs": [
                {"name": "a", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}},
                {"name": "b", "datatype": "INT64", "shape": [1], "data": [7]},
                {"name": "c", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
            ]
        }
        a, b, c = decode(given, b"\1\2\3" + b"\1\0\0\0z").inputs
        assert (bytes(a.data), bytes(b.data), bytes(c.data)) == (b"\1\2\3", (7).to_bytes(8, "little"), b"\1\0\0\0z")

    @pytest.mark.parametrize(
        ("given", "binary", "says"),
        [
            ([], b"", "not a JSON object"),
            ({}, b"", "no list of inputs"),
            ({"inputs": {}}, b"", "no list of inputs"),
            ({"inputs": [1]}, b"", "name"),
            (x(name=1), b"", "name"),
            (x(name="\ud800"), b"", "surrogate"),
            (x(datatype="FP8"), b"", "FP8"),
            (x(datatype=3), b"", "datatype"),
            (x(datatype=...), b"", "datatype"),
            (x(shape=...), b"", "shape"),
            (x(shape=[1.0, 2]), b"", "shape"),
            (x(shape=[True, 2]), b"", "shape"),
            (x(shape=[-1, -2]), b"", "negative"),
            (x(shape=[2**62, 2**62], data=[]), b"", "counted"),
            (x(shape=[2**70, 0], data=[]), b"", "counted"),
            (x(shape=[1] * 33, data=[1]), b"", "rank"),
            (x(shape=[3], data=[1, 2]), b"", "shape [3] and data of shape [2]"),
            (x(shape=[2, 1], data=[[1, 2]]), b"", "shape [2, 1] and data of shape [1, 2]"),
            (x(data=[[1], [2, 3]]), b"", "ragged"),
            (x(data=[1, "a"]), b"", "a text"),
            (x(data=...), b"", "neither data nor"),
            (x(parameters={"binary_data_size": 8}), FLOATS, "both"),
            (x(data=..., parameters={"binary_data_size": 8}), b"", "0 bytes are left"),
            (x(data=..., parameters={"binary_data_size": 7}), FLOATS[1:], "needs 8 bytes, got 7"),
            (x(data=..., parameters={"binary_data_size": 9}), FLOATS + b"\0", "needs 8 bytes, got 9"),
            (x(data=..., parameters={"binary_data_size": -8}), FLOATS, "binary_data_size -8"),
            (x(data=..., parameters={"binary_data_size": 8.0}), FLOATS, "binary_data_size 8.0"),
            (x(data=..., parameters={"binary_data_size": True}), FLOATS, "binary_data_size True"),
            (x(data=..., parameters={"binary_data_size": 8}), FLOATS + b"?", "1 bytes after"),
            (x(), b"?", "1 bytes after"),
            (x(parameters=[]), b"", "not an object"),
            (x(parameters={"a": None}), b"", "parameter 'a'"),
            (x(parameters={"a": 2**64}), b"", "64 bits"),
            ({"inputs": x()["inputs"] * 2}, b"", "twice"),
            (x(datatype="FP16", data=[1, 2]), b"", "as binary data"),
            (x(datatype="BF16", data=[1, 2]), b"", "as binary data"),
            ({**x(), "id": 7}, b"", "id is not a text"),
            ({**x(), "id": "\udfff"}, b"", "surrogate"),
            ({**x(), "outputs": 1}, b"", "outputs is not a list"),
            ({**x(), "outputs": ["y"]}, b"", "name"),
            ({**x(), "outputs": [{"name": "y"}, {"name": "y"}]}, b"", "twice"),
            ({**x(), "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, b"", "binary_data"),
            ({**x(), "parameters": {"binary_data_output": "yes"}}, b"", "binary_data_output"),
            ({**x(), "parameters": {"timeout": -1}}, b"", "timeout"),
            ({**x(), "parameters": {"timeout": 1.5}}, b"", "timeout"),
        ],
    )
    def test_refused(self, given: Any, binary: bytes, says: str) -> None:
        error = refusal(given, binary)
        assert error.code is Code.INVALID_INPUT
        assert says in error.message

    @pytest.mark.parametrize(
        "given",
        [
            x(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}),  # and contents
            x(data=..., parameters={"shared_memory_region": "r", "shared_memory_byte_size": -8}),
            x(data=..., parameters={"shared_memory_region": "", "shared_memory_byte_size": 8}),
            x(data=..., parameters={"shared_memory_byte_size": 8}),
            {**x(), "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
            {**x(), "outputs": [{"name": "y", "parameters": {"classification": "three"}}]},
            {**x(), "outputs": [{"name": "y", "parameters": {"classification": True}}]},
        ],
    )
    def test_extensions_are_read_strictly(self, given: Any) -> None:
        assert refusal(given).code is Code.INVALID_INPUT

    def test_tensors_that_are_more_than_their_contents(self) -> None:
        shared = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
        placed = {"shared_memory_region": "o", "shared_memory_byte_size": 4, "shared_memory_offset": 16}
        outputs = [{"name": "y", "parameters": placed}, {"name": "z", "parameters": {"classification": 3}}]
        body = decode({**x(data=..., parameters=shared), "outputs": outputs})
        assert body.extended == ({"x": Place("r", 8, 0)}, {"y": Place("o", 4, 16)}, {"z": 3}) and body.inputs[0].data == b""
        assert decode({**x(), "outputs": [{"name": "y", "parameters": {"classification": 0}}]}).extended is None

    def test_unknown_fields_are_other_peoples_extensions(self) -> None:
        assert decode({**x(), "future": 1}).inputs[0].name == "x"

    def test_parameters_pass_and_ours_do_not(self) -> None:
        body = decode({**x(), "parameters": {"binary_data_output": True, "timeout": 5, "sequence_id": 3, "note": "n", "half": 0.5}})
        assert body.binary and body.timeout_us == 5
        assert body.parameters == {"timeout": 5, "sequence_id": 3, "note": "n", "half": 0.5}


class TestHeaderLength:
    def test_absent_means_all_json(self) -> None:
        assert v2_messages.header_length(None, 12) == 12

    @pytest.mark.parametrize("value", ["", "-1", "1.0", "abc", "13", "9" * 30, "\u00b2", "0x1", "+1", " 1"])
    def test_refused(self, value: str) -> None:
        with pytest.raises(ServingError) as caught:
            v2_messages.header_length(value, 12)
        assert caught.value.code is Code.INVALID_INPUT


class TestRaw:
    """A header length of 0: the body is the only input."""

    @staticmethod
    def metadata(*specs: TensorSpec) -> ModelMetadata:
        return ModelMetadata("m", ("1",), "", specs, ())

    def test_the_open_dimension_is_filled(self) -> None:
        body = v2_messages.decode_raw(bytes(24), self.metadata(TensorSpec("x", "FP32", (-1, 2))))
        assert body.inputs == (Tensor("x", "FP32", (3, 2), bytes(24)),) and body.binary
        assert v2_messages.decode_raw(bytes(8), self.metadata(TensorSpec("x", "FP32", (2,)))).inputs[0].shape == (2,)
        assert v2_messages.decode_raw(b"", self.metadata(TensorSpec("x", "FP32", (-1, 2)))).inputs[0].shape == (0, 2)

    def test_bytes_are_one_element(self) -> None:
        (tensor,) = v2_messages.decode_raw(b"abc", self.metadata(TensorSpec("x", "BYTES", (-1, 1)))).inputs
        assert (tensor.shape, tensor.data) == ((1, 1), b"\3\0\0\0abc")

    @pytest.mark.parametrize(
        "specs",
        [
            (),
            (TensorSpec("x", "FP32", (1,)), TensorSpec("y", "FP32", (1,))),
            (TensorSpec("x", "FP32", (-1, -1)),),
            (TensorSpec("x", "FP32", (-1, 3)),),
            (TensorSpec("x", "FP32", (3,)),),
            (TensorSpec("x", "BYTES", (2,)),),
        ],
    )
    def test_refused(self, specs: tuple[TensorSpec, ...]) -> None:
        with pytest.raises(ServingError) as caught:
            v2_messages.decode_raw(bytes(8), self.metadata(*specs))
        assert caught.value.code is Code.INVALID_INPUT


def encode(response: InferResponse, request: InferBody) -> tuple[list[bytes | memoryview], int | None]:
    return v2_messages.encode(response.model_name, response.model_version, response.outputs, response.parameters, request)


class TestAnswer:
    response = InferResponse("m", "2", "", (Tensor("y", "FP32", (1, 2), FLOATS), Tensor("z", "BYTES", (1,), b"\1\0\0\0a")), {"queue_us": 3})

    def test_json(self) -> None:
        parts, size = encode(self.response, InferBody((), id="i"))
        assert size is None
        assert json.loads(b"".join(parts)) == {
            "model_name": "m",
            "model_version": "2",
            "id": "i",
            "parameters": {"queue_us": 3},
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]},
                {"name": "z", "datatype": "BYTES", "shape": [1], "data": ["a"]},
            ],
        }

    def test_no_id_where_none_was_given(self) -> None:
        parts, _ = encode(self.response, InferBody(()))
        assert "id" not in json.loads(parts[0])

    def test_binary_and_json_mixed(self) -> None:
        parts, size = encode(self.response, InferBody((), outputs={"y": True, "z": False}))
        body = b"".join(parts)
        assert size is not None and body[size:] == FLOATS
        y, z = json.loads(body[:size])["outputs"]
        assert y == {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
        assert z["data"] == ["a"]

    def test_default_is_of_the_request(self) -> None:
        parts, size = encode(self.response, InferBody((), binary=True))
        assert size is not None and b"".join(parts)[size:] == FLOATS + b"\1\0\0\0a"

    def test_what_json_cannot_carry(self) -> None:
        for tensor in (Tensor("y", "FP16", (1,), b"\0\0"), Tensor("y", "BF16", (1,), b"\0\0"), Tensor("y", "BYTES", (1,), b"\1\0\0\0\xff")):
            response = InferResponse("m", "1", "", (tensor,))
            with pytest.raises(ServingError, match="as binary data") as caught:
                encode(response, InferBody(()))
            assert caught.value.code is Code.INVALID_INPUT
            assert encode(response, InferBody((), binary=True))[0][1] == tensor.data

    def test_non_finite_numbers_stand_bare_as_the_reference_server_writes_them(self) -> None:
        tensor = Tensor("y", "FP32", (3,), np.float32([math.nan, math.inf, -math.inf]).tobytes())
        parts, _ = encode(InferResponse("m", "1", "", (tensor,)), InferBody(()))
        assert b"[NaN,Infinity,-Infinity]" in parts[0]
