"""Real nginx with a configuration of ours, as a process of a test, and how it is asked."""

import contextlib
import http.client
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from outboard import nginx
from tests.certificates import Authority
from tests.gateway.conftest import Program, spawn
from tests.processes import free_port

MAX_BODY = 1 << 20


class Nginx:
    """A running nginx. `user`: who runs it, where this is root."""

    def __init__(self, kind: str, values: nginx.Values, user: str | None = None) -> None:
        configuration = values.run_dir / "nginx.conf"
        configuration.write_text(nginx.render(kind, values))
        binary = nginx.find()
        assert binary is not None
        command = nginx.command(binary, configuration)
        self.program: Program = spawn(["setpriv", f"--reuid={user}", "--clear-groups", *command] if user else command)
        self.port = int(values.listen.rpartition(":")[2])
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(ConnectionRefusedError), self.connect():
                return
            assert self.program.process.poll() is None and time.monotonic() < deadline, self.program.log
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(self.client()) as client:
            return ask(client, method, path, body, headers)


def ask(client: http.client.HTTPConnection, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple:
    client.request(method, path, body, headers or {})
    answer = client.getresponse()
    return answer.status, {name.lower(): text for name, text in answer.headers.items()}, answer.read()


def some_values(folder: Path, **changes: object) -> nginx.Values:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    values = nginx.Values(folder / "run", f"127.0.0.1:{free_port()}", folder / "gateway.sock", max_body_bytes=MAX_BODY, workers="1")
    return replace(values, **changes)


@pytest.fixture
def started() -> Iterator[list[Program]]:
    """What is put in here ends with the test."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        program.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> dict[str, Path]:
    """What a configuration with TLS needs: the host's own, signed by `authority`."""
    made = authority.sign("host")
    return {"certificate": made.certificate, "certificate_key": made.key}
