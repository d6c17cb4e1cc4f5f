"""Messages by their layout: what a peer sends over and over is taken apart in one step.

The messages of one peer differ in a few places only. What lies between those places is remembered with what it says; a message that has
the same bytes there says the same, lengths included, so nothing of it needs to be read again.
"""

import struct
import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

Said = TypeVar("Said")
Buffer = bytes | memoryview

REMEMBERED_BYTES = 64 * 1024
"""A larger message is read each time, so that its tensors need not be copied out of it."""
_FIXED_BYTES = 4096
_LAYOUTS, _OF_ONE_SIZE = 512, 8


class Layouts(Generic[Said]):
    """The layouts seen last, each with what it says. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._known: dict[int, tuple[tuple[struct.Struct, tuple[bytes, ...], Said], ...]] = {}
        """By the size of the message: how it is cut into what is fixed and what differs, in turns; the fixed; what it says."""

    def find(self, message: Buffer) -> tuple[Said, tuple[bytes, ...]] | None:
        """What the layout says, and what stands in the places where messages differ; None for one that is not known."""
        for cut, fixed, said in self._known.get(len(message), ()):
            pieces = cut.unpack(message)
            if pieces[::2] == fixed:
                return said, pieces[1::2]
        return None

    def remember(self, message: Buffer, places: Sequence[tuple[int, int]], said: Said) -> None:
        """`places` are (begin, end), ascending: where messages of this layout differ."""
        if len(message) > REMEMBERED_BYTES:
            return
        fixed, sizes, end = [], [], 0
        for begin, stop in places:
            fixed.append(bytes(message[end:begin]))
            sizes += [begin - end, stop - begin]
            end = stop
        fixed.append(bytes(message[end:]))
        sizes.append(len(message) - end)
        if sum(map(len, fixed)) > _FIXED_BYTES:
            return
        layout = struct.Struct("".join(f"{size}s" for size in sizes)), tuple(fixed), said
        with self._lock:
            if self._count >= _LAYOUTS:
                self._known, self._count = {}, 0
            others = self._known.get(len(message), ())
            self._known[len(message)] = (layout, *others[: _OF_ONE_SIZE - 1])
            self._count += len(others) < _OF_ONE_SIZE
