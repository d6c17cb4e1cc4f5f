"""The contract agrees with the official client's, with itself, and with thriftpy2; no bytes break its decoder."""

import subprocess
import sys
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from hypothesis import given, settings
from hypothesis import strategies as st
from thriftpy2.protocol.binary import TBinaryProtocol
from thriftpy2.transport import TMemoryBuffer
from tritonclient.grpc import model_config_pb2, service_pb2

from idl.codes import Code, ServingError
from idl.generated import control_pb2, inference_pb2
from idl.thrift_binary import CALL, MAX_FIELDS, MAX_VALUES, REPLY, MalformedThrift, Reader, message
from idl.thrift_schema import METHODS, Inference, schema
from inference_server.transports.grpc_calls import STATUS

# the proto and the official client's ---------------------------------------------------------------------------------------------------


def messages(found: Descriptor) -> list[Descriptor]:
    return [found, *(inner for nested in found.nested_types for inner in messages(nested))]


OURS = {m.full_name: m for top in inference_pb2.DESCRIPTOR.message_types_by_name.values() for m in messages(top)}
THEIRS = {
    m.full_name: m
    for file in (service_pb2, model_config_pb2)
    for top in file.DESCRIPTOR.message_types_by_name.values()
    for m in messages(top)
}


def signature(field: FieldDescriptor) -> tuple[Any, ...]:
    """Everything that decides what a field is on the wire and in JSON."""
    kind = field.message_type.full_name if field.message_type else field.enum_type.full_name if field.enum_type else ""
    oneof = field.containing_oneof.name if field.containing_oneof else ""
    return field.name, field.number, field.type, field.is_repeated, field.is_packed, kind, oneof, field.json_name, field.has_presence


BESIDES = {"inference.ModelMetadataResponse": {"properties"}}
"""Fields of the open protocol that the official client's messages lack; it passes over them."""


@pytest.mark.parametrize("name", [name for name in OURS if name != "inference.ModelMetadataResponse.PropertiesEntry"])
def test_messages_are_the_official_ones_in_every_field_that_we_have(name: str) -> None:
    theirs = {field.name: signature(field) for field in THEIRS[name].fields}
    numbers = {number: name for name, number, *_ in theirs.values()}
    for field in OURS[name].fields:
        if field.name in BESIDES.get(name, ()):
            assert field.number not in numbers
        else:
            assert signature(field) == theirs[field.name]
            assert numbers[field.number] == field.name


WHOLE = (
    *(name for name in THEIRS if THEIRS[name].file.name == model_config_pb2.DESCRIPTOR.name),
    "ModelInferRequest",
    "ModelInferResponse",
    "InferTensorContents",
    "InferParameter",
    "ModelMetadataResponse",
    "RepositoryIndexResponse",
    "ModelStatistics",
)


@pytest.mark.parametrize("name", WHOLE)
def test_messages_of_the_main_path_and_the_configuration_have_every_official_field(name: str) -> None:
    full = f"inference.{name.removeprefix('inference.')}"
    ours, theirs = OURS[full], THEIRS[full]
    assert {field.name for field in ours.fields} - BESIDES.get(full, set()) == {field.name for field in theirs.fields}


def test_enumerations_are_the_official_ones() -> None:
    def values(enum: EnumDescriptor) -> dict[str, int]:
        return {value.name: value.number for value in enum.values}

    ours = [*inference_pb2.DESCRIPTOR.enum_types_by_name.values(), *(enum for m in OURS.values() for enum in m.enum_types)]
    theirs = {e.full_name: e for e in model_config_pb2.DESCRIPTOR.enum_types_by_name.values()}
    theirs |= {enum.full_name: enum for m in THEIRS.values() for enum in m.enum_types}
    assert ours and all(values(enum) == values(theirs[enum.full_name]) for enum in ours)


def test_methods_are_the_official_ones() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        other = theirs[method.name]
        assert (method.full_name, method.input_type.full_name, method.output_type.full_name) == (
            other.full_name,
            other.input_type.full_name,
            other.output_type.full_name,
        )
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)


