"""Small ONNX models for tests, made with the onnx package: real files that onnxruntime loads."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = [helper.make_opsetid("", 17)]


def save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def identity(path: Path, kind: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = ("n",)) -> Path:
    """x -> y, the same."""
    x, y = (helper.make_tensor_value_info(name, kind, shape) for name in "xy")
    return save(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y]), path)


def times(path: Path, factor: float, shape: tuple[int | str, ...] = ("batch", 2)) -> Path:
    """x -> factor * x, float32: what tells one version from another."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    constant = numpy_helper.from_array(np.array(factor, np.float32), "factor")
    return save(helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "times", [x], [y], [constant]), path)


def slow(path: Path, rounds: int) -> Path:
    """x -> x after `rounds` matrix products of 256 x 256: a model that takes a while, float32 [1]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy")
    trips = numpy_helper.from_array(np.array(rounds, np.int64), "trips")
    matrix = numpy_helper.from_array(np.eye(256, dtype=np.float32), "matrix")
    true = numpy_helper.from_array(np.array(True), "true")
    body = helper.make_graph(
        [helper.make_node("MatMul", ["m_in", "matrix"], ["m_out"]), helper.make_node("Identity", ["go"], ["go_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("m_in", TensorProto.FLOAT, (256, 256)),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("m_out", TensorProto.FLOAT, (256, 256)),
        ],
    )
    zero = numpy_helper.from_array(np.array(0.0, np.float32), "zero")
    nodes = [
        helper.make_node("Loop", ["trips", "true", "matrix"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return save(helper.make_graph(nodes, "slow", [x], [y], [trips, matrix, true, zero]), path)


def looping(path: Path) -> Path:
    """x (int64 [1], how often) -> y, the same, after as many matrix products of 64 x 64: a request decides how long it takes."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.INT64, (1,)) for name in "xy")
    matrix = numpy_helper.from_array(np.eye(64, dtype=np.float32), "matrix")
    true = numpy_helper.from_array(np.array(True), "true")
    zero = numpy_helper.from_array(np.array(0, np.int64), "zero")
    matrices = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (64, 64)) for name in ("m_in", "m_out")]
    body = helper.make_graph(
        [helper.make_node("MatMul", ["m_in", "matrix"], ["m_out"]), helper.make_node("Identity", ["go"], ["go_out"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ()), helper.make_tensor_value_info("go", TensorProto.BOOL, ()), matrices[0]],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, ()), matrices[1]],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["trips"], keepdims=0),
        helper.make_node("Loop", ["trips", "true", "matrix"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return save(helper.make_graph(nodes, "looping", [x], [y], [matrix, true, zero]), path)
