"""The gRPC transport beside its verbs: health, reflection, threads, clients that go away, and the end."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2 as spb
from tritonclient.grpc import service_pb2_grpc

from inference_server.transports.grpc_calls import RETRY_BUSY_MS
from inference_server.transports.grpc_server import GrpcServer
from tests.eventually import eventually
from tests.inference_server.echo_engine import EchoEngine
from tests.inference_server.grpc_peer import (  # noqa: F401
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

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

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
        with pytest.raises(OSError, match="another server listens there"), serving(engine, addresses=[path]):
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
    """And stopped again: `released` looks whether anything of it is left."""
    server = GrpcServer(engine, engine, addresses=["127.0.0.1:0"], max_message_bytes=1, threads=1, token="", default_timeout_s=1)
    server.stop(1)
    server.stop(1)
