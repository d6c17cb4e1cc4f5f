"""What the tests of Triton's `config.pbtxt` share: a whole configuration, a model's folder with one, a file's signature."""

import json
from pathlib import Path

from idl.messages import TensorSpec
from inference_server import triton_config
from inference_server.declared import CONFIG, Declared
from inference_server.repository import Repository
from inference_server.repository_model import RepositoryModel
from inference_server.types import Signature
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


def folder_with(tmp_path: Path, raw: bytes) -> Path:
    """A model's folder with this `config.pbtxt`."""
    folder = tmp_path / "resnet"
    times(folder / "1" / "model.onnx", 2)
    (folder / CONFIG).write_bytes(raw)
    return folder


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


FILE = Signature(
    "onnxruntime_onnx", (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("n", "INT64", (-1, -1))), (TensorSpec("y", "FP32", (-1, 4)),), 0
)


def declared(text: str) -> Declared:
    """What a configuration says of tensors, as an executor is told it."""
    found = triton_config.translated(triton_config.parse(text.encode()), "m", Path(), CONFIG).declared
    assert found is not None
    return Declared.from_json(json.loads(json.dumps(found.to_json())))
