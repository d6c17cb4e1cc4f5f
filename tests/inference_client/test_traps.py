"""The known traps of RPC libraries under a client, each with the peer that springs it."""

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
from thriftpy2.protocol import TBinaryProtocolFactory
from thriftpy2.rpc import make_client
from thriftpy2.transport import TFramedTransportFactory

from idl import thrift_binary
from idl.codes import Code, ServingError
from idl.messages import InferRequest
from idl.thrift_schema import Inference, schema
from inference_client import Client
from tests.inference_client.peers import Call, Held, ThriftPeer, answer, echo, read_call, reply_bytes, serve_echo
from tests.processes import resident


def serve_first_answer_late(connection: socket.socket) -> None:
    """Holds the first answer back until the second request is here, then sends both."""
    first = read_call(connection)
    second = read_call(connection)
    if first is None or second is None:
        return
    connection.sendall(reply_bytes(first, echo(first.request)) + reply_bytes(second, echo(second.request)))
    read_call(connection)


def test_trap_1_the_stock_client_takes_a_late_reply_for_the_next_calls_answer() -> None:
    with ThriftPeer(serve_first_answer_late) as peer:
        stock = make_client(
            Inference,
            "127.0.0.1",
            peer.port,
            timeout=1000,  # of the second call too, which is answered
            proto_factory=TBinaryProtocolFactory(),
            trans_factory=TFramedTransportFactory(),
        )
        with pytest.raises(TimeoutError):
            stock.ModelInfer(schema.InferRequest(model_name="first", inputs=[]))
        wrong = stock.ModelInfer(schema.InferRequest(model_name="second", inputs=[]))
        stock.close()
    assert wrong.model_name == "first"


def test_trap_1_a_late_reply_is_never_the_next_calls_answer() -> None:
    connections = []

    def serve(connection: socket.socket) -> None:
        connections.append(connection)
        (serve_first_answer_late if len(connections) == 1 else serve_echo)(connection)

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        with pytest.raises(ServingError) as caught:
            client.infer_raw(InferRequest("first", ()), timeout_s=0.1)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert client.infer_raw(InferRequest("second", ()), timeout_s=10).model_name == "second"
        assert peer.accepted == 2, "the connection on which an answer is owed must not be used again"


def wrong_reply(kind: str, call: Call) -> bytes:
    if kind == "sequence":
        return reply_bytes(call, echo(call.request), sequence=call.sequence + 1)
    if kind == "method":
        return reply_bytes(call, echo(call.request), method="ModelConfig")
    if kind == "id":
        return reply_bytes(call, echo(call.request, id="somebody else's"))
    if kind == "error id":
        return reply_bytes(call, error=schema.ServingError(code="invalid_input", message="", request_id="other"))
    good = reply_bytes(call, echo(call.request))
    return good + good if kind == "two replies" else (len(good) - 3).to_bytes(4) + good[4:] + b"x"


@pytest.mark.parametrize("reply", ["sequence", "method", "id", "error id", "two replies", "trailing bytes"])
def test_trap_1_a_reply_that_may_be_another_calls_is_refused_and_its_connection_dropped(reply: str) -> None:
    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            connection.sendall(wrong_reply(reply, call))

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        for _ in range(2):
            with pytest.raises(ServingError) as caught:
                client.infer_raw(InferRequest("m", (), id="mine"))
            assert caught.value.code is Code.INTERNAL
        assert peer.accepted == 2


def test_trap_1_without_an_id_only_the_sequence_counts() -> None:
    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            connection.sendall(reply_bytes(call, echo(call.request, id="made by the server")))

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        assert client.infer_raw(InferRequest("m", ())).id == "made by the server"


def test_trap_2_a_declared_error_keeps_the_connection_an_undeclared_one_drops_it() -> None:
    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            if call.request.model_name == "declared":
                error = schema.ServingError(code="overloaded", message="full", retry_after_ms=7, request_id=call.request.id)
                connection.sendall(reply_bytes(call, error=error))
            elif call.request.model_name == "application":
                connection.sendall(application_error(call.method, call.sequence, 6, "boom"))
            else:
                return  # what a server does that has raised what its IDL does not declare

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        for _ in range(2):
            with pytest.raises(ServingError) as caught:
                client.infer_raw(InferRequest("declared", (), id="r"))
            error = caught.value
            assert (error.code, error.message, error.retry_after_ms, error.request_id) == (Code.OVERLOADED, "full", 7, "r")
        assert peer.accepted == 1
        for name, code in (("undeclared", Code.UNAVAILABLE), ("application", Code.INTERNAL), ("undeclared", Code.UNAVAILABLE)):
            with pytest.raises(ServingError) as caught:
                client.infer_raw(InferRequest(name, ()))
            assert caught.value.code is code
        assert peer.accepted == 3


