"""The client's quick writer and reader of ModelInfer give what the general ones give, and leave them what they do not know."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from idl.messages import InferRequest, InferResponse, Tensor
from idl.thrift_binary import CALL, REPLY, Reader, message
from idl.thrift_schema import Inference, schema
from inference_client import thrift_infer
from inference_client.thrift_codec import CODECS

fixed = settings(derandomize=True, deadline=None, max_examples=200)
CODEC = CODECS["ModelInfer"]
TEXT = st.text(max_size=5)
TENSORS = st.lists(
    st.builds(Tensor, TEXT, TEXT, st.lists(st.integers(0, 2**63 - 1), max_size=9).map(tuple), st.binary(max_size=9)), max_size=3
)
PARAMETERS = st.dictionaries(TEXT, TEXT | st.booleans() | st.integers() | st.floats(), max_size=3)


@fixed
@given(
    st.builds(
        InferRequest,
        TEXT,
        TENSORS.map(tuple),
        TEXT,
        TEXT,
        st.lists(TEXT, max_size=3).map(tuple),
        PARAMETERS,
        traceparent=TEXT,
    ),
    TEXT,
    st.integers(1, 2**40),
    st.integers(0, 2**31 - 1),
)
def test_a_call_is_written_as_the_general_writer_does(request: InferRequest, token: str, timeout_ms: int, sequence: int) -> None:
    arguments = Inference.ModelInfer_args(request=CODEC.encode(request, token, timeout_ms))
    general = b"".join(message("ModelInfer", CALL, sequence, arguments))
    for _ in range(2):
        assert b"".join(thrift_infer.write(request, token, timeout_ms, sequence)) == general


def reply(response: Any, sequence: int) -> bytes:
    return b"".join(message("ModelInfer", REPLY, sequence, Inference.ModelInfer_result(success=response)))[4:]


def generally(frame: bytes) -> InferResponse:
    reader = Reader(frame)
    reader.message_begin()
    value = CODEC.decode(reader.struct(Inference.ModelInfer_result()).success)
    assert isinstance(value, InferResponse)
    return value


REPLIES = st.builds(
    schema.InferResponse,
    model_name=st.sampled_from("ab"),
    model_version=st.none() | st.just("1"),
    id=st.none() | st.text("ab", max_size=2),
    outputs=st.lists(
        st.builds(
            schema.Tensor, name=st.sampled_from("xy"), datatype=st.just("U"), shape=st.just([2]), data=st.none() | st.binary(max_size=2)
        ),
        max_size=2,
    ),
    parameters=st.none() | st.dictionaries(st.sampled_from(["queue_us", "compute_us", "k"]), st.integers(0, 999).map(str), max_size=3),
)


@fixed
@given(st.lists(st.tuples(REPLIES, st.integers(0, 3)), min_size=1, max_size=20))
def test_a_reply_is_read_as_the_general_reader_does(replies: list[tuple[Any, int]]) -> None:
    reader = thrift_infer.Replies()
    for said, sequence in replies:
        frame = reply(said, sequence)
        expected = generally(frame)
        quick = reader.read(frame, sequence)
        assert quick in (None, expected)
        reader.remember(frame, expected)
        known = reader.read(memoryview(frame), sequence)
        complete = None not in (said.model_version, said.id, said.parameters) and all(tensor.data is not None for tensor in said.outputs)
        assert known == (expected if complete else None)
        assert reader.read(frame, sequence + 1) is None, "the reply to another call"


def test_times_that_are_none_and_errors_are_left_to_the_general_reader() -> None:
    reader = thrift_infer.Replies()
    usual = schema.InferResponse(model_name="m", model_version="1", id="", outputs=[], parameters={"queue_us": "12"})
    frame = reply(usual, 1)
    reader.remember(frame, generally(frame))
    assert reader.read(frame, 1) is not None and reader.read(frame.replace(b"12", b"1x"), 1) is None
    failed = Inference.ModelInfer_result(error=schema.ServingError(code="internal", message="m", retry_after_ms=0, request_id=""))
    assert reader.read(b"".join(message("ModelInfer", REPLY, 1, failed))[4:], 1) is None
