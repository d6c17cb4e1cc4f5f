"""What an owner got wrong about a model: the load is refused, and the message says what and where in the owner's words."""

import json
from pathlib import Path

import pytest

from idl.codes import Code, ServingError
from inference_server.engine import Engine
from tests.inference_server.conftest import floats, request
from tests.onnx_models import times


def refused(engine: Engine, repository: Path, parameters: dict[str, str] | None = None) -> str:
    """The message of a load of model `m`, which must be invalid_model and without a path of the host."""
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load("m", parameters or {})
    assert caught.value.code is Code.INVALID_MODEL, caught.value
    assert str(repository) not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[inputs.q]\nkind = "image"', "inputs.q: the model has no input 'q'; its inputs are 'x'"),
        ('[inputs.q]\nkind = "tensor"', "inputs.q: the model has no input 'q'; its inputs are 'x'"),
        ('[labels]\nz = "names.txt"', "labels.z: the model has no output 'z'; its outputs are 'y'"),
        ('[inputs.x]\nkind = "image"', "of 3 axes, or of 4 with the batch; the model's input 'x' is FP32 [-1, 2]"),
        ("version_policy = { specific = [9] }", "version_policy names version 9, and there is only version 1"),
        ('[[warmup]]\ninputs.x = { file = "absent.npy" }', "warm-up sample 1 cannot be used: input 'x': file 'absent.npy' is not there"),
        ('[[warmup]]\ninputs.x = { file = "empty.npy" }', "cannot be used: input 'x': file 'empty.npy': No data left in file"),
        ('[[warmup]]\ninputs.x = { file = "names.txt" }', "input 'x': file 'names.txt': tensor 'x' of FP32 [1, 2] needs 8 bytes, got 4"),
        ("[[warmup]]\ninputs.q = { value = 1 }", "the model has no input 'q'; it has 'x'"),
        ('[labels]\ny = "absent.txt"', "labels.y: file 'absent.txt' is not there"),
        ('[labels]\ny = "picture.txt"', "labels.y: file 'picture.txt' is not text: byte 0 is not UTF-8"),
    ],
)
def test_a_name_that_the_model_has_not_is_refused(engine: Engine, repository: Path, text: str, said: str) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "names.txt").write_text("a\nb\n")
    (repository / "m" / "empty.npy").touch()
    (repository / "m" / "picture.txt").write_bytes(b"\xff\xd8")
    (repository / "m" / "model.toml").write_text(text)
    assert said in refused(engine, repository)


def test_names_that_the_model_has_are_taken(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2, ("batch", 3, 4, 5))
    (repository / "m" / "names.txt").write_text("a\nb\n")
    (repository / "m" / "model.toml").write_text('[inputs.x]\nkind = "image"\n[labels]\ny = "names.txt"\n')
    engine.repository_model_load("m", {})
    times(repository / "n" / "1" / "model.onnx", 2, (3, 4, 5))
    (repository / "n" / "model.toml").write_text('[inputs.x]\nkind = "image"\n')
    engine.repository_model_load("n", {})
    assert engine.model_ready("m", "") and engine.model_ready("n", "")


def test_a_policy_without_a_version_names_what_there_is(engine: Engine, repository: Path) -> None:
    for number in (1, 2):
        times(repository / "m" / str(number) / "model.onnx", number)
    (repository / "m" / "model.toml").write_text("version_policy = { specific = [7, 9] }\n")
    assert "version_policy names version 7, 9, and there are versions 1, 2" in refused(engine, repository)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "model.onnx is empty: it has 0 bytes"),
        (b"<html>moved</html>", "model.onnx is not an ONNX file, or is cut off (onnxruntime: "),
        (b"\x08\x07", "No graph was found in the protobuf"),
    ],
)
def test_a_file_that_is_no_model_is_called_so(engine: Engine, repository: Path, content: bytes, said: str) -> None:
    (repository / "m" / "1").mkdir(parents=True)
    (repository / "m" / "1" / "model.onnx").write_bytes(content)
    assert said in refused(engine, repository)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_batch_sze": 8}, "is not a model configuration: it has no field 'max_batch_sze'"),
        ({"input": [{"name": "x", "data_tpe": "TYPE_FP32"}]}, "is not a model configuration: input[0] has no field 'data_tpe'"),
        ({"max_batch_size": "many"}, "Failed to parse max_batch_size"),
    ],
)
def test_a_wrong_field_of_a_configuration_is_the_one_that_is_named(
    engine: Engine, repository: Path, config: dict[str, object], said: str
) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load("m", {"config": json.dumps(config)})
    assert caught.value.code is Code.INVALID_INPUT and said in caught.value.message
    assert "versionPolicy" not in caught.value.message and "Available" not in caught.value.message


def test_names_that_come_with_a_load_request_are_checked_as_well(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    engine.repository_model_load("m", {})
    own = json.dumps({"inputs": {"q": {"kind": "image"}}})
    config = json.dumps({"parameters": {"outboard": {"string_value": own}}})
    assert "inputs.q: the model has no input 'q'" in refused(engine, repository, {"config": config})
    assert floats(engine.model_infer(request("m", [[1, 2]]))) == [2, 4], "what served goes on serving"
