"""Several hosts: what is sent again, where, and what is not. Every host is a real server on a real port; only the clock is set by hand."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest

from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import InferRequest
from idl.thrift_schema import schema
from inference_client import Client
from tests.inference_client.peers import GrpcPeer, ThriftPeer, answer, echo, read_call, reply_bytes
from tests.processes import free_port

REQUEST = InferRequest("m", ())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A Thrift host that counts its calls, names itself as the model's version, and behaves as it is told."""

    def __init__(self, name: str, manner: str = "answers", port: int = 0) -> None:
        self.name, self.manner, self.calls = name, manner, 0
        self.peer = ThriftPeer(self._serve, port=port)

    def _serve(self, connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            self.calls += 1
            if self.manner == "dies":
                return
            if self.manner == "answers":
                value = echo(call.request, model_version=self.name) if call.method == "ModelInfer" else answer(call)
                connection.sendall(reply_bytes(call, value))
            else:
                error = schema.ServingError(code=self.manner, message=f"{self.name} is {self.manner}", retry_after_ms=10)
                connection.sendall(reply_bytes(call, error=error))


Make = Callable[..., Host]


@pytest.fixture
def host() -> Iterator[Make]:
    with ExitStack() as stack:

        def make(name: str, manner: str = "answers", port: int = 0) -> Host:
            made = Host(name, manner, port)
            stack.callback(made.peer.close)
            return made

        yield make


def client_of(*hosts: Host, clock: Clock | None = None) -> Client:
    return Client([each.peer.address for each in hosts], **({"clock": clock} if clock else {}))


def test_hosts_take_turns(host: Make) -> None:
    a, b = host("a"), host("b")
    with client_of(a, b) as client:
        assert [client.infer_raw(REQUEST).model_version for _ in range(6)] == ["a", "b"] * 3


def test_a_host_that_is_down_is_passed_over_and_comes_back(host: Make) -> None:
    clock, port, b = Clock(), free_port(), host("b")
    with Client([f"thrift://127.0.0.1:{port}", b.peer.address], clock=clock) as client:
        assert [client.infer_raw(REQUEST).model_version for _ in range(4)] == ["b"] * 4
        host("a", port=port)
        assert [client.infer_raw(REQUEST).model_version for _ in range(4)] == ["b"] * 4, "it is not due yet"
        clock.now += 0.5
        assert [client.infer_raw(REQUEST).model_version for _ in range(4)].count("a") == 2


def test_where_no_host_can_be_reached_the_call_says_so_and_tries_them_all_again_next_time(host: Make) -> None:
    port = free_port()
    with Client([f"thrift://127.0.0.1:{port}", f"thrift://127.0.0.1:{free_port()}"]) as client:
        for _ in range(3):
            with pytest.raises(ServingError) as caught:
                client.infer_raw(REQUEST)
            assert caught.value.code is Code.UNAVAILABLE
            assert "refused" in caught.value.message
            assert "127.0.0.1" not in caught.value.message
        host("a", port=port)
        assert client.infer_raw(REQUEST).model_version == "a"


@pytest.mark.parametrize("manner", ["overloaded", "not_ready", "model_not_found", "version_not_found"])
def test_a_request_that_did_not_run_goes_to_another_host(host: Make, manner: str) -> None:
    a, b = host("a", manner), host("b")
    with client_of(a, b) as client:
        assert {client.infer_raw(REQUEST).model_version for _ in range(4)} == {"b"}
        assert a.calls == 2, "a host that answers, even so, keeps its turn"


def test_where_every_host_refuses_the_first_refusal_is_given(host: Make) -> None:
    a, b = host("a", "overloaded"), host("b", "not_ready")
    with client_of(a, b) as client, pytest.raises(ServingError) as caught:
        client.infer_raw(REQUEST)
    assert (caught.value.code, caught.value.retry_after_ms) == (Code.OVERLOADED, 10)
    assert (a.calls, b.calls) == (1, 1)


def test_a_name_that_nobody_has_costs_no_trial_of_a_host_that_is_away(host: Make) -> None:
    clock, a, b = Clock(), host("a", "model_not_found"), host("b", "not_ready")
    with Client([f"thrift://127.0.0.1:{free_port()}", a.peer.address, b.peer.address], clock=clock) as client:
        with pytest.raises(ServingError) as caught:
            client.infer_raw(REQUEST)
        assert caught.value.code is Code.NOT_READY, "who takes nothing now may have it"
        b.manner, tried = "model_not_found", []
        hosts = next(iter(client._connections._dispatchers.values()))._hosts
        hosts.failed = lambda index, *_: tried.append(index)  # type: ignore[method-assign]
        for _ in range(6):
            with pytest.raises(ServingError) as caught:
                client.infer_raw(REQUEST)
            assert caught.value.code is Code.MODEL_NOT_FOUND
        assert (a.calls, b.calls, tried) == (7, 7, [])


@pytest.mark.parametrize("manner", ["model_failed", "deadline_exceeded", "invalid_input", "unavailable", "internal"])
def test_any_other_refusal_is_not_tried_elsewhere(host: Make, manner: str) -> None:
    a, b = host("a", manner), host("b")
    with client_of(a, b) as client, pytest.raises(ServingError) as caught:
        client.infer_raw(REQUEST)
    assert caught.value.code.value == manner
    assert b.calls == 0


def test_an_inference_whose_connection_died_is_never_sent_again(host: Make) -> None:
    a, b = host("a", "dies"), host("b")
    with client_of(a, b) as client, pytest.raises(ServingError) as caught:
        client.infer_raw(REQUEST)
    assert caught.value.code is Code.UNAVAILABLE
    assert (a.calls, b.calls) == (1, 0)


def test_a_verb_that_only_reads_is_sent_once_more(host: Make) -> None:
    a, b = host("a", "dies"), host("b", "dies")
    with client_of(a, b) as client:
        with pytest.raises(ServingError) as caught:
            client.server_ready()
        assert caught.value.code is Code.UNAVAILABLE
        assert a.calls + b.calls == 2
        b.manner = "answers"
        assert client.server_ready()


def test_a_verb_that_changes_a_host_needs_a_client_with_one(host: Make) -> None:
    a, b = host("a"), host("b")
    with client_of(a, b) as client, pytest.raises(ServingError) as caught:
        client.load_model("m")
    assert caught.value.code is Code.UNSUPPORTED
    assert (a.calls, b.calls) == (0, 0)
    with client_of(a) as client:
        client.load_model("m")
    assert a.calls == 1


def test_a_change_is_never_sent_twice(host: Make) -> None:
    a = host("a", "dies")
    with client_of(a) as client, pytest.raises(ServingError):
        client.load_model("m")
    assert a.calls == 1


def test_nothing_is_tried_after_the_deadline(host: Make) -> None:
    clock = Clock()
    a, b = host("a", "overloaded"), host("b")
    original = a._serve

    def late(connection: socket.socket) -> None:
        clock.now += 31
        original(connection)

    a.peer._serve = late
    with client_of(a, b, clock=clock) as client, pytest.raises(ServingError) as caught:
        client.infer_raw(REQUEST, timeout_s=30)
    assert caught.value.code in (Code.DEADLINE_EXCEEDED, Code.OVERLOADED)
    assert b.calls == 0


def test_a_passed_deadline_sends_nothing(host: Make) -> None:
    a = host("a")
    with client_of(a) as client:
        with pytest.raises(ServingError) as caught:
            client.infer_raw(InferRequest("m", (), deadline=1.0))
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert a.peer.accepted == 0


def test_many_threads_over_two_hosts_one_of_which_goes(host: Make) -> None:
    """Calls that were not sent go elsewhere; only those under way on the host that died may fail."""
    a, b = host("a"), host("b")
    with client_of(a, b) as client, ThreadPoolExecutor(4) as threads:
        assert {reply.model_version for reply in threads.map(lambda _: client.infer_raw(REQUEST), range(40))} == {"a", "b"}
        a.peer.close()
        assert {reply.model_version for reply in threads.map(lambda _: client.infer_raw(REQUEST), range(40))} == {"b"}


def test_grpc_goes_to_another_host_as_well() -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("outboard-code", "overloaded"), ("retry-after-ms", "25")))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        raise AssertionError

    def serve(_: bytes, context: grpc.ServicerContext) -> bytes:
        reply: bytes = pb.ModelInferResponse(model_version="b").SerializeToString()
        return reply

    down = f"127.0.0.1:{free_port()}"
    with GrpcPeer({"ModelInfer": refuse}) as a, GrpcPeer({"ModelInfer": serve}) as b, Client([down, a.address, b.address]) as client:
        assert {client.infer_raw(REQUEST).model_version for _ in range(6)} == {"b"}
    with GrpcPeer({"ModelInfer": refuse}) as a, Client(a.address) as client, pytest.raises(ServingError) as caught:
        client.infer_raw(InferRequest("m", (), id="r"))
    error = caught.value
    assert (error.code, error.message, error.retry_after_ms, error.request_id) == (Code.OVERLOADED, "full", 25, "r")