def application_error(method: str, sequence: int, kind: int, message: str) -> bytes:
    class Body:
        thrift_spec: ClassVar[dict[int, Any]] = {1: (thrift_binary.STRING, "message", False), 2: (thrift_binary.I32, "type", False)}

    body = Body()
    body.message, body.type = message, kind
    return b"".join(thrift_binary.message(method, thrift_binary.EXCEPTION, sequence, body))


def test_trap_2_a_method_that_the_peer_lacks_is_unsupported() -> None:
    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            connection.sendall(application_error(call.method, call.sequence, 1, "unknown method"))

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        with pytest.raises(ServingError) as caught:
            client.model_config("m")
        assert caught.value.code is Code.UNSUPPORTED


def test_trap_3_many_threads_open_no_more_connections_than_allowed() -> None:
    """A server with a thread for each connection is at the mercy of its clients' pools."""
    with (
        ThriftPeer(serve_echo) as peer,
        Client(peer.address, max_connections=4) as client,
        ThreadPoolExecutor(32) as threads,
    ):
        answers = list(threads.map(lambda n: client.infer("m", {"x": np.int64([n])}).outputs["x"][0], range(400)))
        assert answers == list(range(400))
        assert peer.most_open <= 4


def test_trap_3_waiting_for_a_free_connection_ends_at_the_deadline() -> None:
    held = Held()
    with ThriftPeer(held.serve) as peer, Client(peer.address, max_connections=1) as client, ThreadPoolExecutor(1) as threads:
        busy = threads.submit(client.server_live)
        assert held.entered.wait(10)
        with pytest.raises(ServingError) as caught:
            client.server_live(timeout_s=0.05)
        held.leave.set()
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert busy.result(10) is True
        assert peer.accepted == 1


@pytest.mark.parametrize(
    "first, second", [("inference_client.grpc_channel", "tritonclient.grpc"), ("tritonclient.grpc", "inference_client.grpc_channel")]
)
def test_trap_4_our_messages_and_the_official_clients_live_in_one_process(first: str, second: str) -> None:
    program = f"""
import {first}, {second}
from idl.generated import inference_pb2 as ours
from tritonclient.grpc import service_pb2 as theirs
request = theirs.ModelInferRequest(model_name="m", id="7")
assert ours.ModelInferRequest.FromString(request.SerializeToString()).id == "7"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("length, code", [(2**31, Code.TOO_LARGE), (2**32 - 1, Code.TOO_LARGE), (60 * 2**20, Code.UNAVAILABLE)])
def test_trap_17_a_frame_length_that_lies_costs_nothing(length: int, code: Code) -> None:
    def serve(connection: socket.socket) -> None:
        if read_call(connection) is not None:
            connection.sendall(length.to_bytes(4) + b"\x80\x01")

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        before = resident([os.getpid()])
        with pytest.raises(ServingError) as caught:
            client.infer_raw(InferRequest("m", ()))
        assert caught.value.code is code
        assert resident([os.getpid()]) - before < 16 * 2**20


@pytest.mark.parametrize("where", ["string", "list", "frame's head"])
def test_trap_17_a_length_inside_a_frame_that_lies_is_refused(where: str) -> None:
    def serve(connection: socket.socket) -> None:
        call = read_call(connection)
        assert call is not None
        frame = bytearray(reply_bytes(call, echo(call.request, model_name="NAME", outputs=[])))
        if where == "string":
            at = frame.index(b"NAME") - 4
        elif where == "list":
            at = frame.index(b"\x0f\x00\x04\x0c") + 4
        else:
            at = 8
        frame[at : at + 4] = (2**31 - 1).to_bytes(4)
        connection.sendall(frame)
        read_call(connection)

    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        with pytest.raises(ServingError) as caught:
            client.infer_raw(InferRequest("m", ()))
        assert caught.value.code is Code.INTERNAL


def test_trap_27_a_connection_that_the_peer_closed_while_idle_is_noticed_before_it_is_used() -> None:
    def serve_one_call(connection: socket.socket) -> None:
        call = read_call(connection)
        if call is not None:
            connection.sendall(reply_bytes(call, answer(call)))

    with ThriftPeer(serve_one_call) as peer, Client(peer.address) as client:
        for number in range(5):
            assert client.infer("m", {"x": np.int64([number])}).outputs["x"].tolist() == [number]
            peer.wait_until(lambda peer: peer.open == 0)
        assert peer.accepted == 5


def test_trap_27_bytes_that_nobody_asked_for_make_a_connection_unusable() -> None:
    sent = threading.Event()

    def serve(connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            connection.sendall(reply_bytes(call, answer(call)))
            if not sent.is_set():
                assert told.wait(10)
                connection.sendall(b"late")
                sent.set()

    told = threading.Event()
    with ThriftPeer(serve) as peer, Client(peer.address) as client:
        assert client.server_live()
        told.set()
        assert sent.wait(10)
        assert client.server_live()
        assert peer.accepted == 2
