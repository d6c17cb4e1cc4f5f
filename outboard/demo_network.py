"""EfficientNet-Lite0 as an ONNX graph, made from the weights of its checkpoint with numpy and onnx alone.

Source of the architecture: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (Tan, Le 2019), table 1, in its
Lite form: ReLU6 instead of swish, no squeeze-and-excitation. The weights come from TensorFlow, hence its padding ("same": what does
not divide evenly goes to the right and the bottom) and its batch normalisation epsilon.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

SIZE = 224
"""Height and width of the input picture, in pixels."""
CLASSES = 1000
_EPSILON = 1e-3
_OPSET = 17
_IR_VERSION = 8  # the one that belongs to opset 17: any onnxruntime from 1.12 on reads it


class WeightsError(ValueError):
    """The weights are not EfficientNet-Lite0's; the message names the first one that does not fit."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """`repeats` inverted residual blocks, of which the first has the stride; `expansion` widens a block's inside."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STEM_CHANNELS = 32
_STAGES = (
    _Stage(repeats=1, kernel=3, stride=1, expansion=1, channels=16),
    _Stage(repeats=2, kernel=3, stride=2, expansion=6, channels=24),
    _Stage(repeats=2, kernel=5, stride=2, expansion=6, channels=40),
    _Stage(repeats=3, kernel=3, stride=2, expansion=6, channels=80),
    _Stage(repeats=3, kernel=5, stride=1, expansion=6, channels=112),
    _Stage(repeats=4, kernel=5, stride=2, expansion=6, channels=192),
    _Stage(repeats=1, kernel=3, stride=1, expansion=6, channels=320),
)
_HEAD_CHANNELS = 1280


@dataclass(frozen=True, slots=True)
class _Activation:
    """A tensor inside the graph, [batch, channels, size, size]."""

    name: str
    channels: int
    size: int


@dataclass(frozen=True, slots=True)
class _Conv:
    """A convolution and the batch normalisation behind it: their names in the checkpoint, and their shape."""

    name: str
    norm: str
    channels: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    relu6: bool = True


class _Weights:
    """Hands each weight out once, in the shape that is asked for."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._left = dict(weights)

    def take(self, name: str, *shape: int) -> NDArray[np.float64]:
        weight = self._left.pop(name, None)
        if weight is None:
            raise WeightsError(f"weight {name} is missing")
        if weight.shape != shape or weight.dtype != np.float32:
            raise WeightsError(f"weight {name} is {weight.dtype} {list(weight.shape)}, not float32 {list(shape)}")
        return weight.astype(np.float64)

    def finish(self) -> None:
        """Raises WeightsError where a weight was left over (how many batches training took is not one)."""
        left = [name for name in self._left if not name.endswith(".num_batches_tracked")]
        if left:
            raise WeightsError(f"weight {left[0]} has no place in the network")


class _Graph:
    """Nodes and constants so far."""

    def __init__(self, weights: _Weights) -> None:
        self._weights = weights
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._zero = self.constant("zero", np.float64(0))
        self._six = self.constant("six", np.float64(6))

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, "<f4", order="C"), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, *shape: int) -> str:
        return self.constant(name, self._weights.take(name, *shape))

    def conv(self, before: _Activation, conv: _Conv) -> _Activation:
        """Convolution with the batch normalisation folded in: norm(conv(x)) is a convolution with scaled weights and a bias."""
        group = before.channels if conv.depthwise else 1
        kernels = self._weights.take(f"{conv.name}.weight", conv.channels, before.channels // group, conv.kernel, conv.kernel)
        gamma, beta, mean, variance = (
            self._weights.take(f"{conv.norm}.{part}", conv.channels) for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + _EPSILON)
        inputs = [
            before.name,
            self.constant(f"{conv.name}.weight", kernels * scale[:, None, None, None]),
            self.constant(f"{conv.name}.bias", beta - mean * scale),
        ]
        size = -(-before.size // conv.stride)
        padding = max((size - 1) * conv.stride + conv.kernel - before.size, 0)
        first, last = padding // 2, padding - padding // 2
        shape = {"kernel_shape": [conv.kernel] * 2, "strides": [conv.stride] * 2, "pads": [first, first, last, last], "group": group}
        output = self.node("Conv", inputs, f"{conv.name}.output", **shape)
        if conv.relu6:
            output = self.node("Clip", [output, self._zero, self._six], f"{conv.name}.relu6")
        return _Activation(output, conv.channels, size)

    def block(self, before: _Activation, name: str, stage: _Stage, stride: int) -> _Activation:
        """Inverted residual: widen, filter each channel by itself, narrow, and add the input where the shape stayed the same."""
        inside = before.channels * stage.expansion
        after = before
        if stage.expansion != 1:
            after = self.conv(after, _Conv(f"{name}._expand_conv", f"{name}._bn0", inside))
        depthwise = _Conv(f"{name}._depthwise_conv", f"{name}._bn1", inside, stage.kernel, stride, depthwise=True)
        after = self.conv(after, depthwise)
        after = self.conv(after, _Conv(f"{name}._project_conv", f"{name}._bn2", stage.channels, relu6=False))
        if (after.channels, after.size) != (before.channels, before.size):
            return after
        return _Activation(self.node("Add", [after.name, before.name], f"{name}.output"), after.channels, after.size)

    def classifier(self, before: _Activation) -> None:
        pooled = self.node("GlobalAveragePool", [before.name], "pooled")
        features = self.node("Flatten", [pooled], "features", axis=1)
        weight, bias = self.weight("_fc.weight", CLASSES, before.channels), self.weight("_fc.bias", CLASSES)
        logits = self.node("Gemm", [features, weight, bias], "logits", transB=1)
        self.node("Softmax", [logits], "probabilities", axis=1)


def build_model(weights: Mapping[str, Array], producer: str) -> bytes:
    """The serialized ONNX model: `image` float32 [batch, 3, 224, 224] -> `probabilities` float32 [batch, 1000].

    The same weights give the same bytes. `producer` stands in the file as the model's origin. Raises WeightsError.
    """
    source = _Weights(weights)
    graph = _Graph(source)
    after = graph.conv(_Activation("image", 3, SIZE), _Conv("_conv_stem", "_bn0", _STEM_CHANNELS, kernel=3, stride=2))
    number = 0
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            after = graph.block(after, f"_blocks.{number}", stage, stage.stride if repeat == 0 else 1)
            number += 1
    graph.classifier(graph.conv(after, _Conv("_conv_head", "_bn1", _HEAD_CHANNELS)))
    source.finish()
    return _serialize(graph, producer)


def _serialize(graph: _Graph, producer: str) -> bytes:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])
    proto = helper.make_graph(graph.nodes, "efficientnet-lite0", [image], [probabilities], graph.initializers)
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(proto, opset_imports=opset, ir_version=_IR_VERSION, producer_name=producer)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