@pytest.mark.parametrize(
    "order", [("idl.generated.inference_pb2", "tritonclient.grpc"), ("tritonclient.grpc", "idl.generated.inference_pb2")]
)
def test_both_can_be_imported_in_one_process_in_either_order(order: tuple[str, str]) -> None:
    code = f"import {order[0]}, {order[1]}; from idl.generated.inference_pb2 import ModelInferRequest as M; assert M(id='1').SerializeToString()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_our_files_fit_into_one_pool() -> None:
    pool = DescriptorPool()
    for module in (inference_pb2, control_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    assert pool.FindServiceByName("outboard.Control") and pool.FindServiceByName("inference.GRPCInferenceService")


# one contract in two spellings ---------------------------------------------------------------------------------------------------------


def test_thrift_has_the_verbs_of_the_proto_in_its_order() -> None:
    """A stream is three verbs there, at the end, and all of outboard.Control one. Shared memory of GPUs, which there is none of, is refused
    over gRPC alone.
    """
    methods = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    plain = [method.name for method in methods if not method.server_streaming and not method.name.startswith("Cuda")]
    assert list(METHODS) == [*plain, "StreamOpen", "StreamNext", "StreamClose", "Control"]


@pytest.mark.parametrize("method", METHODS)
def test_every_thrift_verb_has_one_request_and_one_exception(method: str) -> None:
    arguments, result = getattr(Inference, f"{method}_args").thrift_spec, getattr(Inference, f"{method}_result").thrift_spec
    assert list(arguments) == [1] and arguments[1][1] == "request"
    assert {number: field[1] for number, field in result.items()} == {0: "success", 1: "error"} and result[1][2] is schema.ServingError


@pytest.mark.parametrize("code", list(Code))
def test_every_code_stands_in_the_grpc_table_and_travels_over_thrift(code: Code) -> None:
    assert code in STATUS
    sent = Inference.ModelInfer_result(error=schema.ServingError(code=code.value, message="m", retry_after_ms=1, request_id="r"))
    reader = Reader(b"".join(message("ModelInfer", REPLY, 1, sent)), 4)
    reader.message_begin()
    got = reader.struct(Inference.ModelInfer_result()).error
    assert ServingError(Code(got.code), got.message).code is code


# our decoder and encoder against thriftpy2's --------------------------------------------------------------------------------------------


fixed = settings(derandomize=True, deadline=None)
"""The same examples every time, however busy the machine is."""


def by_thriftpy2(value: Any) -> bytes:
    buffer = TMemoryBuffer()
    TBinaryProtocol(buffer).write_struct(value)
    return bytes(buffer.getvalue())


def from_thriftpy2(kind: Any, data: bytes) -> Any:
    value = kind()
    TBinaryProtocol(TMemoryBuffer(data)).read_struct(value)
    return value


def structures() -> st.SearchStrategy[Any]:
    text, number = st.text(max_size=12), st.integers(-(2**63), 2**63 - 1)
    tensor = st.builds(schema.Tensor, name=text, datatype=text, shape=st.lists(number, max_size=4), data=st.binary(max_size=40))
    duration = st.builds(schema.StatisticDuration, count=number, ns=number)
    pairs = st.dictionaries(text, text, max_size=3)
    request = st.builds(
        schema.InferRequest,
        model_name=text,
        id=st.none() | text,
        inputs=st.lists(tensor, max_size=3),
        outputs=st.none() | st.lists(text, max_size=3),
        parameters=st.none() | pairs,
        timeout_ms=st.none() | st.integers(-(2**31), 2**31 - 1),
    )
    answer = st.builds(schema.InferResponse, model_name=text, id=text, outputs=st.lists(tensor, max_size=3), parameters=pairs)
    error = st.builds(schema.ServingError, code=text, message=text, retry_after_ms=st.integers(0, 2**31 - 1))
    statistics = st.builds(schema.ModelStatistics, name=text, last_inference=number, success=duration, queue=st.none() | duration)
    return st.one_of(
        st.builds(Inference.ModelInfer_args, request=request),
        st.one_of(st.builds(Inference.ModelInfer_result, success=answer), st.builds(Inference.ModelInfer_result, error=error)),
        st.builds(schema.ModelStatisticsResponse, model_stats=st.lists(statistics, max_size=3)),
        st.builds(schema.RepositoryIndexRequest, repository_name=text, ready=st.none() | st.booleans()),
    )


@fixed
@given(structures(), st.integers(-(2**31), 2**31 - 1))
def test_what_we_write_thriftpy2_reads_and_what_it_writes_we_read(value: Any, sequence: int) -> None:
    ours = b"".join(message("ModelInfer", CALL, sequence, value))
    assert int.from_bytes(ours[:4]) == len(ours) - 4
    reader = Reader(ours, 4)
    assert reader.message_begin() == ("ModelInfer", CALL, sequence)
    body = ours[reader.position :]
    assert body == by_thriftpy2(value) == by_thriftpy2(from_thriftpy2(type(value), body))
    assert by_thriftpy2(reader.struct(type(value)())) == body and reader.position == len(ours)
    viewing = Reader(body, views=True)
    assert b"".join(message("ModelInfer", CALL, sequence, viewing.struct(type(value)()))) == ours


SEEDS = [
    by_thriftpy2(
        Inference.ModelInfer_args(
            request=schema.InferRequest(model_name="m", id="1", inputs=[schema.Tensor("x", "FP32", [1, 2], b"12345678")])
        )
    )
]
SEEDS.append(
    b"".join(
        message("ModelInfer", CALL, 1, Inference.ModelInfer_args(request=schema.InferRequest(parameters={"a": "b"}, outputs=["y"])))[1:]
    )
)


def read_all(data: bytes) -> None:
    for kind in (Inference.ModelInfer_args, Inference.ModelInfer_result, schema.ModelStatisticsResponse):
        Reader(data).struct(kind())


def reads_or_refuses(data: bytes) -> None:
    for read in (read_all, lambda data: Reader(data).message_begin(), lambda data: Reader(data).skip(12, 32)):
        try:
            read(data)
        except MalformedThrift:
            continue


@settings(fixed, max_examples=400)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_malformed(data: bytes) -> None:
    reads_or_refuses(data)
    reads_or_refuses(b"\x80\x01\0\1" + data)


@settings(fixed, max_examples=400)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 200))
def test_no_damage_raises_anything_but_malformed(seed: bytes, changes: list[tuple[int, int]], stop: int) -> None:
    data = bytearray(seed)
    for position, byte in changes:
        data[position % len(data)] = byte
    reads_or_refuses(bytes(data))
    reads_or_refuses(bytes(data[:stop]))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_cut_is_malformed(seed: bytes) -> None:
    kind = 12 if seed is SEEDS[0] else None
    for stop in range(len(seed)):
        reader = Reader(seed[:stop])
        with pytest.raises(MalformedThrift):
            reader.skip(kind, 32) if kind else (reader.message_begin(), reader.struct(Inference.ModelInfer_args()))


