"""POSIX shared memory that a caller made, and into which it puts tensors (Triton's system shared memory extension).

The memory is the caller's: it may shrink it at any moment, and touching a mapping beyond the end of its file is SIGBUS, which would end the
whole process. So nothing is mapped here. Contents are copied with `preadv` and `pwrite`, which say how much there was. What they copy
into belongs to this process: a caller that changes its memory meanwhile spoils its own request and nothing else.
"""

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from idl.codes import Code, ServingError
from idl.messages import SharedRegion
from idl.tensors import invalid

FOLDER = "/dev/shm"
"""Where the system keeps POSIX shared memory."""
PARAMETERS = REGION, SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
"""A tensor's parameters: the region's name, and which bytes of it."""
CLASSIFICATION = "classification"
_LONGEST_KEY = 255


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: `size` bytes from `offset` of the region on."""

    region: str
    size: int
    offset: int


def place(tensor: str, parameters: Mapping[str, Any]) -> Place | None:
    """What a tensor's parameters say; None where it is not in shared memory. Raises invalid_input; `tensor` names it there."""
    if not any(name in parameters for name in PARAMETERS):
        return None
    name, size, offset = parameters.get(REGION), parameters.get(SIZE), parameters.get(OFFSET, 0)
    if not isinstance(name, str) or not name:
        raise invalid(f"tensor {tensor!r} has no {REGION!r} that is a text")
    if type(size) is not int or size < 0:
        raise invalid(f"tensor {tensor!r} has no {SIZE!r} that is a number of bytes")
    if type(offset) is not int or offset < 0:
        raise invalid(f"tensor {tensor!r} has a {OFFSET!r} that is not a number of bytes")
    return Place(name, size, offset)


class Region:
    """An opened one. Thread-safe. Closed when the last reference goes: who holds it may read and write on, whatever becomes of its name."""

    __slots__ = ("_descriptor", "said")

    def __init__(self, said: SharedRegion) -> None:
        """Raises invalid_input where there is no such memory, or less of it than `said`."""
        self._descriptor = -1
        self.said = said
        if not said.name:
            raise invalid("a region needs a name")
        if said.byte_size <= 0 or said.offset < 0:
            raise invalid(f"region {said.name!r} has {said.byte_size} bytes from {said.offset} on; it needs at least one, from 0 on")
        self._descriptor = _open(said.name, said.key)
        try:
            self._check_there(said.byte_size)
        except ServingError:
            self.__del__()  # the error holds this frame, and who knows how long that is kept
            raise

    def __del__(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _check_there(self, size: int) -> None:
        have = os.fstat(self._descriptor).st_size - self.said.offset
        if have < size:
            raise invalid(f"region {self.said.name!r} has {max(have, 0)} bytes from {self.said.offset} on, {size} are needed")

    def check(self, tensor: str, place: Place) -> None:
        """Raises invalid_input unless `place` lies inside."""
        if place.offset + place.size > self.said.byte_size:
            raise invalid(
                f"tensor {tensor!r}: {place.size} bytes from {place.offset} on are outside of region {self.said.name!r},"
                f" which has {self.said.byte_size} bytes"
            )

    def read(self, tensor: str, place: Place) -> memoryview:
        """A copy of the contents. Raises invalid_input, also where the memory has shrunk."""
        self.check(tensor, place)
        self._check_there(place.offset + place.size)  # before a byte is reserved for it
        copy = np.empty(place.size, np.uint8).data  # which, other than a bytearray, is not filled with zeros first
        done = 0
        while done < place.size:
            count = os.preadv(self._descriptor, [copy[done:]], self.said.offset + place.offset + done)
            if not count:
                raise invalid(f"tensor {tensor!r}: region {self.said.name!r} has shrunk")
            done += count
        return copy.toreadonly()

    def write(self, tensor: str, place: Place, data: bytes | memoryview) -> None:
        """Raises invalid_input where `data` does not fit, or the memory has shrunk."""
        self.check(tensor, place)
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        if len(view) > place.size:
            raise invalid(f"output {tensor!r} has {len(view)} bytes, and {place.size} were given to it in region {self.said.name!r}")
        self._check_there(place.offset + len(view))  # else writing would make it longer
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], self.said.offset + place.offset + done)
        except OSError as error:
            raise ServingError(Code.INSUFFICIENT_CAPACITY, f"region {self.said.name!r} cannot be written: {error.strerror}") from None


def _open(name: str, key: str) -> int:
    """POSIX names are one component, with or without a slash before it (shm_open(3)); a link is not followed, a folder not taken."""
    file = key.removeprefix("/")
    if not file or "/" in file or "\0" in file or file in (".", "..") or len(os.fsencode(file)) > _LONGEST_KEY:
        raise invalid(f"region {name!r}: {key[:80]!r} is not the name of shared memory")
    try:
        descriptor = os.open(f"{FOLDER}/{file}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise invalid(f"region {name!r}: shared memory {key[:80]!r} cannot be opened: {error.strerror}") from None
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise invalid(f"region {name!r}: {key[:80]!r} is not shared memory")
        undo.pop_all()
    return descriptor
