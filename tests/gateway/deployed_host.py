"""A real model host with a users' repository, and a gateway's services over it whose reconciler the test turns by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from gateway import build_services
from gateway.context import Services
from gateway.models_rpc import Models
from gateway.operations import golden
from gateway.operations.reconciler import Reconciler
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.deployments import DeploymentRecord
from inference_client import Client
from tests.eventually import eventually
from tests.onnx_models import times
from tests.processes import Process, start_server


@dataclass
class Deployed:
    """`turn` makes the hosts agree; `record` is what is known of a deployment now."""

    services: Services
    folder: Path
    host: Process
    client: Client
    check: Callable[[DeploymentRecord, int], str]
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.begin_anew()

    @property
    def storage(self) -> Storage:
        return self.services.storage

    def begin_anew(self) -> None:
        """As after a kill of the worker: nothing is known but what is written."""
        self.reconciler = Reconciler(self.services.storage, self.services.models, self.check, self.services.now)

    def turn(self, *, ahead: bool = True) -> None:
        """Until there is nothing to do, or nothing can be done now. `ahead`: the next look at the hosts is due."""
        for _ in range(8):
            if ahead:
                self.reconciler._looked_at = 0.0
            under_way = self.reconciler.step()
            assert self.reconciler.wait(60)
            if not under_way:
                return

    def record(self, deployment_id: int) -> DeploymentRecord:
        found = self.services.storage.deployments.by_id(deployment_id)
        assert found is not None
        return found

    def ready(self, name: str) -> dict[str, str]:
        """Version -> state of what the host has."""
        return {entry.version: entry.state for entry in self.client.repository_index() if entry.name == name}

    def asked(self, name: str, value: float = 2.0, version: str = "") -> float:
        return asked(self.client, name, value, version)

    def restart(self) -> None:
        """The host again, after its end, on the same addresses."""
        thrift, metrics = (urlsplit(f"//{self.host[name].removeprefix('http://')}").port for name in ("thrift", "metrics"))
        self.host.stop()
        self.host = start_host(self.folder, "--thrift-port", str(thrift), "--metrics-port", str(metrics))


def asked(client: Client, name: str, value: float = 2.0, version: str = "") -> float:
    """What a model that multiplies makes of a number."""
    x = np.array([[value, 0]], np.float32)
    return float(client.infer(name, {"x": x}, version=version).outputs["y"][0, 0])


def start_host(folder: Path, *options: str) -> Process:
    sockets = ("--thrift-socket", str(folder / "thrift.sock"))
    return start_server(folder / "models", folder, *sockets, *options, OUTBOARD_SERVER_USER_MODELS=str(folder / "users"))


@pytest.fixture(scope="module")
def users_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    """One host for the tests of a module, which each leave nothing there."""
    folder = tmp_path_factory.mktemp("host")
    times(folder / "models" / "triple" / "1" / "model.onnx", 3)
    host = start_host(folder)
    yield host, folder
    host.stop()


@pytest.fixture
def deployed(users_host: tuple[Process, Path], tmp_path: Path) -> Iterator[Deployed]:
    with over(*users_host, tmp_path / "data") as made:
        yield made
        for folder in (users_host[1] / "users").iterdir():
            if not folder.name.startswith("."):
                made.client.remove_model(folder.name)


@pytest.fixture
def own_host(tmp_path: Path) -> Iterator[Deployed]:
    """The same with a host that the test may kill and start again."""
    times(tmp_path / "models" / "triple" / "1" / "model.onnx", 3)
    host = start_host(tmp_path)
    with over(host, tmp_path, tmp_path / "data") as made:
        yield made
    made.host.stop()


@contextmanager
def over(host: Process, folder: Path, data: Path) -> Iterator[Deployed]:
    address = f"thrift://{host['thrift']}"
    settings = Settings(data_dir=data, model_hosts=(address,))
    services = build_services(settings, Models([address], partial(Client, timeout_s=20.0)))
    with Client(address) as client:
        check = partial(golden.replay, services.storage, services.models, settings)
        made = Deployed(services, folder, host, client, check)
        yield made
        assert made.reconciler.wait(60)
    services.close()


def within(seconds: float, condition: Callable[[], Any]) -> Any:
    """What `condition` gives once it is true."""
    return eventually(condition, "it comes to be", seconds, 0.01)
