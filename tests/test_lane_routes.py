"""Callers on the model's host: they follow what the supervisor publishes, and decline what only the server can answer."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from idl import lane_routes
from idl.codes import Code, ServingError
from idl.lane_routes import LocalLane, Routes, split
from idl.messages import InferRequest
from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from inference_server.routing import RoutePublisher, attach_beside, detach_beside
from tests.engines import LIMIT, engine_over, own_zygote
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.onnx_models import slow, times


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    with own_zygote(tmp_path / "run") as made:
        yield made


@pytest.fixture
def engine(zygote: Zygote, tmp_path: Path) -> Iterator[Engine]:
    watcher = Watcher()
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 2)
    with engine_over(zygote, watcher, tmp_path / "models") as made:
        made.load_all()
        yield made
    watcher.close()


@pytest.fixture
def local(engine: Engine, tmp_path: Path) -> Iterator[LocalLane]:
    made = LocalLane(str(tmp_path / "run"), LIMIT)
    yield made
    made.close()


def test_the_lane_answers_as_the_engine_does(engine: Engine, local: LocalLane) -> None:
    asked = request("m", [[1, 2]], request_id="r1")
    over_lane, direct = local.infer(asked), engine.model_infer(asked)
    assert over_lane is not None
    assert (over_lane.outputs, over_lane.id, over_lane.model_version) == (direct.outputs, "r1", "1")
    assert engine.model_statistics("m", "")[0].success.count == 2, "counted wherever it came from"


@pytest.mark.parametrize("name", ["nobody", "../m", "m/../m", "", "m\0", "x" * 300])
def test_what_is_not_there_is_left_to_the_server(local: LocalLane, name: str) -> None:
    assert local.infer(request(name, [[1, 2]])) is None


def test_a_version_that_is_not_there_and_too_much_are_left_to_the_server(local: LocalLane) -> None:
    assert local.infer(request("m", [[1, 2]], version="7")) is None
    assert local.infer(request("m", [[1, 2]] * (LIMIT // 8 + 1))) is None
    assert local.infer(request("m", [[1, 2]], version="1")) is not None


def test_what_the_executor_refuses_is_an_answer(engine: Engine, local: LocalLane) -> None:
    with pytest.raises(ServingError) as caught:
        local.infer(request("m", [[1, 2, 3]]))
    assert caught.value.code is Code.INVALID_INPUT and "'x'" in caught.value.message
    assert engine.model_statistics("m", "")[0].fail.count == 1


def test_reloads_unloads_and_drains_are_followed(engine: Engine, local: LocalLane, tmp_path: Path) -> None:
    times(tmp_path / "models" / "m" / "2" / "model.onnx", 3)
    answer = local.infer(request("m", [[1, 1]]))
    assert answer is not None and floats(answer) == [2, 2]
    engine.repository_model_load("m", {})
    answer = local.infer(request("m", [[1, 1]]))
    assert answer is not None and (floats(answer), answer.model_version) == ([3, 3], "2")
    engine.drain(resume=False, timeout_s=0)
    assert local.infer(request("m", [[1, 1]])) is None
    engine.drain(resume=True, timeout_s=0)
    assert local.infer(request("m", [[1, 1]])) is not None
    engine.repository_model_unload("m", {})
    assert local.infer(request("m", [[1, 1]])) is None


def test_a_dead_instance_is_declined_until_it_is_back(engine: Engine, local: LocalLane) -> None:
    version = engine._served["m"].versions[1]
    for _ in range(3):
        assert local.infer(request("m", [[1, 1]])) is not None
        (executor,) = version.executors
        os.kill(executor.pid, signal.SIGKILL)
        eventually(lambda dead=executor: version.executors and version.executors[0] is not dead, "it is back")
        eventually(lambda: local.infer(request("m", [[1, 1]])) is not None, "and published")


def test_a_killed_process_fails_what_it_had_begun(engine: Engine, local: LocalLane, tmp_path: Path) -> None:
    slow(tmp_path / "models" / "s" / "1" / "model.onnx", 2000)
    engine.repository_model_load("s", {})
    (executor,) = engine._served["s"].versions[1].executors
    caught: list[ServingError] = []

    def ask() -> None:
        with pytest.raises(ServingError) as error:
            local.infer(request("s", [1]))
        caught.append(error.value)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: executor.board.cells[lane_routes_running()], "it runs")
    os.kill(executor.pid, signal.SIGKILL)
    asking.join()
    assert caught[0].code is Code.MODEL_FAILED


def lane_routes_running() -> int:
    from idl.board import RUNNING

    return RUNNING


def test_a_hang_up_of_the_watched_descriptor_ends_the_call(engine: Engine, local: LocalLane, tmp_path: Path) -> None:
    slow(tmp_path / "models" / "s" / "1" / "model.onnx", 2000)
    engine.repository_model_load("s", {})
    (executor,) = engine._served["s"].versions[1].executors
    ours, theirs = socket.socketpair()
    caught: list[ServingError] = []

    def ask() -> None:
        with pytest.raises(ServingError) as error:
            local.infer(request("s", [1]), watch=ours.fileno())
        caught.append(error.value)

    first = threading.Thread(target=lambda: local.infer(request("s", [1])))
    first.start()
    eventually(lambda: executor.outstanding == 1, "the model is busy")
    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: executor.outstanding == 2, "the call waits")
    theirs.close()
    asking.join()
    first.join()
    ours.close()
    assert caught[0].code is Code.CANCELLED
    assert engine.model_statistics("s", "")[0].execution_count == 1, "it was never run"


def test_a_deadline_is_kept(engine: Engine, local: LocalLane, tmp_path: Path) -> None:
    slow(tmp_path / "models" / "s" / "1" / "model.onnx", 800)
    engine.repository_model_load("s", {})
    before = time.monotonic()
    with pytest.raises(ServingError) as caught:
        local.infer(request("s", [1], deadline=before + 0.05))
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_least_outstanding_instance_is_chosen(engine: Engine, local: LocalLane, tmp_path: Path) -> None:
    slow(tmp_path / "models" / "s" / "1" / "model.onnx", 1000)
    engine.repository_model_load("s", {})
    engine.set_instances("s", "", 2)
    executors = engine._served["s"].versions[1].executors
    for _ in range(2):  # the lane learns both boards
        local.infer(request("s", [1]))
    threads = [threading.Thread(target=lambda: local.infer(request("s", [1]))) for _ in range(2)]
    for number, thread in enumerate(threads):
        thread.start()
        eventually(lambda number=number: sum(e.outstanding for e in executors) == number + 1, "it is inside")
    assert [executor.outstanding for executor in executors] == [1, 1]
    for thread in threads:
        thread.join()


def test_a_server_that_ends_and_one_that_takes_its_place(tmp_path: Path) -> None:
    first = RoutePublisher(tmp_path, 100)
    first.accepting(True)
    first.publish("m", {1: [tmp_path / "a.lane"]}, {"stable": 1}, [(1, 1)])
    routes = Routes(str(tmp_path))
    assert routes.find("m", "") == routes.find("m", "stable") == routes.find("m", "1")
    second = RoutePublisher(tmp_path, 100)  # the first was killed
    assert routes.find("m", "") is None
    second.accepting(True)
    second.publish("m", {2: [tmp_path / "b.lane"]}, {}, [(2, 1)])
    found = routes.find("m", "")
    assert found is not None and found.version == "2"
    second.close()
    assert routes.find("m", "") is None and not (tmp_path / lane_routes.FOLDER).exists()
    second.close()


def test_a_canary_gets_its_part() -> None:
    points = iter((0.0, 0.89, 0.91, 0.999))
    assert [split((("1", 90), ("2", 10)), lambda: next(points)) for _ in range(4)] == ["1", "1", "2", "2"]
    assert split(()) == ""


def test_a_link_beside_a_socket_leads_to_the_routes(tmp_path: Path) -> None:
    run = tmp_path / "data" / "run" / "server"
    run.mkdir(parents=True)
    socket_path = tmp_path / "data" / "run" / "thrift.sock"
    for _ in range(2):
        attach_beside(socket_path, run)
    assert socket_path.with_name("thrift.sock.lane").resolve() == run
    detach_beside(socket_path)
    detach_beside(socket_path)
    assert not list((tmp_path / "data" / "run").glob("*.lane"))


def test_a_fork_starts_with_no_connections(local: LocalLane) -> None:
    assert local.infer(request("m", [[1, 1]])) is not None
    child = os.fork()
    if child == 0:
        try:
            answer = local.infer(InferRequest("m", request("m", [[2, 2]]).inputs))
            os._exit(0 if answer is not None and floats(answer) == [4, 4] else 1)
        finally:
            os._exit(2)
    answer = local.infer(request("m", [[1, 1]]))
    assert answer is not None and floats(answer) == [2, 2]
    assert os.waitpid(child, 0)[1] == 0
