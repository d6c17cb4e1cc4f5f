"""A real model host (a process of `inference_server`) with small models of every kind, and the gateway's application over it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from onnx import TensorProto, helper

from gateway import build_services, create_app
from gateway.context import Services
from gateway.metrics import Metrics
from gateway.models_rpc import Models
from gateway.settings import Settings
from inference_client import Client
from outboard import demo
from tests.gateway import through_front
from tests.http_servers import serving
from tests.onnx_models import identity, save, slow, times
from tests.processes import Process, start_server

KINDS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
MAX_BODY = 4 << 20
ADMINISTRATOR = ("admin", "correct horse battery")
USER = ("somebody", "another long password")


def copies(path: Path, *tensors: tuple[str, str, int, tuple[Any, ...]]) -> Path:
    """A model that gives each input back: (input's name, output's name, type, shape) each."""
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, _, kind, shape in tensors]
    outputs = [helper.make_tensor_value_info(name, kind, shape) for _, name, kind, shape in tensors]
    nodes = [helper.make_node("Identity", [given], [taken]) for given, taken, _, _ in tensors]
    return save(helper.make_graph(nodes, "copies", inputs, outputs), path)


def grows(path: Path, times: int) -> Path:
    """x [1] -> y [times], all the same number."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (size,)) for name, size in (("x", 1), ("y", times)))
    repeats = helper.make_tensor("repeats", TensorProto.INT64, (1,), [times])
    return save(helper.make_graph([helper.make_node("Tile", ["x", "repeats"], ["y"])], "grows", [x], [y], [repeats]), path)


def fill(root: Path) -> None:
    """The models that the tests name."""

    def file(name: str, declared: str = "", version: int = 1) -> Path:
        folder = root / name
        folder.mkdir(exist_ok=True)
        if declared:
            (folder / "model.toml").write_text(declared)
        return folder / str(version) / "model.onnx"

    for name, kind in KINDS.items():
        identity(file(f"same-{name}"), kind)
    times(file("triple"), 3)
    times(file("versions", 'version_policy = "all"'), 1)
    times(file("versions", version=2), 2)
    times(file("secret", "public = false"), 2)
    times(file("unloaded"), 2)
    slow(file("slow"), 1000)
    identity(file("scalar"), TensorProto.FLOAT, ())
    copies(file("pair"), ("age", "a", TensorProto.FLOAT, ("n", 1)), ("name", "b", TensorProto.STRING, ("n", 1)))
    copies(file("rows"), ("features", "same", TensorProto.FLOAT, ("n", 4)))
    (root / "animals").mkdir()
    (root / "animals" / "labels.txt").write_text("cat\ndog\nbird\n")
    declared = '[labels]\nscores = "labels.txt"\ntop_k = 2\n'
    copies(file("animals", declared), ("x", "scores", TensorProto.FLOAT, ("n", "k")), ("z", "other", TensorProto.FLOAT, ("n",)))
    copies(file("picture"), ("pixels", "y", TensorProto.FLOAT, ("n", 3, "h", "w")))
    declared = '[inputs.photo]\nkind = "image"\nsize = [2, 3]\nlayout = "NHWC"\ncolour = "BGR"\nmean = [1, 2, 3]\nstd = 2\n'
    copies(file("photo", declared), ("photo", "y", TensorProto.FLOAT, ("n", 2, 3, 3)))
    grows(file("grows"), 100_000)
    two = [(side, f"{side}_y", TensorProto.UINT8, ("n", "h", "w", 3)) for side in ("left", "right")]
    copies(file("stereo"), *two)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The model host; with the demo model."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "models").mkdir()
    fill(folder / "models")
    demo.prepare(folder / "models")
    made = start_server(folder / "models", folder, "--thrift-socket", str(folder / "thrift.sock"))
    made.addresses["socket"] = str(folder / "thrift.sock")
    with Client(f"thrift://{made['thrift']}") as client:
        client.unload_model("unloaded")
    yield made
    assert made.stop() == 0, made.log.read_text()


@dataclass(frozen=True)
class Served:
    """The application over the model host, and its address under werkzeug's server; `token`s are signed-in callers' headers.

    `plain` is the same application without the hot routes in front of it, `fronted` with the event loop instead, over the local lane.
    """

    app: Flask
    plain: Flask
    fronted: Flask
    services: Services
    address: str
    administrator: dict[str, str]
    user: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://{self.address}"


@pytest.fixture(scope="session")
def served(host: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The gateway as HTTP clients meet it."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), max_body_bytes=MAX_BODY, max_image_pixels=1_000_000)
    services = build_services(settings, Models([f"thrift://{host['thrift']}"], Client))
    try:
        services.users.first_administrator(ADMINISTRATOR[1])
        services.users.register(*USER)
        app = create_app(settings, services=services)
        plain, fronted = (create_app(settings, services=services, hot=False) for _ in range(2))
        local = replace(services, models=Models([f"thrift+unix://{host['socket']}"], Client), metrics=Metrics())
        path = settings.data_dir / "front.sock"
        with serving(app) as address, through_front.running(local, path, f"{host['socket']}.lane"):
            fronted.wsgi_app = through_front.ThroughFront(fronted.wsgi_app, path)  # type: ignore[method-assign]
            yield Served(
                app,
                plain,
                fronted,
                services,
                address,
                sign_in(services, *ADMINISTRATOR),
                sign_in(services, *USER),
            )
        local.models.close()
    finally:
        services.close()


@pytest.fixture(params=["hot", "Flask", "front"])
def web(request: pytest.FixtureRequest, served: Served) -> FlaskClient:
    """A client of the application with the hot routes, without them, and behind the event loop."""
    return {"hot": served.app, "Flask": served.plain, "front": served.fronted}[request.param].test_client()


def sign_in(services: Services, name: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {services.tokens.sign_in(name, password, '127.0.0.1').access_token}"}
