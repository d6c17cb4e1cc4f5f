"""What a model is run on before it takes requests: samples of every kind, and what a wrong one says."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from idl.codes import Code, ServingError
from idl.messages import TensorSpec
from idl.tensors import DTYPES
from inference_server import model_settings
from inference_server.engine import Engine
from inference_server.setting_checks import InvalidModelSettings
from inference_server.types import Signature
from inference_server.warmup_samples import MOST_BYTES, warmup_inputs, warmup_samples
from tests.inference_server.conftest import floats, request
from tests.onnx_models import save, times


def signature(datatype: str = "FP32", shape: tuple[int, ...] = (-1, 3)) -> Signature:
    return Signature("onnx", (TensorSpec("x", datatype, shape),), (TensorSpec("y", datatype, shape),), 0)


def samples(folder: Path, text: str) -> list[dict[str, Any]]:
    """As they arrive in an executor."""
    settings = model_settings.combined(model_settings.values("it", tomllib.loads(text), folder))
    return json.loads(json.dumps(warmup_samples(settings.warmup, folder)))  # type: ignore[no-any-return]


def arrays(folder: Path, content: str, seen: Signature, top: str = "") -> list[np.ndarray[Any, Any]]:
    runs = warmup_inputs("m", samples(folder, f"[[warmup]]\n{top}\ninputs.x = {content}\n"), seen)
    return [inputs["x"] for inputs in runs]


def test_without_samples_one_is_made(tmp_path: Path) -> None:
    for datatype in DTYPES:
        (inputs,) = warmup_inputs("m", [], signature(datatype))
        assert inputs["x"].shape == (1, 3) and inputs["x"].dtype == DTYPES[datatype]
    (text,) = warmup_inputs("m", [], signature("BYTES"))
    assert text["x"].tolist() == [[b"", b"", b""]]


def test_shapes_batches_counts_and_values(tmp_path: Path) -> None:
    first, second = arrays(tmp_path, "{ shape = [3], value = 1.5 }", signature(), "batch = 4\ncount = 2")
    assert first is second and first.shape == (4, 3) and set(first.ravel()) == {1.5}
    (whole,) = arrays(tmp_path, "{ shape = [2, 3] }", signature())
    assert whole.shape == (2, 3) and not whole.any()
    (open_sizes,) = arrays(tmp_path, "{ value = 7 }", signature("INT64", (-1, -1)), "batch = 5")
    assert open_sizes.shape == (5, 1) and open_sizes.dtype == np.int64 and (open_sizes == 7).all()
    (scalar,) = arrays(tmp_path, "{ value = true }", signature("BOOL", ()))
    assert scalar.shape == () and scalar.item() is True
    (texts,) = arrays(tmp_path, '{ shape = [1, 3], value = "grüße" }', signature("BYTES"))
    assert texts.tolist() == [["grüße".encode()] * 3]
    (bfloat,) = arrays(tmp_path, "{ value = 1.0 }", signature("BF16"))
    assert (bfloat == 0x3F80).all()


@pytest.mark.parametrize("datatype", DTYPES)
def test_random_ones_are_the_same_every_time(tmp_path: Path, datatype: str) -> None:
    ((first,), (second,)) = (arrays(tmp_path, "{ shape = [64, 3], random = true }", signature(datatype)) for _ in range(2))
    assert first.dtype == DTYPES[datatype] and first.tolist() == second.tolist()
    assert len(set(first.ravel().tolist())) > 1
    if datatype not in ("BYTES", "BF16"):
        assert first.min() >= 0 and first.max() <= 1


def test_files(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", values)
    (tmp_path / "x.json").write_text(json.dumps(values.tolist()))
    (tmp_path / "warmup" / "x").write_bytes(values.tobytes())
    for content in ('{ file = "x.npy" }', '{ file = "x.json" }', '{ file = "warmup/x", shape = [2, 3] }'):
        (array,) = arrays(tmp_path, content, signature())
        assert array.tolist() == values.tolist() and array.dtype == np.float32
    (tiled,) = arrays(tmp_path, '{ file = "x.npy" }', signature(shape=(-1, 2, 3)), "batch = 8")
    assert tiled.shape == (8, 2, 3) and (tiled == values).all() and tiled.flags.c_contiguous
    (tmp_path / "texts.json").write_text('[["a", "b", "c"]]')
    np.save(tmp_path / "texts.npy", np.array([["a", "b", "c"]]))
    for name in ("texts.json", "texts.npy"):
        (array,) = arrays(tmp_path, f'{{ file = "{name}" }}', signature("BYTES"))
        assert array.tolist() == [[b"a", b"b", b"c"]]


def test_an_input_that_a_sample_leaves_out_is_zeros(tmp_path: Path) -> None:
    two = Signature("onnx", (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("n", "INT64", (-1,))), (), 0)
    (inputs,) = warmup_inputs("m", samples(tmp_path, "[[warmup]]\nbatch = 2\ninputs.x = { value = 1 }\n"), two)
    assert inputs["n"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("warmup = 3", "warmup = 3"),
        ("[[warmup]]\nbatch = 0", r"warmup\[0\].batch = 0"),
        ("[[warmup]]\nsize = 3", r"warmup\[0\] has an unknown key 'size'"),
        ("[[warmup]]\n[[warmup]]\ncount = 5000", r"warmup\[1\].count"),
        ("[[warmup]]\ninputs = 3", r"warmup\[0\].inputs"),
        ("[[warmup]]\ninputs.x = { shape = [-1] }", r"inputs.x.shape"),
        ("[[warmup]]\ninputs.x = { value = 1, random = true }", "more than one"),
        ('[[warmup]]\ninputs.x = { file = "../secret" }', r"inputs.x.file = '../secret'"),
        ('[[warmup]]\ninputs.x = { file = "/etc/passwd" }', "inputs.x.file"),
        ('[[warmup]]\ninputs.x = { file = "warmup/../x" }', "inputs.x.file"),
        ("[[warmup]]\ninputs.x = { value = nan }", "inputs.x.value"),
        ("[[warmup]]\n" * 101, "at most 100"),
    ],
)
def test_a_wrong_sample_is_refused_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidModelSettings, match=said):
        samples(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "datatype", "said"),
    [
        ("{ shape = [3] }", "FP32", r"input 'x' has shape \[3\], the model takes \[-1, 3\]"),
        ("{ shape = [2, 4] }", "FP32", r"shape \[2, 4\]"),
        (f"{{ shape = [{MOST_BYTES}, 3] }}", "FP32", "may have at most"),
        ("{ shape = [1099511627776, 3] }", "UINT8", "may have at most"),
        ('{ value = "one" }', "FP32", "'one' is not a FP32"),
        ("{ value = true }", "FP32", "True is not a FP32"),
        ("{ value = 1 }", "BOOL", "1 is not a BOOL"),
        ("{ value = 1 }", "BYTES", "1 is not a text"),
        ("{ value = 1.5 }", "INT32", "1.5 is not a INT32"),
        ("{ value = 300 }", "UINT8", "300"),
        ("{ value = -1 }", "UINT64", "-1"),
        ('{ file = "absent.npy" }', "FP32", "input 'x': file 'absent.npy' is not there"),
        ('{ file = "bad.npy" }', "FP32", "cannot be used"),
        ('{ file = "huge.npy" }', "FP32", "cannot be used"),
        ('{ file = "object.npy" }', "FP32", "allow_pickle"),
        ('{ file = "double.npy" }', "FP32", "holds float64, the model takes FP32"),
        ('{ file = "double.npy", shape = [3, 3] }', "FP64", r"holds shape \[1, 3\], \[3, 3\] is said"),
        ('{ file = "ragged.json" }', "FP32", "cannot be used"),
        ('{ file = "fractions.json" }', "INT64", "other values than INT64"),
        ('{ file = "deep.json" }', "FP32", "cannot be used"),
        ('{ file = "raw.bin", shape = [1, 3] }', "FP32", r"needs 12 bytes, got 5"),
    ],
)
def test_a_sample_that_does_not_fit_is_no_usable_model(tmp_path: Path, content: str, datatype: str, said: str) -> None:
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY nonsense")
    (tmp_path / "huge.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 3), }".ljust(128)
    )
    np.save(tmp_path / "object.npy", np.array([[{}]], object), allow_pickle=True)
    np.save(tmp_path / "double.npy", np.ones((1, 3)))
    (tmp_path / "ragged.json").write_text("[[1, 2], [3]]")
    (tmp_path / "fractions.json").write_text("[[1.5, 2, 3]]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "raw.bin").write_bytes(b"12345")
    with pytest.raises(ServingError, match=said) as caught:
        arrays(tmp_path, content, signature(datatype))
    assert caught.value.code is Code.INVALID_MODEL and str(tmp_path) not in caught.value.message


def test_an_unknown_input_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="no input 'z'; it has 'x'"):
        list(warmup_inputs("m", samples(tmp_path, "[[warmup]]\ninputs.z = {}\n"), signature()))


# through the server ------------------------------------------------------------------------------------------------------------------------


def test_a_model_is_run_on_its_samples_before_it_is_ready(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "model.toml").write_text("[[warmup]]\nbatch = 3\ninputs.x = { random = true }\n")
    engine.repository_model_load("m", {})
    assert floats(engine.model_infer(request("m", [[1, 2]]))) == [2, 4]


def test_a_sample_that_does_not_fit_fails_the_load_and_the_old_version_serves(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    engine.repository_model_load("m", {})
    (repository / "m" / "model.toml").write_text("[[warmup]]\ninputs.x = { shape = [1, 7] }\n")
    with pytest.raises(ServingError, match=r"warm-up sample 1 cannot be used: input 'x' has shape \[1, 7\]") as caught:
        engine.repository_model_load("m", {})
    assert caught.value.code is Code.INVALID_MODEL
    assert floats(engine.model_infer(request("m", [[1, 2]]))) == [2, 4]


def test_what_trying_took_in_memory_is_given_back(engine: Engine, repository: Path) -> None:
    """4 MB for each row on the way; onnxruntime's arena would keep what the largest run has taken."""
    row = numpy_helper.from_array(np.ones((1, 2**20), np.float32), "row")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", 1)) for name in "xy")
    nodes = [helper.make_node("MatMul", ["x", "row"], ["wide"]), helper.make_node("ReduceMax", ["wide"], ["y"], axes=[1])]
    save(helper.make_graph(nodes, "wide", [x], [y], [row]), repository / "m" / "1" / "model.onnx")
    (repository / "m" / "model.toml").write_text(
        "max_batch_size = 1\n[[warmup]]\ninputs.x = { shape = [1, 1] }\n[[warmup]]\ninputs.x = { shape = [32, 1] }\n"
    )
    engine.repository_model_load("m", {})
    (executor,) = engine._served["m"].versions[1].executors
    assert executor.memory_bytes() < 60e6
    assert floats(engine.model_infer(request("m", [[3.0]]))) == [3]
