"""Answers that a model gave, for requests that ask exactly the same again. Of one executor, so of one load of one version: what replaces it begins
with nothing.

The key is the SHA-256 of everything that an answer can depend on: model, version, every input with its name, type, shape and bytes, the wanted
outputs in their order, and the parameters, those aside that only say when a request is to be run.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from idl import board as boards
from idl import lane
from idl.board import Board
from inference_server.executors.merging import Encoded
from inference_server.executors.prepared import SCHEDULING, Prepared

ENTRIES, BYTES = 10_000, 64 * 2**20
"""Limits where the owner says nothing."""
OVERHEAD_BYTES = 512
"""What an entry takes besides its answer: the key, the tables."""
_MOST_HEADS = 1024


class ResponseCache:
    """Not thread-safe. At most `entries` answers of `size` bytes together; the one that was asked for longest ago goes first. `ttl_ns`: how long
    one is good, 0 for ever. Counts on `board`. `clock`: ns.
    """

    def __init__(
        self, model: str, version: int, board: Board, *, entries: int, size: int, ttl_ns: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._of = (model, version)
        self._board, self._clock = board, clock
        self._entries, self._size, self._ttl_ns = entries, size, ttl_ns
        self._kept: OrderedDict[bytes, tuple[Encoded, int, int]] = OrderedDict()
        """Key -> (answer, its bytes, until when it is good)."""
        self._heads: dict[bytes, tuple[bytes, tuple[tuple[int, int], ...]]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def key(self, head: bytes, prepared: Prepared, body: memoryview) -> bytes:
        """32 bytes. `head`: what `prepared` was made of."""
        described, places = self._heads.get(head) or self._describe(head, prepared)
        found = hashlib.sha256(described)
        for begin, end in places:
            found.update(body[begin:end])
        return found.digest()

    def _describe(self, head: bytes, prepared: Prepared) -> tuple[bytes, tuple[tuple[int, int], ...]]:
        """Everything but the contents, whose sizes are in it: where one ends and the next begins is never in doubt."""
        tensors = sorted(prepared.tensors, key=lambda tensor: tensor.name)
        said: list[Any] = [
            *self._of,
            [(tensor.name, tensor.datatype, tensor.shape, tensor.size) for tensor in tensors],
            prepared.wanted,
            sorted((name, value) for name, value in prepared.parameters.items() if name not in SCHEDULING),
        ]
        text = json.dumps(said).encode()
        places = tuple((tensor.offset, tensor.offset + tensor.size) for tensor in tensors)
        made = len(text).to_bytes(8, "little") + text, places
        if len(head) <= lane.REMEMBERED_BYTES:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[head] = made
        return made

    def find(self, key: bytes) -> Encoded | None:
        """The answer, where there is one that is still good."""
        found = self._kept.get(key)
        if found is None:
            return None
        answer, size, until = found
        if until and self._clock() >= until:
            del self._kept[key]
            self.bytes -= size
            return None
        self._kept.move_to_end(key)
        return answer

    def keep(self, key: bytes, answer: Encoded) -> None:
        """Copies it; older ones go for it. One that is larger than all of them together may be is not kept."""
        head, parts, body = answer
        size = len(head) + sum(len(data) for _, data in parts) + OVERHEAD_BYTES
        if size > self._size:
            return
        if (old := self._kept.pop(key, None)) is not None:
            self.bytes -= old[1]
        until = self._clock() + self._ttl_ns if self._ttl_ns else 0
        self._kept[key] = ((head, [(offset, bytes(data)) for offset, data in parts], body), size, until)
        self.bytes += size
        while self.bytes > self._size or len(self._kept) > self._entries:
            _, (_, gone, _) = self._kept.popitem(last=False)
            self.bytes -= gone

    def hit(self, ns: int) -> None:
        """Counts an answer out of here, which took `ns`."""
        cells = self._board.cells
        cells[boards.CACHE] += 1
        cells[boards.CACHE + 1] += ns

    def missed(self, ns: int) -> None:
        """Counts a look that found nothing."""
        cells = self._board.cells
        cells[boards.CACHE + 2] += 1
        cells[boards.CACHE + 3] += ns
