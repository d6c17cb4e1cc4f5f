"""The client on its server's machine: inference over the local lane, whatever happens to the server."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.messages import InferRequest, Tensor
from inference_client import Client
from inference_client.lane_channel import LOOK_EVERY_S
from tests.eventually import eventually
from tests.onnx_models import slow, times
from tests.processes import Process, start_server

X = np.float32([[1, 2]])
SLOW = InferRequest("slow", (Tensor("x", "FP32", (1,), bytes(4)),))


def start(folder: Path) -> Process:
    made = start_server(folder / "models", folder, "--thrift-socket", str(folder / "t"), "--grpc-socket", str(folder / "g"))
    made.addresses |= {"thrift+unix": f"thrift+unix://{folder / 't'}", "grpc+unix": f"grpc+unix://{folder / 'g'}"}
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("l")
    times(folder / "models" / "double" / "1" / "model.onnx", 2)
    slow(folder / "models" / "slow" / "1" / "model.onnx", 1500)
    made = start(folder)
    yield made
    assert made.stop() == 0, made.log.read_text()


@contextmanager
def stopped(server: Process) -> Iterator[None]:
    """While the server itself, and so every RPC, stands still; its executors go on."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_inference_does_not_go_through_the_server(server: Process) -> None:
    with Client(server["thrift+unix"]) as client, Client(server["thrift+unix"], local_lane=False) as remote:
        np.testing.assert_array_equal(remote.infer("double", {"x": X}).outputs["y"], X * 2)
        with stopped(server):
            result = client.infer("double", {"x": X}, request_id="r-1", outputs=["y"], version="1")
            assert (result.model_name, result.model_version, result.id) == ("double", "1", "r-1")
            np.testing.assert_array_equal(result.outputs["y"], X * 2)
            with pytest.raises(ServingError) as caught:
                remote.infer("double", {"x": X}, timeout_s=0.2)
            assert caught.value.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("protocol", ["thrift+unix", "grpc+unix"])
def test_what_the_lane_declines_is_asked_of_the_server(server: Process, protocol: str) -> None:
    with Client(server[protocol]) as client:
        np.testing.assert_array_equal(client.infer("double", {"x": X}).outputs["y"], X * 2)
        for model, version, code in (("nobody", "", Code.MODEL_NOT_FOUND), ("double", "9", Code.VERSION_NOT_FOUND)):
            with pytest.raises(ServingError) as caught:
                client.infer(model, {"x": X}, version=version, request_id="r-2")
            assert (caught.value.code, caught.value.request_id) == (code, "r-2")
        assert client.server_live()


def test_large_tensors_grow_and_shrink(server: Process) -> None:
    with Client(server["thrift+unix"]) as client:
        for rows in (1, 100_000, 10, 1_000_000, 1):
            given = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
            np.testing.assert_array_equal(client.infer("double", {"x": given}).outputs["y"], given * 2)


def test_threads_share_a_client(server: Process) -> None:
    wrong: list[int] = []
    with Client(server["thrift+unix"]) as client:

        def call(number: int) -> None:
            for turn in range(100):
                given = np.float32([[number, turn]])
                if not (client.infer("double", {"x": given}).outputs["y"] == given * 2).all():
                    wrong.append(number)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_child_begins_anew(server: Process) -> None:
    with Client(server["thrift+unix"]) as client:
        client.infer("double", {"x": X})
        child = os.fork()
        if child == 0:
            status = 1
            try:
                same = [(client.infer("double", {"x": X * n}).outputs["y"] == X * 2 * n).all() for n in range(20)]
                client.close()
                status = 0 if all(same) else 2
            finally:
                os._exit(status)
        for number in range(20):
            np.testing.assert_array_equal(client.infer("double", {"x": X * number}).outputs["y"], X * 2 * number)
        assert os.waitpid(child, 0)[1] == 0


