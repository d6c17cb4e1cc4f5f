"""A gateway over two model hosts: both have the same, one may go and come back, and nobody who calls notices."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway import build_services
from gateway.models_rpc import Models
from gateway.operations import golden, reconciler
from gateway.settings import Settings
from gateway.storage.deployments import DeploymentRecord
from idl.codes import Code, ServingError
from inference_client import Client
from inference_server.executors import sandbox
from tests.eventually import eventually
from tests.gateway.deployed_host import Deployed, asked, start_host
from tests.gateway.deployed_rows import DOER, NOW, deployment, model, user
from tests.gateway.owners import Place, at, fivefold, triple  # noqa: F401
from tests.onnx_models import times
from tests.processes import Process

SCRIPT = b"def preprocess(inputs):\n    return inputs\n"


@dataclass
class Host:
    """One of the two: its process, which the test may kill, and a client of it alone."""

    folder: Path
    process: Process
    client: Client

    def kill(self) -> None:
        self.process.process.kill()
        self.process.process.wait()

    def begin(self) -> None:
        port = urlsplit(f"//{self.process['thrift']}").port
        self.process.stop()
        self.process = start_host(self.folder, "--thrift-port", str(port))

    def ready(self, name: str) -> set[str]:
        return {entry.version for entry in self.client.repository_index() if (entry.name, entry.state) == (name, "READY")}

    def lose(self) -> None:
        """What users have there."""
        for entry in (self.folder / "users").iterdir():
            entry.rename(self.folder / f"lost-{entry.name}")


@dataclass
class Pair:
    over: Deployed
    one: Host
    two: Host

    def want(self, record: DeploymentRecord, **changes: Any) -> DeploymentRecord:
        made = self.over.storage.deployments.change(record.id, changes, DOER, NOW)
        assert made is not None
        return made

    def turn(self) -> None:
        """What waits after a failure does not wait."""
        self.over.turn()
        for record in self.over.storage.deployments.alive():
            if record.retry_at:
                self.over.storage.deployments.settle(record, {"retry_at": 0.0}, NOW)
        self.over.turn()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Of all tests here, each of which leaves both running, and nothing of users."""
    made: list[Host] = []
    with ExitStack() as stack:
        for name in ("one", "two"):
            folder = tmp_path_factory.mktemp(name)
            times(folder / "models" / "triple" / "1" / "model.onnx", 3)
            process = start_host(folder)
            made.append(Host(folder, process, stack.enter_context(Client(f"thrift://{process['thrift']}"))))
        yield made
    for host in made:
        host.process.stop()


