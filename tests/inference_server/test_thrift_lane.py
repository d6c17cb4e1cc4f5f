"""ModelInfer over Thrift straight to real executors: without a thread for a call, and otherwise as a worker would have answered."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from idl.messages import InferRequest, InferResponse
from idl.thrift_schema import schema
from inference_server.engine import Engine
from inference_server.executors.process import Zygote
from inference_server.front.configuration import Configuration
from inference_server.front.thrift_lane import LARGE_BYTES, ThriftLane
from inference_server.transports.thrift_server import ThriftServer
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.inference_server.test_batching import toml
from tests.inference_server.test_thrift_server import serving
from tests.inference_server.thrift_peer import Peer, frame
from tests.onnx_models import identity, save, slow, times

ROUNDS = 2000
"""Of `slow`: about half a second."""


class Watched:
    """The engine, and what the server's workers asked of it: what the loop answered is not among that."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.release = threading.Event()
        self.asked: list[InferRequest] = []

    def model_infer(self, request: InferRequest) -> InferResponse:
        self.asked.append(request)
        return self.engine.model_infer(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


@pytest.fixture
def watched(engine: Engine, repository: Path) -> Watched:
    times(repository / "double" / "1" / "model.onnx", 2)
    slow(repository / "slow" / "1" / "model.onnx", ROUNDS)
    engine.load_all(0)
    return Watched(engine)


@contextmanager
def serve(watched: Watched, zygote: Zygote, path: Path, **said: Any) -> Iterator[tuple[ThriftServer, str]]:
    configuration = Configuration(
        run_dir=str(zygote.run_dir), token=said.get("token", ""), max_message_bytes=LIMIT, default_timeout_s=20, log_level="info"
    )
    settings = {"threads": 1, "max_frame_bytes": LIMIT, "shortcut": partial(ThriftLane, configuration), **said}
    with serving(watched, path, **settings) as (server, _, where):  # type: ignore[arg-type]
        yield server, where


def floats(model: str, *values: float, shape: tuple[int, ...] | None = None, **fields: Any) -> Any:
    data = np.float32(values).tobytes()
    tensor = schema.Tensor(name="x", datatype="FP32", shape=list(shape or (1, len(values))), data=data)
    return schema.InferRequest(**{"model_name": model, "id": "7", "inputs": [tensor], **fields})


def given(result: Any) -> list[float]:
    assert result.error is None, result.error
    return np.frombuffer(result.success.outputs[0].data, np.float32).tolist()


SLOW = floats("slow", 1, shape=(1,))


def test_no_worker_is_asked_and_every_call_gets_its_own_answer(watched: Watched, zygote: Zygote, tmp_path: Path) -> None:
    with serve(watched, zygote, tmp_path) as (_, where), Peer(where) as peer:
        for turn in range(20):
            request = floats("double", turn, -turn, id=f"call-{turn}", timeout_ms=1000 + turn, outputs=["y"], parameters={})
            result = peer.call("ModelInfer", request)
            assert given(result) == [turn * 2, -turn * 2]
            said = result.success
            assert (said.model_name, said.model_version, said.id, said.outputs[0].name) == ("double", "1", f"call-{turn}", "y")
            assert said.outputs[0].shape == [1, 2] and int(said.parameters["queue_us"]) >= 0 and int(said.parameters["compute_us"]) >= 0
        peer.send(b"".join(frame("ModelInfer", floats("double", turn, 0), turn) for turn in range(100)))
        for turn in range(100):
            _, _, sequence, result = peer.reply()
            assert sequence == turn and given(result) == [turn * 2, 0]
    assert not watched.asked


def test_what_the_lane_declines_is_answered_by_a_worker(watched: Watched, zygote: Zygote, tmp_path: Path) -> None:
    with serve(watched, zygote, tmp_path) as (_, where), Peer(where) as peer:
        assert peer.error("ModelInfer", floats("nobody", 1)).code == "model_not_found"
        error = peer.error("ModelInfer", floats("double", 1, 2, model_version="9", id="r"))
        assert (error.code, error.request_id) == ("version_not_found", "r")
        assert peer.error("ModelInfer", floats("double", 1, 2, timeout_ms=-1)).code == "deadline_exceeded"
        rows = LARGE_BYTES // 8
        assert len(given(peer.call("ModelInfer", floats("double", *[1.0] * 2 * rows, shape=(rows, 2))))) == 2 * rows
        assert [request.model_name for request in watched.asked] == ["nobody", "double", "double"]
        watched.engine.drain(resume=False, timeout_s=0)
        assert peer.error("ModelInfer", floats("double", 1, 2)).code == "not_ready" and peer.alive()
        watched.engine.drain(resume=True, timeout_s=0)
        assert given(peer.call("ModelInfer", floats("double", 1, 2))) == [2, 4]


def test_what_is_wrong_with_a_request_is_said_once(watched: Watched, zygote: Zygote, tmp_path: Path) -> None:
    with serve(watched, zygote, tmp_path, token="secret") as (_, where), Peer(where) as peer:
        assert peer.error("ModelInfer", floats("double", 1, 2)).code == "unauthenticated"
        error = peer.error("ModelInfer", floats("double", 1, 2, 3, id="r", token="secret"))
        assert (error.code, error.request_id) == ("invalid_input", "r") and "x" in error.message
        assert given(peer.call("ModelInfer", floats("double", 1, 2, token="secret"))) == [2, 4]
        assert peer.error("ModelInfer", floats("double", 1, 2, token="secreT")).code == "unauthenticated"
    assert not watched.asked and watched.engine.model_statistics("double", "1")[0].fail.count == 1


def test_a_caller_that_hangs_up_is_not_executed(watched: Watched, zygote: Zygote, tmp_path: Path) -> None:
    with serve(watched, zygote, tmp_path) as (server, where), Peer(where) as first:
        first.send(frame("ModelInfer", SLOW))
        eventually(lambda: watched.engine.in_flight() == 1, "the first is inside")
        gone = [Peer(where) for _ in range(5)]
        for peer in gone:
            peer.send(frame("ModelInfer", SLOW))
        eventually(lambda: watched.engine.in_flight() == 6, "the others wait in the queue")
        for peer in gone:
            peer.__exit__()
        eventually(lambda: server.connections == 1, "they are noticed")
        assert first.reply()[3].error is None and first.call("ModelInfer", SLOW).error is None
        assert watched.engine.model_statistics("slow", "1")[0].success.count == 2 and not watched.asked


def test_calls_on_sixteen_connections_are_one_batch(watched: Watched, zygote: Zygote, repository: Path, tmp_path: Path) -> None:
    toml(repository, "m", "max_batch_size = 16\nmax_queue_delay_us = 5000000\n")
    times(repository / "m" / "1" / "model.onnx", 3)
    watched.engine.repository_model_load("m", {})
    with serve(watched, zygote, tmp_path) as (_, where), ExitStack() as peers:
        before = threading.active_count()
        all_of_them = [peers.enter_context(Peer(where)) for _ in range(16)]
        for number, peer in enumerate(all_of_them):
            peer.send(frame("ModelInfer", floats("m", number, 1)))
        assert [given(peer.reply()[3]) for peer in all_of_them] == [[number * 3, 3] for number in range(16)]
        assert threading.active_count() == before
    (statistics,) = watched.engine.model_statistics("m", "1")
    assert (statistics.inference_count, statistics.execution_count) == (16, 1)


def zeros(path: Path) -> Path:
    """x, how many -> so many zeros: a small question with a large answer."""
    x, y = helper.make_tensor_value_info("x", TensorProto.INT64, (1,)), helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n",))
    return save(helper.make_graph([helper.make_node("ConstantOfShape", ["x"], ["y"])], "zeros", [x], [y]), path)


def test_a_slow_reader_keeps_nobody_waiting(watched: Watched, zygote: Zygote, repository: Path, tmp_path: Path) -> None:
    zeros(repository / "zeros" / "1" / "model.onnx")
    watched.engine.repository_model_load("zeros", {})
    count = LIMIT // 4 - 1024
    tensor = schema.Tensor(name="x", datatype="INT64", shape=[1], data=np.int64([count]).tobytes())
    request = schema.InferRequest(model_name="zeros", inputs=[tensor])
    with serve(watched, zygote, tmp_path) as (server, where), Peer(where) as reader, Peer(where) as quick:
        for _ in range(2):
            reader.send(frame("ModelInfer", request))
        with Peer(where) as leaver:
            leaver.send(frame("ModelInfer", request))
            assert leaver.sock.recv(1), "it is being answered"
        eventually(lambda: server.connections == 2, "the one that left is noticed")
        assert all(given(quick.call("ModelInfer", floats("double", turn, 1))) == [turn * 2, 2] for turn in range(20))
        assert [len(reader.reply()[3].success.outputs[0].data) for _ in range(2)] == [4 * count] * 2
        assert quick.error("ModelInfer", schema.InferRequest(model_name="zeros", inputs=[_with(tensor, count + 2048)])).code == "too_large"
    assert not watched.asked


def _with(tensor: Any, count: int) -> Any:
    return schema.Tensor(name=tensor.name, datatype=tensor.datatype, shape=[1], data=np.int64([count]).tobytes())


def test_deadlines_and_executors_that_die(watched: Watched, zygote: Zygote, repository: Path, tmp_path: Path) -> None:
    with serve(watched, zygote, tmp_path) as (_, where), Peer(where) as first, Peer(where) as second:
        first.send(frame("ModelInfer", SLOW))
        eventually(lambda: watched.engine.in_flight() == 1, "the first is inside")
        late = floats("slow", 1, shape=(1,), id="late", timeout_ms=20)
        error = second.error("ModelInfer", late)
        assert (error.code, error.request_id) == ("deadline_exceeded", "late")
        assert first.reply()[3].error is None
        first.send(frame("ModelInfer", SLOW))
        eventually(lambda: watched.engine.in_flight() == 1, "it is inside again")
        os.kill(watched.engine._served["slow"].versions[1].executors[0].pid, signal.SIGKILL)
        error = first.reply()[3].error
        assert (error.code, error.request_id) == ("model_failed", "7")
        assert given(second.call("ModelInfer", floats("double", 1, 2))) == [2, 4]


# the end ------------------------------------------------------------------------------------------------------------------------------


def test_stop_waits_for_what_executors_have(watched: Watched, zygote: Zygote, tmp_path: Path) -> None:
    with serve(watched, zygote, tmp_path) as (server, where), Peer(where) as busy, Peer(where) as idle:
        assert idle.alive()
        busy.send(frame("ModelInfer", SLOW))
        eventually(lambda: watched.engine.in_flight() == 1, "it is inside")
        stop = threading.Thread(target=server.stop, args=(20,), name="stop")
        stop.start()
        assert idle.closed() and busy.reply()[3].error is None and busy.closed()
        stop.join(10)
        assert not stop.is_alive()


def test_stop_cuts_off_and_what_waits_is_not_executed(watched: Watched, zygote: Zygote, tmp_path: Path) -> None:
    with serve(watched, zygote, tmp_path) as (server, where), Peer(where) as inside, Peer(where) as queued:
        inside.send(frame("ModelInfer", SLOW))
        eventually(lambda: watched.engine.in_flight() == 1, "it is inside")
        queued.send(frame("ModelInfer", SLOW))
        eventually(lambda: watched.engine.in_flight() == 2, "it waits")
        server.stop(0)
        assert inside.closed() and queued.closed() and server.connections == 0
    eventually(lambda: watched.engine.in_flight() == 0, "the executor has finished with them")
    assert watched.engine.model_statistics("slow", "1")[0].success.count <= 1


def test_models_that_come_and_go_are_followed(watched: Watched, zygote: Zygote, repository: Path, tmp_path: Path) -> None:
    with serve(watched, zygote, tmp_path) as (_, where), Peer(where) as peer:
        assert given(peer.call("ModelInfer", floats("double", 1, 2))) == [2, 4]
        times(repository / "double" / "2" / "model.onnx", 5)
        watched.engine.repository_model_load("double", {})
        result = peer.call("ModelInfer", floats("double", 1, 2))
        assert given(result) == [5, 10] and result.success.model_version == "2"
        identity(repository / "same" / "1" / "model.onnx")
        watched.engine.repository_model_load("same", {})
        assert given(peer.call("ModelInfer", floats("same", 1, 2, 3, shape=(3,)))) == [1, 2, 3]
        watched.engine.repository_model_unload("same", {})
        assert peer.error("ModelInfer", floats("same", 1, shape=(1,))).code == "not_ready", "it is in the repository, and not loaded"
