"""Models that are scripts of users, for tests."""

import contextlib
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from idl import tensors
from idl.codes import ServingError
from idl.messages import InferRequest, InferResponse, Tensor
from idl.tensors import Array
from inference_server.engine import Engine
from tests.processes import descendants

GOOD = """
def preprocess(inputs):
    return {"x": inputs["x"] + 1}


def postprocess(outputs):
    return {"label": "high" if outputs["y"].max() > 10 else "low", "best": int(outputs["y"].argmax())}
"""
"""x -> x + 1; y -> a label and an index."""


def script_model(folder: Path, code: str = GOOD, toml: str = "", version: int = 1) -> Path:
    """Writes `folder/<version>/script.py` and, where there is something to say, `folder/model.toml`."""
    file = folder / str(version) / "script.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dedent(code))
    if toml:
        (folder / "model.toml").write_text(dedent(toml))
    return file


def asked(model: str, function: str, inputs: dict[str, Any], **more: Any) -> InferRequest:
    """A request to a script; `inputs`: name -> array, or what numpy makes one of."""
    given = tuple(_tensor(name, value) for name, value in inputs.items())
    return InferRequest(model, given, parameters={"function": function}, **more)


def _tensor(name: str, value: Any) -> Tensor:
    array = value if isinstance(value, np.ndarray) else np.array(value, object if isinstance(value, (str, bytes)) else None)
    kind = tensors.datatype_of(array)
    return Tensor(name, kind, array.shape, tensors.encode(array, kind))


def arrays(response: InferResponse) -> dict[str, Array]:
    """The answer's outputs."""
    return {t.name: tensors.decode(t.name, t.datatype, t.shape, t.data) for t in response.outputs}


def load(engine: Engine, repository: Path, code: str = GOOD, toml: str = "", version: int = 1) -> None:
    """As the model `s`."""
    script_model(repository / "s", code, toml, version)
    engine.repository_model_load("s", {})


def ask(engine: Engine, function: str = "preprocess", **inputs: Any) -> dict[str, Any]:
    """name -> (datatype, value as Python has it)."""
    response = engine.model_infer(asked("s", function, inputs))
    return {tensor.name: (tensor.datatype, arrays(response)[tensor.name].tolist()) for tensor in response.outputs}


def refused(engine: Engine, function: str = "preprocess", **inputs: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        engine.model_infer(asked("s", function, inputs))
    return caught.value


def running_below(pid: int) -> dict[int, str]:
    """pid -> name of everything that a process, and what it started, has running."""
    found = {}
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            found[each] = Path(f"/proc/{each}/comm").read_text().strip()
    return found
