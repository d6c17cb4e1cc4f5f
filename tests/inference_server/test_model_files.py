"""Files of models that ask for more than their folder: refused, with a reason that names what is wrong and no path of the host."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, external_data_helper, helper, load, numpy_helper, save_model

from idl.codes import Code, ServingError
from inference_server import launcher
from inference_server.backends.onnx import OnnxModel, OnnxOptions
from inference_server.engine import Engine
from inference_server.model_links import leaving
from inference_server.repository import Repository
from tests.inference_server.conftest import floats, request
from tests.onnx_models import times

WEIGHTS = np.arange(4, dtype=np.float32)


def weighted(path: Path, location: str = "weights.bin", *, offset: int = 0, length: int | None = None, deep: bool = False) -> Path:
    """y = x + WEIGHTS, which lie in `location`; `deep`: in a constant of a branch instead of beside the nodes."""
    tensor = numpy_helper.from_array(WEIGHTS, "w")
    external_data_helper.set_external_data(tensor, location, offset=offset, length=WEIGHTS.nbytes if length is None else length)
    tensor.ClearField("raw_data")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", 4)) for name in ("x", "y"))
    nodes, initializers = [helper.make_node("Add", ["x", "w"], ["y"])], [tensor]
    if deep:
        branches = []
        for name in ("then_branch", "else_branch"):
            made = helper.make_tensor_value_info(f"w{name}", TensorProto.FLOAT, (4,))
            constant = helper.make_node("Constant", [], [f"w{name}"], value=tensor)
            branches.append(helper.make_graph([constant], name, [], [made]))
        condition = helper.make_tensor("c", TensorProto.BOOL, (), [True])
        chosen = helper.make_node("If", ["c"], ["w"], then_branch=branches[0], else_branch=branches[1])
        nodes, initializers = [chosen, *nodes], [condition]
    graph = helper.make_graph(nodes, "weighted", [x], [y], initializers)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def refused(path: Path, host_memory: int = 0) -> str:
    with pytest.raises(ServingError) as caught:
        OnnxModel(path, "m", OnnxOptions(1, host_memory=host_memory))
    assert caught.value.code is Code.INVALID_MODEL and str(path.parent) not in caught.value.message
    return caught.value.message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a model whose folder has the weights; outside of it lies a file that is nobody's business."""
    folder = tmp_path / "models" / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes() * 100)
    return folder / "model.onnx"


@pytest.mark.parametrize("where", ["weights.bin", "./weights.bin", "sub/weights.bin"])
def test_weights_beside_the_model_are_read(path: Path, where: str) -> None:
    (path.parent / "sub").mkdir()
    shutil.copy(path.parent / "weights.bin", path.parent / "sub")
    model = OnnxModel(weighted(path, where), "m", OnnxOptions(1))
    np.testing.assert_array_equal(model.run({"x": np.ones((1, 4), np.float32)}, ["y"])[0], [WEIGHTS + 1])


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("where", ["../../../secret", "{root}/secret", "sub/../../../../secret", "/etc/passwd"])
def test_weights_outside_the_folder_are_refused(path: Path, tmp_path: Path, where: str, deep: bool) -> None:
    assert "outside its folder" in refused(weighted(path, where.format(root=tmp_path), deep=deep)).replace(str(tmp_path), "")


def test_weights_behind_a_link_out_of_the_folder_are_refused(path: Path, tmp_path: Path) -> None:
    (path.parent / "far.bin").symlink_to(tmp_path / "secret")
    (path.parent / "loop.bin").symlink_to("loop.bin")
    assert "a link that leads out of its folder" in refused(weighted(path, "far.bin"))
    assert "no such file" in refused(weighted(path, "loop.bin"))


@pytest.mark.parametrize("where", ["absent.bin", ".", "*/_ORT_MEM_ADDR_/*", "x" * 5000, "weights.bin/x"])
def test_weights_that_are_no_file_are_refused(path: Path, where: str) -> None:
    """One of these is onnxruntime's own word for "at that address in memory"."""
    assert "no such file" in refused(weighted(path, where))


@pytest.mark.parametrize(("offset", "length"), [(0, 17), (8, 16), (0, 2**62), (2**62, 16)])
def test_weights_longer_than_their_file_are_refused(path: Path, offset: int, length: int) -> None:
    assert "which has 16" in refused(weighted(path, offset=offset, length=length))


