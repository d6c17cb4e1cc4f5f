"""Real nginx before a gRPC server: messages, streams, refusals, and nobody behind it."""

import queue
import urllib.parse
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from tests.certificates import Authority
from tests.e2e.nginx_program import Nginx, some_values
from tests.gateway.conftest import Program
from tests.needs import needs

pytestmark = [needs("nginx"), needs("openssl")]


class Echo(grpc.GenericRpcHandler):
    """A gRPC server of the test's own: answers with what it gets, one message or many, or refuses."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method == "/t/Unary":
            return grpc.unary_unary_rpc_method_handler(lambda message, context: message)
        if details.method == "/t/Stream":
            return grpc.stream_stream_rpc_method_handler(lambda messages, context: messages)
        if details.method == "/t/Refuse":
            return grpc.unary_unary_rpc_method_handler(self.refuse)
        return None

    def refuse(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("outboard-code", "overloaded"), ("retry-after-ms", "7")))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


SIZES = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


@pytest.fixture
def grpc_server(tmp_path: Path) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4), (Echo(),), options=SIZES)
    path = f"unix:{tmp_path}/grpc.sock"
    server.add_insecure_port(path)
    server.start()
    yield path
    server.stop(None).wait()


@pytest.mark.parametrize("secure", [False, True], ids=["clear text", "TLS"])
def test_grpc_goes_through(
    grpc_server: str, authority: Authority, certificate: dict[str, Path], tmp_path: Path, started: list[Program], secure: bool
) -> None:
    front = Nginx("grpc", some_values(tmp_path, grpc_target=grpc_server, **(certificate if secure else {})))
    started.append(front.program)
    address = f"localhost:{front.port}"
    trusted = grpc.ssl_channel_credentials(authority.file.read_bytes())
    with grpc.secure_channel(address, trusted, SIZES) if secure else grpc.insecure_channel(address, SIZES) as channel:
        unary = channel.unary_unary("/t/Unary")
        for size in (0, 1, 16 << 20):
            assert len(unary(b"x" * size, timeout=60)) == size
        for _ in range(1_100):
            unary(b"more calls than nginx allows on a connection by default", timeout=60)
        assert list(channel.stream_stream("/t/Stream")(iter([b"a", b"b", b"c"]), timeout=60)) == [b"a", b"b", b"c"]
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/t/Refuse")(b"", timeout=60)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and refused.value.details() == "full"
        assert {"outboard-code": "overloaded", "retry-after-ms": "7"}.items() <= dict(refused.value.trailing_metadata()).items()
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/t/Nothing")(b"", timeout=60)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_grpc_streams_flow_both_ways_at_once(grpc_server: str, tmp_path: Path, started: list[Program]) -> None:
    """Each answer is there before the next message is sent."""
    front = Nginx("grpc", some_values(tmp_path, grpc_target=grpc_server))
    started.append(front.program)
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.insecure_channel(f"localhost:{front.port}") as channel:
        call = channel.stream_stream("/t/Stream")(iter(messages.get, None), timeout=60)
        for message in (b"0", b"1", b"2"):
            messages.put(message)
            assert next(call) == message
        messages.put(None)
        assert list(call) == []


def test_grpc_without_a_model_host(tmp_path: Path, started: list[Program]) -> None:
    front = Nginx("grpc", some_values(tmp_path, grpc_target=f"unix:{tmp_path}/nobody.sock"))
    started.append(front.program)
    with grpc.insecure_channel(f"localhost:{front.port}") as channel, pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/t/Unary")(b"", timeout=60)
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    metadata = dict(failed.value.initial_metadata() or ()) | dict(failed.value.trailing_metadata() or ())
    assert metadata["outboard-code"] == "unavailable" and metadata["retry-after-ms"] == "1000"
    assert urllib.parse.unquote(failed.value.details()) == "the model host cannot be reached"
