"""Models whose answers show whose request they belong to, and that take as long, or as much memory, as a request says."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from idl.messages import InferRequest, InferResponse, Tensor
from tests.onnx_models import save

TABLE = 1000
"""Rows of the probe's table: an index from here on is an error inside the model."""


def probe(path: Path) -> Path:
    """tag [batch, n] -> y = 3 * tag; index [batch, 1] -> picked = 7 * index + 1 out of a table; int64.

    rounds [batch, 1]: the run takes as many matrix products of 128 x 128 as the largest of its rows says.
    """
    inputs = [
        helper.make_tensor_value_info("tag", TensorProto.INT64, ("batch", "n")),
        helper.make_tensor_value_info("index", TensorProto.INT64, ("batch", 1)),
        helper.make_tensor_value_info("rounds", TensorProto.INT64, ("batch", 1)),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.INT64, ("batch", "n")),
        helper.make_tensor_value_info("picked", TensorProto.INT64, ("batch", 1)),
    ]
    constants = {
        "three": np.array(3),
        "table": np.arange(TABLE) * 7 + 1,
        "true": np.array(True),
        "matrix": np.eye(128, dtype=np.float32),
        "zero": np.array(0.0, np.float32),
    }
    nodes = [
        helper.make_node("ReduceMax", ["rounds"], ["trips"], keepdims=0),
        helper.make_node("Loop", ["trips", "true", "matrix"], ["last"], body=_products()),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["whole_nothing"], to=TensorProto.INT64),
        helper.make_node("Mul", ["tag", "three"], ["tripled"]),
        helper.make_node("Add", ["tripled", "whole_nothing"], ["y"]),
        helper.make_node("Gather", ["table", "index"], ["picked"]),
    ]
    return save(helper.make_graph(nodes, "probe", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()]), path)


def _products() -> onnx.GraphProto:
    matrix = (128, 128)
    return helper.make_graph(
        [helper.make_node("MatMul", ["m_in", "matrix"], ["m_out"]), helper.make_node("Identity", ["go"], ["go_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("m_in", TensorProto.FLOAT, matrix),
        ],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, ()), helper.make_tensor_value_info("m_out", TensorProto.FLOAT, matrix)],
    )


def hungry(path: Path) -> Path:
    """size [1] -> y [1] = the sum of so many ones, all of them in memory at once; int64 in, float32 out."""
    size = helper.make_tensor_value_info("size", TensorProto.INT64, (1,))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ())
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("ReduceSum", ["ones"], ["y"], keepdims=0),
    ]
    return save(helper.make_graph(nodes, "hungry", [size], [y]), path)


def probe_request(
    name: str, tag: int, *, rows: int = 1, width: int = 1, index: int = 5, rounds: int = 0, deadline: float | None = None, **parameters: int
) -> InferRequest:
    """A request to the probe whose numbers are its own: tag, tag + 1, ..."""
    tags = np.arange(tag, tag + rows * width, dtype=np.int64)
    many = np.ones(rows, np.int64)
    inputs = (
        Tensor("tag", "INT64", (rows, width), tags.tobytes()),
        Tensor("index", "INT64", (rows, 1), (many * index).tobytes()),
        Tensor("rounds", "INT64", (rows, 1), (many * rounds).tobytes()),
    )
    return InferRequest(name, inputs, parameters=parameters, deadline=deadline)


def is_own(request: InferRequest, answer: InferResponse | tuple[Tensor, ...]) -> bool:
    """Whether an answer of the probe belongs to `request`: its rows, in its order, and nothing else."""
    tag, index, _ = request.inputs
    y, picked = answer.outputs if isinstance(answer, InferResponse) else answer
    return (
        (y.name, y.shape, picked.name, picked.shape) == ("y", tag.shape, "picked", index.shape)
        and y.data == (np.frombuffer(tag.data, np.int64) * 3).tobytes()
        and picked.data == (np.frombuffer(index.data, np.int64) * 7 + 1).tobytes()
    )
