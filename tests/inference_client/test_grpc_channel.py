"""gRPC against servers that are not ours, and against none."""

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.generated import control_pb2 as control
from idl.generated import inference_pb2 as pb
from idl.messages import InferRequest, Tensor
from inference_client import Client
from inference_client.grpc_status import CODES
from tests.inference_client.peers import GrpcPeer, ThriftPeer
from tests.processes import free_port

REQUEST = InferRequest("m", (), id="r")


def refused(client: Client, request: InferRequest = REQUEST, timeout_s: float | None = None) -> ServingError:
    with pytest.raises(ServingError) as caught:
        client.infer_raw(request, timeout_s=timeout_s)
    return caught.value


def aborts(status: grpc.StatusCode, details: str, *metadata: tuple[str, str]) -> GrpcPeer:
    def handle(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(metadata)
        context.abort(status, details)
        raise AssertionError

    return GrpcPeer({"ModelInfer": handle})


def test_the_table_has_every_status() -> None:
    assert set(grpc.StatusCode) - {grpc.StatusCode.OK} == set(CODES)


@pytest.mark.parametrize("status", CODES)
def test_a_foreign_servers_status_becomes_a_code(status: grpc.StatusCode) -> None:
    with aborts(status, "what it said") as peer, Client(peer.address) as client:
        error = refused(client)
    assert error.code is CODES[status]
    assert error.request_id == "r"
    if status is not grpc.StatusCode.DEADLINE_EXCEEDED:
        assert error.message == "what it said"


@pytest.mark.parametrize("code", Code)
def test_a_declared_code_goes_before_the_status(code: Code) -> None:
    with aborts(grpc.StatusCode.UNKNOWN, "said", ("outboard-code", code.value)) as peer, Client(peer.address) as client:
        error = refused(client)
    assert (error.code, error.message, error.retry_after_ms) == (code, "said", 0)


@pytest.mark.parametrize("code", ["", "a_newer_one"])
def test_a_declared_code_that_is_not_known_falls_back_to_the_status(code: str) -> None:
    metadata = (("outboard-code", code), ("retry-after-ms", "soon"))
    with aborts(grpc.StatusCode.NOT_FOUND, "said", *metadata) as peer, Client(peer.address) as client:
        error = refused(client)
    assert (error.code, error.retry_after_ms) == (Code.NOT_FOUND, 0)


def test_a_foreign_resource_exhausted_is_not_sent_elsewhere() -> None:
    """Only our own server says by it that nothing ran."""
    calls = []

    def count(_: bytes, context: grpc.ServicerContext) -> bytes:
        calls.append(1)
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "perhaps half done")
        raise AssertionError

    with GrpcPeer({"ModelInfer": count}) as a, GrpcPeer({"ModelInfer": count}) as b, Client([a.address, b.address]) as client:
        assert refused(client).code is Code.OVERLOADED
    assert calls == [1]


@pytest.mark.parametrize("where", ["refused", "name", "socket", "silent", "closes"])
def test_a_request_that_gets_no_connection_is_known_not_to_have_been_sent(where: str, short_path: Path) -> None:
    """Pins how grpc's core words these; what it words otherwise would not be sent elsewhere, which is safe but less useful."""
    with ThriftPeer(lambda connection: None) as closing, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        address = {
            "refused": f"127.0.0.1:{free_port()}",
            "name": "no-such-host.invalid:80",
            "socket": f"grpc+unix://{short_path}/none",
            "silent": f"127.0.0.1:{silent.getsockname()[1]}",
            "closes": f"127.0.0.1:{closing.port}",
        }[where]
        with GrpcPeer({"ModelInfer": lambda *_: b""}) as good, Client([address, good.address], connect_timeout_s=1) as client:
            assert client.infer_raw(REQUEST).model_name == ""
        with Client(address, connect_timeout_s=0.2) as client:
            error = refused(client)
    assert error.code is Code.UNAVAILABLE
    for secret in ("127.0.0.1", str(short_path), "invalid"):
        assert secret not in error.message


