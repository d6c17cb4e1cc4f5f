"""Folders of a repository that somebody meant to be models and that are none: what is wrong with each, in the owner's words.

They are not served, not in the index, and no reason not to be ready; without a word they would look as if they had been overlooked.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inference_server.declared import CONFIG
from inference_server.load_order import MODEL_NAME, VERSION
from inference_server.model_folders import is_model
from inference_server.model_settings import BACKENDS, FILE, MODEL_FILE, MODEL_FILES

_SERVED = tuple(suffix for suffix in BACKENDS if suffix != ".py")
"""Files that are surely models. A Python file may be anything, except in a version's folder."""
_OTHERS = (".pth", ".pb", ".h5", ".keras", ".tflite", ".safetensors", ".pkl", ".joblib", ".plan", ".engine", ".ckpt", ".gguf")
"""Files of models that this server cannot load."""
_NAME_RULE = "a model's name has letters, digits, '_', '-' and '.', a letter or digit first, 194 at most"


@dataclass(frozen=True, slots=True)
class NearModel:
    """`where`: REPOSITORY or REPOSITORY/FOLDER, without the path to it. `why`: what it lacks, and what is wanted."""

    where: str
    why: str


@dataclass(frozen=True, slots=True)
class _Contents:
    """Names in a folder, sorted, hidden ones left out. `is_written`: a `.part` lies there, so a copy is on its way."""

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    is_written: bool = False

    def of(self, *suffixes: str) -> str:
        """The first file that ends so, "" where none does."""
        return next((name for name in self.files if name.lower().endswith(suffixes)), "")


class NearModels:
    """Of `roots`, those that were not told yet. Not thread-safe: one thread looks."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)
        self._last: frozenset[NearModel] = frozenset()
        self._told: frozenset[NearModel] = frozenset()

    def fresh(self, *, at_once: bool) -> list[NearModel]:
        """Each is given once, until it has been something else. `at_once` False: only what the look before has found as well."""
        found = [near for root in self._roots for near in near_models(root)]
        given = [near for near in found if near not in self._told and (at_once or near in self._last)]
        self._last = frozenset(found)
        self._told = (self._told & self._last) | frozenset(given)
        return given

    @property
    def count(self) -> int:
        """How many the last look found, told or not."""
        return len(self._last)


def near_models(root: Path) -> list[NearModel]:
    """What of the repository `root` is nearly a model, sorted by name. What cannot be read is passed over."""
    with suppress(OSError):
        return list(_of_root(root))
    return []


def _of_root(root: Path) -> Iterator[NearModel]:
    name, contents = root.absolute().name, _contents(root)
    if _is_own_folder(root, contents):
        yield NearModel(name, "it is the folder of one model; the repository, the folder that this one lies in, is wanted")
        return
    if file := contents.of(*_SERVED):
        stem = Path(file).stem
        model = stem if stem != Path(MODEL_FILE).stem and MODEL_NAME.fullmatch(stem) else "NAME"
        yield NearModel(name, f"{file} lies in the repository itself; {name}/{model}/1/{_usual(file)} is wanted")
    for folder in contents.folders:
        with suppress(OSError):
            if why := _why(root / folder, f"{name}/{folder}"):
                yield NearModel(f"{name}/{folder}", why)


def _is_own_folder(root: Path, contents: _Contents) -> bool:
    """Versions, or settings, lie directly in it, and no model does."""
    has_version = any((root / name / file).is_file() for name in contents.folders if VERSION.fullmatch(name) for file in MODEL_FILES)
    has_settings = FILE in contents.files or CONFIG in contents.files
    return (has_version or has_settings) and not any(is_model(root / name) for name in contents.folders)


def _why(folder: Path, where: str) -> str:
    """Why `folder` is no model although it looks like one; "" where it is one, or is something else."""
    name_is_right = bool(MODEL_NAME.fullmatch(folder.name))
    if is_model(folder):
        return "" if name_is_right else _NAME_RULE
    contents = _contents(folder)
    if contents.is_written:
        return ""
    file = contents.of(*_SERVED)
    why = f"{file} lies beside the version folders; {where}/1/{_usual(file)} is wanted" if file else _of_versions(folder, where, contents)
    return f"{why}; {_NAME_RULE}" if why and not name_is_right else why


def _of_versions(folder: Path, where: str, contents: _Contents) -> str:
    """Of the folders in it the first that is nearly a version."""
    for name in contents.folders:
        inner = _contents(folder / name)
        if inner.is_written:
            return ""
        if VERSION.fullmatch(name):
            return _of_version(f"{where}/{name}", inner.of(*_SERVED) or inner.of(".py"), inner.of(*_OTHERS))
        if file := inner.of(*_SERVED):
            return f"its folder {name!r} is no version, which is a whole number from 1, without zeros before it; {where}/1/{_usual(file)} is wanted"
        if is_model(folder / name):
            return f"it holds models of its own, such as {where}/{name}, and is a repository itself"
    return ""


def _of_version(where: str, served: str, other: str) -> str:
    if served:
        return f"{where} has {served} and no {_usual(served)}: rename it, or say in {FILE}: model_file = {served!r}"
    kinds = f"{', '.join(MODEL_FILES[:-1])} or {MODEL_FILES[-1]}"
    if other:
        hint = "; outboard models convert makes ONNX of it" if other.endswith((".pkl", ".joblib")) else ""
        return f"{where} has {other}, which is not served{hint}: {kinds} is wanted"
    return f"{where} has none of {kinds}"


def _usual(file: str) -> str:
    """The name that a model file of this kind has where nothing is said."""
    return f"model{Path(file).suffix.lower()}"


def _contents(folder: Path) -> _Contents:
    """Raises OSError."""
    files: list[str] = []
    folders: list[str] = []
    is_written = False
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        is_written = is_written or entry.name.endswith(".part")
        if not entry.name.startswith("."):
            (folders if entry.is_dir() else files).append(entry.name)
    return _Contents(tuple(files), tuple(folders), is_written)
