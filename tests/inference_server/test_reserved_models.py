"""Reservations and limits of real models: what fits is held to it, what does not is refused, and nobody else is harmed."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from idl.board import RUNNING_SINCE
from idl.codes import Code, ServingError
from idl.messages import HostModel, InferRequest, Tensor
from inference_server import host, instance
from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from tests.engines import engine_over
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.inference_server.test_memory_limit import with_groups
from tests.onnx_models import save, slow, times

MIB = 2**20


def eater(path: Path) -> Path:
    """x (a count) -> y, the sum of as many zeros: a request decides how much memory it takes."""
    x = helper.make_tensor_value_info("x", TensorProto.INT64, (1,))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ())
    nodes = [helper.make_node("ConstantOfShape", ["x"], ["zeros"]), helper.make_node("ReduceSum", ["zeros"], ["y"], keepdims=0)]
    return save(helper.make_graph(nodes, "eater", [x], [y]), path)


def heavy(path: Path, mib: int) -> Path:
    """x -> x + the sum of a constant of so many MiB: a model that takes them when it is loaded."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy")
    constant = numpy_helper.from_array(np.random.default_rng(1).random(mib * MIB // 4, np.float32), "constant")
    nodes = [
        helper.make_node("Mul", ["constant", "x"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["mean"], keepdims=0),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    return save(helper.make_graph(nodes, "heavy", [x], [y], [constant]), path)


def eat(model: str, mib: int, **said: object) -> InferRequest:
    asked = InferRequest(model, (Tensor("x", "INT64", (1,), np.int64([mib * MIB // 4]).tobytes()),))
    return replace(asked, **said)  # type: ignore[arg-type]


def settings(repository: Path, model: str, text: str) -> None:
    (repository / model / "model.toml").write_text(text)


def refused(call: Callable[[], object]) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()
    return caught.value


def of(engine: Engine, model: str) -> HostModel:
    (found,) = (each for each in engine.capacity().models if each.name == model)
    return found


def pids(engine: Engine, model: str) -> list[int]:
    return [executor.pid for version in engine._served[model].versions.values() for executor in version.executors]


@pytest.fixture(params=[pytest.param("auto", marks=with_groups), "watch"])
def limited(request: pytest.FixtureRequest, zygote: Zygote, watcher: Watcher, repository: Path) -> Iterator[Engine]:
    """An engine that keeps limits by control groups, and one that watches."""
    with engine_over(zygote, watcher, repository, memory_limits=request.param) as made:
        yield made


# memory ----------------------------------------------------------------------------------------------------------------------------


def test_a_request_that_eats_too_much_fails_alone_and_says_why(limited: Engine, repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("greedy", "other"):
        eater(repository / name / "1" / "model.onnx")
        settings(repository, name, 'memory = "160MiB"\nmax_batch_size = 1\n')
    limited.load_all()
    assert of(limited, "greedy").memory_reserved_bytes == 160 * MIB
    assert floats(limited.model_infer(eat("greedy", 40))) == [0]
    before = pids(limited, "other")
    with caplog.at_level(logging.WARNING):
        error = refused(lambda: limited.model_infer(eat("greedy", 1000, id="r-9")))
        assert error.code is Code.MODEL_FAILED and error.request_id == "r-9"
        assert error.message.endswith("killed: over its memory limit of 160 MiB"), error.message
        assert floats(limited.model_infer(eat("greedy", 40))) == [0], "it is back"
    died = next(record for record in caplog.records if record.message == "executor died")
    assert died.__dict__["fields"]["reason"] == "killed: over its memory limit of 160 MiB"
    assert pids(limited, "other") == before and floats(limited.model_infer(eat("other", 40))) == [0]


def test_a_model_that_does_not_fit_its_limit_is_refused_and_the_old_one_goes_on(limited: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    settings(repository, "m", 'memory = "96MiB"\n')
    limited.load_all()
    heavy(repository / "m" / "2" / "model.onnx", 120)
    error = refused(lambda: limited.repository_model_load("m", {}))
    assert error.code is Code.INSUFFICIENT_CAPACITY
    assert error.message == "model 'm' version 2: its process was killed: over its memory limit of 96 MiB while loading it"
    assert floats(limited.model_infer(request("m", [[1, 2]]))) == [2, 4]
    reasons = {index.version: index.reason for index in limited.repository_index(ready=False)}
    assert "over its memory limit of 96 MiB" in reasons["2"]
    assert of(limited, "m").memory_reserved_bytes == 96 * MIB and limited.capacity().memory_reserved_bytes == 96 * MIB


def test_a_model_that_eats_too_much_each_time_fails_and_the_reason_stays(
    engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "FIRST_BACK_OFF_S", 0.001)
    eater(repository / "m" / "1" / "model.onnx")
    settings(repository, "m", 'memory = "160MiB"\nmax_batch_size = 1\n')
    engine.load_all()

    def over() -> bool:
        error = refused(lambda: engine.model_infer(eat("m", 1000, deadline=time.monotonic() + 5)))
        assert error.code in (Code.MODEL_FAILED, Code.NOT_READY), error
        return error.code is Code.NOT_READY and "in a row" in error.message

    eventually(over, "given up", 60)
    said = "its process died 8 times in a row (the last one was killed: over its memory limit of 160 MiB); load it again"
    assert of(engine, "m").reason == said and of(engine, "m").state == "UNAVAILABLE"
    assert not engine.server_ready()


# admission -------------------------------------------------------------------------------------------------------------------------


def test_what_the_host_does_not_have_is_refused_and_what_serves_goes_on(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    times(repository / "n" / "1" / "model.onnx", 3)
    settings(repository, "n", f'cpus = 0.5\nmemory = "{host.memory()[0] // 2}B"\n')
    engine.load_all()
    for text, said in (
        (f"cpus = {host.cpus()}", f"'m' version 1 asks for {host.cpus():g} cpus; {host.cpus() - 0.5:g} of {host.cpus():g} are free"),
        (f'memory = "{host.memory()[0] // 2 + MIB}B"', "of memory; "),
    ):
        settings(repository, "m", text + "\n")
        error = refused(lambda: engine.repository_model_load("m", {}))
        assert error.code is Code.INSUFFICIENT_CAPACITY and said in error.message and "'n' version 1 holds" in error.message, error
        assert floats(engine.model_infer(request("m", [[1, 2]]))) == [2, 4]
    totals = engine.capacity()
    assert (totals.cpus_reserved, totals.cpus_free) == (0.5, host.cpus() - 0.5)
    assert totals.memory_reserved_bytes == host.memory()[0] // 2


def test_instances_multiply_what_is_reserved(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    settings(repository, "m", 'cpus = 0.25\nmemory = "256MiB"\ninstances = 2\n')
    engine.load_all()
    assert (of(engine, "m").instances, of(engine, "m").cpus, of(engine, "m").memory_reserved_bytes) == (2, 0.5, 512 * MIB)
    too_many = int(host.cpus() / 0.25) + 1
    error = refused(lambda: engine.set_instances("m", "", too_many))
    assert error.code is Code.INSUFFICIENT_CAPACITY and f"asks for {too_many - 2} x 0.25 cpus" in error.message
    assert of(engine, "m").instances == 2
    engine.set_instances("m", "", 3)
    assert (of(engine, "m").instances, of(engine, "m").cpus) == (3, 0.75)
    engine.set_instances("m", "", 1)
    eventually(lambda: of(engine, "m").cpus == 0.25, "given back")
    engine.repository_model_unload("m", {})
    assert engine.capacity().cpus_reserved == 0 and engine.capacity().memory_reserved_bytes == 0


def test_a_reload_of_a_model_that_has_every_core_fits(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    settings(repository, "m", f"cpus = {host.cpus():g}\n")
    engine.load_all()
    times(repository / "m" / "2" / "model.onnx", 3)
    for _ in range(3):
        engine.repository_model_load("m", {})
        assert floats(engine.model_infer(request("m", [[1, 2]]))) == [3, 6]
    eventually(lambda: engine.capacity().cpus_reserved == pytest.approx(host.cpus()), "the old ones have left")


def test_versions_that_serve_together_count_together_and_a_reload_of_them_fits(engine: Engine, repository: Path) -> None:
    for version in (1, 2):
        times(repository / "m" / str(version) / "model.onnx", version)
    half = host.cpus() / 2
    settings(repository, "m", f'cpus = {half:g}\nversion_policy = "all"\n')
    engine.load_all()
    assert engine.capacity().cpus_reserved == host.cpus()
    settings(repository, "m", f'cpus = {half:g}\nversion_policy = "all"\ndescription = "changed"\n')
    for _ in range(2):
        engine.repository_model_load("m", {})
        eventually(lambda: len([each for each in engine.capacity().models if each.state == "READY"]) == 2, "both serve")
        eventually(lambda: engine.capacity().cpus_reserved == pytest.approx(host.cpus()), "the old ones have left")


# cores -----------------------------------------------------------------------------------------------------------------------------


def affinities(pid: int) -> set[tuple[int, ...]]:
    return {tuple(sorted(os.sched_getaffinity(int(task.name)))) for task in Path(f"/proc/{pid}/task").iterdir()}


@pytest.mark.skipif(len(host.cores()) < 2, reason="this machine has one core")
def test_a_model_runs_on_its_cores_and_those_without_reservation_make_room(engine: Engine, repository: Path) -> None:
    for name in ("free", "bound"):
        times(repository / name / "1" / "model.onnx", 2)
    engine.load_all()
    (free,), everywhere = pids(engine, "free"), {host.cores()}
    assert affinities(free) == affinities(pids(engine, "bound")[0]) == everywhere
    settings(repository, "bound", "cpus = 1\n")
    engine.repository_model_load("bound", {})
    (bound,) = pids(engine, "bound")
    assert affinities(bound) == {host.cores()[:1]}, "all its threads, onnxruntime's too"
    assert affinities(free) == {host.cores()[1:]}
    os.kill(bound, signal.SIGKILL)
    eventually(lambda: pids(engine, "bound") not in ([], [bound]), "back")
    assert affinities(pids(engine, "bound")[0]) == {host.cores()[:1]}, "after a crash as before"
    engine.repository_model_unload("bound", {})
    assert affinities(free) == everywhere
    assert floats(engine.model_infer(request("free", [[1, 2]]))) == [2, 4]


# hanging ---------------------------------------------------------------------------------------------------------------------------


def test_a_process_that_hangs_past_its_deadline_is_ended_and_comes_back(
    zygote: Zygote, watcher: Watcher, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow(repository / "m" / "1" / "model.onnx", 1500)
    settings(repository, "m", "max_batch_size = 1\n")
    with engine_over(zygote, watcher, repository, hang_grace_s=5.0) as engine:
        engine.load_all()
        (pid,) = pids(engine, "m")
        asking = threading.Thread(target=lambda: refused(lambda: engine.model_infer(request("m", [1], deadline=time.monotonic() + 1))))
        (executor,) = engine._served["m"].versions[1].executors
        asking.start()
        eventually(lambda: executor.board.cells[RUNNING_SINCE], "it is inside")
        os.kill(pid, signal.SIGSTOP)
        asking.join()
        now = time.monotonic_ns()
        with caplog.at_level(logging.WARNING):
            for seconds in (0, 4, 7, 8):
                assert pids(engine, "m") == [pid]
                engine._library._starter.end_hung(now + seconds * 10**9)
            eventually(lambda: pids(engine, "m") not in ([], [pid]), "another process")
        assert floats(engine.model_infer(request("m", [3]))) == [3]
        died = next(record for record in caplog.records if record.message == "executor died")
        assert died.__dict__["fields"]["reason"] == "killed: it hung, far past the deadline of its request"
