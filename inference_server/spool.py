"""Files that came inside a load request: kept in a private folder of this server for as long as a version is served from them."""

import errno
import itertools
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from idl.codes import Code, ServingError

log = logging.getLogger("outboard.server")

FOLDER = "sent"


class Spooled:
    """One request's files, in `folder`, laid out as a model's folder. Made with one holder; the last `release` removes them. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._holders = 1

    def keep(self) -> None:
        """One holder more: each version that is served from these files."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            shutil.rmtree(self.folder.parent, ignore_errors=True)


class Spool:
    """`run_dir` belongs to this server alone: what a killed one left there is removed. `most_bytes`: of one request's files."""

    def __init__(self, run_dir: Path, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._folder = run_dir / FOLDER
        self._numbers = itertools.count(1)
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, name: str, files: Mapping[str, bytes]) -> Spooled:
        """`files`: path below the model's folder, checked by `load_order` -> content. Raises insufficient_capacity, internal."""
        kept = Spooled(self._folder / str(next(self._numbers)) / name)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept.folder.mkdir(parents=True)
            for path, content in files.items():
                target = kept.folder / path
                if not target.is_relative_to(kept.folder) or ".." in target.parts:  # `load_order` lets no such name through
                    raise OSError(errno.EINVAL, "a name leads out of its folder")
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(content)
        except OSError as error:
            kept.release()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                size = sum(map(len, files.values()))
                raise ServingError(Code.INSUFFICIENT_CAPACITY, f"the model host has no room for {size} bytes of files") from error
            raise ServingError(Code.INTERNAL, f"the files cannot be kept: {error.strerror}") from error
        return kept

    def close(self) -> None:
        """Removes everything that is left. Idempotent."""
        shutil.rmtree(self._folder, ignore_errors=True)
