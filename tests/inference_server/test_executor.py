"""Executor processes and the zygote: what a caller, a crash or a lie can and cannot do to them."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from idl import lane
from idl.codes import Code, ServingError
from idl.lane_calls import ExecutorGone, LaneConnection
from idl.messages import InferRequest, Tensor
from inference_server.engine import Engine
from inference_server.executors.process import LoadRequest, ProcessExecutor, Watcher, Zygote
from tests.engines import LIMIT, engine_over
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.onnx_models import identity, slow, times


def start(zygote: Zygote, watcher: Watcher, path: Path, name: str = "m", **queue: object) -> ProcessExecutor:
    asked = {"name": name, "path": str(path), "threads": 1, "providers": ["CPUExecutionProvider"], "queue": queue, "tuning": None}
    return ProcessExecutor(zygote, watcher, LoadRequest(name, asked), LIMIT)


def greeted(sock: socket.socket) -> bool:
    """Takes the executor's greeting."""
    header, descriptors, _, _ = socket.recv_fds(sock, 100, 4)
    for descriptor in descriptors:
        os.close(descriptor)
    return lane.HEADER.unpack(header)[1] == lane.WELCOME and len(descriptors) == 1


def test_garbage_on_the_lane_ends_that_connection_only(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> None:
    executor = start(zygote, watcher, times(tmp_path / "m.onnx", 2))
    try:
        for junk in (b"junk", b"\0" * 200, lane.HEADER.pack(lane.MAGIC, lane.RESULT, 0, 1, 0, 0, 0, 0, 0, 0)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(str(executor.path))
                sock.send(junk)
                sock.settimeout(5)
                assert greeted(sock) and sock.recv(100) == b""
        bad_head = lane.HEADER.pack(lane.MAGIC, lane.INFER, 0, 1, 0, 0, 0, 0, 3, 0) + b"\xff\xff\xff"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(executor.path))
            sock.send(bad_head)
            sock.settimeout(5)
            assert greeted(sock) and b"invalid_input" in sock.recv(1000)
        assert np.frombuffer(executor.call(request("m", [[1, 2]])).outputs[0].data, np.float32).tolist() == [2, 4]
    finally:
        executor.close()


def test_what_a_caller_that_went_away_had_queued_is_not_run(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> None:
    executor = start(zygote, watcher, slow(tmp_path / "m.onnx", 500))
    try:
        began = time.monotonic()
        executor.call(request("m", [1]))
        one = time.monotonic() - began
        busy = threading.Thread(target=executor.call, args=(request("m", [1]),))
        busy.start()
        for _ in range(20):  # twenty callers queue and hang up
            connection = LaneConnection(str(executor.path), LIMIT)
            head, parts, size = lane.pack_request(request("m", [1]).inputs, (), {})
            connection._end.send(lane.INFER, 1, (0, 0, 0, 0), head, parts, size)
            connection.close()
        busy.join()
        began = time.monotonic()
        executor.call(request("m", [1]))
        assert time.monotonic() - began < 10 * one, "what nobody waits for was run"
    finally:
        executor.close()


def test_a_second_request_before_the_answer_harms_nobody_else(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> None:
    executor = start(zygote, watcher, slow(tmp_path / "m.onnx", 500))
    try:
        busy = threading.Thread(target=executor.call, args=(request("m", [1]),))
        busy.start()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(executor.path))
            end = lane.LaneEnd(sock, LIMIT)
            head, parts, size = lane.pack_request(request("m", [1]).inputs, (), {})
            for number in (1, 2, 3):
                end.send(lane.INFER, number, (0, 0, 0, 0), head, parts, size)
            sock.settimeout(20)
            answered: list[int] = []
            try:
                while len(answered) < 3 and (frame := end.receive()) is not None:
                    if frame.kind == lane.WELCOME:
                        os.close(frame.descriptor)
                    else:
                        answered.append(frame.sequence)
            except ConnectionResetError:
                pass  # the executor hung up with frames of ours unread
            assert answered == [1, 2, 3][: len(answered)], "answers in the order of the questions, or the connection is ended"
            end.close()
        busy.join()
        assert executor.call(request("m", [1])).outputs
    finally:
        executor.close()


def test_a_model_that_kills_its_process_fails_its_request_only(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> None:
    executor = start(zygote, watcher, slow(tmp_path / "m.onnx", 5000))
    died = threading.Event()
    executor.watch(died.set)
    caught: list[ExecutorGone] = []

    def ask() -> None:
        try:
            executor.call(request("m", [1]))
        except ExecutorGone as gone:
            caught.append(gone)

    try:
        asking, before = threading.Thread(target=ask), cpu_ticks(executor.pid)
        asking.start()
        eventually(lambda: cpu_ticks(executor.pid) >= before + 10, "it is inside the model", 20)
        os.kill(executor.pid, signal.SIGKILL)
        asking.join()
        assert died.wait(5)
        assert caught[0].ran
        with pytest.raises(ExecutorGone) as again:
            executor.call(request("m", [1]))
        assert not again.value.ran
    finally:
        executor.close()


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_what_it_died_of_is_known_while_it_is_buried(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> None:
    """One who asks may be overtaken, between the question and the answer, by `close`: it asks too, and then has the reason forgotten."""
    known = {"why": "killed", "overtaken": ""}

    def why(_: int) -> str:
        if known["overtaken"] == "yes":
            known["overtaken"] = "once"
            executor.close()
        return known["why"]

    def forget(_: int) -> None:
        known["why"] = ""

    asked = {"name": "m", "path": str(times(tmp_path / "m.onnx", 2)), "threads": 1, "providers": ["CPUExecutionProvider"]}
    executor = ProcessExecutor(zygote, watcher, LoadRequest("m", {**asked, "queue": {}, "tuning": None}, why=why, forget=forget), LIMIT)
    known["overtaken"] = "yes"
    assert executor.why() == executor.why() == "killed"
    assert known == {"why": "", "overtaken": "once"}


def test_sigint_and_sigterm_are_the_supervisors(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> None:
    executor = start(zygote, watcher, times(tmp_path / "m.onnx", 2))
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(executor.pid, number)
            os.kill(zygote._process.pid, number)
        assert executor.call(request("m", [[1, 1]])).outputs
        start(zygote, watcher, times(tmp_path / "m.onnx", 2)).close()
    finally:
        executor.close()


def test_a_killed_zygote_takes_its_executors_along_and_all_come_back(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    own, watcher = Zygote(tmp_path / "run", LIMIT), Watcher()
    for name in ("a", "b"):
        times(tmp_path / "models" / name / "1" / "model.onnx", 4)
    with engine_over(own, watcher, tmp_path / "models") as engine:
        engine.load_all()
        os.kill(own._process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        for name in ("a", "b"):
            for _ in range(5):  # more than once: the new zygote must outlive the thread that asked for it
                while True:
                    try:
                        assert floats(engine.model_infer(request(name, [[1, 1]]))) == [4, 4]
                        break
                    except ServingError as error:
                        assert error.code in (Code.NOT_READY, Code.MODEL_FAILED) and time.monotonic() < deadline, error
        for thread in threading.enumerate():
            if thread.name.startswith("mend-"):
                thread.join(5)
        assert floats(engine.model_infer(request("a", [[1, 1]]))) == [4, 4]
        assert own._process.poll() is None
    watcher.close()
    own.close()


def test_a_run_folder_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long"):
        Zygote(tmp_path / ("x" * 100), LIMIT)


def test_a_caller_of_nobody_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExecutorGone) as caught:
        LaneConnection(str(tmp_path / "none.lane"), LIMIT)
    assert not caught.value.ran


def test_an_answer_over_the_limit_is_refused_with_its_size(engine: Engine, repository: Path) -> None:
    from onnx import TensorProto, helper

    from tests.onnx_models import save

    x = helper.make_tensor_value_info("x", TensorProto.INT64, (1,))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n",))
    save(helper.make_graph([helper.make_node("ConstantOfShape", ["x"], ["y"])], "grow", [x], [y]), repository / "m" / "1" / "model.onnx")
    engine.load_all()

    def ask(count: int) -> InferRequest:
        return InferRequest("m", (Tensor("x", "INT64", (1,), np.int64([count]).tobytes()),))

    assert len(engine.model_infer(ask(1000)).outputs[0].data) == 4000
    with pytest.raises(ServingError) as caught:
        engine.model_infer(ask(LIMIT))
    assert caught.value.code is Code.TOO_LARGE and str(4 * LIMIT) in caught.value.message
    assert len(engine.model_infer(ask(10)).outputs[0].data) == 40


def test_idle_lanes_are_closed_and_their_memory_with_them(engine: Engine, repository: Path) -> None:
    identity(repository / "m" / "1" / "model.onnx")
    engine.load_all()
    before = len(os.listdir("/proc/self/fd"))
    big = np.zeros(2**19, np.float32)
    engine.model_infer(InferRequest("m", (Tensor("x", "FP32", big.shape, big.tobytes()),)))
    assert len(os.listdir("/proc/self/fd")) > before
    engine._served["m"].versions[1].trim(time.monotonic() + 1)
    assert len(os.listdir("/proc/self/fd")) == before
    engine.model_infer(InferRequest("m", (Tensor("x", "FP32", big.shape, big.tobytes()),)))
