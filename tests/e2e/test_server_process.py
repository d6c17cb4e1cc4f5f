"""`outboard serve` as a process: starting, draining, being killed."""

import json
import signal
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from inference_client import Client
from tests.eventually import eventually
from tests.onnx_models import looping, slow, times
from tests.processes import alive, descendants, start_server, wait_until_gone


@pytest.fixture
def models(tmp_path: Path) -> Path:
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 2)
    looping(tmp_path / "models" / "slow" / "1" / "model.onnx")
    return tmp_path / "models"


X = np.ones((1, 2), np.float32)


def test_sigterm_finishes_what_is_inside_and_exits_0(models: Path, tmp_path: Path) -> None:
    server = start_server(models, tmp_path)
    below = descendants(server.process.pid)
    assert len(below) >= 3, "a zygote and an executor for each model"
    with Client(f"grpc://{server['grpc']}") as grpc, Client(f"thrift://{server['thrift']}") as thrift:
        answers: dict[int, object] = {}

        def ask(client: Client, rounds: int) -> None:
            try:
                answers[rounds] = client.infer("slow", {"x": np.int64([rounds])}).outputs["y"].tolist()
            except ServingError as error:
                answers[rounds] = error

        ask(grpc, 30_000)  # from now on it is known to take long, and somebody counts who waits meanwhile
        inside = [threading.Thread(target=ask, args=each) for each in ((grpc, 150_000), (thrift, 1))]
        for count, thread in enumerate(inside, 1):
            thread.start()
            wait_for_in_flight(server["metrics"], count)
        server.process.send_signal(signal.SIGTERM)
        for thread in inside:
            thread.join()
        assert answers == {rounds: [rounds] for rounds in (30_000, 150_000, 1)}
        assert server.process.wait(30) == 0
        server.stop()
        with pytest.raises(ServingError) as caught:
            thrift.infer("m", {"x": X}, timeout_s=2)
        assert caught.value.code is Code.UNAVAILABLE
    assert not wait_until_gone(below)
    assert '"event": "stopped"' in server.log.read_text()


def wait_for_in_flight(metrics: str, count: int) -> None:

    def inside() -> float:
        with urllib.request.urlopen(metrics) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("outboard_in_flight_requests{"))

    eventually(lambda: inside() >= count, "the requests arrive", 20, 0.02)


def test_a_second_sigterm_ends_it_at_once(models: Path, tmp_path: Path) -> None:
    slow(models / "endless" / "1" / "model.onnx", 10_000_000)  # its warm-up runs it: the load goes on while signals come
    server = start_server(models, tmp_path, wait=False)
    eventually(lambda: '"event": "listening"' in server.log.read_text(), "it listens", 30)
    below = descendants(server.process.pid)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: '"event": "draining"' in server.log.read_text() or server.process.poll() is not None, "it stops", 30)
    server.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    server.stop()
    assert time.monotonic() - begun < 5
    assert not wait_until_gone(below)


def test_sigkill_leaves_no_process_and_the_next_start_works(models: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ("--run-dir", str(run_dir), "--thrift-socket", str(run_dir / "t.sock"), "--grpc-socket", str(run_dir / "g.sock"))
    server = start_server(models, tmp_path, *options)
    below = descendants(server.process.pid)
    assert alive(below) == below
    server.stop(signal.SIGKILL)
    assert not wait_until_gone(below), "orphans"
    assert list(run_dir.glob("*.lane")) and (run_dir / "t.sock").exists(), "a killed server leaves its sockets' files"
    server = start_server(models, tmp_path, *options)
    for address in (f"thrift+unix://{run_dir / 't.sock'}", f"grpc+unix://{run_dir / 'g.sock'}"):
        with Client(address) as client:
            assert client.infer("m", {"x": X}).outputs["y"].tolist() == [[2, 2]]
    assert server.stop() == 0
    assert not list(run_dir.glob("*.lane")) and not (run_dir / "t.sock").exists()


def test_a_run_folder_and_a_port_have_one_server(models: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = start_server(models, tmp_path, "--run-dir", str(run_dir))
    try:
        second = start_server(models, tmp_path, "--run-dir", str(run_dir), wait=False)
        assert second.process.wait(30) == 1
        third = start_server(models, tmp_path, "--thrift-port", first["thrift"].split(":")[1], wait=False)
        assert third.process.wait(30) == 1
        fourth = start_server(models, tmp_path, "--grpc-port", first["grpc"].split(":")[1], wait=False)
        assert fourth.process.wait(30) == 1
        for process in (second, third, fourth):
            process.stop()
        log = first.log.read_text()
        assert "another server uses the run folder" in log and "Traceback" not in log
        assert first["thrift"].split(":")[1] in log and first["grpc"].split(":")[1] in log
    finally:
        assert first.stop() == 0


def test_settings_that_cannot_be_used_exit_2(tmp_path: Path) -> None:
    for env, said in (({"OUTBOARD_SERVER_COLOUR": "red"}, "OUTBOARD_SERVER_COLOUR"), ({"OUTBOARD_SERVER_HOST": "0.0.0.0"}, "--insecure")):
        server = start_server(tmp_path, tmp_path, wait=False, **env)
        assert server.process.wait(30) == 2
        server.stop()
        assert said in server.log.read_text() and "Traceback" not in server.log.read_text()
    server = start_server(tmp_path / "typo", tmp_path, wait=False)
    assert server.process.wait(30) == 2
    server.stop()
    assert "typo is not a folder" in server.log.read_text()


def test_logs_are_json_lines_with_one_a_request_at_debug(models: Path, tmp_path: Path) -> None:
    server = start_server(models, tmp_path, "--log-level", "debug")
    with Client(f"thrift://{server['thrift']}") as client:
        client.infer("m", {"x": X}, request_id="log-me")
        with pytest.raises(ServingError):
            client.infer("nobody", {"x": X}, request_id="log-me-too")
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    requests = {line["request_id"]: line for line in lines if line["event"] == "request"}
    assert requests["log-me"]["code"] == "ok" and requests["log-me"]["model"] == "m" and requests["log-me"]["level"] == "debug"
    assert requests["log-me-too"]["code"] == "model_not_found"
    assert {"listening", "loaded", "ready", "draining", "stopped"} <= {line["event"] for line in lines if line["level"] == "info"}


def test_metrics_count_what_happened(models: Path, tmp_path: Path) -> None:
    server = start_server(models, tmp_path)
    with Client(f"grpc://{server['grpc']}") as client:
        for _ in range(3):
            client.infer("m", {"x": X})
        with pytest.raises(ServingError):
            client.infer("m", {"wrong": X})
        with pytest.raises(ServingError):
            client.infer("nobody", {"x": X})
        with urllib.request.urlopen(server["metrics"]) as response:
            assert response.headers["Content-Type"].startswith("text/plain")
            text = response.read().decode()
    assert server.stop() == 0
    for line in (
        'outboard_requests_total{code="ok",model="m",version="1"} 3.0',
        'outboard_requests_total{code="invalid_input",model="m",version="1"} 1.0',
        'outboard_refused_requests_total{code="model_not_found"} 1.0',
        'outboard_request_seconds_count{model="m",version="1"} 3.0',
        'outboard_model_ready{model="m",version="1"} 1.0',
        'outboard_model_loads_total{model="slow",result="ok"} 1.0',
    ):
        assert line in text, line
