"""Validation of real models: what is told of each, and that nothing of them stays, whoever goes."""

import io
import threading
import time
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from idl.codes import Code, ServingError
from idl.messages import Validation
from inference_server.executors.memory_limit import MemoryLimits
from inference_server.types import FileHeader
from inference_server.validation import trials, validations
from inference_server.validation.validations import ValidationLimits, Validations
from tests.eventually import eventually
from tests.inference_server import test_pmml_models as pmml
from tests.needs import boxed
from tests.onnx_models import OPSET, identity, slow, times
from tests.python_models import DOUBLE, DOUBLE_TOML

LIMITS = ValidationLimits(2, 8 * 2**20, 20, 512 * 2**20)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "trials"


def made(root: Path, **said: Any) -> Validations:
    limits = {name: getattr(LIMITS, name) for name in ("at_once", "bytes", "timeout_s", "memory")}
    return Validations(root, MemoryLimits("watch"), ValidationLimits(**(limits | said)))


@pytest.fixture
def host(root: Path) -> Iterator[Validations]:
    found = made(root)
    yield found
    found.close()
    assert left(root) == []


def left(root: Path) -> list[Path]:
    return list(root.rglob("*")) if root.exists() else []


def parts(*files: tuple[str, bytes]) -> Iterator[FileHeader | bytes]:
    for name, data in files:
        yield FileHeader("", 0, name, 0, "")
        for start in range(0, len(data), 1 << 20):
            yield data[start : start + (1 << 20)]


def tried(host: Validations, *files: tuple[str, bytes], within_s: float = 60, active: Any = lambda: True) -> Validation:
    return host.validate(parts(*files), time.monotonic() + within_s, active)