def test_the_number_of_values_is_bounded() -> None:
    empty = b"\x0f\0\4\x0c" + (MAX_VALUES + 1).to_bytes(4) + bytes(MAX_VALUES + 1) + b"\0"
    with pytest.raises(MalformedThrift, match="more than"):
        Reader(empty).struct(schema.InferRequest())
    with pytest.raises(MalformedThrift, match="more than"):
        Reader(empty.replace(b"\x0f\0\4", b"\x0f\0\x63", 1)).struct(schema.InferRequest())
    with pytest.raises(MalformedThrift, match="fields"):
        Reader(b"\2\0\x63\0" * (MAX_FIELDS + 1) + b"\0").struct(schema.InferRequest())
    many = b"\x0f\0\x63\2" + (10_000_000).to_bytes(4) + bytes(10_000_000) + b"\0"
    assert Reader(many).struct(schema.InferRequest()).model_name is None, "an unknown list of numbers is passed over in one step"


def test_views_are_read_only_and_share_the_frames_memory() -> None:
    frame = bytearray(by_thriftpy2(schema.Tensor(name="x", data=b"1234")))
    data = Reader(frame, views=True).struct(schema.Tensor()).data
    assert isinstance(data, memoryview) and data.readonly and data.obj is frame and data == b"1234"
    assert Reader(frame).struct(schema.Tensor()).data == b"1234"
