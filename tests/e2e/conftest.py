"""Everything together as `outboard up` starts it, and a server for `outboard models`."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from inference_client import Client
from outboard.__main__ import main
from tests.e2e.nginx_program import authority, certificate, started  # noqa: F401
from tests.onnx_models import identity, times
from tests.processes import Process, descendants, start_server, start_up, wait_until_gone


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Everything, with the demo model and a few tiny ones, as a new user would start it."""
    folder = tmp_path_factory.mktemp("stack")
    models = folder / "models"
    times(models / "triple" / "1" / "model.onnx", 3)
    times(models / "reloaded" / "1" / "model.onnx", 3)
    identity(models / "text" / "1" / "model.onnx", 8)
    made = start_up(folder / "data", "--models", str(models), OUTBOARD_ADMIN_PASSWORD="correct horse battery")
    yield made
    below = descendants(made.process.pid)
    assert made.stop(signal.SIGINT) == 0, made.log.read_text()
    assert not wait_until_gone(below), "processes left over"


# what tests of `outboard models` use -----------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]
X = np.float32([[1, 1]])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """With the model `first`. A module that needs another makes its own, of this name."""
    folder = tmp_path_factory.mktemp("host")
    times(folder / "models" / "first" / "1" / "model.onnx", 1)
    made = start_server(folder / "models", folder)
    yield made
    assert made.stop() == 0, made.log.read_text()


@pytest.fixture
def repository(server: Process) -> Path:
    return server.log.parent / "models"


@pytest.fixture
def client(server: Process) -> Iterator[Client]:
    with Client(server["grpc"]) as made:
        yield made


@pytest.fixture
def outboard(server: Process, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `outboard models ...` here: (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["models", *map(str, arguments), "--host", server["grpc"]])
        return code, *capsys.readouterr()

    return run


def served(client: Client, model: str, version: str = "") -> tuple[str, float]:
    """(version, the factor that it multiplies by)"""
    result = client.infer(model, {"x": X}, version=version)
    return result.model_version, float(result.outputs["y"][0, 0])


def rows(text: str) -> list[list[str]]:
    """The words of each line of a printed table."""
    return [line.split() for line in text.splitlines()]
