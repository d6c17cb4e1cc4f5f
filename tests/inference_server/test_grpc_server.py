"""The gRPC transport: what it translates, what it refuses, and what it gives back. Clients are the official one and bare grpcio."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2 as spb
from tritonclient.grpc import service_pb2_grpc

from idl.codes import Code
from idl.generated import control_pb2
from inference_server.transports.grpc_calls import RETRY_BUSY_MS, STATUS
from inference_server.transports.grpc_server import GrpcServer
from tests.inference_server.conftest import descriptors, threads
from tests.inference_server.echo_engine import CAPACITY, CONFIG, STATISTICS, EchoEngine

MAX_MESSAGE = 1 << 20
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@contextmanager
def serving(engine: EchoEngine, **settings: Any) -> Iterator[GrpcServer]:
    wanted: dict[str, Any] = {
        "addresses": ["127.0.0.1:0"],
        "max_message_bytes": MAX_MESSAGE,
        "threads": 4,
        "token": "",
        "default_timeout_s": 20.0,
    }
    server = GrpcServer(engine, engine, **(wanted | settings))
    server.start()
    try:
        yield server
    finally:
        engine.release.set()
        server.stop(5)


@contextmanager
def calling(server: GrpcServer) -> Iterator[tuple[Any, grpc.Channel]]:
    # channels to one address share a connection unless each has a pool of its own
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.ports[0]}", options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel), channel


@pytest.fixture(scope="module", autouse=True)
def core() -> Iterator[None]:
    """gRPC's core has descriptors of its own for as long as anything of it is in use: here it is, before they are counted."""
    with serving(EchoEngine()) as server, calling(server) as (stub, _):
        stub.ServerLive(spb.ServerLiveRequest())
        yield


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """gRPC's core closes its sockets in threads of its own, shortly after it was told to."""
    before, names = descriptors(), threads()
    yield
    eventually(lambda: descriptors() <= before, f"{descriptors()} descriptors, {before} before")
    eventually(lambda: threads() <= names, f"threads left over: {threads() - names}")


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def server(engine: EchoEngine) -> Iterator[GrpcServer]:
    with serving(engine) as made:
        yield made


@pytest.fixture
def stub(server: GrpcServer) -> Iterator[Any]:
    with calling(server) as (made, _):
        yield made


def ask(model: str = "echo", rows: int = 2, **parameters: Any) -> Any:
    message = spb.ModelInferRequest(model_name=model, id="7", raw_input_contents=[np.arange(rows * 3, dtype="<f4").tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[rows, 3])
    for name, value in parameters.items():
        setattr(message.parameters[name], "int64_param" if isinstance(value, int) else "string_param", value)
    return message


def refused(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def outboard(error: Any) -> dict[str, str]:
    return {key: value for key, value in error.trailing_metadata() if key in ("outboard-code", "retry-after-ms")}


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
        changed(lambda m: m.outputs.add(name="y").parameters["classification"].MergeFrom(spb.InferParameter(int64_param=3))),
        Code.UNSUPPORTED,
        "classification",
    ),
    (
        changed(lambda m: m.inputs[0].parameters["shared_memory_region"].MergeFrom(spb.InferParameter(string_param="r"))),
        Code.UNSUPPORTED,
        "'shared_memory_region'",
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
        assert (host.models[0].name, host.models[0].memory_bytes) == ("echo", 1 << 20)
        assert control(channel, "Drain", control_pb2.DrainRequest(resume=True, timeout_ms=1500)).drained
    assert engine.calls == [("drain", True, 1.5)]


@pytest.mark.parametrize(
    "parts", [[], [part(b"abc")], [part(), part()], [control_pb2.PutFileRequest()], [part(), control_pb2.PutFileRequest()]]
)
def test_put_file_in_the_wrong_order_is_invalid_input(server: GrpcServer, parts: list[Any]) -> None:
    with calling(server) as (_, channel):
        error = refused(lambda: control(channel, "PutFile", parts))
        assert outboard(error) == {"outboard-code": "invalid_input"} and "header" in error.details()


# health and reflection ----------------------------------------------------------------------------------------------------------------


def test_health_is_what_it_is_at_the_moment_of_the_call(server: GrpcServer, engine: EchoEngine) -> None:
    with calling(server) as (_, channel):
        health = health_pb2_grpc.HealthStub(channel)

        def status(service: str) -> int:
            return int(health.Check(health_pb2.HealthCheckRequest(service=service)).status)

        names = ("", "inference.GRPCInferenceService", "outboard.Control", "echo")
        assert [status(name) for name in names] == [SERVING] * 4 and status("sleepy") == NOT_SERVING
        engine.ready = False
        assert [status(name) for name in names] == [NOT_SERVING] * 4
        assert refused(lambda: status("nobody")).code() is grpc.StatusCode.NOT_FOUND


def test_watch_tells_changes_and_ends_with_the_server(engine: EchoEngine) -> None:
    with serving(engine) as server, calling(server) as (_, channel):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="echo"))
        assert next(watch).status == SERVING
        engine.ready = False
        assert next(watch).status == NOT_SERVING
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        begun = time.monotonic()
        server.stop(20)
        assert time.monotonic() - begun < 5, "open watches must not hold the server up"
        assert [response.status for response in unknown] == [NOT_SERVING]