def test_a_host_that_comes_up_is_reached_at_once(short_path: Path) -> None:
    """grpc's own back-off would keep the next call from connecting for a second and more."""
    path = str(short_path / "g")
    with Client(f"grpc+unix://{path}", connect_timeout_s=60) as client:
        assert refused(client).code is Code.UNAVAILABLE
        with GrpcPeer({"ModelInfer": lambda *_: b""}, path=path):
            assert client.infer_raw(REQUEST, timeout_s=20).model_name == ""


def test_a_host_that_went_and_came_back_is_reached_again(short_path: Path) -> None:
    path = str(short_path / "g")
    with Client(f"grpc+unix://{path}") as client:
        for _ in range(3):
            with GrpcPeer({"ServerLive": lambda *_: pb.ServerLiveResponse(live=True).SerializeToString()}, path=path):
                assert client.server_live()
            with pytest.raises(ServingError):
                client.server_live()


def test_the_deadline_is_carried_and_kept() -> None:
    seen, leave = [], threading.Event()

    def hang(_: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(context.time_remaining())
        leave.wait(10)
        return b""

    with GrpcPeer({"ModelInfer": hang}) as peer, Client(peer.address) as client:
        error = refused(client, timeout_s=1)
        leave.set()
    assert error.code is Code.DEADLINE_EXCEEDED
    assert 0 < seen[0] <= 1


def test_token_and_trace_are_carried() -> None:
    seen = {}

    def look(_: bytes, context: grpc.ServicerContext) -> bytes:
        seen.update(dict(context.invocation_metadata()))
        return b""

    with GrpcPeer({"ModelInfer": look}) as peer, Client(peer.address, token="secret") as client:
        client.infer_raw(InferRequest("m", (), traceparent="00-1-2-01"))
    assert seen["authorization"] == "Bearer secret"
    assert seen["traceparent"] == "00-1-2-01"


def test_a_request_over_the_limit_is_refused_before_it_is_sent() -> None:
    calls = []
    with (
        GrpcPeer({"ModelInfer": lambda *_: calls.append(1) or b""}) as peer,
        Client(peer.address, max_message_bytes=1000) as client,
    ):
        assert refused(client, InferRequest("m", (Tensor("x", "UINT8", (1001,), bytes(1001)),))).code is Code.TOO_LARGE
        assert refused(client, InferRequest("m" * 1001, ())).code is Code.TOO_LARGE
    assert not calls


def test_a_reply_over_the_limit_is_too_large() -> None:
    big = pb.ModelInferResponse(raw_output_contents=[bytes(5000)]).SerializeToString()
    with GrpcPeer({"ModelInfer": lambda *_: big}) as peer, Client(peer.address, max_message_bytes=1000) as client:
        assert refused(client).code is Code.TOO_LARGE


def test_a_server_that_takes_less_than_we_send_is_too_large() -> None:
    server = grpc.server(
        pool := ThreadPoolExecutor(1),
        handlers=[
            grpc.method_handlers_generic_handler(
                "inference.GRPCInferenceService", {"ModelInfer": grpc.unary_unary_rpc_method_handler(lambda *_: b"")}
            )
        ],
        options=[("grpc.max_receive_message_length", 1000)],
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}") as client:
        assert refused(client, InferRequest("m", (Tensor("x", "UINT8", (2000,), bytes(2000)),))).code is Code.TOO_LARGE
    server.stop(0).wait()
    pool.shutdown()


def test_a_verb_that_the_server_lacks_is_unsupported() -> None:
    with GrpcPeer({}) as peer, Client(peer.address) as client, pytest.raises(ServingError) as caught:
        client.capacity()
    assert caught.value.code is Code.UNSUPPORTED


def test_the_orders_of_an_operator_arrive_as_they_were_given() -> None:
    got: dict[str, bytes] = {}

    def take(name: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        return lambda message, _: got.update({name: message}) or b""

    with GrpcPeer({name: take(name) for name in ("SetInstances", "SetLabels")}) as peer, Client(peer.address) as client:
        client.set_instances("m", 3)
        assert control.SetInstancesRequest.FromString(got["SetInstances"]) == control.SetInstancesRequest(model_name="m", count=3)
        client.set_instances("m", 1, "7")
        assert control.SetInstancesRequest.FromString(got["SetInstances"]).version == "7"
        client.set_labels("m", {"stable": 3, "canary": 4}, 10)
        labels = control.SetLabelsRequest.FromString(got["SetLabels"])
        assert (labels.model_name, dict(labels.labels), labels.canary_percent) == ("m", {"stable": 3, "canary": 4}, 10)
        for wrong in (lambda: client.set_instances("m", -1), lambda: client.set_labels("m", {"stable": 2**63})):
            with pytest.raises(ServingError) as caught:
                wrong()
            assert caught.value.code is Code.INVALID_INPUT


@pytest.mark.parametrize("reply", [b"\xff\xff", pb.ModelInferResponse(outputs=[{}, {}], raw_output_contents=[b""]).SerializeToString()])
def test_a_reply_that_is_none_is_internal(reply: bytes) -> None:
    with GrpcPeer({"ModelInfer": lambda *_: reply}) as peer, Client(peer.address) as client:
        assert refused(client).code is Code.INTERNAL


def test_contents_that_are_not_what_the_reply_says_are_internal() -> None:
    reply = pb.ModelInferResponse(outputs=[{"name": "y", "datatype": "FP32", "shape": [2]}], raw_output_contents=[bytes(7)])
    with GrpcPeer({"ModelInfer": lambda *_: reply.SerializeToString()}) as peer, Client(peer.address) as client:
        with pytest.raises(ServingError) as caught:
            client.infer("m", {})
        assert caught.value.code is Code.INTERNAL
        assert client.infer_raw(REQUEST).outputs[0].data == bytes(7)


def test_typed_contents_of_a_foreign_server_are_understood() -> None:
    reply = pb.ModelInferResponse(
        outputs=[
            {"name": "f", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1.5, -2]}},
            {"name": "i", "datatype": "INT8", "shape": [2], "contents": {"int_contents": [-128, 127]}},
            {"name": "b", "datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": [b"", b"\0x"]}},
            {"name": "t", "datatype": "BOOL", "shape": [1], "contents": {"bool_contents": [True]}},
            {"name": "e", "datatype": "FP64", "shape": [0]},
        ]
    )
    with GrpcPeer({"ModelInfer": lambda *_: reply.SerializeToString()}) as peer, Client(peer.address) as client:
        outputs = client.infer("m", {}).outputs
    assert {name: value.tolist() for name, value in outputs.items()} == {
        "f": [1.5, -2.0],
        "i": [-128, 127],
        "b": [b"", b"\0x"],
        "t": [True],
        "e": [],
    }


