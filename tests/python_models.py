"""Models that are Python files, for tests."""

from pathlib import Path
from textwrap import dedent

TOKENS = """
def infer(inputs, parameters):
    for number in range(int(inputs["count"][0])):
        yield {"token": [f"{parameters.get('word', 't')}{number}"]}
"""
TOKENS_TOML = """
[inputs.count]
datatype = "INT32"
shape = [1]
[outputs.token]
datatype = "BYTES"
shape = [1]
"""
DOUBLE = """
def infer(inputs):
    return {"y": inputs["x"] * 2}
"""
DOUBLE_TOML = """
[inputs.x]
datatype = "FP32"
shape = [-1]
[outputs.y]
datatype = "FP32"
shape = [-1]
"""


def python_model(folder: Path, code: str = DOUBLE, toml: str = DOUBLE_TOML, version: int = 1) -> Path:
    """Writes `folder/<version>/model.py` and `folder/model.toml`."""
    file = folder / str(version) / "model.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dedent(code))
    (folder / "model.toml").write_text(dedent(toml))
    return file


def tokens(folder: Path, more: str = "", code: str = TOKENS) -> Path:
    """count -> that many answers, each with one `token`: t0, t1 and so on. `more`: of model.toml, before its tables."""
    return python_model(folder, code, dedent(more) + TOKENS_TOML)
