"""What a load request asks for besides a name: a version, a configuration, files.

Rules: model repository extension, "Load". `config` is a model configuration as JSON; `file:<version>/<name>` is a file's content, and
needs a `config` beside it. Names decide where files are written, so nothing but plain ones is taken.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from idl.codes import Code, ServingError
from inference_server import errors
from inference_server.setting_checks import PLAIN_NAME, shown
from inference_server.version_labels import LABELS_FILE
from inference_server.warmup_samples import FOLDER as WARMUP

FILE = "file:"
PIN_FILE = "serving-version"
"""Beside the version folders, after a load that named a version: the version that a restart is to serve as well."""
MARK_FILE = "loaded"
"""There in the users' repository, while the model is to serve: what was loaded on order."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,193}")
"""As long as three parts of 64 with their dots: see `user_models`."""
VERSION = re.compile(r"[1-9][0-9]{0,17}")
MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """`version` 0: as the version policy says. `config` "": what lies in the repository. `files`: "<version>/<name>" -> content."""

    version: int = 0
    config: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


def read(name: str, parameters: Mapping[str, Any], most_bytes: int) -> LoadOrder:
    """`most_bytes`: of all files together. Raises invalid_input, version_not_found and too_large."""
    version, config, files = 0, "", {}
    for key, value in parameters.items():
        if key == "version":
            version = _version(name, value)
        elif key == "config":
            config = _config(value)
        elif key.startswith(FILE):
            files[_path(key)] = _content(key, value)
        else:
            raise errors.invalid_input(f"load parameter {shown(key)} is not known; there are version, config and {FILE}<version>/<name>")
    _check_files(name, config, files, most_bytes)
    return LoadOrder(version, config, files)


def _version(name: str, value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not VERSION.fullmatch(text):
        raise errors.version_not_found(name, text[:128])
    return int(text)


def _config(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise errors.invalid_input("load parameter 'config' is not a JSON text")
    return value


def _path(key: str) -> str:
    path = key.removeprefix(FILE)
    *folders, name = path.split("/")
    known = not folders or (len(folders) == 1 and (VERSION.fullmatch(folders[0]) or folders[0] == WARMUP))
    taken = not folders and (VERSION.fullmatch(name) or name in (PIN_FILE, LABELS_FILE, MARK_FILE, WARMUP))
    if not known or taken or not PLAIN_NAME.fullmatch(name) or name.endswith(".part"):
        raise errors.invalid_input(
            f"load parameter {shown(key)} is not {FILE}<version>/<name>, {FILE}{WARMUP}/<name> or {FILE}<name> with a plain name"
        )
    return path


def _content(key: str, value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise errors.invalid_input(f"load parameter {shown(key)} is not bytes")
    return value


def _check_files(name: str, config: str, files: Mapping[str, bytes], most_bytes: int) -> None:
    if files and not config:
        raise errors.invalid_input(f"model {name[:128]!r}: files in a load request need a 'config' beside them")
    if len(files) > MOST_FILES:
        raise ServingError(Code.TOO_LARGE, f"the request has {len(files)} files, at most {MOST_FILES} are taken")
    size = sum(map(len, files.values()))
    if size > most_bytes:
        raise ServingError(Code.TOO_LARGE, f"the request has {size} bytes of files, at most {most_bytes} are taken")
