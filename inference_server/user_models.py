"""The users' repository: models of people who are not operators, beside the operators' repositories and never among them.

`<root>/<owner>.<deployment>/<version>/...`, or `<owner>.<model>.<test>`. What lies here is private, its Python code runs in a box or not at
all, and it is loaded only on order; what was loaded on order is marked, and serves again after a restart. What is removed is renamed
away first: half of it is never taken for a model.
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from dataclasses import replace
from pathlib import Path

from idl.codes import Code, ServingError
from inference_server import model_folders, whole_files
from inference_server.load_order import MARK_FILE
from inference_server.repository_model import RepositoryModel

_PART = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
USER_NAME = re.compile(rf"{_PART}\.{_PART}(\.{_PART})?")
NAME_RULE = "owner.deployment or owner.model.test, each part of letters, digits, '_' and '-', a letter or digit first, 64 at most"
TRIALS = ".trials"
"""Where files lie that are validated: see `validation`."""
_REMOVED = ".removed"
_LEFT_OVER_S = 3600.0
_SESSION = ("execution_mode", "inter_op_threads", "graph_optimization", "memory_arena", "memory_pattern")
"""Session options that a user's model may have; options of execution providers name files and libraries of the host."""


class UserModels:
    """`root` is made where it is missing, and what a killed server left half removed goes. Thread-safe. Raises OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(root / _REMOVED, ignore_errors=True)
        for part in root.glob("**/.*.part"):
            with contextlib.suppress(OSError):
                if part.stat().st_mtime < time.time() - _LEFT_OVER_S:
                    part.unlink()

    def names(self) -> tuple[str, ...]:
        """Every model that lies here, sorted."""
        with contextlib.suppress(FileNotFoundError):
            return tuple(sorted(entry.name for entry in os.scandir(self.root) if self.folder(entry.name) is not None))
        return ()

    def has(self, name: str) -> bool:
        """Whether the name is taken, by whatever."""
        return bool(USER_NAME.fullmatch(name)) and (self.root / name).is_dir()

    def folder(self, name: str) -> Path | None:
        """A model's folder, None where there is no such model."""
        folder = self.root / name
        return folder if USER_NAME.fullmatch(name) and folder.is_dir() and model_folders.is_model(folder) else None

    def marked(self) -> tuple[str, ...]:
        """What was loaded on order and not unloaded since, sorted."""
        return tuple(name for name in self.names() if (self.root / name / MARK_FILE).is_file())

    def mark(self, name: str, *, loaded: bool) -> bool:
        """Remembers over a restart whether it serves. False where the folder cannot be written."""
        path = self.root / name / MARK_FILE
        try:
            if not loaded:
                path.unlink(missing_ok=True)
            elif not path.exists():
                whole_files.write(path, "")
        except OSError:
            return False
        return True

    def remove(self, name: str, version: int) -> bool:
        """One version's files, or with 0 all; False where there are none. What serves of it must be unloaded. Raises internal."""
        folder = self.root / name / str(version) if version else self.root / name
        if not USER_NAME.fullmatch(name) or not folder.is_dir():
            return False
        away = self.root / _REMOVED / secrets.token_hex(8)
        try:
            away.parent.mkdir(mode=0o700, exist_ok=True)
            folder.rename(away)
            whole_files.sync(folder.parent)
        except FileNotFoundError:  # somebody else has just removed it
            return False
        except OSError as error:
            raise ServingError(Code.INTERNAL, f"the files of model {name!r} cannot be removed: {error.strerror}") from error
        shutil.rmtree(away, ignore_errors=True)
        return True


def restricted(model: RepositoryModel) -> RepositoryModel:
    """A user's model as it may be served, whatever its settings say."""
    said = model.settings
    settings = replace(
        said,
        public=False,
        executor="process",
        instances=1,
        python={**said.python, "sandbox": "required"},
        onnxruntime={key: value for key, value in said.onnxruntime.items() if key in _SESSION},
    )
    problem = "it has steps, and a user's model is no pipeline" if said.steps else model.problem
    return replace(model, settings=settings, problem=problem, user=True)
