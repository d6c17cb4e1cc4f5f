"""A gateway under uWSGI begins and ends: stops while it works or starts, killed masters, workers and event loops, starts that cannot be."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.eventually import eventually
from tests.gateway.conftest import Gateway, spawn
from tests.gateway.test_metrics import parse, value
from tests.gateway.uwsgi_peer import (
    REGISTRATION,
    exchange,
    half_a_request,
    half_a_request_from_nginx,
    session_of,
    some_settings,
    wait_until_gone,
)
from tests.processes import environment

Start = Callable[[Settings], Gateway]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return some_settings(tmp_path / "data")


@pytest.fixture(params=[(way, 30.0) for way in ("HTTP", "behind nginx", "with event loops")], ids=lambda pair: pair[0])
def busy(request: pytest.FixtureRequest, gateways: Start, settings: Settings, tmp_path: Path) -> Iterator[tuple[Gateway, socket.socket]]:
    """A gateway, for each way to listen, and a request that one of its workers is answering."""
    listens, drain_timeout_s = request.param
    settings = replace(settings, drain_timeout_s=drain_timeout_s)
    if listens == "HTTP":
        gateway = gateways(settings)
        sock = half_a_request(gateway)
    else:
        hosts = (f"thrift+unix://{tmp_path}/nobody",) if listens == "with event loops" else settings.model_hosts
        gateway = gateways(replace(settings, socket=str(tmp_path / "gateway.sock"), model_hosts=hosts))
        sock = half_a_request_from_nginx(gateway)
    with sock:
        yield gateway, sock


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Ctrl-C"])
def test_a_stop_lets_requests_in_flight_finish(busy: tuple[Gateway, socket.socket], how: str) -> None:
    gateway, sock = busy
    running = len(session_of(gateway))
    if how == "Ctrl-C":
        # a terminal sends it to every process at once
        os.killpg(gateway.program.process.pid, signal.SIGINT)
    else:
        gateway.program.process.send_signal(signal.Signals[how])
    deadline = time.monotonic() + 20
    while len(session_of(gateway)) == running:
        assert time.monotonic() < deadline, "the idle worker did not end"
        time.sleep(0.02)
    sock.sendall(REGISTRATION[10:])
    status, _, body = exchange(sock)
    assert status == 201 and json.loads(body)["username"] == "ann"
    assert gateway.program.process.wait(20) == 0
    wait_until_gone(gateway)
    assert not [path for path in gateway.settings.data_dir.parent.rglob("*.sock") if path.is_socket()]


@pytest.mark.parametrize("busy", [("behind nginx", 1.0)], indirect=True, ids=["behind nginx"])
def test_a_stop_does_not_wait_for_ever(busy: tuple[Gateway, socket.socket]) -> None:
    gateway, _ = busy
    gateway.program.process.send_signal(signal.SIGTERM)
    assert gateway.program.process.wait(20) == 0
    gateway.program.wait_for("NO MERCY")
    wait_until_gone(gateway)


@pytest.mark.parametrize(("behind", "moment"), [("", "python"), ("nginx", "python"), ("nginx", "imports"), ("nginx", "workers")])
def test_a_stop_during_the_start_is_not_lost(settings: Settings, tmp_path: Path, behind: str, moment: str) -> None:
    """uWSGI ignores SIGTERM until its master is up: whoever stopped it before that waited for as long as a stop may take."""
    settings = replace(settings, socket=str(tmp_path / "gateway.sock")) if behind else settings
    program = spawn([sys.executable, "-m", "gateway"], settings.to_env())
    awaited = {
        "python": lambda: '"gateway_starting"' in program.log,
        "imports": lambda: "added " in program.log,
        "workers": lambda: "spawned uWSGI worker 1" in program.log,
    }
    try:
        eventually(awaited[moment], moment, 30)
        began = time.monotonic()
        program.stop(signal.SIGTERM, 10)
        assert time.monotonic() - began < 5
    finally:
        program.stop(signal.SIGKILL)


@pytest.fixture
def with_event_loops(gateways: Start, settings: Settings, tmp_path: Path) -> Gateway:
    """Behind nginx, with a model host on this machine that is not there."""
    hosts = (f"thrift+unix://{tmp_path}/nobody",)
    return gateways(replace(settings, socket=str(tmp_path / "gateway.sock"), model_hosts=hosts, hot_processes=2))


def ask_event_loop(gateway: Gateway, number: int) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(gateway.settings.hot_sockets[number]))
        sock.sendall(b"POST /id/v2/models/m/infer HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        return sock.recv(1000)


def test_the_master_only_imports(with_event_loops: Gateway) -> None:
    """What it opened or started would be everybody's after the fork."""
    master = Path("/proc") / str(with_event_loops.program.process.pid)
    assert len(list((master / "task").iterdir())) == 1
    opened = {str(link.readlink()) for link in (master / "fd").iterdir()}
    files = {name for name in opened if name.startswith("/") and not name.startswith("/dev/")}
    assert {Path(name).name for name in files} <= {"gateway.lock", "uwsgi-start.log"}, files


