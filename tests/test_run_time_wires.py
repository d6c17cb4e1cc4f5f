"""Shared memory, trace and log settings with our client, over gRPC and Thrift."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idl.codes import Code
from idl.messages import SharedRegion
from idl.trace_control import Published
from inference_client import Client
from inference_server.run_time import RunTime
from inference_server.shared_memory import SharedMemory
from inference_server.trace_settings import TraceSettings
from inference_server.transports.grpc_server import GrpcServer
from inference_server.transports.thrift_server import ThriftServer
from tests.inference_server.echo_engine import EchoEngine
from tests.inference_server.test_run_time import key, refusal

__all__ = ["key"]


@pytest.fixture(params=["grpc", "thrift"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """Ours, against a server with shared memory and traces."""
    published = Published(tmp_path)
    run_time, echo = RunTime(SharedMemory(enabled=True), TraceSettings(published=published)), EchoEngine()
    common: dict[str, Any] = {"threads": 2, "token": "", "default_timeout_s": 20.0, "run_time": run_time}
    server: GrpcServer | ThriftServer
    if request.param == "grpc":
        server = GrpcServer(echo, echo, addresses=["127.0.0.1:0"], max_message_bytes=1 << 20, **common)
        server.start()
        address = f"grpc://127.0.0.1:{server.ports[0]}"
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        server = ThriftServer(echo, listeners=[listener], max_frame_bytes=1 << 20, **common)
        server.start()
        address = f"thrift://127.0.0.1:{listener.getsockname()[1]}"
    with Client(address) as made:
        yield made
    server.stop(5)
    published.close()


def test_our_client_registers_regions(client: Client, key: str) -> None:
    said = SharedRegion("r", key, 16, 32)
    client.register_shared_memory(said)
    assert client.shared_memory_status() == client.shared_memory_status("r") == (said,)
    assert refusal(client.register_shared_memory, said).code is Code.ALREADY_EXISTS
    assert refusal(client.shared_memory_status, "nobody").code is Code.NOT_FOUND
    client.unregister_shared_memory("r")
    assert client.shared_memory_status() == ()
    assert refusal(client.register_shared_memory, SharedRegion("", key, 0, 8)).code is Code.INVALID_INPUT


def test_our_client_changes_trace_and_log_settings(client: Client) -> None:
    assert client.trace_settings()["trace_rate"] == ["1000"]
    assert client.trace_settings("echo", {"trace_rate": ["7"]})["trace_rate"] == ["7"]
    assert client.trace_settings()["trace_rate"] == ["1000"] and client.trace_settings("echo")["trace_rate"] == ["7"]
    assert refusal(client.trace_settings, "nobody").code is Code.MODEL_NOT_FOUND
    logger = logging.getLogger("outboard")
    before = logger.level
    try:
        assert client.log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
        assert logging.getLogger("outboard.server").isEnabledFor(logging.DEBUG)
        assert client.log_settings({"log_verbose_level": 0, "log_info": False})["log_info"] is False
        assert not logging.getLogger("outboard.server").isEnabledFor(logging.INFO)
        assert refusal(client.log_settings, {"log_info": 3}).code is Code.INVALID_INPUT
        assert client.log_settings()["log_info"] is False, "all of it or nothing"
    finally:
        logger.setLevel(before)


def test_statistics_travel_whole(client: Client) -> None:
    (told,) = client.model_statistics("echo")
    assert told.success.count == 7 and told.batches == () and told.memory == ()