def test_streams_are_bounded_and_hold_no_other_thread(engine: EchoEngine) -> None:
    with serving(engine) as server, calling(server) as (stub, channel):
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(16)]
        assert all(next(watch).status == SERVING for watch in watches)
        assert outboard(refused(lambda: next(health.Watch(health_pb2.HealthCheckRequest())))) == {
            "outboard-code": "overloaded",
            "retry-after-ms": "100",
        }
        assert stub.ModelInfer(ask()).id == "7" and health.Check(health_pb2.HealthCheckRequest()).status == SERVING
        watches.pop().cancel()
        eventually(lambda: _first(health) == SERVING, "a cancelled watch gives its place back")


def _first(health: Any) -> int | None:
    watch = health.Watch(health_pb2.HealthCheckRequest())
    try:
        return int(next(watch).status)
    except grpc.RpcError:
        return None
    finally:
        watch.cancel()


def test_reflection_lists_the_services_and_gives_their_files(server: GrpcServer) -> None:
    with calling(server) as (_, channel):
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "outboard.Control", "grpc.health.v1.Health"} <= set(database.get_services())
        for symbol, file in (
            ("inference.GRPCInferenceService", "inference.proto"),
            ("inference.ModelInferRequest", "inference.proto"),
            ("outboard.Control", "control.proto"),
            ("grpc.health.v1.Health", "grpc_health/v1/health.proto"),
            ("grpc.reflection.v1alpha.ServerReflection", "grpc_reflection/v1alpha/reflection.proto"),
        ):
            assert database.FindFileContainingSymbol(symbol).name == file
        with pytest.raises(KeyError):
            database.FindFileContainingSymbol("inference.Nothing")
        newer = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = newer(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        assert len(answer.list_services_response.service) == 4


def test_an_open_reflection_stream_does_not_hold_the_server_up(engine: EchoEngine) -> None:
    with serving(engine) as server, calling(server) as (_, channel):
        close = threading.Event()

        def questions() -> Iterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            close.wait(30)

        stream = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )(questions())
        next(stream)
        begun = time.monotonic()
        server.stop(20)
        assert time.monotonic() - begun < 5
        close.set()


# threads, waiting, and clients that go away -------------------------------------------------------------------------------------------


def test_a_client_that_went_away_before_its_turn_is_not_executed(engine: EchoEngine) -> None:
    with serving(engine, threads=1) as server, calling(server) as (stub, _):
        first = stub.ModelInfer.future(ask("wait"))
        assert engine.entered.acquire(timeout=10)
        second = stub.ModelInfer.future(ask("echo", rows=5))
        eventually(lambda: server._infer._taken == 2, "the second call waits for the one thread")
        second.cancel()
        stub.ServerLive(spb.ServerLiveRequest())  # behind the cancellation on the same connection
        engine.release.set()
        assert first.result().id == "7" and stub.ModelInfer(ask("echo", rows=1)).id == "7"
        assert [request.inputs[0].shape[0] for request in engine.seen] == [2, 1]


