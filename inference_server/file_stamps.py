"""How files look from outside: what tells one content from another without reading it."""

import os
from collections.abc import Iterator
from pathlib import Path

Stamp = tuple[str, int, int, int, int]
"""(path below the folder, size in bytes, mtime and ctime in ns, inode). The change time no tool can set back."""

DEPTH = 4
"""Folders below a model's that are looked into: links are followed, and a loop of them must end."""


def stamps(folder: Path, depth: int = DEPTH, below: str = "") -> Iterator[Stamp]:
    """Every file below `folder`, sorted; one that vanishes meanwhile, or a link to nothing, has -1 for its size."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = below + entry.name
        try:
            if entry.is_dir():
                if depth > 1:
                    yield from stamps(Path(entry.path), depth - 1, f"{path}/")
                continue
            found = entry.stat()
            yield path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        except OSError:
            yield path, -1, 0, 0, 0


def look(folder: Path) -> Iterator[Stamp]:
    """What lies in `folder` itself, other folders by their own times."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        try:
            found = entry.stat()
            yield entry.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        except OSError:
            yield entry.name, -1, 0, 0, 0
