"""Users' models on a real server: tried, pushed, served, removed over every wire; callers and the server that are killed meanwhile."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from idl import tensors
from idl.codes import Code, ServingError
from inference_client import Client
from outboard import demo
from tests.eventually import eventually
from tests.inference_server import test_pmml_models as pmml
from tests.inference_server.test_hostile_models import processes
from tests.needs import boxed
from tests.onnx_models import slow, times
from tests.processes import ROOT, Process, environment, start_server

WIRES = ("grpc", "thrift", "grpc+unix", "thrift+unix")


class Host:
    """A server with a users' repository, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.users = folder / "users"
        times(folder / "models" / "op.model" / "1" / "model.onnx", 5)
        self.server = self._start()

    def _start(self) -> Process:
        made = start_server(
            self.folder / "models",
            self.folder,
            *("--grpc-socket", str(self.folder / "g"), "--thrift-socket", str(self.folder / "t")),
            OUTBOARD_SERVER_USER_MODELS=str(self.users),
        )
        made.addresses |= {"grpc+unix": str(self.folder / "g"), "thrift+unix": str(self.folder / "t")}
        return made

    def client(self, wire: str = "thrift+unix") -> Client:
        return Client(f"{wire}://{self.server[wire]}", timeout_s=30)

    def restart(self, number: signal.Signals) -> None:
        self.server.stop(number)
        self.server = self._start()

    def trials(self) -> list[str]:
        return os.listdir(self.users / ".trials") if (self.users / ".trials").exists() else []


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("u"))
    yield made
    assert made.server.stop() == 0, made.server.log.read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return times(tmp_path_factory.mktemp("m") / "mine.onnx", 3)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow(tmp_path_factory.mktemp("m") / "endless.onnx", 10_000_000)


def refused(call: object) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize("wire", WIRES)
def test_tried_pushed_served_and_removed(host: Host, model: Path, wire: str) -> None:
    name = f"ann.{wire.replace('+', '-')}"
    with host.client(wire) as client:
        found = client.validate(model)
        assert (found.format, found.model_file, found.inputs[0].shape) == ("onnx", "model.onnx", ("batch", "2"))
        assert [each.batch for each in found.latencies] == [1, 8] and not host.trials()
        with model.open("rb") as opened:
            assert client.validate([("anything", opened)]).format == "onnx"
        error = refused(lambda: client.validate(ROOT / "README.md"))
        assert error.code is Code.INVALID_MODEL and "README.md is a text" in error.message
        assert not client.put_file(model, name, 1, found.model_file, user=True).existed
        assert refused(lambda: client.infer(name, {"x": np.ones((1, 2), np.float32)})).code is Code.NOT_READY
        client.load_model(name)
        assert client.infer(name, {"x": np.ones((1, 2), np.float32)}).outputs["y"].tolist() == [[3, 3]]
        assert refused(lambda: client.put_file(model, "op.model", 2, "model.onnx", user=True)).code is Code.ALREADY_EXISTS
        assert refused(lambda: client.remove_model("op.model")).code is Code.FORBIDDEN
        assert client.remove_model(name) and not client.remove_model(name)
        assert refused(lambda: client.model_metadata(name)).code is Code.MODEL_NOT_FOUND
        assert client.infer("op.model", {"x": np.ones((1, 2), np.float32)}).outputs["y"].tolist() == [[5, 5]]


@pytest.mark.parametrize("wire", ["grpc", "thrift"])
def test_a_caller_whose_time_is_up(host: Host, endless: Path, wire: str) -> None:
    with host.client(wire) as client:
        assert refused(lambda: client.validate(endless, timeout_s=2)).code in (Code.DEADLINE_EXCEEDED, Code.INVALID_MODEL)
        eventually(lambda: not processes(host.users) and not host.trials(), "nothing is left of it", 15)
        assert client.server_ready()


