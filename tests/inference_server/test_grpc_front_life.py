"""The processes of gRPC's nginx front: started, killed one by one, hanging, stopped; and what serves meanwhile."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from inference_server.front import direct, keeper, nginx, processes, server
from inference_server.front.choice import GrpcFront
from inference_server.front.server import CannotStart, FrontedServer
from inference_server.transports.grpc_server import GrpcServer
from tests.engines import engine_over
from tests.eventually import eventually
from tests.inference_server.grpc_front_peer import ask, calling, floats, released_fixture, serving  # noqa: F401
from tests.inference_server.grpc_peer import outboard, refused
from tests.needs import need
from tests.onnx_models import looping, times

BUSY, LONG = 20_000, 80_000


@pytest.fixture(name="nothing_left_over", autouse=True)
def checked_at_the_end_of_the_module() -> None:
    """The engine keeps its lanes from test to test."""


@pytest.fixture(name="engine", scope="module")
def engine_fixture(zygote: Zygote, watcher: Watcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    need("nginx")
    root = tmp_path_factory.mktemp("models")
    times(root / "double" / "1" / "model.onnx", 2)
    looping(root / "busy" / "1" / "model.onnx")
    with engine_over(zygote, watcher, root) as made:
        made.load_all()
        yield made


def fronted(front: GrpcFront) -> FrontedServer:
    assert isinstance(front._serving, FrontedServer)
    return front._serving


def pid_of(front: GrpcFront, name: str) -> int:
    keeping = fronted(front)._keeper
    eventually(lambda: keeping is not None and keeping._parts[name].running is not None, f"{name} runs")
    running = keeping._parts[name].running
    assert running is not None
    return running.process.pid


def below(pid: int) -> list[int]:
    """A process's children."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def double(stub: Any) -> list[float]:
    return floats(stub.ModelInfer(ask("double", [[1.0, 2.0]]), timeout=20, wait_for_ready=True))


def answers(stub: Any) -> bool:
    """A client's first call after its connection broke may still go there."""
    try:
        return double(stub) == [2, 4]
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False


# what ends is started again -----------------------------------------------------------------------------------------------------------


def test_a_front_process_that_is_killed_is_started_again_and_grpcio_answers_meanwhile(engine: Engine, zygote: Zygote) -> None:
    with serving(engine, zygote, "nginx") as front, calling(front) as (stub, _):
        assert double(stub) == [2, 4]
        first = pid_of(front, "front-1")
        hold = threading.Event()
        keeping = fronted(front)._keeper
        starting = keeping._parts["front-1"].start

        def held() -> Any:
            assert hold.wait(30)
            return starting()

        keeping._parts["front-1"].start = held
        os.kill(first, signal.SIGKILL)
        eventually(lambda: not runs(first), "it is gone")
        for _ in range(20):
            assert double(stub) == [2, 4]
        hold.set()
        assert pid_of(front, "front-1") != first
        eventually(lambda: keeping.ready("front-1"), "the new one listens")
        assert double(stub) == [2, 4]


def test_two_front_processes_share_the_calls_and_stand_in_for_each_other(engine: Engine, zygote: Zygote) -> None:
    with serving(engine, zygote, "nginx", processes=2) as front, calling(front) as (stub, _):
        for round_ in range(3):
            for _ in range(10):
                assert double(stub) == [2, 4]
            killed = pid_of(front, f"front-{1 + round_ % 2}")
            os.kill(killed, signal.SIGKILL)
            eventually(lambda killed=killed: not runs(killed), "it is gone")


def test_a_call_inside_a_front_process_that_is_killed_fails_at_once_and_is_not_run_twice(engine: Engine, zygote: Zygote) -> None:
    with serving(engine, zygote, "nginx") as front, calling(front) as (stub, _):
        stub.ModelInfer(ask("busy", [BUSY]))
        before = engine.model_statistics("busy", "")[0].execution_count
        running = stub.ModelInfer.future(ask("busy", [LONG]), timeout=60)
        eventually(lambda: engine.in_flight() == 1, "it runs")
        os.kill(pid_of(front, "front-1"), signal.SIGKILL)
        error = running.exception(20)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert outboard(error) == {"outboard-code": "unavailable", "retry-after-ms": "1000"}
        eventually(lambda: engine.in_flight() == 0, "nothing is inside")
        assert engine.model_statistics("busy", "")[0].execution_count == before + 1