def refused(call: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()
    return caught.value


def zipped(**files: str | bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/").replace("_py", ".py").replace("_toml", ".toml"), data)
    return buffer.getvalue()


# what is told ----------------------------------------------------------------------------------------------------------------------------


def test_an_onnx_file_by_its_content(host: Validations, tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", size)) for name, size in (("x", 4), ("y", 3)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "layer", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=9, producer_name="mill", producer_version="2.1")
    found = tried(host, ("holiday.jpg", model.SerializeToString()))
    assert (found.format, found.platform, found.algorithm, found.producer) == ("onnx", "onnxruntime_onnx", "neural network", "mill 2.1")
    assert (found.opset, found.parameter_count, found.size_bytes) == (17, 12, len(model.SerializeToString()))
    assert [(each.name, each.datatype, each.shape) for each in (*found.inputs, *found.outputs)] == [
        ("x", "FP32", ("batch", "4")),
        ("y", "FP32", ("batch", "3")),
    ]
    assert [(each.batch, each.runs) for each in found.latencies] == [(1, 30), (8, 30)]
    assert all(0 < each.p50_ms <= each.p99_ms for each in found.latencies) and found.load_ms > 0
    assert 0 < found.memory_bytes < 100 * 2**20 and found.proposed_memory_bytes >= 64 * 2**20 and found.proposed_cpus == 0.25
    assert (found.model_file, found.files, found.warnings) == ("model.onnx", ("model.onnx",), ())


def test_weights_in_files_beside_it(host: Validations, tmp_path: Path) -> None:
    made_of = onnx.load(str(times(tmp_path / "m.onnx", 3)))
    made_of.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full(1000, 3, np.float32), "factor"))
    made_of.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1000
    made_of.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1000
    onnx.save(made_of, str(tmp_path / "big.onnx"), save_as_external_data=True, location="big.bin", size_threshold=1)
    files = [(name, (tmp_path / name).read_bytes()) for name in ("big.bin", "big.onnx")]
    found = tried(host, *files)
    assert (found.format, found.parameter_count, found.files) == ("onnx", 1000, ("big.bin", "model.onnx"))
    error = refused(lambda: tried(host, files[1]))
    assert error.code is Code.INVALID_MODEL and "big.onnx" in error.message and "no such file beside it" in error.message


def test_a_fixed_batch_is_run_with_one_row(host: Validations, tmp_path: Path) -> None:
    found = tried(host, ("m", identity(tmp_path / "m.onnx", shape=(1, 3)).read_bytes()))
    assert [each.batch for each in found.latencies] == [1] and "one by one" in found.warnings[0]
    assert found.algorithm == "computation (Identity)"


@pmml.ready
def test_a_pmml_file_with_its_ranges_and_values(host: Validations) -> None:
    text = pmml.TREE.replace("<Header/>", '<Header><Application name="tree maker" version="7"/></Header>')
    found = tried(host, ("m.xml", text.encode()))
    assert (found.format, found.algorithm, found.producer, found.model_file) == ("pmml", "TreeModel", "tree maker 7", "model.pmml")
    age, visits, colour = found.inputs
    assert (age.name, age.datatype, age.low, age.high, age.optype) == ("age", "FP64", 0, 120, "continuous")
    assert (visits.low, visits.high) == (None, None) and (colour.values, colour.optype) == (("red", "blue"), "categorical")
    assert [each.batch for each in found.latencies] == [1, 8], found.warnings


@boxed
@pytest.mark.parametrize("folder", ["", "mine__"])
def test_a_zip_archive_with_code(host: Validations, folder: str) -> None:
    code = "from shapes import twice\n\ndef infer(inputs):\n    return {'y': twice(inputs['x'])}\n"
    files = {"model_py": code, "model_toml": DOUBLE_TOML, "shapes____init___py": "", "shapes__more_py": ""}
    data = zipped(**{folder + name: text for name, text in files.items() if "__init" not in name})
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(folder.replace("__", "/") + "shapes/__init__.py", "def twice(x):\n    return x * 2\n")
        archive.writestr("__MACOSX/._model.py" if not folder else "mine/.hidden", "left out")
    found = tried(host, ("m.zip", buffer.getvalue()))
    assert (found.format, found.algorithm, found.platform) == ("python", "python", "python")
    assert found.files == ("model.py", "model.toml", "shapes/more.py", "shapes/__init__.py")
    assert [each.name for each in found.inputs] == ["x"] and found.latencies[0].batch == 1 and found.parameter_count is None


@boxed
def test_code_in_files_of_its_own(host: Validations) -> None:
    found = tried(host, ("model.toml", DOUBLE_TOML.encode()), ("model.py", DOUBLE.encode()))
    assert found.format == "python" and found.files == ("model.toml", "model.py")


@boxed
def test_an_input_that_cannot_be_guessed_is_a_warning(host: Validations) -> None:
    code = "def infer(inputs):\n    raise ValueError('only my own rows')\n"
    found = tried(host, ("model.toml", DOUBLE_TOML.encode()), ("model.py", code.encode()))
    assert found.latencies == () and "only my own rows" in found.warnings[0] and found.proposed_cpus == 1


def test_code_without_a_box_is_not_run(host: Validations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trials.sandbox, "unusable", lambda: "there is none")
    assert refused(lambda: tried(host, ("model.py", DOUBLE.encode()))).code is Code.UNSUPPORTED
    assert tried(host, ("m", times(tmp_path / "m", 2).read_bytes())).format == "onnx", "which is no code"


@boxed
@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed: it would be tried")
@pytest.mark.parametrize("inside", [("m/constants.pkl", "m/data.pkl", "m/code/x.py"), ("m/archive_format", "m/models/model.json")])
def test_what_the_host_has_not_installed_is_said(host: Validations, inside: tuple[str, ...]) -> None:
    error = refused(lambda: tried(host, ("m", zipped(**dict.fromkeys(inside, b"x")))))
    toml = b'[inputs.x]\ndatatype = "FP32"\nshape = [-1]\n[outputs.y]\ndatatype = "FP32"\nshape = [-1]\n'
    again = refused(lambda: tried(host, ("m", zipped(**dict.fromkeys(inside, b"x"))), ("model.toml", toml)))
    assert error.code is again.code is Code.UNSUPPORTED and "torch 2.6 or later" in again.message


# who goes, and what is too much ----------------------------------------------------------------------------------------------------------


def test_a_caller_that_goes_ends_it(host: Validations, root: Path, tmp_path: Path) -> None:
    waits = threading.Event()
    data = slow(tmp_path / "m.onnx", 10_000_000).read_bytes()
    errors: list[ServingError] = []
    caller = threading.Thread(target=lambda: errors.append(refused(lambda: tried(host, ("m", data), active=lambda: not waits.is_set()))))
    caller.start()
    eventually(lambda: any(path.name == "model.onnx" for path in left(root)), "it is tried")
    waits.set()
    caller.join(10)
    assert [error.code for error in errors] == [Code.CANCELLED]


def test_a_sender_that_breaks_off_leaves_nothing(host: Validations, root: Path) -> None:
    def broken() -> Iterator[FileHeader | bytes]:
        yield from parts(("m", b"x" * 3_000_000))
        assert left(root)
        raise ServingError(Code.CANCELLED, "the client has gone")

    assert refused(lambda: host.validate(broken(), time.monotonic() + 9, lambda: True)).code is Code.CANCELLED


def test_so_many_at_once(root: Path) -> None:
    host = made(root, at_once=1)
    inside, go = threading.Event(), threading.Event()

    def waiting() -> Iterator[FileHeader | bytes]:
        yield FileHeader("", 0, "m", 0, "")
        inside.set()
        go.wait(10)
        yield b"not a model"

    first = threading.Thread(target=lambda: refused(lambda: host.validate(waiting(), time.monotonic() + 20, lambda: True)))
    first.start()
    assert inside.wait(10)
    error = refused(lambda: tried(host, ("m", b"x")))
    assert error.code is Code.OVERLOADED and error.retry_after_ms > 0
    go.set()
    first.join(10)
    assert refused(lambda: tried(host, ("m", b"x"))).code is Code.INVALID_MODEL, "the place is free again"
    host.close()


def test_sizes_and_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = made(root, bytes=1000)
    assert refused(lambda: tried(host, ("a", b"x" * 600), ("b", b"x" * 600))).code is Code.TOO_LARGE
    announced = iter([FileHeader("", 0, "a", 10**13, "")])
    assert refused(lambda: host.validate(announced, time.monotonic() + 9, lambda: True)).code is Code.TOO_LARGE
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as full:
        full.setattr(validations.shutil, "disk_usage", lambda path: usage)
        assert refused(lambda: tried(host, ("a", b"x"))).code is Code.INSUFFICIENT_CAPACITY
    monkeypatch.setattr(validations.host, "memory", lambda: (2**34, 2**20))
    error = refused(lambda: tried(host, ("model.py", DOUBLE.encode())))
    assert error.code is Code.INSUFFICIENT_CAPACITY and "1 MiB" in error.message
    host.close()
    monkeypatch.undo()
    reserved = Validations(root, MemoryLimits("watch"), LIMITS, lambda: 3 * 2**20)
    error = refused(lambda: tried(reserved, ("model.py", DOUBLE.encode())))
    assert error.code is Code.INSUFFICIENT_CAPACITY and "3 MiB" in error.message, "the rest is promised to models"
    reserved.close()
    assert left(root) == []


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b"chunk"],
        [FileHeader("", 0, "../m", 0, "")],
        [FileHeader("", 0, "/m", 0, "")],
        [FileHeader("", 0, "a/b/c/d/e", 0, "")],
        [FileHeader("", 0, "", 0, "")],
        [FileHeader("", 0, "m", 0, ""), FileHeader("", 0, "m", 0, "")],
        [FileHeader("", 0, "m", 0, ""), b"x", FileHeader("", 0, "m/x", 0, "")],
        [FileHeader("", 0, "m", 5, ""), b"x"],
        [FileHeader("", 0, "m", 0, "0" * 64), b"x"],
    ],
)
def test_what_is_said_of_files_must_be_right(host: Validations, headers: list[FileHeader | bytes]) -> None:
    assert refused(lambda: host.validate(iter(headers), time.monotonic() + 9, lambda: True)).code is Code.INVALID_INPUT


def test_what_a_killed_server_left_is_swept(root: Path) -> None:
    (root / "4194304000-1-1" / "sent").mkdir(parents=True)
    (root / "4194304000-1-1" / "sent" / "m").write_bytes(b"x")
    (root / "something").mkdir()
    living = made(root)
    (mine := root / f"{living._me}-7").mkdir()
    made(root).close()
    living.close()
    assert left(root) == [mine], "another server's that lives is not touched"
