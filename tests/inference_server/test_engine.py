"""The engine over real executors: routing, loading, reloading, unloading, crashes, truth about readiness."""

import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.messages import InferRequest, Tensor
from inference_server import instance
from inference_server.engine import Engine
from inference_server.executors.process import Zygote
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.onnx_models import identity, looping, times
from tests.processes import alive


def code_of(call: object) -> Code:
    with pytest.raises(ServingError) as caught:
        call()  # type: ignore[operator]
    return caught.value.code


def test_answers_what_the_model_computes(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 3)
    engine.load_all()
    answer = engine.model_infer(request("m", [[1, 2], [3, 4]], request_id="q-7"))
    assert floats(answer) == [3, 6, 9, 12]
    assert (answer.model_name, answer.model_version, answer.id, answer.outputs[0].shape) == ("m", "1", "q-7", (2, 2))
    assert answer.parameters["compute_us"] >= 0 and answer.parameters["queue_us"] >= 0


def test_large_tensors_travel_in_shared_memory_both_ways(engine: Engine, repository: Path) -> None:
    identity(repository / "m" / "1" / "model.onnx")
    engine.load_all()
    for size in (2**20, 100, 2**18, 2**20 + 1):  # grows, shrinks below the frame, is used again, grows again
        values = np.random.default_rng(size).random(size, np.float32)
        answer = engine.model_infer(InferRequest("m", (Tensor("x", "FP32", (size,), values.tobytes()),)))
        assert answer.outputs[0].data == values.tobytes()


def test_readiness_and_index_tell_the_truth(engine: Engine, repository: Path) -> None:
    times(repository / "good" / "1" / "model.onnx", 1)
    (repository / "bad" / "1").mkdir(parents=True)
    (repository / "bad" / "1" / "model.onnx").write_bytes(b"not a model")
    assert not engine.server_ready()
    engine.load_all()
    assert not engine.server_ready(), "a model that should be loaded is not"
    states = {(index.name, index.version): index.state for index in engine.repository_index(False)}
    assert states == {("good", "1"): "READY", ("bad", "1"): "UNAVAILABLE"}
    (bad,) = (index for index in engine.repository_index(False) if index.name == "bad")
    assert "protobuf" in bad.reason.lower() and str(repository) not in bad.reason
    assert [index.name for index in engine.repository_index(True)] == ["good"]
    assert engine.model_ready("good", "") and not engine.model_ready("bad", "") and not engine.model_ready("nobody", "")
    assert code_of(lambda: engine.model_infer(request("bad", [[1, 1]]))) is Code.NOT_READY
    engine.repository_model_unload("bad", {})
    assert engine.server_ready()