def test_a_front_process_that_hangs_is_ended_and_started_again(engine: Engine, zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SILENT_S", 2.0)
    monkeypatch.setattr(keeper, "ASK_EVERY_S", 0.1)
    with serving(engine, zygote, "nginx") as front, calling(front) as (stub, _):
        first = pid_of(front, "front-1")
        os.kill(first, signal.SIGSTOP)
        error = refused(lambda: double(stub))
        assert error.code() is grpc.StatusCode.UNAVAILABLE, "it waited inside, and may have run"
        eventually(lambda: not runs(first), "it is ended")
        assert double(stub) == [2, 4]


def test_nginx_is_started_again_with_the_same_port_and_leaves_no_worker(engine: Engine, zygote: Zygote) -> None:
    with serving(engine, zygote, "nginx") as front, calling(front) as (stub, _):
        assert double(stub) == [2, 4]
        master = pid_of(front, "nginx")
        workers = below(master)
        assert workers
        port = front.ports[0]
        os.kill(master, signal.SIGKILL)
        eventually(lambda: not any(map(runs, (master, *workers))), "the workers end with their master")
        eventually(lambda: answers(stub), "it serves again")
        assert front.ports[0] == port
        assert pid_of(front, "nginx") != master
        worker = below(pid_of(front, "nginx"))[0]
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: answers(stub), "its master starts another")


# starting -----------------------------------------------------------------------------------------------------------------------------


def test_a_taken_address_is_an_error_that_names_it(engine: Engine, zygote: Zygote, tmp_path: Path) -> None:
    with serving(engine, zygote, "nginx", addresses=("127.0.0.1:0", f"unix:{tmp_path}/grpc.sock")) as first:
        taken = f"127.0.0.1:{first.ports[0]}"
        for address in (taken, f"unix:{tmp_path}/grpc.sock"):
            with pytest.raises(OSError, match=address), serving(engine, zygote, "nginx", addresses=(address,)):
                pass
        assert (tmp_path / "grpc.sock").stat().st_mode & 0o777 == 0o660
        with grpc.insecure_channel(f"unix:{tmp_path}/grpc.sock") as channel:
            method = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
            )
            assert floats(method(ask("double", [[1.0, 2.0]]).SerializeToString(), timeout=20)) == [2, 4]
    for address in ("nowhere", "127.0.0.1:http"):
        with pytest.raises(OSError, match=address), serving(engine, zygote, "nginx", addresses=(address,)):
            pass


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_where_nginx_does_not_start_auto_goes_without_and_nginx_says_why(
    engine: Engine, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program(tmp_path / "nginx", "echo 'nginx: [emerg] out of luck' >&2; exit 1")
    monkeypatch.setattr(nginx, "find", lambda: broken)
    with pytest.raises(CannotStart, match="out of luck"), serving(engine, zygote, "nginx"):
        pass
    same = ("127.0.0.1:0", f"unix:{tmp_path}/grpc.sock")
    with serving(engine, zygote, "auto", addresses=same) as front, calling(front) as (stub, _):
        assert isinstance(front._serving, GrpcServer) and double(stub) == [2, 4]
        assert (tmp_path / "grpc.sock").is_socket(), "what nginx did not get is taken again"
    monkeypatch.setattr(nginx, "find", lambda: None)
    with serving(engine, zygote, "auto") as front, calling(front) as (stub, _):
        assert isinstance(front._serving, GrpcServer) and double(stub) == [2, 4]
    monkeypatch.setattr(server, "START_TIMEOUT_S", 0.2)
    mute = program(tmp_path / "mute", "exec sleep 60")
    monkeypatch.setattr(nginx, "find", lambda: mute)
    with serving(engine, zygote, "auto") as front, calling(front) as (stub, _):
        assert isinstance(front._serving, GrpcServer) and double(stub) == [2, 4]


@pytest.mark.parametrize("name", ["a $folder", "f" * 100])
def test_a_folder_that_does_not_suit_is_no_reason_to_fail(engine: Engine, zygote: Zygote, tmp_path: Path, name: str) -> None:
    with serving(engine, zygote, "auto", folder=tmp_path / name) as front, calling(front) as (stub, _):
        assert isinstance(front._serving, GrpcServer) and double(stub) == [2, 4]
    with pytest.raises(CannotStart), serving(engine, zygote, "nginx", folder=tmp_path / name):
        pass


def test_addresses_of_the_newer_internet_protocol(engine: Engine, zygote: Zygote) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving(engine, zygote, "nginx", addresses=("[::1]:0",)) as front, grpc.insecure_channel(f"[::1]:{front.ports[0]}") as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString)
        assert floats(method(ask("double", [[1.0, 2.0]]).SerializeToString(), timeout=20)) == [2, 4]


