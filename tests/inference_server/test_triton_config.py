"""Triton's `config.pbtxt`: read, translated, held against the model's file, and refused with the place and both values."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import TensorSpec
from inference_server import triton_config
from inference_server.backends.onnx import OnnxModel, OnnxOptions
from inference_server.backends.presented import presented
from inference_server.declared import CONFIG, Declared, DeclaredTensor, present
from inference_server.model_config import model_config, properties
from inference_server.model_settings import ModelSettings, VersionPolicy, combined
from inference_server.repository import Repository
from inference_server.repository_model import RepositoryModel
from inference_server.setting_checks import InvalidModelSettings
from inference_server.types import Batching, Signature
from inference_server.version_labels import Labels
from inference_server.warmup_samples import Sample, SampleInput
from tests.onnx_models import times

WHOLE = """
name: "resnet"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: 16
default_model_filename: "net.onnx"
version_policy { specific { versions: [ 3, 1 ] } }
input [
  { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 2 ] }
]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "classes.txt" }
]
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_CPU rate_limiter { priority: 2 } } ]
dynamic_batching {
  preferred_batch_size: [ 8, 4 ]
  max_queue_delay_microseconds: 100
  preserve_ordering: true
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000 max_queue_size: 64 }
}
optimization { graph { level: 1 } input_pinned_memory { enable: false } }
parameters { key: "intra_op_thread_count" value { string_value: "2" } }
parameters { key: "execution_mode" value { string_value: "1" } }
parameters { key: "enable_mem_arena" value { string_value: "0" } }
parameters { key: "tokenizer" value { string_value: "bpe" } }
parameters { key: "outboard" value { string_value: "{\\"public\\": false, \\"description\\": \\"a net\\", \\"top_k\\": 3}" } }
model_warmup [
  {
    name: "sample"
    batch_size: 4
    count: 2
    inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] random_data: true } }
  },
  { name: "from a file" inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "x.raw" } } }
]
response_cache { enable: true }
"""


def model(tmp_path: Path, config: str, toml: str = "", name: str = "resnet", file: str = "model.onnx") -> RepositoryModel:
    folder = tmp_path / name
    times(folder / "1" / file, 2)
    times(folder / "3" / file, 3)
    (folder / CONFIG).write_text(config)
    (folder / "classes.txt").write_text("cat\ndog\n")
    if toml:
        (folder / "model.toml").write_text(toml)
    found = Repository([tmp_path]).read(name)
    assert found is not None
    return found


def test_everything_in_a_configuration_becomes_a_setting_or_is_named(tmp_path: Path) -> None:
    found = model(tmp_path, WHOLE, file="net.onnx")
    assert found.problem == "" and found.versions == (1, 3) and found.wanted() == (1, 3)
    assert found.settings == ModelSettings(
        public=False,
        description="a net",
        cache={},
        max_batch_size=16,
        preferred_batch_sizes=(4, 8),
        max_queue_delay_us=100,
        max_queue_size=64,
        default_timeout_us=5000,
        priority_levels=3,
        default_priority=2,
        instances=3,
        device="cpu",
        threads=2,
        model_file="net.onnx",
        onnxruntime={"graph_optimization": "extended", "execution_mode": "parallel", "memory_arena": False},
        version_policy=VersionPolicy(specific=(1, 3)),
        warmup=(
            Sample({"x": SampleInput((2,), "FP32", random=True)}, 4, 2),
            Sample({"x": SampleInput((2,), "FP32", file="warmup/x.raw")}, 1, 1),
        ),
        labels={"y": ("cat", "dog")},
        top_k=3,
    )
    tensor = (2,)
    assert found.declared == Declared(16, (DeclaredTensor("x", "FP32", tensor),), (DeclaredTensor("y", "FP32", tensor),))
    assert found.unused == (
        "dynamic_batching.default_queue_policy.timeout_action",
        "dynamic_batching.preserve_ordering",
        "input.format",
        "instance_group.rate_limiter",
        "optimization.input_pinned_memory",
        "parameters.tokenizer",
    )
    assert found.parameters["tokenizer"] == "bpe" and "outboard" not in found.parameters


def test_our_reader_and_the_official_message_agree() -> None:
    ours = triton_config.parse(WHOLE.encode())
    theirs = text_format.Parse(WHOLE, model_config_pb2.ModelConfig())
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def test_model_toml_stands_above_it_key_by_key(tmp_path: Path) -> None:
    found = model(tmp_path, WHOLE, "instances = 5\npublic = true\n[onnxruntime]\nexecution_mode = 'sequential'\n", file="net.onnx")
    assert found.settings.instances == 5 and found.settings.public and found.settings.max_batch_size == 16
    assert found.settings.onnxruntime == {"execution_mode": "sequential"}, "a key is one thing, also where it is a table"


def test_an_absent_configuration_is_no_configuration(tmp_path: Path) -> None:
    times(tmp_path / "m" / "1" / "model.onnx", 2)
    found = Repository([tmp_path]).read("m")
    assert found is not None and found.declared is None and found.settings == ModelSettings()


def test_a_model_without_sizes_is_measured_and_one_with_whole_shapes_is_not_batched(tmp_path: Path) -> None:
    bare = model(tmp_path, "dynamic_batching { }", name="bare")
    assert bare.settings.max_batch_size is None and bare.settings.batching and bare.settings.max_queue_delay_us == 0
    assert bare.declared is None
    whole = model(tmp_path, 'input { name: "x" data_type: TYPE_FP32 dims: [ -1, 2 ] }', name="whole")
    assert not whole.settings.batching and whole.declared is not None


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    """With external weights Triton has `1/model.onnx/model.onnx`."""
    times(tmp_path / "m" / "1" / "model.onnx" / "model.onnx", 2)
    found = Repository([tmp_path]).read("m")
    assert found is not None and found.versions == (1,) and found.file(1).is_file()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('name: "resnet"\n  colour: "red"', 'line 2, column 3: .*no field named "colour"'),
        ("max_batch_size: many", "line 1, column 17: .*many"),
        ("max_batch_size: 1\nmax_batch_size: 2", "line 2, column 17: .*multiple"),
        ('input { name: "x" data_type: TYPE_FLOAT }', "TYPE_FLOAT"),
        ("max_batch_size: 99999999999999999999", "line 1, column 17"),
        ("max_batch_size: -1", "max_batch_size = -1"),
        ('name: "other"', "name is 'other', and the model's folder is 'resnet'"),
        ('platform: "tensorrt_plan"', "platform 'tensorrt_plan' is not served here"),
        ('backend: "python"', "backend 'python' is not served here"),
        ('platform: "ensemble" ensemble_scheduling { }', "ensemble"),
        ("sequence_batching { }", "sequence_batching is not supported"),
        ("model_transaction_policy { decoupled: true }", "decoupled is not supported"),
        ("input { dims: [ 2 ] }", "has no name"),
        ('input { name: "x" dims: [ 0 ] }', "dimension 0"),
        ('input { name: "x" dims: [ -2 ] }', "dimension -2"),
        ('input { name: "x" reshape { shape: [ 2 ] } }', "reshape and no dims"),
        ('output { name: "y" label_filename: "../secret" }', "label_filename"),
        ('output { name: "y" label_filename: "absent.txt" }', "absent.txt"),
        ('default_model_filename: "../model.onnx"', "model_file"),
        ("instance_group { count: -3 } instance_group { count: 5 }", "instance_group.count = -3"),
        ("instance_group { count: 2000 }", "instances = 2000"),
        ("dynamic_batching { priority_levels: 100 }", "priority_levels = 100"),
        ("dynamic_batching { priority_levels: 2 default_priority_level: 3 }", "default_priority = 3"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "preferred_batch_sizes has 8, and max_batch_size is 4"),
        ("dynamic_batching { preferred_batch_size: -8 }", "preferred_batch_sizes"),
        ("version_policy { specific { } }", "version_policy"),
        ("version_policy { specific { versions: 0 } }", "version_policy"),
        ("optimization { graph { level: 7 } }", "optimization.graph.level = 7"),
        ('parameters { key: "intra_op_thread_count" value { string_value: "two" } }', "intra_op_thread_count = 'two'"),
        ('parameters { key: "execution_mode" value { string_value: "2" } }', "execution_mode = '2'"),
        ('parameters { key: "outboard" value { string_value: "{" } }', "parameters.outboard is not JSON"),
        ('parameters { key: "outboard" value { string_value: "[]" } }', "parameters.outboard"),
        ('parameters { key: "outboard" value { string_value: "{\\"colour\\": 1}" } }', "there is no key 'colour'"),
        ('model_warmup { inputs { key: "x" value { dims: [ -1 ] } } }', r"dims \[-1\]"),
        ('model_warmup { inputs { key: "x" value { input_data_file: "/etc/passwd" } } }', "input_data_file"),
        ("model_warmup { } " * 101, "101 samples"),
        ("{" * 10_000, "line 1"),
        ("input " + "{" * 200_000, "line 1"),
        ('name: "' + "x" * 2**20, "more than"),
        ("dims" * 1000, "line 1"),
    ],
)
def test_a_wrong_configuration_names_the_place(tmp_path: Path, config: str, said: str) -> None:
    with pytest.raises(InvalidModelSettings, match=said) as caught:
        triton_config.read(_folder(tmp_path, config.encode()), "resnet")
        found = Repository([tmp_path]).read("resnet")
        assert found is not None
        raise InvalidModelSettings(found.problem)
    assert len(str(caught.value)) < 1000 and str(tmp_path) not in str(caught.value)
    found = Repository([tmp_path]).read("resnet")
    assert found is not None and found.problem and not found.settings.public, "what cannot be read is nobody's to call"


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00name", b"\x00" * 1000, b'name: "\\xff"', bytes(range(256)) * 16, b'name: "\\u0000'])
def test_what_is_no_text_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(InvalidModelSettings, match=CONFIG.replace(".", r"\.")):
        triton_config.read(_folder(tmp_path, raw), "resnet")


def test_the_largest_hostile_file_is_refused_within_a_moment(tmp_path: Path) -> None:
    folder = _folder(tmp_path, b'parameters { key: "a" value { string_value: "b" } } ' * (2**20 // 52))
    begun = time.monotonic()
    assert triton_config.read(folder, "resnet") is not None
    assert time.monotonic() - begun < 20, "a megabyte of the smallest entries"


def _folder(tmp_path: Path, raw: bytes) -> Path:
    folder = tmp_path / "resnet"
    times(folder / "1" / "model.onnx", 2)
    (folder / CONFIG).write_bytes(raw)
    return folder


# against the model's file ----------------------------------------------------------------------------------------------------------------

FILE = Signature(
    "onnxruntime_onnx", (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("n", "INT64", (-1, -1))), (TensorSpec("y", "FP32", (-1, 4)),), 0
)


def declared(text: str) -> Declared:
    found = triton_config.translated(triton_config.parse(text.encode()), "m", Path(), CONFIG).declared
    assert found is not None
    return Declared.from_json(json.loads(json.dumps(found.to_json())))


def test_what_callers_see(tmp_path: Path) -> None:
    inputs = 'input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } input { name: "n" dims: [ 7 ] }'
    seen = present("m", FILE, declared(f"max_batch_size: 4 {inputs}"))
    assert [spec.shape for spec in seen.inputs] == [(-1, 3), (-1, 7)] and seen.outputs == FILE.outputs and seen.batch_axis == 0
    whole = 'input { name: "x" dims: [ 5, 3 ] } input { name: "n" dims: [ -1, -1 ] }'
    seen = present("m", FILE, declared(whole))
    assert [spec.shape for spec in seen.inputs] == [(5, 3), (-1, -1)] and seen.batch_axis is None, "an axis that is fixed is no batch"
    fewer = Signature(FILE.platform, FILE.inputs, (*FILE.outputs, TensorSpec("z", "FP32", (1,))), None)
    seen = present("m", fewer, declared('output { name: "y" dims: [ -1, 4 ] }'))
    assert [spec.name for spec in seen.outputs] == ["y"] and seen.batch_axis is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('input { name: "z" dims: [ 3 ] }', "config.pbtxt names input 'z', the model's file has 'x', 'n'"),
        ('output { name: "x" dims: [ 3 ] }', "names output 'x', the model's file has 'y'"),
        ('input { name: "x" dims: [ -1, 3 ] }', "does not name input 'n'"),
        ('output { name: "y" dims: [ -1, 4 ] } output { name: "y" dims: [ -1, 4 ] }', "names output 'y' twice"),
        ('output { name: "y" data_type: TYPE_INT64 }', "output 'y' is INT64 in config.pbtxt and FP32 in the model's file"),
        ('output { name: "y" dims: [ -1, 5 ] }', r"output 'y' has shape \[-1, 5\] by config.pbtxt, and \[-1, 4\] in the model's file"),
        ('output { name: "y" dims: [ -1, -1 ] }', r"\[-1, -1\] by config.pbtxt"),
        ('max_batch_size: 2 output { name: "y" dims: [ -1, 4 ] }', r"\[-1, -1, 4\] by config.pbtxt, the batch axis first"),
        ('output { name: "y" dims: [ 4 ] }', r"shape \[4\]"),
        ('output { name: "y" dims: [ 2, 2 ] reshape { shape: [ -1, 4 ] } }', r"dims \[2, 2\], which cannot be reshaped to \[-1, 4\]"),
    ],
)
def test_a_configuration_that_contradicts_the_file_names_both(config: str, said: str) -> None:
    with pytest.raises(ServingError, match=said) as caught:
        present("m", FILE, declared(config))
    assert caught.value.code is Code.INVALID_MODEL


def test_a_batch_axis_that_the_file_does_not_have() -> None:
    fixed = Signature("onnx", (TensorSpec("x", "FP32", (1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),), None)
    with pytest.raises(
        ServingError, match=r"max_batch_size 8, which needs an open first axis everywhere, and input 'x' has shape \[1, 3\]"
    ):
        present("m", fixed, declared("max_batch_size: 8"))


def test_reshapes_go_both_ways(tmp_path: Path) -> None:
    """The file has [batch, 2]; callers send [batch, 2, 1] and get [batch, 1, 2]."""
    inner = OnnxModel(times(tmp_path / "model.onnx", 3), "m", OnnxOptions(1, ("CPUExecutionProvider",)))
    said = declared(
        'max_batch_size: 8 input { name: "x" dims: [ 2, 1 ] reshape { shape: [ 2 ] } } '
        'output { name: "y" dims: [ 1, 2 ] reshape { shape: [ 2 ] } }'
    )
    outer = presented(inner, "m", said)
    assert outer.signature.inputs[0].shape == (-1, 2, 1) and outer.signature.outputs[0].shape == (-1, 1, 2)
    (answer,) = outer.run({"x": np.arange(6, dtype=np.float32).reshape(3, 2, 1)}, ["y"])
    assert answer.shape == (3, 1, 2) and answer.ravel().tolist() == [0, 3, 6, 9, 12, 15]


def test_open_sizes_keep_their_order_in_a_reshape() -> None:
    from inference_server.declared import reshaped

    assert reshaped((5, 2, 7, 3), (-1, 2, -1, 3), (-1, 2, 1, -1, 3)) == (5, 2, 1, 7, 3)
    assert reshaped((4, 1), (-1, 1), (-1,)) == (4,)


def test_without_a_reshape_the_model_itself_is_what_callers_see(tmp_path: Path) -> None:
    inner = OnnxModel(times(tmp_path / "model.onnx", 3), "m", OnnxOptions(1, ("CPUExecutionProvider",)))
    outer = presented(inner, "m", declared('input { name: "x" dims: [ 4, 2 ] }'))
    assert outer is inner and inner.signature.inputs[0].shape == (4, 2)


# answers ---------------------------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"colour": 1}', '{"max_batch_size": "x"}', "[" * 100_000, '{"input": 3}', " " * 2**21]
)
def test_a_wrong_json_configuration_is_refused(text: str) -> None:
    with pytest.raises(InvalidModelSettings, match="the config"):
        triton_config.parse_json("the config", text)


def test_every_field_of_the_message_is_either_used_or_named_or_refused() -> None:
    """A field that is added to the message must be decided upon."""
    used = {
        *("name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "instance_group", "dynamic_batching"),
        *("default_model_filename", "parameters", "model_warmup", "optimization", "response_cache"),
    }
    named = {"runtime", "cc_model_filenames", "metric_tags", "model_metrics"}
    refused = {
        *("sequence_batching", "ensemble_scheduling", "model_transaction_policy", "batch_input", "batch_output"),
        *("model_operations", "model_repository_agents"),
    }
    assert {field.name for field in pb.ModelConfig.DESCRIPTOR.fields} == used | named | refused


def test_session_options_reach_onnxruntime() -> None:
    made = OnnxOptions(
        3, session={"execution_mode": "parallel", "inter_op_threads": 2, "graph_optimization": "basic", "memory_arena": False}
    )
    options = made.session_options()
    assert options.intra_op_num_threads == 3 and options.inter_op_num_threads == 2 and not options.enable_cpu_mem_arena
    assert options.execution_mode.name == "ORT_PARALLEL" and options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.enable_mem_pattern


def test_a_device_chooses_among_the_servers_providers() -> None:
    server = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert ModelSettings().providers(server) == server and ModelSettings(device="gpu").providers(server) == server
    assert ModelSettings(device="cpu").providers(server) == ("CPUExecutionProvider",)
    assert ModelSettings(device="cpu").providers(("CUDAExecutionProvider",)) == ("CPUExecutionProvider",)
    assert ModelSettings(device="gpu").unmet(("CPUExecutionProvider",)) == ("device",)
    assert ModelSettings(device="gpu").unmet(server) == () and ModelSettings().unmet(("CPUExecutionProvider",)) == ()


# hostile ones ------------------------------------------------------------------------------------------------------------------------------

fixed = settings(derandomize=True, deadline=None, max_examples=400)
"""The same examples every time, however busy the machine is."""


def reads_or_refuses(raw: bytes, *, is_json: bool = False) -> None:
    """Nothing but a refusal of ours, of a length that a message can have, comes out; what is read can be put together and presented."""
    try:
        config = triton_config.parse_json("it", raw) if is_json else triton_config.parse(raw)
        found = triton_config.translated(config, "resnet", Path("/nonexistent"), "it")
        combined(found.values)
        if found.declared is not None:
            present("resnet", FILE, Declared.from_json(json.loads(json.dumps(found.declared.to_json()))))
    except InvalidModelSettings as error:
        assert len(str(error)) < 2000
    except ServingError as error:
        assert error.code is Code.INVALID_MODEL


@fixed
@given(st.lists(st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=6)), min_size=1, max_size=5), st.integers(0, len(WHOLE)))
def test_no_damage_to_a_configuration_gets_past_the_reader(changes: list[tuple[int, bytes]], stop: int) -> None:
    raw = bytearray(WHOLE.replace("classes.txt", "").encode())
    for position, data in changes:
        raw[position : position + len(data)] = data
    reads_or_refuses(bytes(raw))
    reads_or_refuses(bytes(raw[:stop]))


NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.booleans() | st.none()
FIELDS = st.sampled_from([field.name for field in pb.ModelConfig.DESCRIPTOR.fields] + ["maxBatchSize", "nobody"])
VALUES = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | FIELDS, inner, max_size=3))


@fixed
@given(st.dictionaries(FIELDS, VALUES, max_size=4))
def test_no_json_gets_past_the_reader(config: dict[str, Any]) -> None:
    reads_or_refuses(json.dumps(config).encode(), is_json=True)


TENSORS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["x", "n", "y", "z", ""])},
        optional={
            "data_type": st.integers(-1, 20) | st.sampled_from(["TYPE_FP32", "TYPE_INT64", "TYPE_NOBODY"]),
            "dims": st.lists(st.integers(-3, 2**63), max_size=4),
            "reshape": st.fixed_dictionaries({"shape": st.lists(st.integers(-3, 5), max_size=4)}),
        },
    ),
    max_size=3,
)
BATCHING = st.fixed_dictionaries(
    {},
    optional={
        "preferred_batch_size": st.lists(st.integers(-2, 70_000), max_size=3),
        "max_queue_delay_microseconds": st.integers(0, 2**64 - 1),
        "priority_levels": st.integers(0, 2**64 - 1),
        "default_priority_level": st.integers(0, 20),
        "default_queue_policy": st.fixed_dictionaries({"max_queue_size": st.integers(0, 2**32 - 1)}),
    },
)


@fixed
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_batch_size": st.integers(-2, 2**31 - 1),
            "input": TENSORS,
            "output": TENSORS,
            "dynamic_batching": BATCHING,
            "instance_group": st.lists(st.fixed_dictionaries({"count": st.integers(-3, 3000), "kind": st.integers(0, 5)}), max_size=3),
            "parameters": st.dictionaries(
                st.sampled_from(["intra_op_thread_count", "execution_mode", "outboard", "x"]),
                st.fixed_dictionaries({"string_value": st.text(max_size=6)}),
            ),
            "model_warmup": st.lists(
                st.fixed_dictionaries({"batch_size": st.integers(0, 2**32 - 1), "count": st.integers(0, 2**32 - 1)}), max_size=2
            ),
        },
    )
)
def test_no_values_get_past_the_checks(config: dict[str, Any]) -> None:
    reads_or_refuses(json.dumps(config).encode(), is_json=True)
