"""Local files that are sent: what is said along with them."""

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from inference_client.channel import TrialFile


def sha256_of(path: Path) -> str:
    """64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def trial_files(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | tuple[str, BinaryIO]]) -> tuple[TrialFile, ...]:
    """As `Client.validate` takes them. Raises ValueError where there is none, OSError for a path that cannot be read."""
    given = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not given:
        raise ValueError("there is no file to validate")
    made = []
    for each in given:
        if isinstance(each, tuple):
            made.append(TrialFile(*each))
            continue
        path = Path(each)
        path.stat()
        made.append(TrialFile(path.name, path))
    return tuple(made)


def size_of(source: Path | BinaryIO) -> int:
    """Bytes that are left to be read, 0 where that is not known. Raises OSError."""
    if isinstance(source, Path):
        return source.stat().st_size
    try:
        here = source.tell()
        end = source.seek(0, io.SEEK_END)
        source.seek(here)
        return max(0, end - here)
    except (OSError, ValueError, AttributeError):  # a pipe, or a socket's file
        return 0
