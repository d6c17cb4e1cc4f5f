"""Models that are Python files: what they are given, what becomes of their answers and mistakes."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, Tensor
from inference_server.engine import Engine
from tests.eventually import eventually
from tests.inference_server.conftest import floats
from tests.python_models import DOUBLE, DOUBLE_TOML, python_model


def ask(engine: Engine, values: Any = (1.0, 2.0), model: str = "m", **more: Any) -> InferResponse:
    array = np.float32(values)
    return engine.model_infer(InferRequest(model, (Tensor("x", "FP32", array.shape, array.tobytes()),), **more))


def refused(engine: Engine, **more: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        ask(engine, **more)
    return caught.value


def load(engine: Engine, repository: Path, code: str = DOUBLE, toml: str = DOUBLE_TOML, version: int = 1) -> None:
    python_model(repository / "m", code, toml, version)
    engine.repository_model_load("m", {})


def test_it_answers_and_its_signature_is_the_declared_one(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    assert floats(ask(engine)) == [2, 4]
    metadata = engine.model_metadata("m", "")
    assert metadata.platform == "python"
    assert [(spec.name, spec.datatype, spec.shape) for spec in (*metadata.inputs, *metadata.outputs)] == [
        ("x", "FP32", (-1,)),
        ("y", "FP32", (-1,)),
    ]
    config = engine.model_config("m", "")
    assert (config["backend"], config["default_model_filename"]) == ("python", "model.py")
    assert engine.model_statistics("m", "")[0].success.count == 1
    assert refused(engine, values=[[1.0]]).code is Code.INVALID_INPUT


def test_load_is_told_what_the_model_is_and_close_is_called(engine: Engine, repository: Path, tmp_path: Path) -> None:
    code = f"""
    import pathlib
    def load(context):
        global found
        found = context
    def infer(inputs, parameters):
        assert (found.folder / "model.py").is_file()
        return {{"y": inputs["x"]}}, {{"said": f"{{found.model}}/{{found.version}} {{found.parameters['a']}} {{parameters['b']}}"}}
    def close():
        pathlib.Path({str(tmp_path / "closed")!r}).touch()
    """
    load(engine, repository, code, DOUBLE_TOML + '[parameters]\na = "x"\n[python]\nsandbox = "off"\nflags = ["-O"]\n', 3)
    assert ask(engine, parameters={"b": True}).parameters["said"] == "m/3 x True"
    engine.repository_model_unload("m", {})
    assert (tmp_path / "closed").exists()


def test_its_mistakes_are_named_and_harm_nobody(engine: Engine, repository: Path) -> None:
    code = """
    from outboard_model import InvalidInput
    import numpy as np
    def infer(inputs, parameters):
        what = parameters.get("do")
        if what == "refuse": raise InvalidInput("no negative numbers")
        if what == "fail": raise KeyError("secret")
        if what == "nothing": return None
        if what == "missing": return {"z": 1}
        if what == "shape": return {"y": [[1.0]]}
        if what == "type": return {"y": ["a"]}
        if what == "complex": return {"y": np.array([1j])}
        if what == "parameters": return {"y": [1.0]}, {"a": object()}
        return {"y": [1, 2]}
    """
    load(engine, repository, code)
    wanted = {
        "refuse": (Code.INVALID_INPUT, "the model refuses its input: no negative numbers"),
        "fail": (Code.MODEL_FAILED, "model.py, line 7: KeyError: 'secret'"),
        "nothing": (Code.MODEL_FAILED, "infer gave a NoneType, not a dict of output name -> array"),
        "missing": (Code.MODEL_FAILED, "infer gave no output 'y'; it gave 'z'"),
        "shape": (Code.MODEL_FAILED, "output 'y' has shape [1, 1], and [-1] is declared"),
        "type": (Code.MODEL_FAILED, "output 'y' is <U1, and FP32 is declared"),
        "complex": (Code.MODEL_FAILED, "output 'y' is complex128, and FP32 is declared"),
        "parameters": (Code.MODEL_FAILED, "the parameters of an answer are texts, numbers and truth values by their names"),
    }
    for what, (code_, message) in wanted.items():
        error = refused(engine, parameters={"do": what})
        assert (error.code, error.message) == (code_, message)
    assert floats(ask(engine)) == [1, 2], "whole numbers that fit are taken"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("float('nan')", "is nan, which JSON has no word for"),
        ("10**30", "does not fit 64 bits"),
        ("'\\ud800'", "half a surrogate pair"),
        ("[1]", "texts, numbers and truth values"),
    ],
)
def test_parameters_of_an_answer_that_no_protocol_carries(engine: Engine, repository: Path, value: str, words: str) -> None:
    load(engine, repository, f"def infer(inputs): return {{'y': inputs['x']}}, {{'p': {value}}}\n")
    error = refused(engine)
    assert error.code is Code.MODEL_FAILED and words in error.message


def test_leaving_the_interpreter_is_a_mistake_like_any_other(engine: Engine, repository: Path) -> None:
    code = "import sys\ndef infer(inputs):\n  if inputs['x'][0] < 0: sys.exit(3)\n  return {'y': inputs['x']}\n"
    load(engine, repository, code)
    assert "SystemExit: 3" in refused(engine, values=[-1.0, 2.0]).message
    assert floats(ask(engine)) == [1, 2]


@pytest.mark.parametrize(
    ("code", "toml", "reason"),
    [
        ("def infer(:", DOUBLE_TOML, "SyntaxError"),
        ("x = 1", DOUBLE_TOML, "model.py has no function infer"),
        ("def infer(): pass", DOUBLE_TOML, "infer in model.py takes (inputs) or (inputs, parameters)"),
        ("import nothing_of_this_name", DOUBLE_TOML, "model.py, line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def infer(a): pass\ndef load(): 1 / 0", DOUBLE_TOML, "model.py, line 2: ZeroDivisionError: division by zero"),
        ("import os; os._exit(3)", DOUBLE_TOML, "its process died while loading it"),
        (DOUBLE, "", "it does not say what it gives: model.toml needs [outputs.NAME] with datatype and shape"),
        (DOUBLE, "[outputs.y]\nshape = [1]", "model.toml: outputs.y needs a datatype and a shape"),
    ],
)
def test_what_cannot_be_loaded_says_why(engine: Engine, repository: Path, code: str, toml: str, reason: str) -> None:
    python_model(repository / "m", code, toml)
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load("m", {})
    assert caught.value.code is Code.INVALID_MODEL
    assert reason in caught.value.message


def test_a_crash_costs_the_request_inside_only(engine: Engine, repository: Path) -> None:
    load(engine, repository, "import os\ndef infer(inputs, parameters):\n  return {'y': inputs['x']} if not parameters else os._exit(1)")
    assert refused(engine, parameters={"die": 1}).code is Code.MODEL_FAILED
    assert floats(ask(engine)) == [1, 2]


def test_texts_and_batches(engine: Engine, repository: Path) -> None:
    toml = """
    max_batch_size = 4
    [inputs.x]
    datatype = "BYTES"
    shape = [-1, 1]
    [outputs.y]
    datatype = "BYTES"
    shape = [-1, 1]
    """
    load(engine, repository, "def infer(inputs):\n  return {'y': [[item.decode().upper()] for (item,) in inputs['x']]}", toml)
    data = tensors.encode(np.array([[b"a"], ["ü".encode()]], object))
    answer = engine.model_infer(InferRequest("m", (Tensor("x", "BYTES", (2, 1), data),)))
    found = tensors.decode("y", "BYTES", (2, 1), answer.outputs[0].data)
    assert found.tolist() == [[b"A"], ["Ü".encode()]]
    assert engine.model_metadata("m", "").properties["batching"] == "on, up to 4 rows"


def test_memory_and_endless_loops_are_bounded(engine: Engine, repository: Path) -> None:
    code = """
    def infer(inputs, parameters):
        if parameters.get("do") == "eat": x = [bytearray(2**20) for _ in range(2000)]
        while parameters.get("do") == "loop": pass
        return {"y": inputs["x"]}
    """
    load(engine, repository, code, 'memory = "200MiB"\n' + DOUBLE_TOML)
    error = refused(engine, parameters={"do": "eat"}, deadline=time.monotonic() + 20)
    assert error.code is Code.MODEL_FAILED and "over its memory limit" in error.message
    assert floats(ask(engine)) == [1, 2]
    late = refused(engine, parameters={"do": "loop"}, deadline=time.monotonic() + 0.3)
    assert late.code is Code.DEADLINE_EXCEEDED


def test_its_process_ends_with_it_and_a_reload_takes_the_new_code(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    (pid,) = (executor.pid for executor in engine._served["m"].versions[1].executors)
    assert Path(f"/proc/{pid}").exists()
    load(engine, repository, "def infer(inputs):\n  return {'y': inputs['x'] * 3}", version=2)
    assert floats(ask(engine)) == [3, 6]
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the old one has gone")
