"""What this server publishes to callers on its host: the routes that `idl.lane_routes` describes. One owner, thread-safe."""

import json
import logging
import mmap
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from idl.lane_routes import ENDED, FOLDER, GENERATION
from idl.shared_cells import map_cells

log = logging.getLogger("outboard.server")


class RoutePublisher:
    """Writes `run_dir/routes`. A former server's routes are declared ended and removed. `close` is idempotent."""

    def __init__(self, run_dir: Path, limit: int) -> None:
        """`limit`: most bytes of tensors in a request. Raises OSError."""
        self._folder = run_dir / FOLDER
        self._limit = limit
        self._lock = threading.Lock()
        _end_former(self._folder)
        self._folder.mkdir(mode=0o750)
        part = self._folder / f".{GENERATION}.part"
        part.write_bytes(bytes(16))
        with part.open("r+b") as file:
            self._cells = map_cells(file.fileno(), 2, writable=True)
        part.replace(self._folder / GENERATION)

    def accepting(self, accepting: bool) -> None:
        """Callers go to the RPC ports while this says False, and are told why."""
        with self._lock:
            self._cells[1] = int(accepting)

    def publish(
        self, model: str, versions: Mapping[int, Sequence[Path]], labels: Mapping[str, int], default: Sequence[tuple[int, int]]
    ) -> None:
        """`versions`: the lanes of each one's instances; `default`: (version, weight) of requests that name none."""
        said = {
            "default": [[str(version), weight] for version, weight in default],
            "labels": {label: str(version) for label, version in labels.items()},
            "versions": {str(version): [path.name for path in lanes] for version, lanes in versions.items()},
            "limit": self._limit,
        }
        path = self._folder / f"{model}.json"
        with self._lock:
            if self._cells[0] == ENDED:
                return
            part = self._folder / f".{model}.part"
            try:
                part.write_text(json.dumps(said))
                part.replace(path)
            except OSError as error:  # no room: without a route callers ask over RPC
                log.warning("route not published", extra={"fields": {"model": model, "reason": str(error.strerror)}})
                path.unlink(missing_ok=True)
            self._cells[0] += 1

    def withdraw(self, model: str) -> None:
        with self._lock:
            (self._folder / f"{model}.json").unlink(missing_ok=True)
            if self._cells[0] != ENDED:
                self._cells[0] += 1

    def close(self) -> None:
        with self._lock:
            self._cells[0] = ENDED
            shutil.rmtree(self._folder, ignore_errors=True)


def _end_former(folder: Path) -> None:
    """Tells who is still attached to a server that was killed that it has ended."""
    try:
        with (folder / GENERATION).open("r+b") as file, mmap.mmap(file.fileno(), 16) as cells:
            cells[:8] = ENDED.to_bytes(8, "little", signed=True)
    except (OSError, ValueError):
        pass
    shutil.rmtree(folder, ignore_errors=True)


def attach_beside(socket_path: Path, run_dir: Path) -> None:
    """Beside a unix socket of this server, a link by which callers find the lane: `<socket>.lane` -> the run folder. Raises OSError."""
    link = socket_path.with_name(f"{socket_path.name}.lane")
    part = link.with_name(f".{link.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(run_dir.resolve(), link.parent.resolve()), target_is_directory=True)
    part.replace(link)


def detach_beside(socket_path: Path) -> None:
    socket_path.with_name(f"{socket_path.name}.lane").unlink(missing_ok=True)