def test_parameters_keep_their_types_both_ways() -> None:
    parameters = {"flag": True, "low": -(2**63), "high": 2**64 - 1, "real": 0.5, "text": "é"}

    def give_back(data: bytes, _: grpc.ServicerContext) -> bytes:
        request = pb.ModelInferRequest.FromString(data)
        reply: bytes = pb.ModelInferResponse(parameters=request.parameters).SerializeToString()
        return reply

    with GrpcPeer({"ModelInfer": give_back}) as peer, Client(peer.address) as client:
        assert client.infer("m", {}, parameters=parameters).parameters == parameters
        for value in (None, [1], 2**64, b"x"):
            assert refused(client, InferRequest("m", (), parameters={"p": value})).code is Code.INVALID_INPUT


def test_a_file_is_copied_in_chunks_with_its_progress(tmp_path: Path) -> None:
    content = os.urandom(2 * 2**20 + 17)
    (tmp_path / "model.onnx").write_bytes(content)
    got = {}

    def put(messages: object, _: grpc.ServicerContext) -> bytes:
        parts = [control.PutFileRequest.FromString(data) for data in messages]  # type: ignore[attr-defined]
        got["header"], got["chunks"] = parts[0].header, [part.chunk for part in parts[1:]]
        reply: bytes = control.PutFileResponse(size=len(content), sha256=parts[0].header.sha256, existed=True).SerializeToString()
        return reply

    progress: list[tuple[int, int]] = []
    with GrpcPeer({"PutFile": put}) as peer, Client(peer.address) as client:
        stored = client.put_file(tmp_path / "model.onnx", "m", 3, "model.onnx", lambda *sent: progress.append(sent))
    assert (stored.size, stored.existed) == (len(content), True)
    assert b"".join(got["chunks"]) == content
    assert max(map(len, got["chunks"])) == 2**20
    header = got["header"]
    assert (header.model_name, header.version, header.file_name, header.size) == ("m", 3, "model.onnx", len(content))
    assert progress == [(2**20, len(content)), (2**21, len(content)), (len(content), len(content))]


