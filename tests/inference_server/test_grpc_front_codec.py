"""ModelInfer's messages by hand, held to protobuf's; and the heads of the HTTP that nginx and the front speak."""

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import InferRequest, InferResponse, Tensor
from inference_server.front import http_heads
from inference_server.front.calls import Head, pack
from inference_server.transports import grpc_codec as codec
from inference_server.transports import grpc_infer
from inference_server.transports.grpc_status import STATUS, bearer, percent_encoded, timeout_s

TEXTS = ("", "m", "name", "漢字 π 🚤", "x" * 127, "x" * 128, "y" * 300)
INTEGERS = (0, 1, 127, 128, 16383, 16384, 2**31, 2**63 - 1, -1, -(2**63), 2**63, 2**64 - 1)


def parameter(entry: Any, draw: random.Random) -> None:
    kind = draw.choice(("bool_param", "int64_param", "string_param", "double_param", "uint64_param", ""))
    values = {"bool_param": draw.random() < 0.5, "int64_param": draw.choice(INTEGERS[:10]), "string_param": draw.choice(TEXTS)}
    values |= {"double_param": draw.uniform(-9, 9), "uint64_param": draw.choice(INTEGERS[-2:])}
    if kind:
        setattr(entry, kind, values[kind])


def drawn(seed: int) -> Any:
    """A request with raw contents, laid out as every protobuf library does."""
    draw = random.Random(seed)
    message = pb.ModelInferRequest(model_name=draw.choice(TEXTS), model_version=draw.choice(TEXTS), id=draw.choice(TEXTS))
    for name in draw.sample(TEXTS, draw.choice((0, 0, 1, 3))):
        parameter(message.parameters[name], draw)
    for _ in range(draw.choice((1, 1, 2, 5))):
        shape = [draw.choice((0, 1, 2, 300, 2**40, -1)) for _ in range(draw.choice((0, 1, 2, 4)))]
        message.inputs.add(name=draw.choice(TEXTS), datatype=draw.choice(("FP32", "BYTES", "")), shape=shape)
        message.raw_input_contents.append(draw.randbytes(draw.choice((0, 1, 24, 127, 128, 70_000))))
    for name in draw.sample(TEXTS, draw.choice((0, 0, 2))):
        message.outputs.add(name=name)
    return message


def by_hand(data: bytes | memoryview) -> InferRequest | None:
    found = grpc_infer.read(data)
    if found is None:
        return None
    described, name, contents = found
    tensors = tuple(Tensor(*tensor, bytes(given)) for tensor, given in zip(described.tensors, contents, strict=True))
    return InferRequest(described.model_name, tensors, described.model_version, name, described.outputs, described.parameters, 1.0, "")


@pytest.mark.parametrize("seed", range(60))
def test_a_request_is_read_as_protobuf_reads_it(seed: int) -> None:
    message = drawn(seed)
    data = message.SerializeToString()
    expected = codec.infer_request(message, "", 1.0, "")
    assert by_hand(data) == by_hand(memoryview(data)) == expected
    assert by_hand(data) == expected, "remembered, it is still the same"


@pytest.mark.parametrize("seed", range(40))
def test_a_request_that_was_cut_or_altered_is_never_read_otherwise(seed: int) -> None:
    draw = random.Random(1000 + seed)
    data = bytearray(drawn(seed).SerializeToString())
    for _ in range(30):
        altered = bytearray(data)
        for _ in range(draw.choice((1, 1, 3))):
            altered[draw.randrange(len(altered))] = draw.randrange(256)
        altered = altered[: draw.choice((len(altered), draw.randrange(len(altered) + 1)))]
        read = by_hand(bytes(altered))
        try:
            expected = codec.infer_request(pb.ModelInferRequest.FromString(bytes(altered)), "", 1.0, "")
        except (DecodeError, ServingError):
            assert read is None
        else:
            assert read is None or read == expected


def unusual() -> dict[str, bytes]:
    raw = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"1234"])
    tensor = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1])])
    typed = pb.ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    shared = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"1234"])
    shared.inputs.add(name="x", datatype="FP32", shape=[1]).parameters["shared_memory_region"].string_param = "r"
    good = raw.SerializeToString() + tensor.SerializeToString()
    return {
        "nothing": b"",
        "no contents": pb.ModelInferRequest(model_name="m").SerializeToString(),
        "contents before their tensors": good,
        "fewer contents than tensors": tensor.SerializeToString(),
        "more contents than tensors": raw.SerializeToString(),
        "typed contents": typed.SerializeToString(),
        "typed and raw contents": typed.SerializeToString() + raw.SerializeToString(),
        "a parameter that we do not have": shared.SerializeToString(),
        "a field that nobody knows": tensor.SerializeToString() + b"\x50\x01" + raw.SerializeToString(),
        "a name that is no text": b"\x0a\x01\xff" + tensor.SerializeToString() + b"\x3a\x0412",
        "an id that is no text": b"\x1a\x01\xff" + tensor.SerializeToString() + b"\x3a\x04" + b"1234",
        "a length that goes on": b"\x0a\xff\xff\xff\xff\xff\x01",
    }


