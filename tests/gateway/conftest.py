"""The gateway twice: as an application inside the test, on a clock of its own, and as real uWSGI processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import argon2
import pytest
from flask import Flask
from flask.testing import FlaskClient

from gateway import build_services, create_app
from gateway.context import Services
from gateway.models_rpc import Models
from gateway.operations import passwords
from gateway.settings import Settings
from inference_client import Client
from tests.gateway.model_host import host, served, web  # noqa: F401
from tests.processes import ROOT, environment

PASSWORD = "correct horse battery"
CLOSED = "thrift://127.0.0.1:1"
"""An address where nobody listens: port 1 is reserved."""


@dataclass
class SetClock:
    """A clock that stands until it is moved."""

    moment: datetime = datetime(2026, 11, 21, 4, 5, 6, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


REAL_COST = passwords._hasher, passwords._TIME_COST, passwords._MEMORY_KIB


def set_cost(hasher: argon2.PasswordHasher, time_cost: int, memory_kib: int) -> None:
    passwords._hasher, passwords._TIME_COST, passwords._MEMORY_KIB = hasher, time_cost, memory_kib


@pytest.fixture(scope="session", autouse=True)
def cheap_passwords() -> Iterator[None]:
    """A password costs 60 ms and 32 MiB, by intention; thousands of tests register somebody in this process."""
    set_cost(argon2.PasswordHasher(1, 64, 1), 1, 64)
    yield
    set_cost(*REAL_COST)


@pytest.fixture
def real_passwords() -> Iterator[None]:
    """What they really cost."""
    set_cost(*REAL_COST)
    yield
    set_cost(argon2.PasswordHasher(1, 64, 1), 1, 64)


@pytest.fixture
def time_of_day() -> SetClock:
    return SetClock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", model_hosts=(CLOSED,), ready_timeout_s=0.5)


def unreachable_models(settings: Settings) -> Models:
    return Models(settings.model_hosts, lambda addresses: Client(addresses, timeout_s=1.0))


@pytest.fixture
def services(settings: Settings, time_of_day: SetClock) -> Iterator[Services]:
    made = build_services(settings, unreachable_models(settings), now=time_of_day)
    yield made
    made.close()


@pytest.fixture
def others(settings: Settings, services: Services, time_of_day: SetClock) -> Iterator[Services]:
    """Another process's services on the same state."""
    made = build_services(settings, unreachable_models(settings), now=time_of_day)
    yield made
    made.close()


@pytest.fixture
def app(settings: Settings, services: Services) -> Flask:
    return create_app(settings, services=services)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@dataclass
class Program:
    """A process of ours, with what it says on standard error."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, count: int = 1, timeout: float = 30) -> None:
        """Until `count` lines hold `text`."""
        with self.changed:
            found = self.changed.wait_for(lambda: sum(text in line for line in self.lines) >= count, timeout)
        assert found, f"waited for {count} x {text!r}:\n{self.log}"

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):  # a killed master's workers would keep its pipe open
            os.killpg(self.process.pid, signal.SIGKILL)
        self.reader.join(timeout)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


def spawn(command: list[str], env: dict[str, str] | None = None) -> Program:
    """In a session of its own, as `outboard up` starts it."""
    return Program(
        subprocess.Popen(command, env=environment(**(env or {})), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True),
    )


@dataclass
class Gateway:
    """A running gateway and where it listens."""

    program: Program
    settings: Settings

    @property
    def port(self) -> int:
        return self.settings.http_port

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self.url(path), timeout=30) as answer:
            return str(answer.read().decode())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def start_gateway(settings: Settings) -> Gateway:
    """Returns when every worker is ready."""
    program = spawn([sys.executable, "-m", "gateway"], settings.to_env())
    try:
        program.wait_for('"gateway_worker_ready"', settings.processes)
        program.wait_for('"gateway_front_ready"', len(settings.hot_sockets))
    except BaseException:
        program.stop(signal.SIGKILL)
        raise
    return Gateway(program, settings)


@pytest.fixture
def gateways() -> Iterator[Callable[[Settings], Gateway]]:
    """Starts gateways that end with the test."""
    started: list[Gateway] = []

    def start(settings: Settings) -> Gateway:
        started.append(start_gateway(settings))
        return started[-1]

    yield start
    for gateway in started:
        gateway.program.stop(signal.SIGKILL)
