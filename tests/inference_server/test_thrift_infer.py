"""The quick reader and writer of ModelInfer give what the general ones give, and decline what they do not know."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idl import lane
from idl.messages import InferResponse, Tensor
from idl.thrift_binary import CALL, REPLY, MalformedThrift, Reader, message
from idl.thrift_schema import Inference, schema
from inference_server.transports import thrift_codec, thrift_infer, thrift_layouts

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


# by layout ----------------------------------------------------------------------------------------------------------------------------


def framed(request: Any, sequence: int) -> bytes:
    return b"".join(message("ModelInfer", CALL, sequence, Inference.ModelInfer_args(request=request)))[4:]


USUAL = st.builds(
    schema.InferRequest,
    model_name=st.sampled_from("ab"),
    model_version=st.none() | st.sampled_from(["", "3"]),
    id=st.none() | st.text("ab", max_size=2),
    inputs=st.lists(
        st.builds(schema.Tensor, name=st.sampled_from("xy"), datatype=st.just("U"), shape=st.just([2]), data=st.binary(max_size=2)),
        max_size=2,
    ),
    outputs=st.none() | st.lists(st.sampled_from("xy"), max_size=1),
    parameters=st.none() | st.dictionaries(st.sampled_from("kl"), st.sampled_from("vw"), max_size=1),
    timeout_ms=st.none() | st.integers(-1, 2),
    token=st.none() | st.sampled_from(["", "t", "u"]),
    traceparent=st.none() | st.sampled_from(["", "p", "q"]),
)


@fixed
@given(st.lists(st.tuples(USUAL, st.integers(-3, 3)), min_size=1, max_size=20))
def test_calls_of_known_layouts_are_read_as_any_other(calls: list[tuple[Any, int]]) -> None:
    reader = thrift_layouts.Calls()
    for request, sequence in calls * 2:
        found = reader.read(framed(request, sequence))
        assert found is not None and int.from_bytes(found.sequence, "big", signed=True) == sequence
        tensors = [
            (tensor.name, tensor.datatype, tensor.shape, bytes(data))
            for tensor, data in zip(lane.unpack_head(found.described.head).tensors, found.contents, strict=True)
        ]
        assert tensors == [(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.data) for tensor in request.inputs]
        head = lane.unpack_head(found.described.head)
        assert (head.wanted, head.parameters) == (tuple(request.outputs or ()), request.parameters or {})
        assert (found.described.model, found.described.version) == (request.model_name, request.model_version or "")
        said = (found.id, found.timeout_ms, found.token, found.traceparent)
        assert said == (request.id or "", request.timeout_ms or 0, request.token or "", request.traceparent or "")


@fixed
@given(USUAL, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=2))
def test_a_damaged_call_is_never_taken_for_a_known_one(request: Any, changes: list[tuple[int, int]]) -> None:
    reader, whole = thrift_layouts.Calls(), framed(request, 1)
    assert reader.read(whole) is not None
    damaged = bytearray(whole)
    for position, byte in changes:
        damaged[position % len(damaged)] = byte
    found, fresh = reader.read(bytes(damaged)), thrift_layouts.Calls().read(bytes(damaged))
    assert found == fresh


@fixed
@given(
    st.lists(st.tuples(TEXT, TEXT, st.lists(st.integers(0, 9), max_size=3), st.binary(max_size=20)), max_size=3),
    TEXT,
    st.integers(-(2**31), 2**31 - 1),
    st.dictionaries(st.sampled_from(["a", "queue_us", "c"]), TEXT | st.booleans() | st.integers(0, 9), max_size=3),
    st.integers(0, 2**40),
)
def test_a_reply_in_pieces_is_the_reply(tensors: list[Any], name: str, sequence: int, parameters: dict[str, Any], time_us: int) -> None:
    described = [(*tensor[:2], tuple(tensor[2]), len(tensor[3])) for tensor in tensors]
    head, offsets, size = lane.pack_head(described, (), parameters)
    body = bytearray(size)
    for offset, tensor in zip(offsets, tensors, strict=True):
        body[offset : offset + len(tensor[3])] = tensor[3]
    said = thrift_layouts.answers(head, "model", "1")
    number = sequence.to_bytes(4, "big", signed=True)
    parts, length = thrift_layouts.reply(said, number, name, memoryview(body), time_us, time_us + 1)
    kept = {key: value for key, value in parameters.items() if key != "queue_us"}
    outputs = tuple(Tensor(text, kind, tuple(shape), data) for text, kind, shape, data in tensors)
    response = InferResponse("model", "1", name, outputs, {**kept, "queue_us": time_us, "compute_us": time_us + 1})
    assert b"".join(parts) == b"".join(thrift_infer.write(thrift_codec.infer_response(response, name), sequence))
    assert length == sum(map(len, parts)) - 4
    if size:
        with pytest.raises(lane.LaneError):
            thrift_layouts.reply(said, number, name, memoryview(body)[:-1], 0, 0)