def test_more_waiting_calls_than_allowed_are_overloaded_at_once(engine: EchoEngine) -> None:
    with serving(engine, threads=1, waiting=1) as server, calling(server) as (stub, channel):
        running = [stub.ModelInfer.future(ask("wait")) for _ in range(2)]
        eventually(lambda: server._infer._taken == 2, "one runs, one waits")
        error = refused(lambda: stub.ModelInfer(ask()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert outboard(error) == {"outboard-code": "overloaded", "retry-after-ms": str(RETRY_BUSY_MS)}
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING, (
            "probes have threads of their own"
        )
        engine.release.set()
        assert all(call.result().id == "7" for call in running) and stub.ModelInfer(ask()).id == "7"


def test_a_client_that_sends_no_message_holds_a_thread_for_the_timeout_only(engine: EchoEngine) -> None:
    with serving(engine, threads=2, default_timeout_s=0.05) as server, calling(server) as (stub, channel):
        close = threading.Event()

        def nothing() -> Iterator[bytes]:
            close.wait(30)
            yield from ()

        stalled = [channel.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(nothing()) for _ in range(2)]
        eventually(lambda: server._infer._taken == 2, "both threads are held")
        assert stub.ServerLive(spb.ServerLiveRequest()).live
        assert stub.ModelInfer(ask(), timeout=10).id == "7"
        close.set()
        assert [call.exception(10).code() for call in stalled] == [grpc.StatusCode.CANCELLED] * 2


def test_a_thousand_idle_connections_cost_no_thread(server: GrpcServer, stub: Any) -> None:
    stub.ServerLive(spb.ServerLiveRequest())
    before, tasks = threading.active_count(), len(list(Path("/proc/self/task").iterdir()))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
    peers = [socket.create_connection(("127.0.0.1", server.ports[0])) for _ in range(1000)]
    try:
        for peer in peers:
            peer.sendall(preface)
        for peer in peers:
            assert peer.recv(9)[3] == 4, "the server's own settings: the connection stands"
        assert stub.ModelInfer(ask()).id == "7"
        assert threading.active_count() <= before + 1, "one for inference, started by the first call"
        assert len(list(Path("/proc/self/task").iterdir())) < tasks + 20, "gRPC's own threads grow with the cores, not the connections"
    finally:
        for peer in peers:
            peer.close()


def test_many_callers_get_their_own_answers(stub: Any) -> None:
    def call(rows: int) -> bool:
        return bool(stub.ModelInfer(ask(rows=rows)).outputs[0].shape[0] == rows)

    with ThreadPoolExecutor(16, "callers") as pool:
        assert all(pool.map(call, range(1, 400)))


# life ---------------------------------------------------------------------------------------------------------------------------------


def test_a_taken_port_or_socket_is_an_error_that_names_it(server: GrpcServer, engine: EchoEngine, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{server.ports[0]}"
    with pytest.raises(OSError, match=taken), serving(engine, addresses=[taken]):
        pass
    path = f"unix:{tmp_path}/grpc.sock"
    with serving(EchoEngine(), addresses=[path]) as first:
        assert first.ports == ()
        with pytest.raises(OSError, match="another server does"), serving(engine, addresses=[path]):
            pass
        with grpc.insecure_channel(path) as channel:
            assert service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(ask()).id == "7"
    with pytest.raises(OSError, match="nowhere"), serving(engine, addresses=["nowhere"]):
        pass
    with pytest.raises(OSError, match="gRPC cannot listen"), serving(engine, addresses=[f"unix:{tmp_path}/no/folder"]):
        pass


def test_a_start_that_fails_half_way_leaves_nothing_listening(engine: EchoEngine, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    failing = GrpcServer(
        engine,
        engine,
        addresses=[f"127.0.0.1:{port}", f"unix:{tmp_path}/no/folder"],
        max_message_bytes=1,
        threads=1,
        token="",
        default_timeout_s=1,
    )
    with pytest.raises(OSError, match="cannot listen"):
        failing.start()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_stop_lets_calls_in_flight_finish_and_takes_no_others(engine: EchoEngine) -> None:
    with serving(engine) as server, calling(server) as (stub, _):
        running = stub.ModelInfer.future(ask("wait"))
        assert engine.entered.acquire(timeout=10)
        stops = [threading.Thread(target=server.stop, args=(20,), name=f"stop-{n}") for n in range(2)]
        for stop in stops:
            stop.start()
        with calling(server) as (late, _):
            eventually(lambda: refusing(late), "a server that stops takes no new call")
        assert not running.done()
        engine.release.set()
        assert running.result(10).id == "7"
        for stop in stops:
            stop.join(10)
            assert not stop.is_alive()
        server.stop(0)


def refusing(stub: Any) -> bool:
    try:
        stub.ServerLive(spb.ServerLiveRequest())
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.UNAVAILABLE)
    return False


def test_stop_cuts_off_what_outlives_its_grace(engine: EchoEngine) -> None:
    with serving(engine) as server, calling(server) as (stub, _):
        running = stub.ModelInfer.future(ask("wait"))
        assert engine.entered.acquire(timeout=10)
        begun = time.monotonic()
        server.stop(0.1)
        assert 0.1 <= time.monotonic() - begun < 5
        assert running.exception(10).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        engine.release.set()


def test_a_server_that_never_started_can_be_stopped(engine: EchoEngine) -> None:
    server = GrpcServer(engine, engine, addresses=["127.0.0.1:0"], max_message_bytes=1, threads=1, token="", default_timeout_s=1)
    server.stop(1)
    server.stop(1)
