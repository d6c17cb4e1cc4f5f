"""What holds whatever the protocol: threads, forks, deadlines, closing. And Thrift's own small print."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import InferRequest, Tensor
from idl.thrift_schema import schema
from inference_client import Client
from inference_client.thrift_channel import ThriftChannel
from inference_client.thrift_connection import _JOIN_BELOW, _joined
from tests.inference_client.peers import Call, GrpcPeer, Held, ThriftPeer, answer, echo, read_call, reply_bytes, serve_echo
from tests.processes import descriptors


def grpc_echo(data: bytes, _: grpc.ServicerContext) -> bytes:
    request = pb.ModelInferRequest.FromString(data)
    outputs = [{"name": i.name, "datatype": i.datatype, "shape": i.shape} for i in request.inputs]
    reply = pb.ModelInferResponse(
        model_name=request.model_name, id=request.id, outputs=outputs, raw_output_contents=request.raw_input_contents
    )
    made: bytes = reply.SerializeToString()
    return made


@pytest.fixture(params=["thrift", "thrift+unix", "grpc", "grpc+unix"])
def address(request: pytest.FixtureRequest, short_path: Path) -> Iterator[str]:
    """An echoing server of each kind."""
    path = str(short_path / "s") if request.param.endswith("unix") else ""
    peer = ThriftPeer(serve_echo, path) if request.param.startswith("thrift") else GrpcPeer({"ModelInfer": grpc_echo}, path)
    with peer:
        yield peer.address


ARRAYS = [
    np.array([[True, False]]),
    *(np.arange(6).reshape(2, 3).astype(kind) for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")),
    np.float32([np.nan, np.inf, -np.inf, -0.0]),
    np.array(7, np.int64),
    np.zeros((0, 3), np.float32),
    np.arange(24, dtype=np.int32).reshape(2, 3, 4).transpose(2, 0, 1),
    np.arange(3, dtype=">i4"),
    np.array([b"", b"a\0b", "é".encode()], object),
]


def test_every_datatype_comes_back_bit_by_bit(address: str) -> None:
    inputs = {f"x{index}": array for index, array in enumerate(ARRAYS)}
    with Client(address) as client:
        result = client.infer("m", inputs, request_id="r")
    assert result.id == "r"
    for name, array in inputs.items():
        got = result.outputs[name]
        assert got.shape == array.shape
        assert got.tolist() == array.tolist() or np.isnan(array).any()
        if array.dtype != object:
            assert got.tobytes() == np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def test_large_tensors_come_back(address: str) -> None:
    array = np.arange(3_000_000, dtype=np.float32)
    with Client(address) as client:
        result = client.infer("m", {"a": array, "b": array[:5], "c": array[::2]})
    np.testing.assert_array_equal(result.outputs["a"], array)
    np.testing.assert_array_equal(result.outputs["b"], array[:5])
    np.testing.assert_array_equal(result.outputs["c"], array[::2])


def test_text_is_bytes_and_what_has_no_datatype_is_refused(address: str) -> None:
    with Client(address) as client:
        assert client.infer("m", {"t": ["é", "b"]}).outputs["t"].tolist() == ["é".encode(), b"b"]
        for wrong in (np.complex64([1]), np.array([1, None], object), np.datetime64("2026-01-01")):
            with pytest.raises(ServingError) as caught:
                client.infer("m", {"x": wrong})
            assert caught.value.code is Code.INVALID_INPUT


def test_what_the_wire_cannot_say_is_the_callers_error(address: str) -> None:
    with Client(address) as client:
        for request in (
            InferRequest("\ud800", ()),
            InferRequest("m", (Tensor("x", "FP32", (2**63,), b""),)),
            InferRequest("m", (Tensor("x", "FP32", ("a",), b""),)),  # type: ignore[arg-type]
        ):
            with pytest.raises(ServingError) as caught:
                client.infer_raw(request)
            assert caught.value.code is Code.INVALID_INPUT
        assert client.infer_raw(InferRequest("m", ())).model_name == "m"


def test_threads_each_get_their_own_answer(address: str) -> None:
    with Client(address, max_connections=5) as client, ThreadPoolExecutor(8) as threads:

        def calls(thread: int) -> list[int]:
            wanted = [thread * 1000 + number for number in range(200)]
            return [int(client.infer("m", {"x": np.int64([n])}, request_id=str(n)).outputs["x"][0]) - n for n in wanted]

        for differences in threads.map(calls, range(8)):
            assert differences == [0] * 200


def test_a_forked_child_starts_afresh(address: str) -> None:
    with Client(address) as client:
        assert client.infer("m", {"x": np.int64([1])}).outputs["x"].tolist() == [1]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                values = [int(client.infer("m", {"x": np.int64([n])}).outputs["x"][0]) for n in (2, 3)]
                os.write(
                    writer,
                    repr((values, len(client._connections._dispatchers), set(client._connections._dispatchers) == {os.getpid()})).encode(),
                )
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        assert said == b"([2, 3], 1, True)"
        assert client.infer("m", {"x": np.int64([4])}).outputs["x"].tolist() == [4], "the parent goes on with what it had"


def test_a_forked_child_closes_the_parents_connections_and_the_parent_does_not_notice() -> None:
    with ThriftPeer(serve_echo) as peer, Client(peer.address) as client:
        assert client.server_live()
        inherited = client._connections._dispatchers[os.getpid()]._channels[0]._pool._idle[0]._socket.fileno()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                client.close()
                os.fstat(inherited)
            except OSError:
                os.write(writer, b"closed")
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"closed"
        os.waitpid(child, 0)
        assert client.server_live()
        assert peer.accepted == 1


def test_close_releases_every_descriptor() -> None:
    entered, leave = threading.Barrier(4), threading.Event()

    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            entered.wait(10)
            assert leave.wait(10)
            connection.sendall(reply_bytes(call, answer(call)))

    with ThriftPeer(serve) as peer, ThreadPoolExecutor(3) as threads:
        client = Client(peer.address)
        before = descriptors()
        under_way = [threads.submit(client.server_live) for _ in range(3)]
        entered.wait(10)
        client.close()
        leave.set()
        assert all(call.result(10) for call in under_way), "close lets calls under way finish"
        peer.wait_until(lambda peer: peer.open == 0)
        assert descriptors() == before
        with pytest.raises(ServingError) as caught:
            client.server_live()
        assert caught.value.code is Code.UNAVAILABLE
        client.close()


def test_close_wakes_those_that_wait_for_a_connection() -> None:
    held = Held()
    with ThriftPeer(held.serve) as peer, ThreadPoolExecutor(2) as threads:
        client = Client(peer.address, max_connections=1)
        first = threads.submit(client.server_live)
        assert held.entered.wait(10)
        second = threads.submit(client.server_live)
        client.close()
        assert isinstance(second.exception(10), ServingError)
        held.leave.set()
        assert first.result(10)


def seen_requests(calls: list[Call]) -> ThriftPeer:
    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            calls.append(call)
            connection.sendall(reply_bytes(call, answer(call)))

    return ThriftPeer(serve)


def test_thrift_carries_deadline_token_trace_and_parameters() -> None:
    calls: list[Call] = []
    with seen_requests(calls) as peer, Client(peer.address, token="secret", timeout_s=30) as client:
        client.infer_raw(InferRequest("m", (), traceparent="00-1", outputs=("y",), parameters={"a": True, "b": 2, "c": 0.5}))
        client.infer_raw(InferRequest("m", ()), timeout_s=1.5)
        client.infer_raw(InferRequest("m", (), deadline=time.monotonic() + 5), timeout_s=9)
        client.infer_raw(InferRequest("m", (), deadline=time.monotonic() + 50))
        client.infer_raw(InferRequest("m", ()), timeout_s=1e9)
        client.load_model("m", {"version": "3", "n": 4})
    requests = [call.request for call in calls]
    assert (requests[0].token, requests[0].traceparent, requests[0].outputs) == ("secret", "00-1", ["y"])
    assert requests[0].parameters == {"a": "true", "b": "2", "c": "0.5"}
    for request, limit in zip(requests, (30, 1.5, 5, 50), strict=False):
        assert limit * 1000 - 1000 < request.timeout_ms <= limit * 1000
    assert requests[4].timeout_ms == 2**31 - 1
    assert (requests[5].token, requests[5].parameters) == ("secret", {"version": "3", "n": "4"})


def test_the_deadline_counts_connecting() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        fillers = []
        for _ in range(3):  # a full backlog: the next connection gets no answer
            fillers.append(socket.socket())
            fillers[-1].setblocking(False)
            fillers[-1].connect_ex(("127.0.0.1", port))
        began = time.monotonic()
        with Client(f"thrift://127.0.0.1:{port}", connect_timeout_s=20) as client, pytest.raises(ServingError) as caught:
            client.server_live(timeout_s=0.2)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 5
        with Client(f"thrift://127.0.0.1:{port}", connect_timeout_s=0.1) as client, pytest.raises(ServingError) as caught:
            client.server_live(timeout_s=20)
        assert caught.value.code is Code.UNAVAILABLE
        for filler in fillers:
            filler.close()


def test_a_peer_that_dies_in_the_middle_of_its_reply_is_unavailable() -> None:
    def serve(connection: socket.socket) -> None:
        call = read_call(connection)
        if call is not None:
            connection.sendall(reply_bytes(call, echo(call.request))[:20])

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        for _ in range(2):
            with pytest.raises(ServingError) as caught:
                client.infer_raw(InferRequest("m", ()))
            assert caught.value.code is Code.UNAVAILABLE
        assert peer.accepted == 2


def test_a_reply_that_trickles_in_is_read_until_the_deadline_and_no_longer() -> None:
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            reply = reply_bytes(call, echo(call.request))
            if call.request.model_name == "slow":
                connection.sendall(len(reply).to_bytes(4) + b"\x80")
                while not stop.wait(0.02):
                    connection.sendall(b"\0")
            for byte in reply:
                connection.sendall(bytes([byte]))

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        assert client.infer_raw(InferRequest("whole", ())).model_name == "whole"
        began = time.monotonic()
        with pytest.raises(ServingError) as caught:
            client.infer_raw(InferRequest("slow", (Tensor("x", "UINT8", (999,), bytes(999)),)), timeout_s=0.2)
        stop.set()
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 5


def test_a_request_that_nobody_reads_ends_at_the_deadline() -> None:
    leave = threading.Event()

    def serve(_: socket.socket) -> None:
        leave.wait(10)

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        with pytest.raises(ServingError) as caught:
            client.infer_raw(InferRequest("m", (Tensor("x", "UINT8", (2**25,), bytes(2**25)),)), timeout_s=0.2)
        leave.set()
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_thrift_refuses_over_the_limit_before_sending_and_goes_on() -> None:
    calls: list[Call] = []
    with seen_requests(calls) as peer, Client(peer.address, max_message_bytes=1000) as client:
        for request in (InferRequest("m", (Tensor("x", "UINT8", (1001,), bytes(1001)),)), InferRequest("m" * 1001, ())):
            with pytest.raises(ServingError) as caught:
                client.infer_raw(request)
            assert caught.value.code is Code.TOO_LARGE
        assert not calls
        client.infer_raw(InferRequest("m", ()))
        assert peer.accepted == 1


def test_a_connection_that_cannot_be_written_to_is_replaced_because_nothing_was_sent() -> None:
    """As when the host's end of the stream arrives between the check and the sending."""
    leave = threading.Event()

    def serve(connection: socket.socket) -> None:
        serve_echo(connection)
        leave.wait(10)  # the check must not see an end of the stream

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        client.server_live()
        channel = client._connections._dispatchers[os.getpid()]._channels[0]
        assert isinstance(channel, ThriftChannel)
        channel._pool._idle[0]._socket.shutdown(socket.SHUT_WR)
        assert client.infer("m", {"x": np.int64([5])}).outputs["x"].tolist() == [5]
        assert peer.accepted == 2
        leave.set()


