"""The gRPC transport: what it translates, what it refuses, and what it gives back. Clients are the official one and bare grpcio."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as spb

from idl.codes import Code
from idl.generated import control_pb2
from inference_server.transports.grpc_calls import STATUS
from inference_server.transports.grpc_server import GrpcServer
from tests.inference_server.echo_engine import CAPACITY, CONFIG, STATISTICS, EchoEngine
from tests.inference_server.grpc_peer import (  # noqa: F401
    MAX_MESSAGE,
    ask,
    calling,
    core_fixture,
    engine_fixture,
    outboard,
    refused,
    released_fixture,
    server_fixture,
    serving,
    stub_fixture,
)

SERVING = health_pb2.HealthCheckResponse.SERVING

# what is translated -------------------------------------------------------------------------------------------------------------------


def test_every_verb_by_the_official_client(server: GrpcServer, engine: EchoEngine) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{server.ports[0]}") as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("echo") and client.is_model_ready("echo", "1") and not client.is_model_ready("nobody")
        assert client.get_server_metadata(as_json=True) == {
            "name": "echo-server",
            "version": "1.2",
            "extensions": ["statistics", "model_repository"],
        }
        metadata = client.get_model_metadata("echo", as_json=True)
        assert metadata["inputs"][1] == {"name": "text", "datatype": "BYTES", "shape": ["-1"]} and metadata["versions"] == ["1", "2"]
        config = client.get_model_config("echo", as_json=True)["config"]
        assert {key: config[key] for key in ("name", "platform", "max_batch_size")} == {
            "name": CONFIG["name"],
            "platform": CONFIG["platform"],
            "max_batch_size": CONFIG["maxBatchSize"],
        }
        (statistics,) = client.get_inference_statistics("echo").model_stats
        assert (statistics.inference_count, statistics.inference_stats.success.ns) == (STATISTICS.inference_count, STATISTICS.success.ns)
        index = client.get_model_repository_index()
        assert [(model.name, model.version, model.state, model.reason) for model in index.models] == [
            ("echo", "1", "READY", ""),
            ("sleepy", "2", "UNAVAILABLE", "not loaded"),
        ]
        client.load_model("echo", config='{"a": 1}')
        client.unload_model("echo", unload_dependents=True)
    assert engine.calls == [("load", "echo", {"config": '{"a": 1}'}), ("unload", "echo", {"unload_dependents": True})]


@pytest.mark.parametrize(
    "datatype", ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES"]
)
def test_raw_contents_go_through_untouched_by_the_official_client(server: GrpcServer, datatype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(object if datatype == "BYTES" else triton_dtype(datatype))
    if datatype == "BYTES":
        array = np.array([[b"", b"a\0b", "\u03c0".encode()], [b"x" * 300, b"\xff", b"z"]], object)
    tensor = triton.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    with triton.InferenceServerClient(f"127.0.0.1:{server.ports[0]}") as client:
        answer = client.infer("echo", [tensor], request_id="q-1", outputs=[triton.InferRequestedOutput("x")])
    assert answer.get_response().id == "q-1" and answer.get_output("x").datatype == datatype
    np.testing.assert_array_equal(answer.as_numpy("x"), array)


def triton_dtype(datatype: str) -> Any:
    odd = {"BOOL": np.bool_, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16}
    return odd.get(datatype, datatype.lower())


TYPED = [
    ("BOOL", "bool_contents", [True, False], b"\1\0"),
    ("INT8", "int_contents", [-128, 127], b"\x80\x7f"),
    ("INT16", "int_contents", [-2, 3], b"\xfe\xff\3\0"),
    ("INT32", "int_contents", [-2, 3], b"\xfe\xff\xff\xff\3\0\0\0"),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1], bytes(7) + b"\x80" + b"\xff" * 7 + b"\x7f"),
    ("UINT8", "uint_contents", [0, 255], b"\0\xff"),
    ("UINT16", "uint_contents", [1, 65535], b"\1\0\xff\xff"),
    ("UINT32", "uint_contents", [1, 2**32 - 1], b"\1\0\0\0\xff\xff\xff\xff"),
    ("UINT64", "uint64_contents", [1, 2**64 - 1], b"\1" + bytes(7) + b"\xff" * 8),
    ("FP32", "fp32_contents", [1.0, float("nan")], np.array([1, np.nan], "<f4").tobytes()),
    ("FP64", "fp64_contents", [1.5, float("-inf")], np.array([1.5, -np.inf], "<f8").tobytes()),
    ("BYTES", "bytes_contents", [b"ab", b""], b"\2\0\0\0ab\0\0\0\0"),
]


@pytest.mark.parametrize(("datatype", "field", "values", "raw"), TYPED)
def test_typed_contents(stub: Any, datatype: str, field: str, values: list[Any], raw: bytes) -> None:
    message = spb.ModelInferRequest(model_name="echo")
    getattr(message.inputs.add(name="x", datatype=datatype, shape=[2]).contents, field).extend(values)
    answer = stub.ModelInfer(message)
    assert list(answer.raw_output_contents) == [raw] and not answer.outputs[0].HasField("contents")


def test_empty_tensors_and_no_inputs(stub: Any, engine: EchoEngine) -> None:
    message = spb.ModelInferRequest(model_name="echo")
    message.inputs.add(name="x", datatype="FP32", shape=[0, 3])
    assert list(stub.ModelInfer(message).raw_output_contents) == [b""]
    assert not stub.ModelInfer(spb.ModelInferRequest(model_name="echo")).outputs
    assert engine.seen[0].inputs[0].shape == (0, 3)


def test_parameters_pass_through_as_python_values(stub: Any, engine: EchoEngine) -> None:
    message = ask()
    message.parameters["b"].bool_param = True
    message.parameters["i"].int64_param = -3
    message.parameters["u"].uint64_param = 2**64 - 1
    message.parameters["d"].double_param = 0.5
    message.parameters["s"].string_param = "text"
    message.inputs[0].parameters["unknown"].string_param = "ignored"
    message.inputs[0].parameters["binary_data_size"].int64_param = 24
    answer = stub.ModelInfer(message)
    assert engine.seen[0].parameters == {"b": True, "i": -3, "u": 2**64 - 1, "d": 0.5, "s": "text"}
    assert answer.parameters["b"].bool_param is True and answer.parameters["i"].int64_param == -3
    assert answer.parameters["u"].uint64_param == 2**64 - 1 and answer.parameters["d"].double_param == 0.5
    assert answer.parameters["s"].string_param == "text" and answer.parameters["queue_us"].int64_param == 5


def test_deadline_traceparent_and_request_id(stub: Any, engine: EchoEngine) -> None:
    now = time.monotonic()
    message = ask()
    message.ClearField("id")
    answer = stub.ModelInfer(message, timeout=5, metadata=[("traceparent", "00-a-b-01"), ("x-request-id", "edge-9")])
    assert answer.id == "", "the reply repeats the request's own id"
    stub.ModelInfer(ask(), metadata=[("x-request-id", "edge-9")])
    first, second = engine.seen
    assert first.deadline is not None and second.deadline is not None
    assert 4 < first.deadline - now < 6 and 19 < second.deadline - now < 25
    assert (first.traceparent, first.id, second.traceparent, second.id) == ("00-a-b-01", "edge-9", "", "7")


def test_outputs_are_handed_over(stub: Any, engine: EchoEngine) -> None:
    message = ask()
    message.outputs.add(name="a")
    message.outputs.add(name="b")
    message.model_version = "3"
    stub.ModelInfer(message)
    assert engine.seen[0].outputs == ("a", "b") and engine.seen[0].model_version == "3"


# what is refused ----------------------------------------------------------------------------------------------------------------------


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    message = spb.ModelInferRequest(model_name="echo")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


def changed(change: Callable[[Any], Any]) -> Any:
    message = ask()
    change(message)
    return message


BAD = [
    (typed("FP16", [1], fp32_contents=[1]), Code.INVALID_INPUT, "'x': FP16 has no typed contents"),
    (typed("BF16", [1]), Code.INVALID_INPUT, "'x': BF16 has no typed contents"),
    (typed("FP32", [2], fp32_contents=[1]), Code.INVALID_INPUT, "'x' of FP32 [2] needs 2 elements in fp32_contents, got 1"),
    (typed("FP32", [1], fp64_contents=[1]), Code.INVALID_INPUT, "'x' of FP32 belongs in fp32_contents, fp64_contents has values"),
    (typed("INT8", [1], int_contents=[128]), Code.INVALID_INPUT, "'x' has an element that is out of the range of INT8"),
    (typed("UINT16", [1], uint_contents=[65536]), Code.INVALID_INPUT, "'x' has an element that is out of the range of UINT16"),
    (typed("FP32", [-1], fp32_contents=[1]), Code.INVALID_INPUT, "'x' has a negative dimension"),
    (typed("FP32", [2**40, 2**40], fp32_contents=[1]), Code.INVALID_INPUT, "more elements than can be counted"),
    (typed("FLOAT", [1], fp32_contents=[1]), Code.INVALID_INPUT, "'x' has datatype 'FLOAT', which is none of the protocol's"),
    (
        changed(lambda m: m.inputs.add(name="y", datatype="FP32", shape=[1])),
        Code.INVALID_INPUT,
        "1 entries for 2 inputs; input 'y' has none",
    ),
    (changed(lambda m: m.raw_input_contents.append(b"")), Code.INVALID_INPUT, "2 entries for 1 inputs"),
    (changed(lambda m: m.inputs[0].contents.fp32_contents.append(1)), Code.INVALID_INPUT, "'x' has typed contents"),
    (changed(lambda m: [m.inputs.add() for _ in range(5000)]), Code.INVALID_INPUT, "5001 inputs"),
    (changed(lambda m: [m.outputs.add() for _ in range(5000)]), Code.INVALID_INPUT, "5000 outputs"),
    (
        changed(lambda m: m.outputs.add(name="y").parameters["classification"].MergeFrom(spb.InferParameter(int64_param=-3))),
        Code.INVALID_INPUT,
        "'classification' is not a number of classes",
    ),
    (
        changed(lambda m: m.inputs[0].parameters["shared_memory_region"].MergeFrom(spb.InferParameter(string_param="r"))),
        Code.INVALID_INPUT,
        "'x' has no 'shared_memory_byte_size'",
    ),
    (ask("nobody"), Code.MODEL_NOT_FOUND, "'nobody'"),
]


@pytest.mark.parametrize(("message", "code", "says"), BAD, ids=[says for _, _, says in BAD])
def test_bad_requests_are_refused_by_name_and_the_server_goes_on(stub: Any, message: Any, code: Code, says: str) -> None:
    error = refused(lambda: stub.ModelInfer(message))
    assert error.code() is STATUS[code] and outboard(error) == {"outboard-code": code.value}
    assert says in error.details()
    assert stub.ModelInfer(ask()).id == "7"


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_its_status_and_travels_as_metadata(stub: Any, code: Code) -> None:
    error = refused(lambda: stub.ModelInfer(ask("refuse", code=code.value, retry_after_ms=250)))
    assert error.code() is STATUS[code] and error.details() == "refused as asked"
    assert outboard(error) == {"outboard-code": code.value, "retry-after-ms": "250"}


def test_an_unexpected_exception_is_logged_with_the_id_that_the_caller_gets(stub: Any, caplog: pytest.LogCaptureFixture) -> None:
    error = refused(lambda: stub.ModelInfer(ask("broken")))
    assert error.code() is grpc.StatusCode.INTERNAL and outboard(error) == {"outboard-code": "internal"}
    assert "secret" not in error.details() and "/some/path" not in error.details()
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.fields["incident"] in error.details() and record.exc_info and record.exc_info[0] is ZeroDivisionError  # type: ignore[attr-defined]


def test_long_and_odd_messages_fit_into_the_headers(stub: Any) -> None:
    error = refused(lambda: stub.ModelInfer(ask("\u6a21" * 20_000)))
    assert error.code() is grpc.StatusCode.NOT_FOUND and "\u6a21" * 100 in error.details()
    assert "\\x00" in refused(lambda: stub.ModelInfer(ask("a\0b"))).details()


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_message_are_invalid_input(server: GrpcServer, body: bytes) -> None:
    with calling(server) as (stub, channel):
        error = refused(lambda: channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(body))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and outboard(error) == {"outboard-code": "invalid_input"}
        assert stub.ServerLive(spb.ServerLiveRequest()).live


def test_a_call_without_a_message_is_invalid_input(server: GrpcServer) -> None:
    with calling(server) as (_, channel):
        error = refused(lambda: channel.stream_unary("/inference.GRPCInferenceService/ServerLive")(iter(())))
        assert outboard(error) == {"outboard-code": "invalid_input"}


def test_an_unknown_method_is_unsupported(server: GrpcServer) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{server.ports[0]}") as client, pytest.raises(triton.InferenceServerException) as caught:
        client.get_system_shared_memory_status()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    with calling(server) as (stub, _):
        assert outboard(refused(lambda: stub.SystemSharedMemoryStatus(spb.SystemSharedMemoryStatusRequest()))) == {
            "outboard-code": "unsupported"
        }


def test_size_limits_both_ways(stub: Any) -> None:
    error = refused(lambda: stub.ModelInfer(ask(rows=MAX_MESSAGE // 12)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = refused(lambda: stub.ModelInfer(ask("large", size=MAX_MESSAGE)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and outboard(error) == {"outboard-code": "too_large"}
    assert len(stub.ModelInfer(ask("large", size=MAX_MESSAGE - 200)).raw_output_contents[0]) == MAX_MESSAGE - 200


def test_the_token_is_asked_for_where_it_must_be(engine: EchoEngine) -> None:
    with serving(engine, token="s\u00e9cret") as server, calling(server) as (stub, channel):
        assert stub.ServerLive(spb.ServerLiveRequest()).live and stub.ServerReady(spb.ServerReadyRequest()).ready
        assert stub.ModelReady(spb.ModelReadyRequest(name="echo")).ready and stub.ServerMetadata(spb.ServerMetadataRequest()).name
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING
        closed = [
            lambda metadata: stub.ModelInfer(ask(), metadata=metadata),
            lambda metadata: stub.ModelMetadata(spb.ModelMetadataRequest(name="echo"), metadata=metadata),
            lambda metadata: stub.RepositoryModelLoad(spb.RepositoryModelLoadRequest(model_name="echo"), metadata=metadata),
            lambda metadata: control(channel, "Capacity", control_pb2.CapacityRequest(), metadata),
        ]
        for call in closed:
            for metadata in ([], [("authorization", "Bearer wrong")], [("authorization", "Basic s")], [("authorization", "Bearer")]):
                error = refused(lambda call=call, metadata=metadata: call(metadata))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED and outboard(error) == {"outboard-code": "unauthenticated"}
    with serving(engine, token="secret") as server, calling(server) as (stub, _):
        assert stub.ModelInfer(ask(), metadata=[("authorization", "Bearer secret")]).id == "7"


# control ------------------------------------------------------------------------------------------------------------------------------


def control(channel: grpc.Channel, method: str, request: Any, metadata: Any = None) -> Any:
    response = control_pb2.DESCRIPTOR.services_by_name["Control"].methods_by_name[method].output_type._concrete_class
    path = f"/outboard.Control/{method}"
    if isinstance(request, list):
        call = channel.stream_unary(path, lambda message: message.SerializeToString(), response.FromString)
        return call(iter(request), metadata=metadata)
    return channel.unary_unary(path, lambda message: message.SerializeToString(), response.FromString)(request, metadata=metadata)


def part(chunk: bytes | None = None) -> Any:
    if chunk is not None:
        return control_pb2.PutFileRequest(chunk=chunk)
    header = control_pb2.PutFileRequest.Header(model_name="m", version=3, file_name="model.onnx", size=6, sha256="0" * 64)
    return control_pb2.PutFileRequest(header=header)


def test_control_verbs(server: GrpcServer, engine: EchoEngine) -> None:
    with calling(server) as (_, channel):
        stored = control(channel, "PutFile", [part(), part(b"abc"), part(b"def")])
        assert (stored.size, stored.existed, engine.files) == (6, False, {"model.onnx": b"abcdef"})
        assert control(channel, "PutFile", [part()]).existed
        host = control(channel, "Capacity", control_pb2.CapacityRequest())
        assert (host.cpus, host.memory_bytes, list(host.execution_providers)) == (
            CAPACITY.cpus,
            CAPACITY.memory_bytes,
            ["CPUExecutionProvider"],
        )
        assert {field.name: getattr(host.models[0], field.name) for field in host.models[0].DESCRIPTOR.fields} == asdict(CAPACITY.models[0])
        assert host.models[1].reason == "its process died 8 times in a row"
        assert (host.cpus_reserved, host.cpus_free, host.memory_reserved_bytes, host.memory_free_bytes) == (1.5, 0.5, 3 << 30, 4 << 30)
        assert control(channel, "Drain", control_pb2.DrainRequest(resume=True, timeout_ms=1500)).drained
        control(channel, "SetInstances", control_pb2.SetInstancesRequest(model_name="m", version="3", count=4))
        labels = {"stable": 3, "canary": 4}
        control(channel, "SetLabels", control_pb2.SetLabelsRequest(model_name="m", labels=labels, canary_percent=10))
    assert engine.calls == [("drain", True, 1.5), ("set_instances", "m", "3", 4), ("set_labels", "m", labels, 10)]


@pytest.mark.parametrize(
    "parts", [[], [part(b"abc")], [part(), part()], [control_pb2.PutFileRequest()], [part(), control_pb2.PutFileRequest()]]
)
def test_put_file_in_the_wrong_order_is_invalid_input(server: GrpcServer, parts: list[Any]) -> None:
    with calling(server) as (_, channel):
        error = refused(lambda: control(channel, "PutFile", parts))
        assert outboard(error) == {"outboard-code": "invalid_input"} and "header" in error.details()