def test_a_server_that_is_killed_and_one_that_takes_its_place(tmp_path: Path) -> None:
    times(tmp_path / "models" / "double" / "1" / "model.onnx", 2)
    now = [100.0]
    with Client(f"thrift+unix://{tmp_path / 't'}", clock=lambda: now[0], timeout_s=20) as client:
        with pytest.raises(ServingError) as caught:
            client.infer_raw(InferRequest("double", (), deadline=now[0] + 20))
        assert caught.value.code is Code.UNAVAILABLE, "before there is any"
    with Client(f"thrift+unix://{tmp_path / 't'}") as client:
        for _ in range(2):
            server = start(tmp_path)
            eventually(lambda: answers(client), "the lane is found again", LOOK_EVERY_S + 30)
            with stopped(server):
                assert answers(client), "over the lane"
            server.process.kill()
            server.stop()
            assert not answers(client)


def answers(client: Client) -> bool:
    try:
        return bool((client.infer("double", {"x": X}, timeout_s=5).outputs["y"] == X * 2).all())
    except ServingError as error:
        assert error.code is Code.UNAVAILABLE, error
        return False


def test_time_that_is_up_already(server: Process) -> None:
    with Client(server["thrift+unix"]) as client, pytest.raises(ServingError) as caught:
        client.infer_raw(InferRequest("double", (Tensor("x", "FP32", (1, 2), bytes(8)),), deadline=0.5))
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def address(server: Process, way: str) -> str:
    return {"lane": server["thrift+unix"], "thrift": f"thrift://{server['thrift']}", "grpc": server["grpc"]}[way]


@pytest.fixture
def callers() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Connections of callers: our end, theirs."""
    pairs = [socket.socketpair() for _ in range(3)]
    yield pairs
    for pair in pairs:
        for sock in pair:
            sock.close()


WAYS = ["lane", "thrift", "grpc"]


class TestACallerThatGoesAway:
    """`watch`, over the lane and over both protocols."""

    @pytest.mark.parametrize("way", WAYS)
    def test_ends_the_call(self, server: Process, way: str, callers: list[tuple[socket.socket, socket.socket]]) -> None:
        codes: list[Code] = []
        with Client(f"thrift://{server['thrift']}") as other, Client(address(server, way)) as client:
            before = other.model_statistics("slow")[0].success.count
            first = threading.Thread(target=other.infer_raw, args=(SLOW,))
            first.start()
            waiting = [threading.Thread(target=self._call, args=(client, ours, codes)) for ours, _ in callers]
            for thread in waiting:
                thread.start()
            for _, theirs in callers:
                theirs.close()
            for thread in waiting:
                thread.join(20)
            assert codes == [Code.CANCELLED] * 3
            first.join()
            other.infer_raw(SLOW)
            assert other.model_statistics("slow")[0].success.count <= before + 3, "one of those may have been first"

    @staticmethod
    def _call(client: Client, connection: socket.socket, codes: list[Code]) -> None:
        try:
            client.infer_raw(SLOW, watch=connection.fileno())
        except ServingError as error:
            codes.append(error.code)

    @pytest.mark.parametrize("way", WAYS)
    def test_one_that_stays_gets_its_answer(self, server: Process, way: str, callers: list[tuple[socket.socket, socket.socket]]) -> None:
        ours, theirs = callers[0]
        with Client(address(server, way)) as client:
            for _ in range(3):
                assert client.infer_raw(InferRequest("double", (Tensor("x", "FP32", (1, 2), X.tobytes()),)), watch=ours.fileno()).outputs
            theirs.sendall(b"said something")
            assert client.infer_raw(SLOW, watch=ours.fileno()).outputs

    @pytest.mark.parametrize("way", WAYS)
    def test_time_is_up_before_anybody_goes(self, server: Process, way: str, callers: list[tuple[socket.socket, socket.socket]]) -> None:
        with Client(address(server, way)) as client, pytest.raises(ServingError) as caught:
            client.infer_raw(SLOW, timeout_s=0.05, watch=callers[0][0].fileno())
        assert caught.value.code is Code.DEADLINE_EXCEEDED
