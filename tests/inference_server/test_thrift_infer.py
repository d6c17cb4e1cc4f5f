"""The quick reader and writer of ModelInfer give what the general ones give, and decline what they do not know."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idl.thrift_binary import CALL, REPLY, MalformedThrift, Reader, message
from idl.thrift_schema import Inference, schema
from inference_server.transports import thrift_infer

fixed = settings(derandomize=True, deadline=None, max_examples=300)
"""The same examples every time, however busy the machine is."""
TEXT, NUMBER = st.text(max_size=8), st.integers(-(2**63), 2**63 - 1)
TENSORS = st.lists(
    st.builds(schema.Tensor, name=TEXT, datatype=TEXT, shape=st.lists(NUMBER, max_size=8), data=st.binary(max_size=20)), max_size=3
)
REQUESTS = st.builds(
    schema.InferRequest,
    model_name=TEXT,
    model_version=st.none() | TEXT,
    id=st.none() | TEXT,
    inputs=st.none() | TENSORS,
    outputs=st.none() | st.lists(TEXT, max_size=3),
    parameters=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
    timeout_ms=st.none() | st.integers(-(2**31), 2**31 - 1),
    token=st.none() | TEXT,
    traceparent=st.none() | TEXT,
)
RESPONSES = st.builds(
    schema.InferResponse, model_name=TEXT, model_version=TEXT, id=TEXT, outputs=TENSORS, parameters=st.dictionaries(TEXT, TEXT, max_size=3)
)


def arguments(request: Any) -> bytes:
    """The bytes of a call after its header."""
    whole = b"".join(message("ModelInfer", CALL, 1, Inference.ModelInfer_args(request=request)))
    reader = Reader(whole, 4)
    reader.message_begin()
    return whole[reader.position :]


def generally(body: bytes) -> Any:
    """What the general reader makes of the same bytes; None where it refuses them or leaves some over."""
    reader = Reader(body)
    try:
        request = reader.struct(Inference.ModelInfer_args()).request
    except MalformedThrift:
        return None
    return request if reader.position == len(body) else None


@fixed
@given(REQUESTS)
def test_every_usual_request_is_read_and_comes_out_the_same(request: Any) -> None:
    body = arguments(request)
    quick = thrift_infer.read(memoryview(b"head" + body), 4)
    assert quick is not None and arguments(quick) == body and arguments(generally(body)) == body


@fixed
@given(REQUESTS, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3), st.integers(0, 400), st.binary(max_size=3))
def test_what_is_damaged_is_declined_or_read_as_the_general_reader_does(
    request: Any, changes: list[tuple[int, int]], stop: int, behind: bytes
) -> None:
    body = bytearray(arguments(request)[:stop] if stop < 200 else arguments(request))
    for position, byte in changes:
        if body:
            body[position % len(body)] = byte
    quick, general = thrift_infer.read(memoryview(bytes(body) + behind), 0), generally(bytes(body) + behind)
    assert quick is None or (general is not None and arguments(quick) == arguments(general))


@pytest.mark.parametrize(
    "request_",
    [
        schema.InferRequest(parameters={str(number): "" for number in range(65)}),
        schema.InferRequest(inputs=[schema.Tensor(name="x", shape=[1] * 9)]),
        schema.InferRequest(inputs=[schema.Tensor()] * 65),
        schema.InferRequest(outputs=["y"] * 65),
    ],
)
def test_the_unusual_is_left_to_the_general_reader(request_: Any) -> None:
    body = arguments(request_)
    assert thrift_infer.read(memoryview(body), 0) is None and arguments(generally(body)) == body


def test_data_are_views_of_the_frame() -> None:
    frame = memoryview(arguments(schema.InferRequest(inputs=[schema.Tensor(name="x", data=b"1234")])))
    request = thrift_infer.read(frame, 0)
    assert request is not None and request.inputs[0].data == b"1234" and request.inputs[0].data.obj is frame.obj


@fixed
@given(RESPONSES, st.integers(-(2**31), 2**31 - 1))
def test_what_is_written_is_what_the_general_writer_writes(response: Any, sequence: int) -> None:
    general = b"".join(message("ModelInfer", REPLY, sequence, Inference.ModelInfer_result(success=response)))
    assert b"".join(thrift_infer.write(response, sequence)) == general
