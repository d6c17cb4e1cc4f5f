"""Symbolic links in a model's folder: they may lead about in the repositories, and not out of them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from inference_server.file_stamps import DEPTH


def leaving(folder: Path, roots: Sequence[Path]) -> str:
    """The first link in a model's `folder`, or that folder itself, which leads out of all `roots`: its path below. "" where none does."""
    inside = [root.resolve() for root in roots]
    for link, name in _links(folder, DEPTH, ""):
        try:
            target = link.resolve()
        except (OSError, RuntimeError):  # a loop leads nowhere
            continue
        if not any(target.is_relative_to(root) for root in inside):
            return name
    return ""


def _links(folder: Path, depth: int, below: str) -> Iterator[tuple[Path, str]]:
    if not below and folder.is_symlink():
        yield folder, folder.name
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = below + entry.name
        if entry.is_symlink():
            yield folder / entry.name, path
        if depth > 1 and Path(entry.path).is_dir():
            yield from _links(folder / entry.name, depth - 1, f"{path}/")
