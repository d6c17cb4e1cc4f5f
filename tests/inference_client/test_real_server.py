"""Every verb against the real inference server, over each kind of address: the two protocols must tell the same."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.messages import InferRequest, Tensor
from inference_client import Client
from tests.needs import boxed
from tests.onnx_models import times
from tests.processes import Process, start_server

X = np.float32([[1, -2], [np.inf, 0]])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("s")
    for version in (1, 2):
        times(folder / "models" / "m" / str(version) / "model.onnx", version)
    (folder / "models" / "m" / "model.toml").write_text('version_policy = { specific = [1, 2] }\ndescription = "é"\n')
    made = start_server(folder / "models", folder, "--grpc-socket", str(folder / "g"), "--thrift-socket", str(folder / "t"))
    made.addresses |= {"grpc+unix": str(folder / "g"), "thrift+unix": str(folder / "t")}
    yield made
    assert made.stop() == 0, made.log.read_text()


@pytest.fixture(params=["grpc", "grpc+unix", "thrift", "thrift+unix"])
def client(server: Process, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(f"{request.param}://{server[request.param]}") as made:
        yield made


def test_inference(client: Client) -> None:
    result = client.infer("m", {"x": X}, request_id="r-1", outputs=["y"])
    assert (result.model_name, result.model_version, result.id) == ("m", "2", "r-1")
    np.testing.assert_array_equal(result.outputs["y"], X * 2)
    assert dict(result.datatypes) == {"y": "FP32"}
    assert {"queue_us", "compute_us"} <= result.parameters.keys()
    assert all(isinstance(result.parameters[name], int) for name in ("queue_us", "compute_us"))
    np.testing.assert_array_equal(client.infer("m", {"x": X}, version="1").outputs["y"], X)


@pytest.mark.parametrize(
    "change, code",
    [
        ({"model_name": "none"}, Code.MODEL_NOT_FOUND),
        ({"model_version": "9"}, Code.VERSION_NOT_FOUND),
        ({"inputs": ()}, Code.INVALID_INPUT),
        ({"inputs": (Tensor("x", "FP32", (1, 2), bytes(7)),)}, Code.INVALID_INPUT),
        ({"outputs": ("z",)}, Code.INVALID_INPUT),
        ({"deadline": 0.5}, Code.DEADLINE_EXCEEDED),
    ],
)
def test_refusals(client: Client, change: dict[str, object], code: Code) -> None:
    good = InferRequest("m", (Tensor("x", "FP32", (1, 2), bytes(8)),), id="r-2")
    with pytest.raises(ServingError) as caught:
        client.infer_raw(replace(good, **change))  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.request_id) == (code, "r-2")
    assert client.infer_raw(good).id == "r-2"


def test_the_verbs_that_read(client: Client) -> None:
    assert client.server_live() and client.server_ready() and client.model_ready("m") and client.model_ready("m", "1")
    assert not client.model_ready("m", "9")
    assert not client.model_ready("none")
    assert client.server_metadata().name == "outboard"
    metadata = client.model_metadata("m")
    assert metadata.versions == ("1", "2")
    assert [(spec.name, spec.datatype, spec.shape) for spec in metadata.inputs] == [("x", "FP32", (-1, 2))]
    assert [(entry.version, entry.state) for entry in client.repository_index(ready=True)] == [("1", "READY"), ("2", "READY")]
    client.infer("m", {"x": X})
    statistics = client.model_statistics("m", "2")[0]
    assert statistics.success.count >= 1
    assert statistics.compute_infer.ns > 0


def test_both_protocols_tell_the_same(server: Process) -> None:
    with Client(server["grpc"]) as grpc, Client(f"thrift://{server['thrift']}") as thrift:
        assert grpc.server_metadata() == thrift.server_metadata()
        assert grpc.model_metadata("m", "1") == thrift.model_metadata("m", "1")
        assert grpc.model_config("m") == thrift.model_config("m")
        assert grpc.model_config("m")["version_policy"] == {"specific": {"versions": [1, 2]}}
        assert [(given["name"], given["data_type"]) for given in grpc.model_config("m")["input"]] == [("x", "TYPE_FP32")]
        assert grpc.model_statistics() == thrift.model_statistics()
        assert grpc.repository_index() == thrift.repository_index()


def test_loading_and_unloading(client: Client) -> None:
    client.load_model("m", {"version": "1"})
    assert client.infer("m", {"x": X}).model_version == "1"
    with pytest.raises(ServingError) as caught:
        client.load_model("m", {"version": "9"})
    assert caught.value.code is Code.VERSION_NOT_FOUND
    client.unload_model("m")
    with pytest.raises(ServingError) as caught:
        client.infer("m", {"x": X})
    assert caught.value.code is Code.NOT_READY
    client.load_model("m")
    assert client.infer("m", {"x": X}).model_version == "2"


def test_threads_each_get_their_own_answer(client: Client) -> None:
    def calls(thread: int) -> bool:
        values = [np.float32([[thread, number]]) for number in range(50)]
        return all((client.infer("m", {"x": value}, request_id=str(value)).outputs["y"] == value * 2).all() for value in values)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(calls, range(8)))


@pytest.mark.parametrize("wire", ["grpc", "thrift"])
def test_the_control_verbs(server: Process, tmp_path: Path, wire: str) -> None:
    with Client(f"{wire}://{server[wire]}") as client:
        capacity = client.capacity()
        assert {(model.name, model.version) for model in capacity.models} >= {("m", "2")}
        assert capacity.cpus > 0 < capacity.disk_available_bytes
        file = times(tmp_path / "model.onnx", 7)
        assert not client.put_file(file, f"copied-{wire}", 1, "model.onnx").existed
        stored = client.put_file(file, f"copied-{wire}", 1, "model.onnx")
        assert (stored.existed, stored.size) == (True, file.stat().st_size)
        with pytest.raises(ServingError) as caught:
            client.put_file(times(file, 8), f"copied-{wire}", 1, "model.onnx")
        assert caught.value.code is Code.ALREADY_EXISTS
        assert client.drain(5).drained
        with pytest.raises(ServingError) as caught:
            client.infer("m", {"x": X})
        assert caught.value.code is Code.NOT_READY
        assert client.drain(0, resume=True).in_flight == 0
        assert client.infer("m", {"x": X}).model_version == "2"


@boxed
def test_scripts_over_every_address(server: Process, tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text("def preprocess(inputs): return {'x': inputs['x'] * 2, 'said': ['ü', b'a\\0']}\n")
    with Client(f"thrift://{server['thrift']}", timeout_s=60) as control:
        assert control.validate_script(file.read_bytes()).functions == ("preprocess",)
    with Client(f"grpc://{server['grpc']}", timeout_s=60) as control:
        assert control.validate_script(file.read_bytes()).functions == ("preprocess",)
        with pytest.raises(ServingError) as caught:
            control.validate_script(b"\nimport os\nos.fork()")
        assert caught.value.code is Code.INVALID_INPUT
        assert caught.value.message == "the script raised PermissionError: [Errno 1] Operation not permitted (script.py, line 3)"
        control.put_file(file, "script", 1, "script.py")
        control.load_model("script")
        try:
            for protocol in ("grpc", "grpc+unix", "thrift", "thrift+unix"):
                with Client(f"{protocol}://{server[protocol]}", local_lane=protocol != "grpc+unix") as client:
                    assert client.model_metadata("script").properties["functions"] == "preprocess"
                    outputs = client.infer("script", {"x": X}, parameters={"function": "preprocess"}).outputs
                    np.testing.assert_array_equal(outputs["x"], X * 2)
                    assert outputs["said"].tolist() == ["ü".encode(), b"a\0"]
                    same = client.infer("script", {"any": X, "text": "t"}, parameters={"function": "postprocess"}).outputs
                    np.testing.assert_array_equal(same["any"], X)
                    assert same["text"].item() == b"t"
                    with pytest.raises(ServingError) as caught:
                        client.infer("script", {"x": X})
                    assert caught.value.code is Code.INVALID_INPUT
        finally:
            control.unload_model("script")
