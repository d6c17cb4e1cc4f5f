"""The task worker: its jobs, what wakes them, and its life beside a gateway and apart from it."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.bells import Bell, Ear, path_of
from gateway.context import Services
from gateway.settings import Settings
from gateway.worker import process
from gateway.worker.jobs import Job, Loop
from gateway.worker.process import Worker
from idl.codes import Code, ServingError
from tests.eventually import eventually
from tests.gateway.conftest import Gateway, spawn
from tests.gateway.uwsgi_peer import session_of, wait_until_gone
from tests.processes import free_port

Start = Callable[[Settings], Gateway]


def working(services: Services, *jobs: Job) -> tuple[Worker, threading.Thread]:
    worker = Worker(services, 1, lambda services, _: [Loop(job, services) for job in jobs])
    services.settings.run_dir.mkdir(parents=True, exist_ok=True)
    thread = threading.Thread(target=worker.run)
    thread.start()
    return worker, thread


def test_a_job_runs_at_once_and_when_it_is_rung_for(services: Services) -> None:
    ran = threading.Semaphore(0)
    worker, thread = working(services, Job("mine", 3600, lambda _: ran.release()), Job("other", 3600, lambda _: None))
    try:
        assert ran.acquire(timeout=10)
        eventually(path_of(services.settings.run_dir, 1).exists, "it listens")
        services.bell.ring("nobody")
        services.bell.ring("mine")
        assert ran.acquire(timeout=10)
        assert not ran.acquire(timeout=0.05)
    finally:
        worker.stop()
        thread.join(10)
    assert not thread.is_alive() and not path_of(services.settings.run_dir, 1).exists()
    services.bell.ring("mine")  # nobody hears it, and that is all


def test_a_job_with_more_to_do_goes_on_and_one_that_fails_is_tried_later(services: Services) -> None:
    left = [3, 2, 1]
    assert Loop(Job("many", 5.0, lambda _: left.pop() < 3), services).step() == 0.0

    def fail(_: Services) -> None:
        raise error

    loop = Loop(Job("bad", 0.5, fail), services)
    error: Exception = ValueError("a mistake")
    assert [loop.step() for _ in range(3)] == [1.0, 2.0, 4.0]
    error = ServingError(Code.UNAVAILABLE, "the database is busy")
    assert [loop.step() for _ in range(9)][-1] == 30.0
    assert Loop(Job("rare", 60.0, fail), services).step() == 60.0


def test_an_end_waits_for_what_has_begun(services: Services) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def long(_: Services) -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    worker, thread = working(services, Job("long", 3600, long))
    assert begun.wait(10)
    worker.stop()
    thread.join(0.05)
    assert thread.is_alive()
    go_on.set()
    thread.join(10)
    assert ended.is_set() and not thread.is_alive()


def test_a_bell_rings_for_every_worker_and_a_dead_ones_is_taken_over(tmp_path: Path) -> None:
    bell = Bell(tmp_path)
    ears = [Ear(path_of(tmp_path, number)) for number in (1, 2)]
    bell.ring("tasks")
    assert [ear.hear(5) for ear in ears] == ["tasks", "tasks"]
    ears[0]._socket.close()  # as after a kill: its path stays
    bell.ring("again")
    assert ears[1].hear(5) == "again"
    successor = Ear(path_of(tmp_path, 1))
    for _ in range(10_000):  # more than a socket holds: a ring never waits
        bell.ring("tasks")
    assert successor.hear(5) == "tasks"
    for ear in (successor, ears[1]):
        ear.close()
    bell.close()


def test_a_number_belongs_to_one_worker(tmp_path: Path) -> None:
    with process.lock(tmp_path, 1), process.lock(tmp_path, 2), pytest.raises(process.AlreadyRunning), process.lock(tmp_path, 1):
        pass
    with process.lock(tmp_path, 1):
        pass


def pid_of(gateway: Gateway, count: int) -> int:
    """Of the worker that said `count`th that it is ready."""
    import json

    gateway.program.wait_for('"worker_ready"', count)
    return int([json.loads(line) for line in gateway.program.lines if '"worker_ready"' in line][count - 1]["pid"])


@pytest.mark.parametrize("behind_nginx", [True, False])
def test_a_killed_worker_comes_back_and_ends_with_its_gateway(settings: Settings, gateways: Start, behind_nginx: bool) -> None:
    settings = replace(settings, http_port=free_port(), processes=1, threads=2)
    gateway = gateways(replace(settings, socket=str(settings.run_dir / "g.sock")) if behind_nginx else settings)
    first = pid_of(gateway, 1)
    os.kill(first, signal.SIGKILL)
    second = pid_of(gateway, 2)
    assert second != first and second in session_of(gateway)
    assert gateway.program.stop() == 0, gateway.program.log
    assert '"worker_stopped"' in gateway.program.log
    wait_until_gone(gateway)


def test_a_killed_gateway_takes_its_worker_with_it(settings: Settings, gateways: Start) -> None:
    gateway = gateways(replace(settings, http_port=free_port(), processes=1, threads=2))
    pid_of(gateway, 1)
    os.kill(gateway.program.process.pid, signal.SIGKILL)
    wait_until_gone(gateway)


def test_a_worker_apart_from_its_gateway(settings: Settings) -> None:
    command, env = [sys.executable, "-m", "outboard", "worker"], replace(settings, workers=0).to_env()
    first = spawn(command, env)
    try:
        first.wait_for('"worker_ready"')
        second = spawn(command, env)
        assert second.process.wait(30) == 1
        second.stop()
        assert "task worker 1 runs already" in second.log
        third = spawn([*command, "--number", "2"], env)
        third.wait_for('"worker_ready"')
        assert third.stop() == 0, third.log
        assert first.stop() == 0, first.log
    finally:
        first.stop(signal.SIGKILL)
    wrong = spawn([*command, "--number", "0"], env)
    assert wrong.process.wait(30) == 2
    wrong.stop()
    assert "--number" in wrong.log


def test_signals_upon_signals_end_it(settings: Settings) -> None:
    """Ctrl-C comes from the terminal and from the master: the handler of one is interrupted by the next, again and again."""
    program = spawn([sys.executable, "-m", "outboard", "worker"], replace(settings, workers=0).to_env())
    try:
        program.wait_for('"worker_ready"')
        for number in range(3000):
            if program.process.poll() is not None:
                break
            program.process.send_signal((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[number % 3])
        assert program.process.wait(20) == 0, program.log
    finally:
        program.stop(signal.SIGKILL)
