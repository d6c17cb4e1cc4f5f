"""How a model's folder is laid out: which versions lie in it, and whether somebody meant it to be a model."""

import os
import re
from pathlib import Path

from inference_server.declared import CONFIG
from inference_server.load_order import VERSION
from inference_server.model_settings import BACKENDS, FILE, MODEL_FILE, MODEL_FILES, SCRIPT, SCRIPT_FILE

_STEPS = {
    FILE: re.compile(rb"(?m)^\s*(\[\[\s*steps\s*\]\]|steps\s*=)"),
    CONFIG: re.compile(rb"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\b(ensemble_scheduling)\b"""),
}
"""File -> what finds steps in it, as its first group: in the second one comments and texts are passed over."""


def versions(folder: Path, name: str = "", *, bare: bool = False) -> tuple[int, ...]:
    """Those that have a model file called `name`, "" for any of the usual names, ascending; none where the folder cannot be read.

    `bare`: a version is any folder with its number, also an empty one.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if VERSION.fullmatch(entry.name)]
    except OSError:
        return ()
    return tuple(
        sorted(int(version) for version in names if (bare and (folder / version).is_dir()) or model_file(folder / version, name).is_file())
    )


def model_file(version: Path, name: str = "") -> Path:
    """The model file in a version's folder; where no usual name is there, the path that it should have.

    A Triton repository may hold a folder in the place of the file: the model in it, under the same name, and its external weights.
    """
    for each in (name,) if name else MODEL_FILES:
        path = version / each
        path = path / MODEL_FILE if path.is_dir() else path
        if path.is_file():
            return path
    return version / (name or MODEL_FILE)


def backend(file: Path) -> str:
    """What runs a model file, by its name or how that ends."""
    return SCRIPT if file.name == SCRIPT_FILE else BACKENDS.get(file.suffix, "onnx")


def is_pipeline(folder: Path) -> bool:
    """Whether its settings seem to have steps, so that its version folders need no file."""
    return any(_has(folder / name, pattern) for name, pattern in _STEPS.items())


def _has(file: Path, pattern: re.Pattern[bytes]) -> bool:
    try:
        with file.open("rb") as opened:
            return any(found[1] for found in pattern.finditer(opened.read(2**20)))
    except OSError:
        return False


def is_model(folder: Path) -> bool:
    """Whether somebody meant `folder` to be a model."""
    return bool(versions(folder)) or any((folder / name).exists() for name in (FILE, CONFIG))
