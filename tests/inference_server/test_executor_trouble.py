"""What a careless or hostile caller on the lane, or an odd model, can do to an executor: nothing to the others."""

import contextlib
import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from idl import lane
from idl.codes import Code, ServingError
from idl.lane_routes import ENDED, FOLDER, GENERATION
from inference_server import unix_sockets
from inference_server.engine import Engine
from inference_server.executors.batcher import Batcher, QueuePolicy
from inference_server.executors.process import ProcessExecutor, Watcher, Zygote
from inference_server.executors.requests import Connection, Waiting
from inference_server.routing import RoutePublisher
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.inference_server import test_batcher
from tests.inference_server.conftest import request
from tests.inference_server.test_executor import start
from tests.onnx_models import save, slow, times
from tests.processes import descriptors


@contextlib.contextmanager
def end_to(executor: ProcessExecutor) -> Iterator[lane.LaneEnd]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(executor.path))
        sock.settimeout(20)
        end = lane.LaneEnd(sock, LIMIT)
        frame = end.receive()
        assert frame is not None and frame.kind == lane.WELCOME
        os.close(frame.descriptor)
        yield end
        end.close()


@pytest.fixture
def quick(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> Iterator[ProcessExecutor]:
    executor = start(zygote, watcher, times(tmp_path / "m.onnx", 2))
    yield executor
    executor.close()


@pytest.fixture
def rounds() -> int:
    return 1800


@pytest.fixture
def busy(rounds: int, zygote: Zygote, watcher: Watcher, tmp_path: Path) -> Iterator[ProcessExecutor]:
    """One run of it takes so long that the doorkeeper stands by: about half a second, and more where others are at work."""
    executor = start(zygote, watcher, slow(tmp_path / "m.onnx", rounds))
    executor.call(request("m", [1]))
    yield executor
    executor.close()


ODD = [b"[]", b"5", b"[" * 60_000]


@pytest.mark.parametrize("parameters", ODD, ids=["list", "number", "deep"])
def test_an_odd_head_harms_nobody(quick: ProcessExecutor, parameters: bytes) -> None:
    head = lane.pack_head([("x", "FP32", (1, 2), 8)], (), {})[0] + parameters
    with end_to(quick) as end:
        end.send(lane.INFER, 1, (0, 0, 0, 0), head, [(0, bytes(8))], 8)
        frame = end.receive()
        assert frame is not None and frame.kind == lane.ERROR and b"invalid_input" in frame.head
    assert quick.call(request("m", [[1, 2]])).outputs


@pytest.mark.parametrize("parameters", ODD, ids=["list", "number", "deep"])
def test_an_odd_head_while_the_model_runs_harms_nobody(busy: ProcessExecutor, parameters: bytes) -> None:
    head = lane.pack_head([("x", "FP32", (1,), 4)], (), {})[0] + parameters
    inside = threading.Thread(target=busy.call, args=(request("m", [1]),))
    inside.start()
    with end_to(busy) as end:
        eventually(lambda: busy.board.in_flight == 1, "one is inside")
        end.send(lane.INFER, 1, (0, 0, 0, 0), head, [(0, bytes(4))], 4)
        frame = end.receive()
        assert frame is not None and frame.kind == lane.ERROR
    inside.join(20)
    assert not inside.is_alive() and busy.call(request("m", [1])).outputs


@pytest.mark.parametrize("sequence", [0, 1])
def test_who_hangs_up_leaves_the_queue_whatever_its_number(busy: ProcessExecutor, sequence: int) -> None:
    head, parts, size = lane.pack_request(request("m", [1]).inputs, (), {})
    with end_to(busy) as end:
        if sequence:  # the number of the request that was answered before
            end.send(lane.INFER, 1, (0, 0, 0, 0), head, parts, size)
            frame = end.receive()
            assert frame is not None and frame.kind == lane.RESULT
        inside = threading.Thread(target=busy.call, args=(request("m", [1]),))
        inside.start()
        eventually(lambda: busy.board.in_flight == 1, "one is inside")
        end.send(lane.INFER, sequence, (0, 0, 0, 0), head, parts, size)
        eventually(lambda: busy.board.in_flight == 2, "one waits")
    eventually(lambda: busy.board.in_flight <= 1, "it left the queue")
    inside.join(20)
    eventually(lambda: busy.board.in_flight == 0, "nobody is left")
    assert busy.call(request("m", [1])).outputs


@pytest.mark.parametrize("rounds", [6000])
def test_bodies_of_those_who_gave_up_are_let_go_of(busy: ProcessExecutor) -> None:
    before = descriptors(busy.pid)
    large = request("m", [1])
    head, parts, _ = lane.pack_request(large.inputs, (), {})
    inside = threading.Thread(target=busy.call, args=(request("m", [1]),))
    inside.start()
    eventually(lambda: busy.board.in_flight == 1, "one is inside")
    body = bytes(lane.INLINE_BYTES + 1)
    for _ in range(20):
        with end_to(busy) as end:
            end.send(lane.INFER, 1, (0, 0, 0, 0), head, [*parts, (64, body)], 64 + len(body))
            eventually(lambda: busy.board.in_flight == 2, "one waits")
        eventually(lambda: busy.board.in_flight == 1, "one is inside")
    assert inside.is_alive(), "the model still runs"
    eventually(lambda: descriptors(busy.pid) <= before + 2, "their memory is given back")
    inside.join(20)


def test_the_queue_forgets_those_who_gave_up_behind_one_who_waits() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(lane.LaneEnd(ours, LIMIT), 0)
    batcher = Batcher(QueuePolicy(max_batch_size=1, max_queue_size=10_000))

    def waiting(sequence: int) -> Waiting:
        made = test_batcher.waiting(connection, sequence, key=None)
        assert batcher.add(made)
        return made

    first = waiting(1)
    for sequence in range(2, 2002):
        batcher.drop(waiting(sequence))
    gc.collect()
    kept = sum(1 for each in gc.get_objects() if isinstance(each, Waiting))
    assert batcher.size == 1 and kept < 200, kept
    assert batcher.take(0, []) == [first]
    connection.end.close()
    theirs.close()


def test_an_answer_that_no_frame_describes_is_too_large(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))
    names = [f"an_output_with_a_long_name_{number}" for number in range(3000)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in names]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], [name]) for name in names], "many", [x], outputs)
    executor = start(zygote, watcher, save(graph, tmp_path / "m.onnx"))
    try:
        for _ in range(3):
            with pytest.raises(ServingError) as refused:
                executor.call(request("m", [1]))
            assert refused.value.code == Code.TOO_LARGE
        assert executor.board.in_flight == 0 and not executor.board.kind("success")[0]
        os.kill(executor.pid, 0)
    finally:
        executor.close()


