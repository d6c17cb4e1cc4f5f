"""A Triton configuration held against the model's file: what callers see, contradictions with both values, reshapes."""

from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.messages import TensorSpec
from inference_server.backends.onnx import OnnxModel, OnnxOptions
from inference_server.backends.presented import presented
from inference_server.declared import present
from inference_server.types import Signature
from tests.inference_server.triton_configs import FILE, declared
from tests.onnx_models import times


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