def test_event_loops_that_have_no_model_host_decline(with_event_loops: Gateway) -> None:
    for number in range(len(with_event_loops.settings.hot_sockets)):
        assert b"X-Accel-Redirect: @gateway\r\n" in ask_event_loop(with_event_loops, number)


def test_event_loops_end_with_a_master_that_was_killed(with_event_loops: Gateway) -> None:
    assert len(session_of(with_event_loops)) >= 1 + with_event_loops.settings.processes + len(with_event_loops.settings.hot_sockets)
    with_event_loops.program.process.kill()
    with_event_loops.program.process.wait(20)
    wait_until_gone(with_event_loops)


def test_an_event_loop_that_was_killed_is_replaced(with_event_loops: Gateway) -> None:
    program, count = with_event_loops.program, len(with_event_loops.settings.hot_sockets)
    ready = [json.loads(line) for line in program.lines if '"gateway_front_ready"' in line]
    os.kill(next(each["pid"] for each in ready if each["front"] == 1), signal.SIGKILL)
    program.wait_for('"gateway_front_ready"', count + 1)
    assert b"@gateway" in ask_event_loop(with_event_loops, 0)


def test_workers_end_with_a_master_that_was_killed(gateways: Start, settings: Settings) -> None:
    gateway = gateways(settings)
    assert len(session_of(gateway)) >= 1 + settings.processes
    gateway.program.process.kill()
    gateway.program.process.wait(20)
    wait_until_gone(gateway)


def test_a_worker_that_was_killed_is_replaced_and_counted_on(gateways: Start, settings: Settings) -> None:
    gateway = gateways(replace(settings, processes=1))
    for _ in range(5):
        gateway.text("/livez")
    (ready,) = [json.loads(line) for line in gateway.program.lines if '"gateway_worker_ready"' in line]
    with half_a_request(gateway):
        os.kill(ready["pid"], signal.SIGKILL)
        gateway.program.wait_for('"gateway_worker_ready"', 2)
    samples = parse(gateway.text("/metrics"))
    assert value(samples, "requests_in_flight") == 1
    assert value(samples, "requests_total", endpoint="/livez", method="GET", status="200") == 5


@pytest.mark.parametrize(
    ("variable", "text", "status"),
    [
        ("THREADS", "x", 2),
        ("NO_SUCH", "1", 2),
        ("MODEL_HOSTS", "ftp://x", 2),
        ("DATA_DIR", "/dev/null/x", 1),
        ("ADMIN_PASSWORD", "short", 2),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_a_line(tmp_path: Path, variable: str, text: str, status: int) -> None:
    environ = {"OUTBOARD_GATEWAY_DATA_DIR": str(tmp_path), "OUTBOARD_GATEWAY_" + variable: text}
    ran = subprocess.run([sys.executable, "-m", "gateway"], env=environment(**environ), capture_output=True, text=True, timeout=30)
    assert ran.returncode == status, ran.stderr
    assert ran.stderr.startswith("outboard: ") and "Traceback" not in ran.stderr


def test_a_port_that_is_taken_is_said(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        program = spawn([sys.executable, "-m", "gateway"], replace(settings, http_port=taken.getsockname()[1]).to_env())
        assert program.process.wait(20) != 0
        program.stop()
    assert "Address already in use" in program.log