def test_what_an_earlier_server_left_in_the_folder_is_ended(engine: Engine, zygote: Zygote, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    left = subprocess.Popen(["sh", "-c", f"exec 9>{lock}; flock 9; echo held; exec sleep 600"], stdout=subprocess.PIPE)
    assert left.stdout is not None and left.stdout.readline() == b"held\n"
    other = subprocess.Popen(["sleep", "600"])
    try:
        os.close(keeper.only_ours(lock))
        assert left.wait(10) == -signal.SIGKILL and other.poll() is None
    finally:
        other.kill()
        other.wait()
        left.stdout.close()


def test_a_release_of_grpcio_without_the_fast_way_serves_in_the_ordinary_one(
    engine: Engine, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(engine, zygote, "grpcio") as front:
        assert isinstance(front._serving, GrpcServer) and front._serving._shortcut is not None, "the installed release has it"
    monkeypatch.setattr(direct, "cygrpc", None)
    with serving(engine, zygote, "grpcio") as front, calling(front) as (stub, _):
        assert isinstance(front._serving, GrpcServer) and front._serving._shortcut is None
        assert double(stub) == [2, 4]


# ending -------------------------------------------------------------------------------------------------------------------------------


def test_stop_lets_calls_in_flight_finish_and_takes_no_others(engine: Engine, zygote: Zygote) -> None:
    with serving(engine, zygote, "nginx") as front, calling(front) as (stub, _):
        running = stub.ModelInfer.future(ask("busy", [LONG]), timeout=60)
        eventually(lambda: engine.in_flight() == 1, "it runs")
        address = ("127.0.0.1", front.ports[0])
        stopping = threading.Thread(target=front.stop, args=(20,), name="stop")
        stopping.start()
        eventually(lambda: refuses(address), "nothing listens any more")
        assert running.result(20).model_name == "busy"
        stopping.join(20)
        assert not stopping.is_alive()
        front.stop(0)


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0


def test_stop_cuts_off_what_outlives_its_grace_and_removes_its_files(engine: Engine, zygote: Zygote) -> None:
    with serving(engine, zygote, "nginx") as front, calling(front) as (stub, _):
        folder = fronted(front)._folder
        assert (folder / "nginx.conf").exists()
        running = stub.ModelInfer.future(ask("busy", [20 * BUSY]), timeout=60)
        eventually(lambda: engine.in_flight() == 1, "it runs")
        begun = time.monotonic()
        front.stop(0.1)
        assert time.monotonic() - begun < 8
        assert running.exception(10).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert not folder.exists()


def test_an_open_stream_does_not_hold_the_end_up(engine: Engine, zygote: Zygote) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with serving(engine, zygote, "nginx") as front, calling(front) as (_, channel):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="double"))
        next(watch)
        begun = time.monotonic()
        front.stop(20)
        assert time.monotonic() - begun < 8


def test_a_front_that_never_started_can_be_stopped(engine: Engine, zygote: Zygote) -> None:
    """`released` looks whether anything of it is left."""
    with serving(engine, zygote, "nginx") as like:
        never = GrpcFront("nginx", like._plain, like._configuration, addresses=(), processes=1, drain_timeout_s=5)
        never.stop(1)


def test_refused_calls_say_so_in_grpcs_words(engine: Engine, zygote: Zygote) -> None:
    """What nginx itself refuses: here a path that is none."""
    with serving(engine, zygote, "nginx") as front, calling(front) as (_, channel):
        error = refused(lambda: channel.unary_unary("/nobody/Knows")(b"", timeout=10))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED and outboard(error) == {"outboard-code": "unsupported"}


@pytest.mark.parametrize(("policy", "size"), [("0\n", 30 * 2**20), ("2\n", 2**20)])
def test_nginx_sets_little_aside_where_the_kernel_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, size: int
) -> None:
    (tmp_path / "policy").write_text(policy)
    monkeypatch.setattr(nginx, "_OVERCOMMIT", tmp_path / "policy")
    values = nginx.Values(tmp_path, (), (), tmp_path / "a", tmp_path / "g", 1, 64 * 2**20, 30, 30)
    assert f"client_body_buffer_size {size};" in nginx.render(values)
