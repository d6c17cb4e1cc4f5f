"""What a setting's value may be: one reader for each kind, shared by `model.toml` and by what a load request carries.

A reader takes (key, value, the model's folder) and gives what `ModelSettings` holds, or raises `InvalidModelSettings`, whose message
names the key and the value. Which file they stand in, the caller adds.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Reader = Callable[[str, Any, Path], Any]

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""A file's name without a folder in it: nothing that starts with a dot leaves the folder that it is looked up in."""
_LONGEST_SHOWN = 100
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class InvalidModelSettings(ValueError):
    """The settings cannot be used; the message names the key and the value."""


def bad(key: str, value: Any, want: str) -> InvalidModelSettings:
    return InvalidModelSettings(f"{key} = {shown(value)} is not {want}")


def shown(value: Any) -> str:
    """A value as a message has it, however large."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def boolean(key: str, value: Any, folder: Path) -> bool:
    if not isinstance(value, bool):
        raise bad(key, value, "true or false")
    return value


def text(key: str, value: Any, folder: Path) -> str:
    if not isinstance(value, str):
        raise bad(key, value, "a text")
    return value


def whole(least: int, most: int) -> Reader:
    def reader(key: str, value: Any, folder: Path) -> int:
        if not is_whole(value, least, most):
            raise bad(key, value, f"a whole number from {least} to {most}")
        return int(value)

    return reader


def wholes(least: int, most: int, longest: int = 64) -> Reader:
    """A list of different whole numbers, given in any order, ascending in the end."""

    def reader(key: str, value: Any, folder: Path) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) > longest or not all(is_whole(item, least, most) for item in value):
            raise bad(key, value, f"a list of at most {longest} whole numbers from {least} to {most}")
        return tuple(sorted(set(value)))

    return reader


def one_of(*choices: str) -> Reader:
    def reader(key: str, value: Any, folder: Path) -> str:
        if value not in choices:
            raise bad(key, value, " or ".join(f'"{choice}"' for choice in choices))
        return str(value)

    return reader


def plain_name(key: str, value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not PLAIN_NAME.fullmatch(value):
        raise bad(key, value, "the plain name of a file")
    return value


def cores(key: str, value: Any, folder: Path) -> float:
    if not is_number(value) or not 0 < value <= 4096:
        raise bad(key, value, "a number of cores above 0")
    return float(value)


def byte_size(key: str, value: Any, folder: Path) -> int:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    size = int(float(match[1]) * _UNITS[match[2] or "B"]) if match else 0
    if not 0 < size < 2**63:
        raise bad(key, value, 'a size such as "2GiB"')
    return size


def byte_count(key: str, value: Any, folder: Path) -> int:
    """The same, or a plain number: for a key that is itself called bytes."""
    return value if type(value) is int and 0 < value < 2**63 else byte_size(key, value, folder)


def table(key: str, value: Any, readers: Mapping[str, Reader], folder: Path) -> dict[str, Any]:
    """A table whose keys are known. Its own keys are named `key.name` in messages."""
    if not isinstance(value, dict):
        raise bad(key, value, "a table")
    found = {}
    for name, inner in value.items():
        reader = readers.get(name)
        if reader is None:
            raise InvalidModelSettings(f"{key} has an unknown key {shown(name)}; known are {', '.join(sorted(readers))}")
        found[name] = reader(f"{key}.{name}", inner, folder)
    return found