def test_routes_that_have_ended_stay_so(tmp_path: Path) -> None:
    publisher = RoutePublisher(tmp_path, LIMIT)
    cells = np.memmap(tmp_path / FOLDER / GENERATION, np.int64, "r")
    publisher.publish("m", {1: [tmp_path / "x1.lane"]}, {}, [(1, 100)])
    publisher.close()
    publisher.withdraw("m")
    publisher.publish("m", {1: [tmp_path / "x1.lane"]}, {}, [(1, 100)])
    assert int(cells[0]) == ENDED and not (tmp_path / FOLDER).exists()


def test_a_refused_change_of_instances_changes_nothing(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "model.toml").write_text("cpus = 0.5\n")
    engine.repository_model_load("m", {})
    with pytest.raises(ServingError) as refused:
        engine.set_instances("m", "", 1000)
    assert refused.value.code == Code.INSUFFICIENT_CAPACITY
    times(repository / "m" / "2" / "model.onnx", 3)
    engine.repository_model_load("m", {})
    assert engine.model_ready("m", "2")


def test_a_socket_belongs_to_who_listens_on_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "s.sock"
    first = unix_sockets.listen(path, 1)
    ours = unix_sockets.identity(path)
    with pytest.raises(OSError, match="another server listens there"):
        unix_sockets.listen(path, 1)
    assert unix_sockets.identity(path) == ours
    first.close()
    second = unix_sockets.listen(path, 1)
    assert unix_sockets.identity(path) not in (None, ours)
    second.close()
    path.unlink()
    assert unix_sockets.identity(path) is None
