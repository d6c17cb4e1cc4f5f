"""A file on its way in: written beside the blobs, hashed as it comes, kept or thrown away."""

import contextlib
import hashlib
import secrets
from pathlib import Path
from typing import IO

from gateway.storage.blobs import PARTIAL, full
from idl.codes import Code, ServingError


class Incoming:
    """A partial file in `folder`, which is made at the first byte. Not thread-safe. `discard` may be called whenever, and again.

    What a killed process leaves is taken away by `Blobs.sweep_partial`.
    """

    def __init__(self, folder: Path, limit: int, name: str = "") -> None:
        """`limit` in bytes; `name`: what the sender calls the file."""
        self.path = folder / f"{PARTIAL}{secrets.token_hex(8)}"
        self.name = name
        self.size = 0
        self._limit = limit
        self._digest = hashlib.sha256()
        self._file: IO[bytes] | None = None

    @property
    def sha256(self) -> str:
        """Of what has come."""
        return self._digest.hexdigest()

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Raises too_large beyond the limit, insufficient_capacity where the disk is full."""
        self.size += len(piece)
        if self.size > self._limit:
            raise ServingError(Code.TOO_LARGE, f"the file has more than {self._limit} bytes")
        self._digest.update(piece)
        try:
            if self._file is None:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = self.path.open("xb")
            self._file.write(piece)
        except OSError as error:
            raise full(error) from error

    def finish(self) -> Path:
        """The whole file, closed. Raises insufficient_capacity."""
        try:
            if self._file is None:
                self.write(b"")
            assert self._file is not None
            self._file.close()
        except OSError as error:
            raise full(error) from error
        return self.path

    def discard(self) -> None:
        """Nothing is left of it, unless it was adopted."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what was buffered may not fit on the disk
                self._file.close()
        self.path.unlink(missing_ok=True)