@pytest.fixture
def pair(hosts: list[Host], tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        addresses = tuple(f"thrift://{host.process['thrift']}" for host in hosts)
        settings = Settings(data_dir=tmp_path / "data", model_hosts=addresses)
        services = build_services(settings, Models(addresses, partial(Client, timeout_s=20.0)))
        stack.callback(services.close)
        check = partial(golden.replay, services.storage, services.models, settings)
        made = Pair(Deployed(services, hosts[0].folder, hosts[0].process, hosts[0].client, check), *hosts)
        yield made
        assert made.over.reconciler.wait(60)
        for host in hosts:
            for name in {entry.name for entry in host.client.repository_index()} - {"triple"}:
                host.client.remove_model(name)


def deployed(pair: Pair, tmp_path: Path, *names: str) -> tuple[list[DeploymentRecord], list[int]]:
    """Ann's deployments of a model whose versions multiply by 2, 3 and 5; and the ids of these."""
    ann = user(pair.over.storage, "ann")
    model_id, versions = model(pair.over.storage, ann, "m", *(times(tmp_path / f"{factor}.onnx", factor) for factor in (2, 3, 5)))
    return [deployment(pair.over.storage, ann, name, model_id, versions[0]) for name in names], versions


def test_one_host_goes_and_comes_back(pair: Pair, tmp_path: Path) -> None:
    (changed, sleepy, stopped, doomed), versions = deployed(pair, tmp_path, "changed", "sleepy", "stopped", "doomed")
    pair.turn()
    assert all(asked(host.client, f"ann.{name}") == 4 for host in (pair.one, pair.two) for name in ("changed", "sleepy", "stopped"))
    assert pair.over.storage.deployments.lull(pair.over.record(sleepy.id), NOW)
    pair.turn()
    pair.two.kill()

    owner = replace(user(pair.over.storage, "bob"), user_id=changed.owner_id)
    pair.want(changed, version_id=versions[2])
    pair.want(stopped, desired_state="paused", state="pausing")
    assert pair.over.storage.deployments.wake(sleepy.id, NOW)
    new = deployment(pair.over.storage, owner, "new", changed.model_id, versions[1])
    pair.want(doomed, desired_state="deleted", state="deleting")
    again = deployment(pair.over.storage, owner, "doomed", changed.model_id, versions[1])
    pair.turn()
    for record, state, factor in ((changed, "running", 5), (sleepy, "running", 2), (new, "running", 3), (stopped, "paused", 0)):
        found = pair.over.record(record.id)
        assert (found.state, found.reason, found.failures) == (state, "", 0) and found.observed_generation == found.generation
        if factor:
            assert asked(pair.one.client, found.rpc_name) == 2 * factor
    assert pair.over.record(doomed.id).state == "deleting", "the other host still has it"
    waiting = pair.over.record(again.id)
    assert waiting.state == "starting" and "its name before" in waiting.reason and pair.one.ready("ann.doomed") == set()

    pair.two.begin()
    assert pair.two.ready("ann.changed") == {"1"}, "what it had when it went"
    pair.turn()
    assert [pair.two.ready(f"ann.{name}") for name in ("changed", "sleepy", "new", "stopped", "doomed")] == [
        {"3"},
        {"1"},
        {"2"},
        set(),
        {"2"},
    ]
    assert (pair.over.record(doomed.id).state, pair.over.record(again.id).state, pair.over.record(again.id).reason) == (
        "deleted",
        "running",
        "",
    )
    assert asked(pair.two.client, "ann.changed") == 10 and asked(pair.two.client, "ann.doomed") == 6


def test_a_host_that_comes_back_without_its_files(pair: Pair, tmp_path: Path) -> None:
    """Nobody's call fails, and the deployment never does."""
    (made,), _ = deployed(pair, tmp_path, "d")
    pair.turn()
    stop, failures, broken, answers, states = threading.Event(), list[BaseException](), list[BaseException](), [0], set[str]()

    def ask() -> None:
        with Client(pair.over.services.models.hosts, timeout_s=20.0) as client:
            while not stop.is_set():
                try:
                    assert asked(client, "ann.d") == 4
                    answers[0] += 1
                except ServingError as error:
                    # what was inside of a process that is killed is not sent twice
                    (broken if error.code is Code.UNAVAILABLE else failures).append(error)
                except BaseException as error:
                    failures.append(error)
                    raise
                states.add(pair.over.record(made.id).state)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(2):
            pair.two.kill()
            pair.two.lose()
            pair.two.begin()
            assert pair.two.ready("ann.d") == set()
            before = answers[0]
            eventually(lambda before=before: answers[0] >= before + 20 or failures, "it is called", 30)  # type: ignore[misc]
            pair.turn()
            assert pair.two.ready("ann.d") == {"1"} and pair.two.client.capacity().models
            for entry in pair.two.folder.glob("lost-*"):
                entry.rename(tmp_path / f"{entry.name}-{before}")
    finally:
        stop.set()
        thread.join()
    assert not failures and states == {"running"} and answers[0] > 40
    assert all("broke before" in str(error) for error in broken) and len(broken) < 10, (
        "and what was inside of a killed one is all that was lost"
    )


def test_a_version_that_one_host_cannot_load_is_on_neither(pair: Pair, tmp_path: Path) -> None:
    (made,), versions = deployed(pair, tmp_path, "d")
    pair.turn()
    (pair.two.folder / "users" / "ann.d" / "2").write_text("in the way")
    pair.want(made, version_id=versions[1])
    pair.over.turn()
    found = pair.over.record(made.id)
    assert (found.state, found.version, found.serving_version) == ("running", 1, 1) and "version 2 was refused" in found.notice
    assert asked(pair.one.client, "ann.d") == asked(pair.two.client, "ann.d") == 4


@pytest.fixture
def there(pair: Pair) -> Place:
    return at(pair.over)


def test_uploads_tests_and_scripts(pair: Pair, there: Place, triple: Path, fivefold: Path) -> None:  # noqa: F811
    inputs = {"inputs": {"x": [[1, 2]]}}
    assert there.ann.upload(triple, name="m")[0] == 201
    for _ in range(4):
        assert there.ann("POST", "/v1/models/m/test", json=inputs)[1]["outputs"] == {"y": [[3, 6]]}
    assert {host.client.capacity().models[-1].name for host in (pair.one, pair.two)} == {"ann.m.test"}
    for number, host in enumerate((pair.one, pair.two)):
        host.kill()
        pair.over.services.models._turn = number - 1
        assert there.ann.upload(fivefold, name=f"a{number}")[0] == 201, "it is the turn of the one that is away"
        if not sandbox.unusable():
            pair.over.services.models._turn = number - 1
            assert there.ann("POST", f"/v1/scripts?name=s{number}", data=SCRIPT, content_type="text/x-python")[0] == 201
        host.begin()
    status, refused = there.ann.upload(Path(__file__), name="c")
    assert status == 422 and refused["code"] == "invalid_model", "a host that says so is believed"


def test_a_host_that_hangs_holds_up_nobody(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "_LOOK_TIMEOUT_S", 0.3)
    (made,), versions = deployed(pair, tmp_path, "d")
    pair.turn()
    pair.two.process.process.send_signal(signal.SIGSTOP)
    try:
        pair.want(made, version_id=versions[2])
        begun = time.monotonic()
        pair.over.turn()
        found = pair.over.record(made.id)
        assert (found.state, found.serving_version) == ("running", 3) and asked(pair.one.client, "ann.d") == 10
        assert time.monotonic() - begun < 15, "not as long as a call to it may take, again and again"
    finally:
        pair.two.process.process.send_signal(signal.SIGCONT)
    pair.turn()
    assert asked(pair.two.client, "ann.d") == 10