@pytest.mark.parametrize("what", unusual())
def test_what_is_unusual_is_left_to_protobuf(what: str) -> None:
    assert grpc_infer.read(unusual()[what]) is None


def test_too_many_tensors_are_left_to_the_general_reader() -> None:
    message = pb.ModelInferRequest(model_name="m", inputs=[{}] * 5000, raw_input_contents=[b""] * 5000)
    assert grpc_infer.read(message.SerializeToString()) is None
    with pytest.raises(ServingError, match="5000 inputs"):
        pack(message.SerializeToString())


def test_a_later_id_wins_as_everywhere_in_protobuf() -> None:
    first, second = (pb.ModelInferRequest(id=text).SerializeToString() for text in ("first", "second"))
    rest = drawn(1)
    rest.id = ""
    data = first + second + rest.SerializeToString()
    read = by_hand(data)
    assert read is not None and read.id == "second"
    assert read == codec.infer_request(pb.ModelInferRequest.FromString(data), "", 1.0, "")


@pytest.mark.parametrize("seed", range(40))
def test_an_answer_is_written_as_protobuf_writes_it(seed: int) -> None:
    draw = random.Random(seed)
    tensors = tuple(
        Tensor(draw.choice(TEXTS), "FP32", tuple(draw.choice((0, 1, 300, 2**40)) for _ in range(draw.choice((0, 1, 3)))), draw.randbytes(n))
        for n in draw.sample((0, 1, 24, 200, 70_000), draw.choice((0, 1, 2)))
    )
    values = (True, False, 1.5, -0.0, "text", "", *INTEGERS)
    parameters = {name: draw.choice(values) for name in draw.sample(TEXTS, draw.choice((0, 2, 4)))}
    response = InferResponse(draw.choice(TEXTS), draw.choice(TEXTS), draw.choice(TEXTS), tensors, parameters)
    outputs = grpc_infer.outputs(tuple((tensor.name, tensor.datatype, tensor.shape) for tensor in tensors))
    contents = [memoryview(tensor.data) for tensor in tensors]
    parts = grpc_infer.answer(response.model_name, response.model_version, response.id, parameters, outputs, contents)
    assert pb.ModelInferResponse.FromString(b"".join(parts)) == codec.infer_response(response, response.id)


@pytest.mark.parametrize("value", INTEGERS)
def test_varints_are_protobufs(value: int) -> None:
    written = pb.InferParameter(**{"int64_param" if value < 2**63 else "uint64_param": value}).SerializeToString()
    assert written[1:] == grpc_infer.varint(value)


def test_heads_as_nginx_writes_them() -> None:
    head = b"POST / HTTP/1.1\r\ngrpc-timeout: 20100m\r\nauthorization: Bearer t \r\nx-request-id: q\r\ntraceparent: 00-a-b-01\r\nContent-Length: 51"
    assert http_heads.parse(head) == http_heads.HttpHead(51, Head(20.1, "t", "q", "00-a-b-01"))
    assert http_heads.parse(b"POST / HTTP/1.1\r\nContent-Length: 7") == http_heads.HttpHead(7, Head(None, "", "", ""))
    assert http_heads.parse(b"POST / HTTP/1.1\r\nContent-Length: 7\r\nx-request-id: " + b"q" * 5000).said.request_id == "q" * 5000
    with pytest.raises(ValueError):
        http_heads.parse(b"POST / HTTP/1.1\r\nContent-Length: many")


def test_timeouts_and_tokens_as_grpc_writes_them() -> None:
    said = {"5H": 18000, "3M": 180, "10S": 10, "1500m": 1.5, "7u": 7e-6, "99999999n": 0.099999999, "0S": 0}
    assert {text: timeout_s(text) for text in said} == pytest.approx(said)
    assert [timeout_s(text) for text in ("", "5", "S", "-1S", "1.5S", "123456789S", "5s", "٥S")] == [None] * 8
    assert [bearer(text) for text in ("Bearer abc", "bearer  abc ", "Basic abc", "abc", "")] == ["abc", "abc", "", "", ""]


def test_every_error_is_one_answer_with_its_status_and_metadata() -> None:
    for code in Code:
        text = http_heads.failure(ServingError(code, "50 % of ünïcode\n", retry_after_ms=250))
        head, end, rest = text.partition(b"\r\n\r\n")
        assert end and not rest
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        assert fields[b"grpc-status"] == b"%d" % STATUS[code] and fields[b"outboard-code"] == code.value.encode()
        assert fields[b"grpc-message"] == b"50 %25 of %C3%BCn%C3%AFcode%0A" and fields[b"retry-after-ms"] == b"250"
    assert b"retry-after-ms" not in http_heads.failure(ServingError(Code.INTERNAL, ""))
    assert len(http_heads.failure(ServingError(Code.INTERNAL, "漢" * 10_000))) < 8192, "nginx takes no longer head"
    assert percent_encoded("plain ~text") == b"plain ~text"
