"""Triton's `config.pbtxt`, read and translated: what becomes a setting, what is named, what is refused with the place."""

import time
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from idl.generated import inference_pb2 as pb
from inference_server import triton_config
from inference_server.backends.onnx import OnnxOptions
from inference_server.declared import CONFIG, Declared, DeclaredTensor
from inference_server.model_settings import ModelSettings, VersionPolicy
from inference_server.repository import Repository
from inference_server.setting_checks import InvalidModelSettings
from inference_server.warmup_samples import Sample, SampleInput
from tests.inference_server.triton_configs import WHOLE, folder_with, model
from tests.onnx_models import times


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
        ('platform: "ensemble" ensemble_scheduling { }', "ensemble_scheduling has no step"),
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
        triton_config.read(folder_with(tmp_path, config.encode()), "resnet")
        found = Repository([tmp_path]).read("resnet")
        assert found is not None
        raise InvalidModelSettings(found.problem)
    assert len(str(caught.value)) < 1000 and str(tmp_path) not in str(caught.value)
    found = Repository([tmp_path]).read("resnet")
    assert found is not None and found.problem and not found.settings.public, "what cannot be read is nobody's to call"


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00name", b"\x00" * 1000, b'name: "\\xff"', bytes(range(256)) * 16, b'name: "\\u0000'])
def test_what_is_no_text_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(InvalidModelSettings, match=CONFIG.replace(".", r"\.")):
        triton_config.read(folder_with(tmp_path, raw), "resnet")


def test_the_largest_hostile_file_is_refused_within_a_moment(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, b'parameters { key: "a" value { string_value: "b" } } ' * (2**20 // 52))
    begun = time.monotonic()
    assert triton_config.read(folder, "resnet") is not None
    assert time.monotonic() - begun < 20, "a megabyte of the smallest entries"


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
        *("default_model_filename", "parameters", "model_warmup", "optimization", "response_cache", "ensemble_scheduling"),
    }
    named = {"runtime", "cc_model_filenames", "metric_tags", "model_metrics"}
    refused = {
        *("sequence_batching", "model_transaction_policy", "batch_input", "batch_output"),
        *("model_operations", "model_repository_agents"),
    }
    assert {field.name for field in pb.ModelConfig.DESCRIPTOR.fields} == used | named | refused
