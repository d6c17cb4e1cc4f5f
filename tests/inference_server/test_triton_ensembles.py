"""Triton's ensembles as pipelines: what they answer, what is passed over, and what is refused with the place."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from idl.codes import Code, ServingError
from idl.messages import InferRequest
from inference_server import triton_config
from inference_server.declared import CONFIG
from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from inference_server.setting_checks import InvalidModelSettings
from tests.engines import engine_over
from tests.inference_server.conftest import request
from tests.onnx_models import times
from tests.python_models import tokens

FIRST = '{ model_name: "double" model_version: -1 input_map { key: "x" value: "IN" } output_map { key: "y" value: "MIDDLE" } }'
SECOND = '{ model_name: "triple" model_version: -1 input_map { key: "x" value: "MIDDLE" } output_map { key: "y" value: "OUT" } }'
TENSORS = 'input { name: "IN" data_type: TYPE_FP32 dims: [ 2 ] } output { name: "OUT" data_type: TYPE_FP32 dims: [ 2 ] }'


def scheduling(*steps: str, more: str = "") -> str:
    return f'platform: "ensemble" ensemble_scheduling {{ {more} step [ {", ".join(steps or (FIRST, SECOND))} ] }}'


CHAIN = f"max_batch_size: 8 {TENSORS} {scheduling()}"


def ensemble(repository: Path, config: str, name: str = "e", *versions: str) -> None:
    for version in versions or ("1",):
        (repository / name / version).mkdir(parents=True, exist_ok=True)
    (repository / name / CONFIG).write_text(config)


def ask(engine: Engine, values: Any = ((1, 2),), *, name: str = "e", outputs: tuple[str, ...] = ()) -> list[float]:
    given = request(name, values, name="IN")
    response = engine.model_infer(InferRequest(name, given.inputs, outputs=outputs))
    return [value for output in response.outputs for value in np.frombuffer(output.data, np.float32).tolist()]


@pytest.fixture
def steps(engine: Engine, repository: Path) -> Engine:
    times(repository / "double" / "1" / "model.onnx", 2)
    times(repository / "triple" / "1" / "model.onnx", 3)
    for name in ("double", "triple"):
        engine.repository_model_load(name, {})
    return engine


def loaded(engine: Engine, repository: Path, config: str, toml: str = "") -> Engine:
    ensemble(repository, config)
    if toml:
        (repository / "e" / "model.toml").write_text(toml)
    engine.repository_model_load("e", {})
    return engine


def official(engine: Engine, name: str = "e") -> Any:
    """The configuration as the official client has it."""
    return json_format.ParseDict(engine.model_config(name, ""), model_config_pb2.ModelConfig())


def test_a_repository_starts_whatever_the_order_of_its_names(engine: Engine, repository: Path) -> None:
    ensemble(repository, CHAIN, "a")
    ensemble(repository, CHAIN.replace('"triple"', '"a"').replace('key: "x" value: "MIDDLE"', 'key: "IN" value: "MIDDLE"')
             .replace('key: "y" value: "OUT"', 'key: "OUT" value: "OUT"'), "outer")  # fmt: skip
    times(repository / "double" / "1" / "model.onnx", 2)
    times(repository / "triple" / "1" / "model.onnx", 3)
    engine._library.load_all(0)
    assert ask(engine, name="a") == [6, 12]
    assert ask(engine, name="outer") == [12, 24], "an ensemble in an ensemble"


def test_what_official_clients_are_told(steps: Engine, repository: Path) -> None:
    config = official(loaded(steps, repository, CHAIN))
    assert (config.platform, config.backend, config.max_batch_size) == ("ensemble", "", 8)
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[2], [2]]
    first, second = config.ensemble_scheduling.step
    assert (first.model_name, first.model_version, dict(first.input_map), dict(first.output_map)) == (
        *("double", -1),
        {"x": "IN"},
        {"y": "MIDDLE"},
    )
    assert dict(second.input_map) == {"x": "MIDDLE"} and not config.default_model_filename
    metadata = steps.model_metadata("e", "")
    assert metadata.platform == "ensemble" and metadata.inputs[0].shape == (-1, 2)
    assert metadata.properties["batching"] == "off: requests are put together in the queues of its steps"


def test_maps_that_a_toml_leaves_out_are_told_in_full(steps: Engine, repository: Path) -> None:
    (repository / "p" / "1").mkdir(parents=True)
    (repository / "p" / "model.toml").write_text(
        '[[steps]]\nmodel = "double"\noutputs = { y = "m" }\n[[steps]]\nname = "last"\nmodel = "triple"\nversion = "stable"\ninputs = { x = "m" }'
    )
    (repository / "triple" / "model.toml").write_text("version_labels = { stable = 1 }")
    for name in ("triple", "p"):
        steps.repository_model_load(name, {})
    config = official(steps, "p")
    assert (config.platform, config.max_batch_size, list(config.input[0].dims)) == ("ensemble", 0, [-1, 2])
    assert [(dict(step.input_map), dict(step.output_map)) for step in config.ensemble_scheduling.step] == [
        ({"x": "x"}, {"y": "m"}),
        ({"x": "m"}, {"y": "y"}),
    ]
    # what the message has no word for comes back with it
    (repository / "p" / "model.toml").write_text("")
    before = steps.model_config("p", "")
    steps.repository_model_load("p", {"config": json.dumps(before)})
    assert steps.model_config("p", "") == before
    steps.set_labels("triple", {"other": 1}, 0)
    with pytest.raises(ServingError, match="step 'last': model 'triple' version 'stable' is not loaded"):
        steps.model_infer(request("p", [[1, 2]]))


def test_the_whole_of_a_batch_is_a_limit(steps: Engine, repository: Path) -> None:
    loaded(steps, repository, CHAIN)
    assert ask(steps, [[1, 1]] * 8) == [6] * 16
    with pytest.raises(ServingError, match="9 rows, and model 'e' takes at most 8"):
        ask(steps, [[1, 1]] * 9)


def test_a_step_without_a_batch_in_an_ensemble_with_one(steps: Engine, repository: Path) -> None:
    times(repository / "double" / "1" / "model.onnx", 2, (1, 2))
    steps.repository_model_load("double", {})
    config = official(loaded(steps, repository, CHAIN))
    assert config.max_batch_size == 0 and [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[1, 2], [-1, 2]]
    assert ask(steps) == [6, 12]
    with pytest.raises(ServingError, match=r"has shape \[1, 2\], got \[2, 2\]"):
        ask(steps, [[1, 1], [2, 2]])


def test_a_chosen_version_of_a_step_and_only_the_wanted_output(engine: Engine, repository: Path) -> None:
    for number in (1, 2):
        times(repository / "double" / str(number) / "model.onnx", number)
    (repository / "double" / "model.toml").write_text('version_policy = "all"')
    times(repository / "triple" / "1" / "model.onnx", 3)
    ensemble(repository, scheduling(FIRST.replace("-1", "1"), SECOND) + ' output { name: "OUT" } output { name: "MIDDLE" }')
    engine._library.load_all(0)
    assert ask(engine) == [3, 6, 1, 2], "in the order of its outputs"
    assert ask(engine, outputs=("MIDDLE",)) == [1, 2]
    assert engine.model_statistics("triple", "")[0].success.count == 1, "it was not needed the second time"


def test_what_changes_nothing_is_named(steps: Engine, repository: Path) -> None:
    more = (
        'response_cache { enable: true } default_model_filename: "x.onnx" optimization { graph { level: 1 } } '
        'parameters { key: "intra_op_thread_count" value { string_value: "no number" } }'
    )
    loaded(steps, repository, f"max_batch_size: 8 {TENSORS} {scheduling(more='max_inflight_requests: 16')} {more}")
    found = steps._library.repository.read("e")
    assert found is not None and found.unused == (
        "default_model_filename",
        "ensemble_scheduling.max_inflight_requests",
        "optimization",
        "parameters.intra_op_thread_count",
        "response_cache",
    )
    assert ask(steps) == [6, 12]


def test_model_toml_stands_above_the_steps(steps: Engine, repository: Path) -> None:
    loaded(steps, repository, CHAIN, '[[steps]]\nmodel = "double"\ninputs = { x = "IN" }\noutputs = { y = "OUT" }')
    assert ask(steps) == [2, 4]


def test_its_first_answer_is_not_before_somebody_asks(steps: Engine, repository: Path) -> None:
    loaded(steps, repository, CHAIN)
    assert steps.model_statistics("double", "")[0].success.count == 0, "a load runs no step on made-up tensors"


def test_polling_takes_an_ensemble_and_its_changes(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    with engine_over(zygote, watcher, repository, model_control="poll") as engine:
        engine._library.load_all(time.time_ns())
        times(repository / "double" / "1" / "model.onnx", 2)
        times(repository / "triple" / "1" / "model.onnx", 3)
        ensemble(repository, f"# ensemble_scheduling of two\n{CHAIN}")
        (repository / "commented" / "1").mkdir(parents=True)
        (repository / "commented" / CONFIG).write_text('# ensemble_scheduling\nparameters { key: "ensemble_scheduling" }')
        for _ in range(2):
            engine._library.poll()
        assert ask(engine) == [6, 12]
        assert "commented" not in {entry.name for entry in engine.repository_index(False) if entry.version}
        ensemble(repository, CHAIN.replace('"triple"', '"double"'))
        for _ in range(2):
            engine._library.poll()
        assert ask(engine) == [4, 8]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('platform: "ensemble"', "platform 'ensemble' needs ensemble_scheduling, which is not there"),
        ('backend: "ensemble"', "backend 'ensemble' needs ensemble_scheduling"),
        (scheduling().replace('"ensemble"', '"onnxruntime_onnx"'), "needs platform 'ensemble', and platform is 'onnxruntime_onnx'"),
        (scheduling() + 'backend: "onnxruntime"', "and backend is 'onnxruntime'"),
        (scheduling(*[FIRST] * 65), "has 65 steps, at most 64"),
        (scheduling("{ }"), r"ensemble_scheduling.step\[1\] has no model_name"),
        (scheduling(FIRST.replace("-1", "0")), r"step\[1\].model_version = 0 is not -1, for what the model serves by default"),
        (scheduling(FIRST.replace("-1", "-2")), "model_version = -2"),
        (scheduling(FIRST.replace("double", "../double")), r"step\[1\].model = '../double' is not the name of a model"),
        (scheduling(FIRST.replace('"double"', '"double" model_namespace: "n"')), "model_namespace = 'n': there are no namespaces"),
        (scheduling('{ model_name: "double" model_version: -1 }'), r"step\[1\] \(double\) has no input_map"),
        (scheduling(FIRST.split("output_map")[0] + "}"), r"step\[1\] \(double\) has no output_map"),
        (scheduling(FIRST.replace('"MIDDLE"', '""')), r"step\[1\].output_map of 'y' names a tensor without a name"),
        (scheduling() + 'input { name: "IN" } input { name: "IN" }', "input 'IN' is there twice"),
        (scheduling() + 'output { name: "OUT" dims: [ 2 ] reshape { shape: [ 2, 1 ] } }', "output 'OUT' has a reshape"),
        (scheduling() + "model_transaction_policy { decoupled: true }", "decoupled is not supported"),
    ],
)
def test_what_cannot_be_read_names_the_place(config: str, said: str) -> None:
    with pytest.raises(InvalidModelSettings, match=f"{CONFIG}: .*{said}"):
        triton_config.translated(triton_config.parse(config.encode()), "e", Path(), CONFIG)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (scheduling(FIRST.replace('"x"', '"z"')), "step 'double': model 'double' has no input 'z'; it has 'x'"),
        (scheduling(FIRST.replace('"y"', '"z"')), "step 'double': model 'double' has no output 'z'; it has 'y'"),
        (scheduling() + 'input { name: "ELSE" }', "step 'double' takes tensor 'IN', .* none of its inputs (input of config.pbtxt)"),
        (scheduling() + 'input { name: "IN" } input { name: "ELSE" }', "input 'ELSE' of config.pbtxt: no step takes it"),
        (scheduling() + 'output { name: "ELSE" }', "output 'ELSE' of config.pbtxt: no step makes it; made are 'MIDDLE', 'OUT'"),
        (scheduling() + 'input { name: "IN" dims: [ 2 ] }', "tensor 'IN' is FP32 [-1, 2] for its steps and FP32 [2] for config.pbtxt (inputs)"),
        (scheduling() + 'output { name: "OUT" data_type: TYPE_INT64 }', "and INT64 [-1, 2] for config.pbtxt (outputs)"),
        (scheduling(FIRST, SECOND, FIRST), "tensor 'MIDDLE' is made twice: by step 'double' and 'double#3'"),
        (scheduling(FIRST.replace("IN", "OUT"), SECOND), "its steps wait for each other in a circle: 'double', 'triple'"),
        (scheduling(FIRST.replace("double", "tokens")), "model 'tokens' gives several answers for a request, and a step must give one"),
        (scheduling(FIRST.replace("double", "e")), "step 'e': model 'e'"),
        (scheduling(FIRST.replace("double", "gone")), "step 'gone': model 'gone' is not in the repository"),
        (scheduling(FIRST.replace("-1", "7")), "step 'double': model 'double' has no version '7'"),
    ],
)  # fmt: skip
def test_what_cannot_be_tied_together_names_the_step(steps: Engine, repository: Path, config: str, said: str) -> None:
    tokens(repository / "tokens")
    steps.repository_model_load("tokens", {})
    ensemble(repository, config)
    with pytest.raises(ServingError) as caught:
        steps.repository_model_load("e", {})
    assert caught.value.code in (Code.INVALID_MODEL, Code.NOT_READY)
    for part in said.split(" .* "):
        assert part in caught.value.message


def test_an_ensemble_without_a_version_folder_says_what_is_wanted(steps: Engine, repository: Path) -> None:
    (repository / "e").mkdir()
    (repository / "e" / CONFIG).write_text(CHAIN)
    with pytest.raises(ServingError, match="it has no version folder, such as 1"):
        steps.repository_model_load("e", {})


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([], "is not a table of a step's number"),
        ({"3": {}}, "has step '3', and there are 2"),
        ({"1": {"model": "x"}}, r"steps.1 = .* is not a table of name and version"),
        ({"1": 5}, r"steps.1 = 5 is not a table"),
        ({"1": {"name": ""}}, r"step\[1\].name = ''"),
        ({"1": {"name": "triple"}, "2": {"name": "triple"}}, "is the name of another step as well"),
    ],
)
def test_our_own_parameter_is_checked_as_well(told: Any, said: str) -> None:
    config = triton_config.parse(CHAIN.encode())
    config.parameters["outboard"].string_value = json.dumps({"steps": told})
    with pytest.raises(InvalidModelSettings, match=said):
        triton_config.translated(config, "e", Path(), CONFIG)
