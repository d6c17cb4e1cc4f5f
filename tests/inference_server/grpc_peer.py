"""A gRPC server for the transport's tests, and bare grpcio clients of it with the official client's messages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as spb
from tritonclient.grpc import service_pb2_grpc

from inference_server.transports.grpc_server import GrpcServer
from tests.eventually import eventually
from tests.inference_server.conftest import threads
from tests.inference_server.echo_engine import EchoEngine
from tests.processes import descriptors

MAX_MESSAGE = 1 << 20


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


@pytest.fixture(name="core", scope="module", autouse=True)
def core_fixture() -> Iterator[None]:
    """gRPC's core has descriptors of its own for as long as anything of it is in use: here it is, before they are counted."""
    with serving(EchoEngine()) as server, calling(server) as (stub, _):
        stub.ServerLive(spb.ServerLiveRequest())
        yield


@pytest.fixture(name="released", autouse=True)
def released_fixture() -> Iterator[None]:
    """gRPC's core closes its sockets in threads of its own, shortly after it was told to."""
    before, names = descriptors(), threads()
    yield
    eventually(lambda: descriptors() <= before, f"{descriptors()} descriptors, {before} before")
    eventually(lambda: threads() <= names, f"threads left over: {threads() - names}")


@pytest.fixture(name="engine")
def engine_fixture() -> EchoEngine:
    return EchoEngine()


@pytest.fixture(name="server")
def server_fixture(engine: EchoEngine) -> Iterator[GrpcServer]:
    with serving(engine) as made:
        yield made


@pytest.fixture(name="stub")
def stub_fixture(server: GrpcServer) -> Iterator[Any]:
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
