"""A Triton repository as it stands, seen through every face with official clients and our own; loads that bring a configuration and files."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from gateway import build_services, create_app
from gateway.models_rpc import Models
from gateway.settings import Settings
from idl.codes import Code, ServingError
from inference_client import Client
from tests.http_servers import serving
from tests.onnx_models import times
from tests.processes import ROOT, Process, environment, start_server

BATCHED = """
name: "batched"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2, 1 ] reshape { shape: [ 2 ] } } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "names.txt" } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 200 default_queue_policy { max_queue_size: 100 } }
version_policy { all { } }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
parameters { key: "team" value { string_value: "vision" } }
model_warmup [ { name: "one" batch_size: 2 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2, 1 ] random_data: true } } } ]
response_cache { enable: true }
"""
ENSEMBLE = """
name: "chain"
platform: "ensemble"
max_batch_size: 4
input [ { name: "PAIR" data_type: TYPE_FP32 dims: [ 2, 1 ] } ]
output [ { name: "SIX_TIMES" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "TWICE" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling {
  step [
    { model_name: "thrice" model_version: -1 input_map { key: "x" value: "TWICE" } output_map { key: "y" value: "SIX_TIMES" } },
    { model_name: "batched" model_version: 2 input_map { key: "x" value: "PAIR" } output_map { key: "y" value: "TWICE" } }
  ]
}
"""
LOST = """
platform: "ensemble"
ensemble_scheduling {
  step { model_name: "other" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }
}
"""


def fill(root: Path) -> None:
    for number in (1, 2):
        times(root / "batched" / str(number) / "model.onnx", number)
    (root / "batched" / "config.pbtxt").write_text(BATCHED)
    (root / "batched" / "names.txt").write_text("left\nright\n")
    times(root / "bare" / "1" / "net.onnx", 3, (1, 2))
    (root / "bare" / "config.pbtxt").write_text('backend: "onnxruntime" default_model_filename: "net.onnx"')
    times(root / "thrice" / "1" / "model.onnx", 3)
    for name, config in (("chain", ENSEMBLE), ("lost", LOST)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    times(root / "other" / "1" / "model.onnx", 1)
    (root / "other" / "config.pbtxt").write_text('backend: "python"')
    times(root / "wrong" / "1" / "model.onnx", 1)
    (root / "wrong" / "config.pbtxt").write_text('input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] }')


@dataclass(frozen=True)
class Served:
    host: Process
    http: str
    administrator: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root, folder = tmp_path_factory.mktemp("triton"), tmp_path_factory.mktemp("host")
    fill(root)
    host = start_server(root, folder)
    settings = Settings(data_dir=folder / "gateway")
    services = build_services(settings, Models([f"thrift://{host['thrift']}"], Client))
    services.users.first_administrator("correct horse battery")
    token = services.tokens.sign_in("admin", "correct horse battery", "127.0.0.1").access_token
    with serving(create_app(settings, services=services)) as address:
        yield Served(host, address, token)
    services.close()
    assert host.stop() == 0, host.log.read_text()
    assert not list(root.rglob("*.part")) and '"level": "error"' not in host.log.read_text()


@pytest.fixture(scope="module")
def grpc(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.host["grpc"]) as client:
        yield client


@pytest.fixture(scope="module", params=["grpc", "thrift"])
def ours(served: Served, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(f"{request.param}://{served.host[request.param]}") as client:
        yield client


def http(served: Served, script: str, *arguments: str) -> Any:
    """What the official HTTP client prints as JSON, in a process of its own."""
    code = f"import json, sys, numpy as np, tritonclient.http as triton\nclient = triton.InferenceServerClient(sys.argv[1])\n{script}"
    command = [sys.executable, "-c", code, served.http, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ensemble(client: triton.InferenceServerClient, values: np.ndarray[Any, Any]) -> list[Any]:
    given = triton.InferInput("PAIR", values.shape, "FP32")
    given.set_data_from_numpy(values)
    answer = client.infer("chain", [given])
    return [answer.as_numpy(name).tolist() for name in ("SIX_TIMES", "TWICE")]


def infer(client: triton.InferenceServerClient, model: str, values: np.ndarray[Any, Any], version: str = "") -> np.ndarray[Any, Any]:
    given = triton.InferInput("x", values.shape, "FP32")
    given.set_data_from_numpy(values)
    found: np.ndarray[Any, Any] = client.infer(model, [given], version).as_numpy("y")
    return found


def onnx(tmp_path: Path, factor: float) -> bytes:
    return times(tmp_path / "m.onnx", factor).read_bytes()


# as it stands ------------------------------------------------------------------------------------------------------------------------------


def test_metadata_has_the_batch_first_and_the_configuration_leaves_it_out(grpc: triton.InferenceServerClient) -> None:
    metadata = grpc.get_model_metadata("batched")
    assert list(metadata.inputs[0].shape) == [-1, 2, 1] and list(metadata.outputs[0].shape) == [-1, 2]
    assert list(metadata.versions) == ["1", "2"] and metadata.platform == "onnxruntime_onnx"
    config = grpc.get_model_config("batched").config
    assert config.max_batch_size == 8 and list(config.input[0].dims) == [2, 1] and list(config.input[0].reshape.shape) == [2]
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, 2)]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8] and config.dynamic_batching.max_queue_delay_microseconds == 200
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 100 and config.version_policy.WhichOneof("policy_choice") == "all"
    assert config.parameters["team"].string_value == "vision" and config.parameters["batching"].string_value == "on, up to 8 rows"


def test_batches_and_versions_answer(grpc: triton.InferenceServerClient) -> None:
    values = np.arange(10, dtype=np.float32).reshape(5, 2, 1)
    assert infer(grpc, "batched", values).tolist() == (2 * values.reshape(5, 2)).tolist()
    assert infer(grpc, "batched", values, "1").tolist() == values.reshape(5, 2).tolist()
    with pytest.raises(InferenceServerException, match=r"has shape \[-1, 2, 1\], got \[5, 2\]"):
        infer(grpc, "batched", values.reshape(5, 2))


def test_a_model_without_batching_says_so(grpc: triton.InferenceServerClient) -> None:
    assert list(grpc.get_model_metadata("bare").inputs[0].shape) == [1, 2]
    config = grpc.get_model_config("bare").config
    assert config.max_batch_size == 0 and list(config.input[0].dims) == [1, 2] and config.default_model_filename == "net.onnx"
    assert config.parameters["batching"].string_value.startswith("off: the first dimension is not open")
    assert infer(grpc, "bare", np.ones((1, 2), np.float32)).tolist() == [[3, 3]]


def test_an_ensemble_answers_and_is_described(grpc: triton.InferenceServerClient) -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    twice = 2 * values.reshape(3, 2)
    assert ensemble(grpc, values) == [(3 * twice).tolist(), twice.tolist()]
    with pytest.raises(InferenceServerException, match="has 5 rows, and model 'chain' takes at most 4"):
        ensemble(grpc, np.zeros((5, 2, 1), np.float32))
    metadata, config = grpc.get_model_metadata("chain"), grpc.get_model_config("chain").config
    assert metadata.platform == config.platform == "ensemble" and config.backend == ""
    assert [(spec.name, list(spec.shape)) for spec in (*metadata.inputs, *metadata.outputs)] == [
        ("PAIR", [-1, 2, 1]),
        ("SIX_TIMES", [-1, 2]),
        ("TWICE", [-1, 2]),
    ]
    assert config.max_batch_size == 4 and [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[2, 1], [2], [2]]
    assert config.WhichOneof("scheduling_choice") == "ensemble_scheduling"
    assert [
        (step.model_name, step.model_version, dict(step.input_map), dict(step.output_map)) for step in config.ensemble_scheduling.step
    ] == [
        ("thrice", -1, {"x": "TWICE"}, {"y": "SIX_TIMES"}),
        ("batched", 2, {"x": "PAIR"}, {"y": "TWICE"}),
    ]


def test_an_ensemble_over_http(served: Served) -> None:
    script = """
given = triton.InferInput("PAIR", [1, 2, 1], "FP32")
given.set_data_from_numpy(np.ones((1, 2, 1), np.float32))
answer = client.infer("chain", [given], outputs=[triton.InferRequestedOutput("SIX_TIMES")])
config = client.get_model_config("chain")
print(json.dumps([answer.as_numpy("SIX_TIMES").tolist(), config["platform"], config["ensemble_scheduling"]["step"][1]["model_name"]]))
"""
    assert http(served, script) == [[[6, 6]], "ensemble", "batched"]


def test_every_face_tells_the_same(served: Served, ours: Client) -> None:
    config, metadata = ours.model_config("batched"), ours.model_metadata("batched")
    print_both = "print(json.dumps([client.get_model_config(sys.argv[2]), client.get_model_metadata(sys.argv[2])]))"
    over_http, metadata_over_http = http(served, print_both, "batched")
    assert config == over_http and dict(metadata.properties) == metadata_over_http["properties"]
    assert metadata.properties["batching"] == "on, up to 8 rows" and metadata.properties["default_version"] == "2"
    assert ours.model_metadata("bare").properties["batching"].startswith("off: ")


def test_what_is_not_served_is_in_the_index_and_in_the_log(served: Served, ours: Client) -> None:
    reasons = {entry.name: entry.reason for entry in ours.repository_index() if entry.state == "UNAVAILABLE"}
    assert reasons == {
        "lost": "step 'other': model 'other' failed to load: config.pbtxt: backend 'python' is not served here, only onnxruntime and pytorch",
        "other": "config.pbtxt: backend 'python' is not served here, only onnxruntime and pytorch",
        "wrong": "input 'x' has shape [-1, 3] by config.pbtxt, and [-1, 2] in the model's file",
    }
    lines = [json.loads(line) for line in served.host.log.read_text().splitlines() if line.startswith("{")]
    (loaded,) = [line for line in lines if line["event"] == "loaded" and line["model"] == "batched"][:1]
    assert loaded["unused_settings"] == ["parameters.team"]


def test_labels_of_a_configuration_reach_the_gateway(served: Served) -> None:
    script = "print(json.dumps(client.get_model_config('batched')['parameters']['outboard']['string_value']))"
    assert json.loads(http(served, script))["labels"] == {"y": ["left", "right"]}


# loads that bring something ----------------------------------------------------------------------------------------------------------------


def test_the_official_grpc_client_loads_a_configuration_and_files(grpc: triton.InferenceServerClient, tmp_path: Path) -> None:
    values = np.ones((1, 2), np.float32)
    config = json.dumps({"max_batch_size": 4, "instance_group": [{"count": 1}]})
    grpc.load_model("fresh", config=config, files={"file:5/model.onnx": onnx(tmp_path, 5)})
    assert infer(grpc, "fresh", values).tolist() == [[5, 5]] and list(grpc.get_model_metadata("fresh").versions) == ["5"]
    assert grpc.get_model_config("fresh").config.max_batch_size in (1, 4)
    grpc.unload_model("fresh")
    assert not grpc.is_model_ready("fresh")
    with pytest.raises(InferenceServerException, match="need a 'config'"):
        grpc.load_model("fresh", files={"file:5/model.onnx": onnx(tmp_path, 5)})
    with pytest.raises(InferenceServerException, match="with a plain name"):
        grpc.load_model("fresh", config=config, files={"file:../5/model.onnx": onnx(tmp_path, 5)})
    with pytest.raises(InferenceServerException, match="not a model configuration"):
        grpc.load_model("fresh", config="{", files={"file:5/model.onnx": onnx(tmp_path, 5)})


def test_a_configuration_that_was_answered_loads_as_it_is(grpc: triton.InferenceServerClient, ours: Client) -> None:
    before = ours.model_config("batched")
    grpc.load_model("batched", config=json.dumps(before))
    assert ours.model_config("batched") == before
    grpc.load_model("batched", config=json.dumps(before | {"instance_group": [{"count": 1, "kind": "KIND_CPU"}]}))
    assert ours.model_config("batched")["instance_group"][0]["count"] == 1
    grpc.load_model("batched")
    assert ours.model_config("batched") == before


def test_an_answered_ensemble_loads_as_it_is_and_as_another(grpc: triton.InferenceServerClient, ours: Client) -> None:
    before, values = ours.model_config("chain"), np.ones((1, 2, 1), np.float32)
    grpc.load_model("chain", config=json.dumps(before))
    assert ours.model_config("chain") == before and ensemble(grpc, values)[0] == [[6, 6]]
    changed = json.loads(json.dumps(before))
    changed["ensemble_scheduling"]["step"][1]["model_version"] = "1"
    grpc.load_model("chain", config=json.dumps(changed))
    assert ensemble(grpc, values)[0] == [[3, 3]]
    grpc.load_model("chain")
    assert ours.model_config("chain") == before


def test_our_client_sends_files_over_both_protocols(ours: Client, tmp_path: Path) -> None:
    ours.load_model("fresh", {"config": "{}", "file:3/model.onnx": onnx(tmp_path, 6)})
    assert ours.infer("fresh", {"x": np.ones((1, 2), np.float32)}).outputs["y"].tolist() == [[6, 6]]
    with pytest.raises(ServingError) as caught:
        ours.load_model("fresh", {"config": "{}", "file:3/model.onnx": b"not a model"})
    assert caught.value.code is Code.INVALID_MODEL
    assert ours.infer("fresh", {"x": np.ones((1, 2), np.float32)}).outputs["y"].tolist() == [[6, 6]]
    ours.unload_model("fresh")


def test_the_official_http_client_loads_a_configuration_and_files(served: Served, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx(tmp_path, 9))
    script = """
headers = {"Authorization": "Bearer " + sys.argv[2]}
client.load_model("fresh", headers, config="{}", files={"file:2/model.onnx": open(sys.argv[3], "rb").read()})
given = triton.InferInput("x", [1, 2], "FP32")
given.set_data_from_numpy(np.ones((1, 2), np.float32))
answer = client.infer("fresh", [given]).as_numpy("y").tolist()
client.unload_model("fresh", headers)
print(json.dumps([answer, client.is_model_ready("fresh")]))
"""
    assert http(served, script, served.administrator, str(tmp_path / "model.onnx")) == [[[9, 9]], False]


def test_base64_that_is_none_is_refused_over_http(served: Served) -> None:
    script = """
body = json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": "!"}}).encode()
answer = client._post("v2/repository/models/fresh/load", body, {"Authorization": "Bearer " + sys.argv[2]}, None)
print(json.dumps([answer.status_code, json.loads(answer.read())]))
"""
    assert http(served, script, served.administrator) == [400, {"error": "parameter 'file:1/model.onnx' is not base64"}]


def test_labels_over_the_wire(served: Served, grpc: triton.InferenceServerClient, ours: Client) -> None:
    values = np.ones((1, 2, 1), np.float32)
    with pytest.raises(ServingError) as caught:
        ours.infer("batched", {"x": values}, version="canary")
    assert caught.value.code is Code.VERSION_NOT_FOUND
    with Client(f"grpc://{served.host['grpc']}") as control:
        control.set_labels("batched", {"stable": 1, "canary": 2}, 0)
        try:
            assert ours.infer("batched", {"x": values}, version="canary").outputs["y"].tolist() == [[2, 2]]
            assert ours.infer("batched", {"x": values}).outputs["y"].tolist() == [[1, 1]]
            assert infer(grpc, "batched", values, "stable").tolist() == [[1, 1]] and grpc.is_model_ready("batched", "canary")
            script = """
given = triton.InferInput("x", [1, 2, 1], "FP32")
given.set_data_from_numpy(np.ones((1, 2, 1), np.float32))
print(json.dumps([client.infer("batched", [given], version).as_numpy("y").tolist() for version in ("", "canary")]))
"""
            assert http(served, script) == [[[1, 1]], [[2, 2]]]
        finally:
            control.set_labels("batched", {}, 0)
    assert ours.infer("batched", {"x": values}).outputs["y"].tolist() == [[2, 2]]