def test_sizes_that_no_host_has_are_refused(path: Path) -> None:
    weighted(path)
    with path.with_name("large.onnx").open("wb") as file:
        file.truncate(3 << 30)
    assert "an ONNX file at most 2147483647" in refused(path.with_name("large.onnx"))
    os.truncate(path.parent / "weights.bin", 1 << 43)
    assert "and this host has 1099511627776 bytes of memory" in refused(path, 1 << 40)
    assert "and this host has 10 bytes of memory" in refused(times(path.with_name("small.onnx"), 2), 10)


def test_the_server_says_how_much_memory_there_is(engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    monkeypatch.setattr(launcher.host, "memory", lambda: (10, 10))
    with pytest.raises(ServingError, match="and this host has 10 bytes of memory"):
        engine.repository_model_load("m", {})


def test_what_is_cut_off_or_nested_without_end_is_refused(path: Path) -> None:
    whole = weighted(path).read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ServingError):
            OnnxModel(path, "m", OnnxOptions(1))
    inner = b"location"
    for _ in range(300):  # graph in attribute in node in graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            inner = _field(tag, inner)
    path.write_bytes(_field(b"\x3a", inner))
    assert "not an ONNX file" in refused(path)


def _field(tag: bytes, inner: bytes) -> bytes:
    size, length = len(inner), b""
    while size > 0x7F:
        length, size = length + bytes((size & 0x7F | 0x80,)), size >> 7
    return tag + length + bytes((size,)) + inner


def test_what_onnx_writes_itself_is_read(path: Path) -> None:
    """`onnx.save_model` with external data, every tensor in one file."""
    times(path, 3)
    save_model(load(path), path, save_as_external_data=True, location="all.bin", size_threshold=0, convert_attribute=True)
    assert OnnxModel(path, "m", OnnxOptions(1)).signature.inputs


def test_links_may_lead_about_in_the_repositories_and_not_out_of_them(tmp_path: Path) -> None:
    one, two, out = (tmp_path / name for name in ("one", "two", "out"))
    for folder in (one / "m", two / "shared", out):
        times(folder / "1" / "model.onnx", 2)
    (one / "m" / "2").symlink_to(two / "shared" / "1")
    (one / "m" / "loop").symlink_to("loop")
    assert leaving(one / "m", [one, two]) == "" and leaving(one / "m", [one]) == "2"
    (tmp_path / "alias").symlink_to(one)
    assert leaving(tmp_path / "alias" / "m", [tmp_path / "alias", two]) == "", "a repository may be a link itself"
    (two / "whole").symlink_to(out)
    found = Repository([one, two]).read("whole")
    assert found is not None and found.problem.startswith("whole is a link that leads out of the model repositories")
    assert not found.settings.public and str(tmp_path) not in found.problem


@pytest.mark.parametrize("what", ["1/model.onnx", "1/weights.bin", "model.toml", "1"])
def test_a_model_with_a_link_out_is_not_loaded(engine: Engine, repository: Path, tmp_path: Path, what: str) -> None:
    times(tmp_path / "out" / "1" / "model.onnx", 2)
    (tmp_path / "out" / "model.toml").write_text("public = true\n")
    (tmp_path / "out" / "1" / "weights.bin").write_bytes(b"")
    link = repository / "m" / what
    link.parent.mkdir(parents=True, exist_ok=True)
    if what not in ("1", "1/model.onnx"):
        times(repository / "m" / "1" / "model.onnx", 2)
    link.symlink_to(tmp_path / "out" / what)
    times(repository / "good" / "1" / "model.onnx", 2)
    with pytest.raises(ServingError, match=f"{what} is a link that leads out of the model repositories") as caught:
        engine.repository_model_load("m", {})
    assert caught.value.code is Code.INVALID_MODEL
    engine.repository_model_load("good", {})
    assert floats(engine.model_infer(request("good", [[1, 2]]))) == [2, 4]


def test_a_model_with_weights_outside_is_not_loaded_and_says_why(engine: Engine, repository: Path) -> None:
    weighted(repository / "m" / "1" / "model.onnx", "../../../secret")
    with pytest.raises(ServingError, match="asks for weights outside its folder") as caught:
        engine.repository_model_load("m", {})
    assert caught.value.code is Code.INVALID_MODEL


def test_a_library_of_operators_is_refused(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "config.pbtxt").write_text('model_operations { op_library_filename: ["evil.so"] }')
    with pytest.raises(ServingError, match="op_library_filename names code to be loaded into the server") as caught:
        engine.repository_model_load("m", {})
    assert caught.value.code is Code.INVALID_MODEL
