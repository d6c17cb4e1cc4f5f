"""PyTorch models, exported and TorchScript: their signatures, their answers, and that nothing in them is unpickled.

Skipped, and so counted, where torch is not installed: it is no part of the locked environment (docs/development.md says why).
"""

import io
import pickle
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import InferRequest, Tensor
from inference_server.backends import pytorch
from inference_server.engine import Engine

needs_torch = [pytest.mark.pytorch, pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")]

LINEAR_TOML = """
[inputs.x]
datatype = "FP32"
shape = [-1, 3]
[outputs.y]
datatype = "FP32"
shape = [-1, 2]
"""


def place(repository: Path, name: str, toml: str = "") -> Path:
    folder = repository / "m" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():
        other.unlink()
    (repository / "m" / "model.toml").write_text(toml)
    return folder / name


def ask(engine: Engine, **inputs: Any) -> dict[str, Any]:
    given = []
    for name, array in inputs.items():
        datatype = next(spec.datatype for spec in engine.model_metadata("m", "").inputs if spec.name == name)
        given.append(Tensor(name, datatype, array.shape, np.ascontiguousarray(array).tobytes()))
    answer = engine.model_infer(InferRequest("m", tuple(given)))
    return {each.name: tensors.decode(each.name, each.datatype, each.shape, each.data) for each in answer.outputs}


def refused(engine: Engine) -> ServingError:
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load("m", {})
    return caught.value


def described(engine: Engine) -> list[tuple[str, str, tuple[int, ...]]]:
    metadata = engine.model_metadata("m", "")
    return [(spec.name, spec.datatype, spec.shape) for spec in (*metadata.inputs, *metadata.outputs)]


def linear() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(3, 2).eval()


def pair() -> Any:
    import torch

    class Pair(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            a.add_(1)  # writes into what it is given
            return {"sum": a + b, "least": torch.minimum(a, b).to(torch.int64)}

    return Pair().eval()


@pytest.mark.usefixtures("engine")
class TestWithTorch:
    pytestmark = needs_torch

    def test_an_exported_program_says_its_tensors(self, engine: Engine, repository: Path) -> None:
        import torch

        module = linear()
        rows = torch.export.Dim("rows")
        program = torch.export.export(module, (torch.ones(2, 3),), dynamic_shapes={"input": {0: rows}})
        torch.export.save(program, str(place(repository, "model.pt2")))
        engine.repository_model_load("m", {})
        assert described(engine) == [("input", "FP32", (-1, 3)), ("output", "FP32", (-1, 2))]
        config = engine.model_config("m", "")
        assert (config["platform"], config["backend"], config["default_model_filename"]) == ("pytorch_export", "pytorch", "model.pt2")
        assert config["parameters"]["execution_providers"]["string_value"] == "CPUExecutionProvider"
        for count in (1, 5):
            x = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
            assert np.allclose(ask(engine, input=x)["output"], module(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
        (repository / "m" / "model.toml").write_text('[outputs.output]\ndatatype = "FP64"\nshape = [-1, 2]\n')
        assert "output 'output' is FP64 in model.toml and FP32 in the model's file" in refused(engine).message

    def test_names_of_dicts_and_keywords_and_models_that_write(self, engine: Engine, repository: Path) -> None:
        import torch

        program = torch.export.export(pair(), (torch.ones(2),), {"b": torch.ones(2)})
        torch.export.save(program, str(place(repository, "model.pt2")))
        engine.repository_model_load("m", {})
        assert described(engine) == [("a", "FP32", (2,)), ("b", "FP32", (2,)), ("sum", "FP32", (2,)), ("least", "INT64", (2,))]
        for _ in range(2):
            found = ask(engine, a=np.float32([1, 5]), b=np.float32([3, 4]))
            assert (found["sum"].tolist(), found["least"].tolist()) == ([5, 10], [2, 4])

    def test_bfloat_and_half(self, engine: Engine, repository: Path) -> None:
        import torch

        class Both(torch.nn.Module):
            def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return x * 2, h * 2

        program = torch.export.export(Both(), (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)))
        torch.export.save(program, str(place(repository, "model.pt2")))
        engine.repository_model_load("m", {})
        assert [spec[:2] for spec in described(engine)] == [("x", "BF16"), ("h", "FP16"), ("output_0", "BF16"), ("output_1", "FP16")]
        bits = torch.tensor([1.5, -3.0], dtype=torch.bfloat16).view(torch.uint16).numpy()
        found = ask(engine, x=bits, h=np.float16([1.5, -3.0]))
        assert torch.from_numpy(found["output_0"].copy()).view(torch.bfloat16).tolist() == [3.0, -6.0]
        assert found["output_1"].tolist() == [3.0, -6.0]

    def test_torchscript_goes_by_model_toml(self, engine: Engine, repository: Path) -> None:
        import torch

        module = linear()
        script = torch.jit.script(module)
        script.save(str(place(repository, "model.pt", LINEAR_TOML.replace("inputs.x", "inputs.input"))))
        engine.repository_model_load("m", {})
        assert described(engine) == [("input", "FP32", (-1, 3)), ("y", "FP32", (-1, 2))]
        x = np.float32([[1, 2, 3], [4, 5, 6]])
        assert np.allclose(ask(engine, input=x)["y"], module(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
        script.save(str(place(repository, "model.pt", LINEAR_TOML.replace("inputs.x", "inputs.INPUT__0"))))
        engine.repository_model_load("m", {})
        assert np.allclose(ask(engine, INPUT__0=x)["y"], module(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
        for toml, words in (
            (LINEAR_TOML, "inputs are 'x', and forward takes input: it has no 'x'"),
            ("", "model.pt does not say what its tensors are: model.toml needs [inputs.NAME] and [outputs.NAME] with datatype and shape"),
            (LINEAR_TOML.replace("FP32", "BYTES"), "'x' is BYTES, and torch has no texts"),
        ):
            script.save(str(place(repository, "model.pt", toml)))
            assert words in refused(engine).message

    def test_failures_are_the_models_and_harm_nobody(self, engine: Engine, repository: Path) -> None:
        import torch

        script = torch.jit.script(linear())
        script.save(str(place(repository, "model.pt", LINEAR_TOML.replace("inputs.x", "inputs.input").replace("-1, 3", "-1, -1"))))
        engine.repository_model_load("m", {})
        with pytest.raises(ServingError, match="mat1 and mat2 shapes cannot be multiplied") as caught:
            ask(engine, input=np.ones((2, 4), np.float32))
        assert caught.value.code is Code.MODEL_FAILED
        assert ask(engine, input=np.ones((2, 3), np.float32))["y"].shape == (2, 2)
        toml = LINEAR_TOML.replace("inputs.x", "inputs.input").replace("-1, 2", "-1, 4")
        script.save(str(place(repository, "model.pt", toml)))
        engine.repository_model_load("m", {})
        with pytest.raises(ServingError, match=r"output 'y' has shape \[2, 2\], and \[-1, 4\] is declared"):
            ask(engine, input=np.ones((2, 3), np.float32))

    def test_pickles_are_never_loaded(self, engine: Engine, repository: Path, tmp_path: Path) -> None:
        """A pickle that would leave a file behind, as a whole model and as the samples inside an exported program."""
        import torch

        mark = tmp_path / "loaded"
        evil = pickle.dumps(_Touches(str(mark)))
        place(repository, "model.pt", LINEAR_TOML).write_bytes(evil)
        assert "model.pt is not TorchScript (torch.jit.save), or is cut off" in refused(engine).message
        torch.save(linear(), str(place(repository, "model.pt", LINEAR_TOML)))
        assert "model.pt is a pickle of torch.save, which is not loaded" in refused(engine).message
        file = place(repository, "model.pt2", '[python]\nsandbox = "off"\n')
        torch.export.save(torch.export.export(linear(), (torch.ones(2, 3),)), str(file))
        replaced = _with(file.read_bytes(), "sample_inputs", _archive(evil))
        assert replaced[1], "there is a pickle in the file"
        file.write_bytes(replaced[0])
        refusal = refused(engine)
        assert refusal.code is Code.INVALID_MODEL and not mark.exists(), refusal.message
        file.write_bytes(b"no zip")
        assert "model.pt2 is not a program of torch.export" in refused(engine).message
        file.write_bytes(b"")
        assert "model.pt2 is empty: it has 0 bytes" in refused(engine).message

    @pytest.mark.gpu
    def test_a_gpu_is_used_where_there_is_one(self) -> None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU that torch can use")
        assert pytorch._device(torch, ["CUDAExecutionProvider"], 0).type == "cuda"


class _Touches:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self._path),)


def _archive(evil: bytes) -> bytes:
    """As torch.save writes it, with another pickle in it."""
    import torch

    made = io.BytesIO()
    torch.save([1], made)
    return _with(made.getvalue(), "data.pkl", evil)[0]


def _with(archive: bytes, inside: str, content: bytes) -> tuple[bytes, int]:
    """The zip archive with every file whose name has `inside` replaced, and how many there were."""
    made, count = io.BytesIO(), 0
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            is_it = inside in info.filename
            count += is_it
            new.writestr(info.filename, content if is_it else old.read(info))
    return made.getvalue(), count


# without torch ---------------------------------------------------------------------------------------------------------------------


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    with pytest.raises(ServingError) as caught:
        pytorch._torch("m")
    assert caught.value.code is Code.UNSUPPORTED
    assert caught.value.message == "model 'm': PyTorch models need torch 2.6 or later (pip install -e '.[torch]' in the checkout)"


@pytest.mark.parametrize(
    ("names", "arguments", "order"),
    [
        (["b", "a"], ["a", "b"], ([], {"b": "b", "a": "a"})),
        (["IN__1", "IN__0"], ["a", "b"], (["IN__0", "IN__1"], {})),
        (["a"], ["a", "b="], ([], {"a": "a"})),
    ],
)
def test_inputs_find_the_arguments_of_forward(names: list[str], arguments: list[str], order: Any) -> None:
    assert pytorch._order("m", names, [argument(each) for each in arguments]) == order


@pytest.mark.parametrize(
    ("names", "arguments", "words"),
    [
        (["a"], ["a", "b"], "inputs are 'a', and forward takes a, b: it needs 'b' as well"),
        (["c"], ["a"], "it has no 'c'"),
        (["IN__1"], ["a"], "it has no 'IN__1'"),
        (["IN__0", "IN__1"], ["a"], "it has no 'IN__0'"),
    ],
)
def test_inputs_that_forward_does_not_take_are_refused(names: list[str], arguments: list[str], words: str) -> None:
    with pytest.raises(ServingError) as caught:
        pytorch._order("m", names, [argument(each) for each in arguments])
    assert words in caught.value.message


def argument(name: str) -> Any:
    return SimpleNamespace(name=name.rstrip("="), has_default_value=lambda: name.endswith("="))


def test_a_gpu_is_only_used_where_it_is_asked_for() -> None:
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    torch = SimpleNamespace(cuda=cuda, device=lambda *named: named)
    assert pytorch._device(torch, ("CUDAExecutionProvider", "CPUExecutionProvider"), 1) == ("cuda", 1)
    assert pytorch._device(torch, ("CUDAExecutionProvider",), 2) == ("cpu",), "there is no third one"
    assert pytorch._device(torch, ("CPUExecutionProvider",), 0) == ("cpu",)
