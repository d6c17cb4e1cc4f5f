"""The reader of ONNX graphs against onnx's own, and against files that nobody should have made."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.operations import onnx_graph
from gateway.operations.onnx_graph import Bounds
from idl.codes import Code, ServingError
from tests.onnx_models import save, slow, times

_TYPES = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.BOOL: "bool", TensorProto.STRING: "string"}


def rich(path: Path) -> Path:
    """Every kind of attribute, an open axis with and without a name, a weight of each sort."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", None, 4, 4))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 2, 2, 2))
    weights = [
        numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w"),
        helper.make_tensor("packed", TensorProto.INT64, (3,), [1, -2, 3]),
        helper.make_tensor("texts", TensorProto.STRING, (2,), [b"a", b"b"]),
        helper.make_tensor("one", TensorProto.FLOAT, (), [1.5]),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "first", kernel_shape=[3, 3], pads=[0] * 4, auto_pad="NOTSET"),
        helper.make_node("LeakyRelu", ["c"], ["l"], alpha=0.25),
        helper.make_node("Constant", [], ["k"], value=helper.make_tensor("", TensorProto.FLOAT, (1, 2), [1, 2])),
        helper.make_node(
            "Odd", ["l", "", "k"], ["y"], domain="my.own", many=list(range(100)), words=["a", "b"], some=[0.5, -1.25], less=-7
        ),
    ]
    graph = helper.make_graph(
        nodes, "rich", [x], [y], weights, value_info=[helper.make_tensor_value_info("c", TensorProto.FLOAT, (1, 2, 2, 2))]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)])
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("make", [lambda path: times(path, 3), lambda path: slow(path, 2), rich], ids=["times", "loop", "rich"])
def test_as_onnx_reads_it(make: object, tmp_path: Path) -> None:
    path = make(tmp_path / "model.onnx")  # type: ignore[operator]
    wanted, found = onnx.load(str(path)).graph, onnx_graph.read(path)
    assert found.name == wanted.name and not found.cut
    assert [(each.operator, each.domain, each.name, each.inputs, each.outputs) for each in found.nodes] == [
        (each.op_type, each.domain, each.name, list(each.input), list(each.output)) for each in wanted.node
    ]
    for node, other in zip(found.nodes, wanted.node, strict=True):
        graphs = {each.name: len(each.g.node) for each in other.attribute if each.type == onnx.AttributeProto.GRAPH}
        assert dict(node.graphs) == graphs
        assert [name for name, _ in node.attributes] == [each.name for each in other.attribute if each.name not in graphs]
    assert found.inputs == [each.name for each in wanted.input] and found.outputs == [each.name for each in wanted.output]
    assert found.weights == {each.name: {"type": _TYPES[each.data_type], "shape": list(each.dims)} for each in wanted.initializer}
    for each in (*wanted.input, *wanted.output, *wanted.value_info):
        axes = [axis.dim_param or (axis.dim_value if axis.HasField("dim_value") else "?") for axis in each.type.tensor_type.shape.dim]
        assert found.values[each.name] == {"type": _TYPES[each.type.tensor_type.elem_type], "shape": axes}


def test_attributes_as_text(tmp_path: Path) -> None:
    found = onnx_graph.read(rich(tmp_path / "model.onnx"))
    conv, leaky, constant, odd = (dict(node.attributes) for node in found.nodes)
    assert conv == {"kernel_shape": "[3, 3]", "pads": "[0, 0, 0, 0]", "auto_pad": "NOTSET"}
    assert leaky == {"alpha": "0.25"} and constant == {"value": "float32 [1, 2]"}
    assert odd["many"].startswith("[0, 1, 2, ") and odd["many"].endswith("15, …]") and odd["words"] == "[a, b]"
    assert odd["some"] == "[0.5, -1.25]" and odd["less"] == "-7"


def test_weights_are_passed_over(tmp_path: Path) -> None:
    """A file whose weights are most of it costs no more fields than its graph has."""
    weight = numpy_helper.from_array(np.zeros((1000, 1000), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1000)) for name in "xy")
    path = save(helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "large", [x], [y], [weight]), tmp_path / "model.onnx")
    assert onnx_graph.read(path, Bounds(fields=100)).weights["w"]["shape"] == [1000, 1000]


def test_bounds(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in ("v0", "v50"))
    nodes = [helper.make_node("Identity", [f"v{at}"], [f"v{at + 1}"]) for at in range(50)]
    path = save(helper.make_graph(nodes, "chain", [x], [y]), tmp_path / "model.onnx")
    cut = onnx_graph.read(path, Bounds(nodes=10))
    assert cut.cut and len(cut.nodes) == 10
    with pytest.raises(ServingError) as error:
        onnx_graph.read(path, Bounds(fields=60))
    assert error.value.code is Code.TOO_LARGE


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_refused_or_read_and_nothing_else(seed: int, tmp_path: Path) -> None:
    data = rich(tmp_path / "model.onnx").read_bytes()
    chance = random.Random(seed)
    for _ in range(400):
        broken = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        for _ in range(chance.randrange(1, 6)):
            if broken:
                broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            found = onnx_graph.read_from(bytes(broken), Bounds(nodes=100, fields=5000))
        except ServingError as error:
            assert error.code in (Code.INVALID_MODEL, Code.TOO_LARGE)
        else:
            onnx_graph.window(found, 0, 10)


def test_what_is_no_model(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"\xff" * 100):
        path = tmp_path / "x.onnx"
        path.write_bytes(content)
        with pytest.raises(ServingError) as error:
            onnx_graph.read(path)
        assert error.value.code is Code.INVALID_MODEL


def test_a_window_and_what_is_found(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu" if at == 37 else "Identity", [f"v{at}"], [f"v{at + 1}"]) for at in range(50)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in ("v0", "v50"))
    found = onnx_graph.read(save(helper.make_graph(nodes, "chain", [x], [y]), tmp_path / "model.onnx"))
    piece = onnx_graph.window(found, 10, 20)
    assert piece["first"] == 10 and piece["total"] == 50 and len(piece["nodes"]) == 20 and piece["inputs"] == [] == piece["outputs"]
    piece = onnx_graph.window(found, 0, 20, "relu")
    assert piece["found"] == 37 and piece["first"] == 20 and piece["nodes"][17]["op"] == "Relu"
    assert onnx_graph.window(found, 0, 20, "relu", after=37)["found"] is None
    assert onnx_graph.window(found, 900, 20)["first"] == 49
