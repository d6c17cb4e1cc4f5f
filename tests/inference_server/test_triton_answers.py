"""The model configuration that is answered: what official clients read, and what can be sent back."""

import json
from pathlib import Path

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from inference_server import triton_config
from inference_server.declared import present
from inference_server.model_config import model_config, properties
from inference_server.model_settings import ModelSettings, VersionPolicy
from inference_server.repository_model import RepositoryModel
from inference_server.types import Batching
from inference_server.version_labels import Labels
from tests.inference_server.triton_configs import FILE, declared


def test_the_configuration_that_is_answered_is_one_that_official_clients_read() -> None:
    settings = ModelSettings(version_policy=VersionPolicy(latest=2), labels={"y": ("a",)})
    batching = Batching(16, (4, 8), 100, 64, 2, 1, 5000)
    said = declared('max_batch_size: 16 input { name: "x" dims: [ 3 ] } input { name: "n" dims: [ -1 ] }')
    model = RepositoryModel("m", Path(), (1,), settings, "", declared=said, parameters={"a": "b"})
    made = model_config(model, FILE, ("CPUExecutionProvider",), batching, 2)
    theirs = model_config_pb2.ModelConfig()
    json_format.ParseDict(made, theirs)
    assert theirs.max_batch_size == 16 and [list(tensor.dims) for tensor in theirs.input] == [[3], [-1]]
    assert theirs.instance_group[0].count == 2 and theirs.version_policy.latest.num_versions == 2
    assert theirs.dynamic_batching.preferred_batch_size == [4, 8] and theirs.dynamic_batching.max_queue_delay_microseconds == 100
    assert theirs.dynamic_batching.default_queue_policy.max_queue_size == 64
    assert theirs.parameters["a"].string_value == "b" and theirs.parameters["batching"].string_value == "on, up to 16 rows"


def test_what_is_off_is_said_to_be_off() -> None:
    off = Batching(reason="output 'y' keeps its batch on another axis")
    model = RepositoryModel("m", Path(), (1,), ModelSettings(), "")
    made = model_config(model, FILE, ("CPUExecutionProvider",), off, 1)
    assert made["max_batch_size"] == 0 and made["input"][0]["dims"] == [-1, 3] and "dynamic_batching" not in made
    assert made["parameters"]["batching"]["string_value"] == "off: output 'y' keeps its batch on another axis"
    labels = Labels({"stable": 3, "canary": 4}, 10)
    found = properties(off, 2, labels.split(4), labels)
    assert found == {
        "batching": "off: output 'y' keeps its batch on another axis",
        "instances": "2",
        "default_version": "3 (90 %), 4 (10 %)",
        "version_labels": "canary=4 (10 %), stable=3",
    }


def test_an_answered_configuration_can_be_sent_back(tmp_path: Path) -> None:
    settings = ModelSettings(public=False, description="d", labels={"y": ("a", "b")}, top_k=2, instances=2)
    model = RepositoryModel("m", Path(), (1,), settings, "")
    made = model_config(model, FILE, ("CPUExecutionProvider",), Batching(4), 2)
    back = triton_config.translated(triton_config.parse_json("it", json.dumps(made)), "m", tmp_path, "it")
    for name in ("public", "description", "labels", "top_k", "instances"):
        assert back.values[name] == getattr(settings, name)
    assert back.values["max_batch_size"] == 4 and back.declared is not None
    assert present("m", FILE, back.declared).inputs == FILE.inputs