def test_a_failed_reload_leaves_the_old_version_serving(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    engine.load_all()
    (repository / "m" / "2").mkdir()
    (repository / "m" / "2" / "model.onnx").write_bytes(b"\x08\x01truncated")
    assert code_of(lambda: engine.repository_model_load("m", {})) is Code.INVALID_MODEL
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [2, 2]
    assert engine.server_ready() and engine.model_ready("m", "1") and not engine.model_ready("m", "2")


def test_reload_takes_the_newest_and_rollback_a_named_one(engine: Engine, repository: Path) -> None:
    for version in (1, 2):
        times(repository / "m" / str(version) / "model.onnx", version)
    engine.load_all()
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [2, 2]
    assert code_of(lambda: engine.model_infer(request("m", [[1, 1]], version="1"))) is Code.NOT_READY
    assert code_of(lambda: engine.model_infer(request("m", [[1, 1]], version="9"))) is Code.VERSION_NOT_FOUND
    engine.repository_model_load("m", {"version": "1"})
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [1, 1]
    engine.load_all()  # as a restart would
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [1, 1], "a rollback outlives a restart"
    assert code_of(lambda: engine.repository_model_load("m", {"version": "3"})) is Code.VERSION_NOT_FOUND
    assert code_of(lambda: engine.repository_model_load("m", {"colour": "red"})) is Code.INVALID_INPUT
    assert code_of(lambda: engine.repository_model_load("m", {"config": "{"})) is Code.INVALID_INPUT
    engine.repository_model_load("m", {})
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [2, 2], "a load without a version goes by the policy again"
    engine.load_all()
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [2, 2]


def test_a_start_serves_the_newest_version_that_can_be_loaded(engine: Engine, repository: Path) -> None:
    for version in (1, 2):
        times(repository / "m" / str(version) / "model.onnx", version)
    for version in (3, 4):
        (repository / "m" / str(version)).mkdir()
        (repository / "m" / str(version) / "model.onnx").write_bytes(b"broken")
    engine.load_all()
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [2, 2] and engine.server_ready()
    index = {entry.version: (entry.state, entry.reason) for entry in engine.repository_index(False)}
    assert index["2"] == ("READY", "") and index["1"] == ("UNAVAILABLE", "not loaded")
    assert index["3"][0] == index["4"][0] == "UNAVAILABLE" and "protobuf" in index["4"][1].lower()
    with pytest.raises(ServingError, match=r"model 'm' version 4: \S") as caught:  # an asked-for load says what was wrong, and of which
        engine.repository_model_load("m", {})
    assert caught.value.code is Code.INVALID_MODEL
    (reason,) = [entry.reason for entry in engine.repository_index(False) if entry.version == "4"]
    assert caught.value.message == f"model 'm' version 4: {reason}"
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [2, 2]


def test_version_policy_all_serves_every_version(engine: Engine, repository: Path) -> None:
    for version in (1, 2, 10):
        times(repository / "m" / str(version) / "model.onnx", version)
    (repository / "m" / "model.toml").write_text('version_policy = "all"')
    engine.load_all()
    assert engine.model_metadata("m", "").versions == ("1", "2", "10")
    assert [floats(engine.model_infer(request("m", [[1, 1]], version=v)))[0] for v in ("1", "2", "10", "")] == [1, 2, 10, 10]


def test_reload_under_load_drops_nothing(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    engine.load_all()
    stop, failures, done = threading.Event(), [], []

    def client() -> None:
        count = 0
        while not stop.is_set():
            try:
                engine.model_infer(request("m", [[1, 1]]))
                count += 1
            except ServingError as error:
                failures.append(error)
        done.append(count)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for _ in range(20):
        engine.repository_model_load("m", {})
    stop.set()
    for thread in clients:
        thread.join()
    assert not failures and len(done) == 4 and min(done) > 0


def test_unload_ends_the_process_and_says_so(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    engine.load_all()
    pid = executor_pid(engine, "m")
    engine.repository_model_unload("m", {})
    assert not alive({pid})
    assert code_of(lambda: engine.model_infer(request("m", [[1, 1]]))) is Code.NOT_READY
    assert code_of(lambda: engine.repository_model_unload("nobody", {})) is Code.MODEL_NOT_FOUND
    engine.repository_model_unload("m", {})  # twice is once
    engine.repository_model_load("m", {})
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [1, 1]


def executor_pid(engine: Engine, name: str) -> int:
    executor = next(iter(engine._served[name].versions.values())).executors[0]
    assert executor is not None
    return executor.pid


def test_a_killed_executor_comes_back_and_the_next_request_waits_for_it(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 5)
    engine.load_all()
    for _ in range(3):
        pid = executor_pid(engine, "m")
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while True:
            try:
                assert floats(engine.model_infer(request("m", [[1, 1]]))) == [5, 5]
                break
            except ServingError as error:  # the request that found the dead socket
                assert error.code in (Code.NOT_READY, Code.MODEL_FAILED) and time.monotonic() < deadline


def test_repeated_crashes_end_in_failed_with_the_reason(engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "MOST_CRASHES", 2)
    monkeypatch.setattr(instance, "FIRST_BACK_OFF_S", 0.001)
    times(repository / "m" / "1" / "model.onnx", 1)
    engine.load_all()
    version = engine._served["m"].versions[1]
    for _ in range(3):
        with version._changed:
            assert version._changed.wait_for(lambda: bool(version.executors), 5)
            (executor,) = version.executors
        os.kill(executor.pid, signal.SIGKILL)
        with version._changed:
            version._changed.wait_for(lambda before=executor: before not in version.executors, 5)
    with version._changed:
        assert version._changed.wait_for(lambda: version.failure != "", 5)
    assert not engine.server_ready() and not engine.model_ready("m", "")
    (index,) = engine.repository_index(False)
    assert index.state == "UNAVAILABLE" and "died" in index.reason
    with pytest.raises(ServingError, match="died 2 times"):
        engine.model_infer(request("m", [[1, 1]]))
    engine.repository_model_load("m", {})
    assert floats(engine.model_infer(request("m", [[1, 1]]))) == [1, 1]


KNOWN, LONG = 30_000, 200_000
"""Rounds: after the first the model is known to take long, so that somebody keeps its door; the second outlasts what a test does meanwhile."""


def rounds(count: int, deadline: float | None = None) -> InferRequest:
    """Of a model that loops: a request says how long it takes."""
    return InferRequest("m", (Tensor("x", "INT64", (1,), np.int64([count]).tobytes()),), deadline=deadline)


def test_a_deadline_that_passes_in_the_queue_is_never_run(engine: Engine, repository: Path) -> None:
    looping(repository / "m" / "1" / "model.onnx")
    engine.load_all()
    engine.model_infer(rounds(KNOWN))
    busy = threading.Thread(target=lambda: engine.model_infer(rounds(LONG)))
    busy.start()
    version = engine._served["m"].versions[1]
    eventually(lambda: version.executors[0].outstanding, "the long request is in the executor")
    before = time.monotonic()
    assert code_of(lambda: engine.model_infer(rounds(1, time.monotonic() + 0.02))) is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - before < 5
    busy.join()
    assert engine.model_statistics("m", "")[0].execution_count == 2
    assert code_of(lambda: engine.model_infer(rounds(1, time.monotonic() - 1))) is Code.DEADLINE_EXCEEDED


def test_drain_finishes_what_is_inside_and_refuses_the_rest(engine: Engine, repository: Path) -> None:
    looping(repository / "m" / "1" / "model.onnx")
    engine.load_all()
    answers: list[object] = []
    inside = threading.Thread(target=lambda: answers.append(engine.model_infer(rounds(LONG))))
    inside.start()
    version = engine._served["m"].versions[1]
    eventually(lambda: version.executors[0].outstanding, "the long request is in the executor")
    assert engine.drain(resume=False, timeout_s=0) == (False, 1)
    assert code_of(lambda: engine.model_infer(rounds(1))) is Code.NOT_READY
    assert not engine.server_ready() and not engine.model_ready("m", "")
    assert engine.drain(resume=False, timeout_s=20) == (True, 0)
    inside.join()
    assert len(answers) == 1
    engine.drain(resume=True, timeout_s=0)
    assert engine.server_ready() and engine.model_infer(rounds(7)).outputs[0].data == np.int64([7]).tobytes()


def test_a_new_model_that_is_refused_leaves_the_others_ready(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    engine.load_all()
    (repository / "junk" / "1").mkdir(parents=True)
    (repository / "junk" / "1" / "model.onnx").write_bytes(b"junk")
    assert code_of(lambda: engine.repository_model_load("junk", {})) is Code.INVALID_MODEL
    assert engine.server_ready(), "nobody has been promised the new model"
    (entry,) = (entry for entry in engine.repository_index(False) if entry.name == "junk")
    assert entry.state == "UNAVAILABLE" and entry.reason


def test_a_crash_is_mended_with_thousands_of_descriptors_and_after_a_failed_start(engine: Engine, repository: Path, zygote: Zygote) -> None:
    times(repository / "m" / "1" / "model.onnx", 5)
    engine.load_all()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    run_dir = zygote.run_dir
    hidden = run_dir.with_name("hidden")
    try:
        engine.repository_model_load("m", {})
        run_dir.rename(hidden)  # the executor that dies now cannot be started
        os.kill(executor_pid(engine, "m"), signal.SIGKILL)
        version = engine._served["m"].versions[1]
        eventually(lambda: version._instances[0]._crashes >= 2, "a second attempt")
        hidden.rename(run_dir)
        assert floats(engine.model_infer(request("m", [[1, 1]]))) == [5, 5]
    finally:
        if hidden.exists():
            hidden.rename(run_dir)
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_sequences_are_refused_not_forgotten(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    engine.load_all()
    plain = request("m", [[1, 1]])
    assert code_of(lambda: engine.model_infer(replace(plain, parameters={"sequence_id": 7}))) is Code.UNSUPPORTED
    assert floats(engine.model_infer(replace(plain, parameters={"sequence_id": 0, "priority": 3}))) == [1, 1]


def test_too_large_and_statistics(engine: Engine, repository: Path) -> None:
    identity(repository / "m" / "1" / "model.onnx")
    engine.load_all()
    data = b"\0" * (LIMIT + 4)
    assert code_of(lambda: engine.model_infer(InferRequest("m", (Tensor("x", "FP32", (len(data) // 4,), data),)))) is Code.TOO_LARGE
    engine.model_infer(request("m", [1]))
    (statistics,) = engine.model_statistics("m", "")
    assert (statistics.inference_count, statistics.success.count, statistics.fail.count) == (1, 1, 1)
    assert statistics.compute_infer.ns > 0 and abs(statistics.last_inference / 1000 - time.time()) < 60
    assert code_of(lambda: engine.model_statistics("nobody", "")) is Code.MODEL_NOT_FOUND


def test_model_config_publishes_what_model_toml_says(engine: Engine, repository: Path) -> None:
    import json

    times(repository / "m" / "1" / "model.onnx", 1)
    (repository / "m" / "names.txt").write_text("zero\none\n")
    (repository / "m" / "model.toml").write_text(
        'public = false\ndescription = "d"\nbatching = false\n[labels]\ny = "names.txt"\ntop_k = 1\n'
    )
    engine.load_all()
    config = engine.model_config("m", "1")
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 2]}] and config["platform"] == "onnxruntime_onnx"
    said = json.loads(config["parameters"]["outboard"]["string_value"])
    assert said == {"public": False, "description": "d", "labels": {"y": ["zero", "one"]}, "top_k": 1, "inputs": {}}


def test_two_versions_that_fail_together_leave_nothing_behind(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    (repository / "m" / "2").mkdir()
    (repository / "m" / "2" / "model.onnx").write_bytes(b"")
    (repository / "m" / "model.toml").write_text('version_policy = "all"')
    assert code_of(lambda: engine.repository_model_load("m", {})) is Code.INVALID_MODEL
    assert not engine.model_ready("m", "1")  # all or none; the fixture shows that the first one's process is gone
