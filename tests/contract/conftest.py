"""One repository, served by an engine in this process, by a real inference server, and by every part of the gateway over that."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from gateway import build_services, create_app
from gateway.models_rpc import Models
from gateway.settings import Settings
from inference_client import Client
from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from tests.contract.cases import KINDS, LIMIT
from tests.contract.faces import FACES, Face
from tests.engines import engine_over
from tests.gateway import through_front
from tests.http_servers import serving
from tests.inference_server import grpc_front_peer
from tests.onnx_models import identity, save, times
from tests.processes import Process, start_server


@dataclass(frozen=True)
class Served:
    """Where everything is."""

    engine: Engine
    host: Process
    http: Mapping[str, str]
    grpcio: str

    @property
    def grpc(self) -> str:
        return self.host["grpc"]

    @property
    def thrift(self) -> tuple[str, int]:
        host, _, port = self.host["thrift"].rpartition(":")
        return host, int(port)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that the cases name."""
    root = tmp_path_factory.mktemp("contract")
    for datatype, kind in KINDS.items():
        identity(root / f"same-{datatype}" / "1" / "model.onnx", kind)
        identity(root / f"scalar-{datatype}" / "1" / "model.onnx", kind, ())
    identity(root / "cube-UINT8" / "1" / "model.onnx", TensorProto.UINT8, ("a", "b", "c"))
    identity(root / "unloaded" / "1" / "model.onnx")
    times(root / "triple" / "1" / "model.onnx", 3)
    two = (("a", "c", TensorProto.FLOAT, ("n",)), ("b", "d", TensorProto.INT64, ("n", 2)))
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, _, kind, shape in two]
    outputs = [helper.make_tensor_value_info(name, kind, shape) for _, name, kind, shape in two]
    nodes = [helper.make_node("Identity", [given], [taken]) for given, taken, _, _ in two]
    save(helper.make_graph(nodes, "pair", inputs, outputs), root / "pair" / "1" / "model.onnx")
    return root


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp("run"), LIMIT)
    yield made
    made.close()


@pytest.fixture(scope="session")
def engine(models: Path, zygote: Zygote) -> Iterator[Engine]:
    watcher = Watcher()
    with engine_over(zygote, watcher, models, limit=LIMIT) as made:
        made.load_all()
        made.repository_model_unload("unloaded", {})
        yield made
    watcher.close()


@pytest.fixture(scope="session")
def grpcio(engine: Engine, zygote: Zygote) -> Iterator[str]:
    """gRPC without nginx, over the engine of this process: where nginx is installed, the host's gRPC port is nginx."""
    with grpc_front_peer.serving(engine, zygote, "grpcio", max_message_bytes=LIMIT) as front:
        yield f"127.0.0.1:{front.ports[0]}"


@pytest.fixture(scope="session")
def host(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("host")
    made = start_server(models, folder, "--thrift-socket", str(folder / "t"), OUTBOARD_SERVER_MAX_MESSAGE_BYTES=str(LIMIT))
    made.addresses["socket"] = str(folder / "t")
    with Client(f"thrift://{made['thrift']}") as client:
        client.unload_model("unloaded")
    yield made
    assert made.stop() == 0, made.log.read_text()
    assert '"level": "error"' not in made.log.read_text(), made.log.read_text()


@pytest.fixture(scope="session")
def http(host: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The gateway's addresses, by which of its parts answers: the hot routes and Flask with Thrift over TCP, the event loop with the lane."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("gateway"), max_body_bytes=LIMIT)
    services = build_services(settings, Models([f"thrift://{host['thrift']}"], Client))
    local = replace(services, models=Models([f"thrift+unix://{host['socket']}"], Client))
    hot, plain, fronted = (create_app(settings, services=each, hot=each is services) for each in (services, local, local))
    path = settings.data_dir / "front"
    with through_front.running(local, path, f"{host['socket']}.lane"):
        fronted.wsgi_app = through = through_front.ThroughFront(fronted.wsgi_app, path)  # type: ignore[method-assign]
        with serving(hot) as one, serving(plain) as two, serving(fronted) as three:
            yield {"hot": one, "Flask": two, "front": three}
            assert through.asked == 0 or through.answered > through.asked / 2, "it handed back more than it answered"
    local.models.close()
    services.close()


@pytest.fixture(scope="session")
def faces(engine: Engine, host: Process, http: dict[str, str], grpcio: str) -> Iterator[dict[str, Face]]:
    served = Served(engine, host, http, grpcio)
    made = {name: make(served) for name, make in FACES.items()}
    yield made
    for face in made.values():
        face.close()
