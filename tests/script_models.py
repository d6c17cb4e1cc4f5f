"""Models that are scripts of users, for tests."""

import os
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

from idl import tensors
from idl.messages import InferRequest, InferResponse, Tensor
from idl.tensors import Array

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


def descendants(pid: int) -> dict[int, str]:
    """pid -> name of everything that a process, and what it started, has running."""
    found: dict[int, str] = {}
    for task in _listed(Path(f"/proc/{pid}/task")):
        for child in map(int, _text(Path(f"/proc/{pid}/task/{task}/children")).split()):
            found |= {child: _text(Path(f"/proc/{child}/comm")).strip()} | descendants(child)
    return found


def resident(pids: dict[int, str]) -> int:
    """Bytes of memory that they have."""
    return sum(int((_text(Path(f"/proc/{pid}/statm")).split() or ["0", "0"])[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