def test_parts_are_joined_without_losing_a_byte() -> None:
    small, large = b"abc", bytes(_JOIN_BELOW)
    parts = [small, b"", large, large, small, small, memoryview(large), b""]
    buffers = _joined(parts)
    assert b"".join(buffers) == b"".join(parts)
    assert [len(buffer) for buffer in buffers] == [3, len(large), len(large), 6, len(large)]
    assert _joined([b""]) == []


def test_answers_that_a_peer_left_half_empty_are_understood() -> None:
    """A field that is not set is its type's empty value."""
    with ThriftPeer(serve_echo) as peer, Client(peer.address) as client:
        assert client.server_metadata().extensions == ()
        assert client.model_metadata("m").inputs == ()
        assert client.model_statistics() == ()
        assert client.repository_index() == ()
        assert client.model_ready("m")
        with pytest.raises(ServingError) as caught:
            client.model_config("m")
        assert caught.value.code is Code.INTERNAL


def test_an_unknown_code_is_internal() -> None:
    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            connection.sendall(reply_bytes(call, error=schema.ServingError(code="a_newer_one", message="said")))

    with ThriftPeer(serve) as peer, Client(peer.address) as client, pytest.raises(ServingError) as caught:
        client.server_live()
    assert (caught.value.code, caught.value.message) == (Code.INTERNAL, "said")


def test_one_client_speaks_one_protocol() -> None:
    for wrong in ([], ["thrift://h:1", "grpc://h:1"]):
        with pytest.raises(ValueError, match="protocol"):
            Client(wrong)
    for limits in ({"timeout_s": 0}, {"max_connections": 0}, {"max_message_bytes": 2**31}):
        with pytest.raises(ValueError, match="limits"):
            Client("h:1", **limits)