def test_a_copy_that_fails_here_raises_what_failed_and_ends_the_call(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3 * 2**20))
    ended = threading.Event()

    def put(messages: object, context: grpc.ServicerContext) -> bytes:
        context.add_callback(ended.set)
        for _ in messages:  # type: ignore[attr-defined]
            pass
        return b""

    def progress(sent: int, _: int) -> None:
        if sent > 2**20:
            raise OSError(5, "Input/output error")

    with GrpcPeer({"PutFile": put}) as peer, Client(peer.address) as client:
        with pytest.raises(OSError, match="Input/output error"):
            client.put_file(tmp_path / "f", "m", 1, "f", progress)
        assert ended.wait(10)
        with pytest.raises(FileNotFoundError):
            client.put_file(tmp_path / "none", "m", 1, "f")


def test_a_copy_interrupted_before_it_has_its_call_sends_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come while grpcio still starts the thread that sends."""
    (tmp_path / "f").write_bytes(bytes(64 * 2**20))
    entered, ended, interrupted = threading.Event(), threading.Event(), threading.Event()
    got: list[object] = []

    def put(messages: object, context: grpc.ServicerContext) -> bytes:
        context.add_callback(ended.set)
        next(messages)  # type: ignore[call-overload]
        entered.set()
        assert interrupted.wait(10)
        got.extend(messages)  # type: ignore[call-overload]
        return b""

    begin = grpc._channel._consume_request_iterator

    def interrupt(*arguments: object) -> None:
        begin(*arguments)
        assert entered.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(grpc._channel, "_consume_request_iterator", interrupt)
    with GrpcPeer({"PutFile": put}) as peer, Client(peer.address) as client:
        with pytest.raises(KeyboardInterrupt):
            client.put_file(tmp_path / "f", "m", 1, "f")
        interrupted.set()
        assert ended.wait(10), "while the client is still open"
        assert len(got) < 64


def test_close_lets_a_call_under_way_finish() -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(*_: object) -> bytes:
        entered.set()
        assert leave.wait(10)
        return b""

    with GrpcPeer({"ModelInfer": wait}) as peer, ThreadPoolExecutor(1) as threads:
        client = Client(peer.address)
        under_way = threads.submit(client.infer_raw, REQUEST)
        assert entered.wait(10)
        client.close()
        client.close()
        assert refused(client).message == "the client is closed"
        leave.set()
        assert under_way.result(10).model_name == ""


def test_bf16_travels_as_bit_patterns() -> None:
    def echo(data: bytes, _: grpc.ServicerContext) -> bytes:
        request = pb.ModelInferRequest.FromString(data)
        outputs = [{"name": i.name, "datatype": i.datatype, "shape": i.shape} for i in request.inputs]
        reply: bytes = pb.ModelInferResponse(outputs=outputs, raw_output_contents=request.raw_input_contents).SerializeToString()
        return reply

    bits = np.uint16([0x3F80, 0x7FC0])
    with GrpcPeer({"ModelInfer": echo}) as peer, Client(peer.address) as client:
        result = client.infer("m", {"x": bits, "u": bits}, datatypes={"x": "BF16"})
        assert dict(result.datatypes) == {"x": "BF16", "u": "UINT16"}
        assert result.outputs["x"].dtype == np.uint16
        np.testing.assert_array_equal(result.outputs["x"], bits)
        for wrong in ({"x": "FP31"}, {"x": "BF16"}):
            with pytest.raises(ServingError) as caught:
                client.infer("m", {"x": np.float32([1])}, datatypes=wrong)
            assert caught.value.code is Code.INVALID_INPUT
