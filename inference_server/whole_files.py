"""Files that are there whole or not at all, also after a power cut."""

import os
import threading
from pathlib import Path


def part_of(path: Path) -> Path:
    """Where the next content of `path` is written before it gets its name; nobody takes a `.part` for a file of ours."""
    return path.parent / f".{path.name}.{os.getpid()}-{threading.get_ident()}.part"


def write(path: Path, text: str) -> None:
    """Replaces `path`: a reader, or the next start, sees the old file or the new one. Raises OSError, and then nothing has changed."""
    part = part_of(path)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """The names in `folder` reach the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