def test_a_caller_that_is_killed(host: Host, endless: Path) -> None:
    script = f"from inference_client import Client; Client('grpc://{host.server['grpc']}').validate({str(endless)!r})"
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment())
    eventually(lambda: processes(host.users), "it is tried", 30)
    caller.kill()
    caller.wait()
    eventually(lambda: not processes(host.users) and not host.trials(), "nothing is left of it", 15)


def test_a_server_that_is_killed(host: Host, endless: Path, model: Path) -> None:
    with host.client("grpc") as client:
        for name in ("ann.kept", "ann.never"):
            client.put_file(model, name, 1, "model.onnx", user=True)
        client.load_model("ann.kept")
    script = f"from inference_client import Client; Client('grpc://{host.server['grpc']}').validate({str(endless)!r})"
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    eventually(lambda: processes(host.users), "it is tried", 30)
    assert host.trials()
    host.server.process.kill()
    caller.wait(30)
    eventually(lambda: not processes(host.users), "its process ends with the server", 15)
    host.restart(signal.SIGKILL)
    assert not host.trials(), "swept at the start"
    with host.client() as client:
        assert client.infer("ann.kept", {"x": np.ones((1, 2), np.float32)}).outputs["y"].tolist() == [[3, 3]]
        assert not client.model_ready("ann.never") and client.server_ready()
        assert client.remove_model("ann.kept") and client.remove_model("ann.never")


@pytest.mark.parametrize("kind", ["small", "demo", pytest.param("pmml", marks=pmml.ready)])
def test_what_is_proposed_is_enough(host: Host, model: Path, tmp_path: Path, kind: str) -> None:
    """Loaded with that reservation, where batches are tried as well, and run with eight rows."""
    if kind == "demo":
        demo.prepare(tmp_path)
        model = tmp_path / demo.NAME / "1" / "model.onnx"
    elif kind == "pmml":
        model = tmp_path / "tree.xml"
        model.write_text(pmml.TREE)
    with host.client() as client:
        found = client.validate(model)
        toml = tmp_path / "model.toml"
        toml.write_text(f'cpus = {found.proposed_cpus}\nmemory = "{found.proposed_memory_bytes // 2**20}MiB"\n')
        client.put_file(toml, "ann.proposed", 0, "model.toml", user=True)
        client.put_file(model, "ann.proposed", 1, found.model_file, user=True)
        client.load_model("ann.proposed")
        inputs: dict[str, np.ndarray] = {}
        for tensor in found.inputs:
            shape = [8 if not axis.isdigit() else int(axis) for axis in tensor.shape]
            text = tensor.datatype == "BYTES"
            inputs[tensor.name] = np.full(shape, tensor.values[0] if text else 1, object if text else tensors.DTYPES[tensor.datatype])
        client.infer("ann.proposed", inputs)
        (loaded,) = [each for each in client.capacity().models if each.name == "ann.proposed"]
        assert loaded.memory_bytes < found.proposed_memory_bytes == loaded.memory_reserved_bytes
        assert client.remove_model("ann.proposed")


@boxed
def test_code_of_users_is_tried_and_served_in_a_box(host: Host, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import os\nassert os.getuid() == 65534\ndef infer(inputs):\n    return {'y': inputs['x'] + 1}\n")
    (tmp_path / "model.toml").write_text('[inputs.x]\ndatatype = "FP32"\nshape = [-1]\n[outputs.y]\ndatatype = "FP32"\nshape = [-1]\n')
    with host.client() as client:
        found = client.validate([tmp_path / "model.py", tmp_path / "model.toml"])
        assert (found.format, [each.batch for each in found.latencies]) == ("python", [1, 8])
        client.put_file(tmp_path / "model.py", "ann.code.t1", 1, found.model_file, user=True)
        client.put_file(tmp_path / "model.toml", "ann.code.t1", 0, "model.toml", user=True)
        client.load_model("ann.code.t1")
        assert client.infer("ann.code.t1", {"x": np.float32([1, 2])}).outputs["y"].tolist() == [2, 3]
        assert client.remove_model("ann.code.t1")
