"""The local lane: how a process on the model's host asks a loaded model for an answer.

Each model instance listens on a unix SOCK_SEQPACKET socket; one message is one frame. A connection carries one request at a time.

A frame is a fixed header, a head (the tensors' names, types, shapes and sizes), and the tensors' bytes, each tensor from a multiple of
64 bytes on. Where the bytes do not fit `INLINE_BYTES` they lie in a memfd of the sender instead, which travels with the first frame
that uses it and is used again by the later ones (mapping afresh costs ten times the copy). The receiver maps it read-only and takes
only one that is sealed against shrinking, so a careless peer cannot make it fault.

    header   magic u16 | kind u8 | flags u8 | sequence u32 | four i64, by kind | head bytes u32 | body bytes u64
    INFER    deadline (CLOCK_MONOTONIC ns, 0: none), bits: SOON where the caller looks for the answer instead of sleeping (`idl.linger`) and
             is likely to ask again at once, TRACED where it tells of a pipeline's steps; how many parts may be on their way to a caller
             that takes a stream (0: it wants one answer), 0; then inputs, names of wanted outputs, parameters
    RESULT   queue ns, input ns, compute ns, output ns; then outputs, in the place of the wanted ones what was asked for by TRACED
             (`idl.steps`), parameters
    PART     as RESULT, and more may follow: a stream of them is ended by END, or by ERROR
    END      how many parts there were, 0, 0, 0
    TAKEN    the caller says how many parts of its stream it has taken, 0, 0, 0; what is larger than SMALL_PART is sent once all before it are
    ERROR    retry after (ms), queue ns and ns in the model as far as they are known, 0; the head is JSON {"code", "message"}, and "steps" as
             in RESULT
    WELCOME  the connection's cell in the journal, 0, 0, 0; with a descriptor of the board (see `idl.board`). The executor sends it once,
             before anything else
    MOVED    0, 0, 0, 0: the executor is on its way out; the request was not run and is to go elsewhere

The layout is private to one machine and one release: native byte order, nothing is kept.
"""

import array
import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from idl.messages import Tensor

INFER, RESULT, ERROR, WELCOME, MOVED, PART, END, TAKEN = 1, 2, 3, 4, 5, 6, 7, 8
SHARED, NEW_MEMORY = 1, 2
SOON, TRACED = 1, 2
"""Bits of one number of INFER."""
MAGIC = 0x4F4C
HEADER = struct.Struct("=HBBIqqqqIQ")
ALIGNMENT = 64
FRAME_BYTES = 96 * 1024
INLINE_BYTES = 64 * 1024
LEAST_MEMORY = 256 * 1024
SMALL_PART = 4096
"""Bytes of a part's body: a socket's buffer holds a window of these."""
REMEMBERED_BYTES = 4096
"""Heads up to this are worth remembering: a longer one has texts in it, which are another's the next time."""

# plain integers: arithmetic on socket's enumerations costs microseconds
_TRUNCATED, _RIGHTS = int(socket.MSG_TRUNC), (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_U16, _U32 = struct.Struct("=H"), struct.Struct("=I")
_TENSOR = struct.Struct("=HBBQ")


class LaneError(Exception):
    """The peer broke the lane's rules, or sent what this side cannot take."""


@dataclass(frozen=True, slots=True)
class TensorHead:
    """One tensor of a frame: `offset` and `size` are bytes within the frame's body."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Head:
    tensors: tuple[TensorHead, ...]
    wanted: tuple[str, ...]
    parameters: Mapping[str, Any]
    body_size: int


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@lru_cache(maxsize=1024)
def _pack_tensors(
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...], wanted: tuple[str, ...]
) -> tuple[bytes, tuple[int, ...], int]:
    parts, offsets, end = [_U16.pack(len(tensors))], [], 0
    for name, datatype, shape, size in tensors:
        text, kind = name.encode(), datatype.encode()
        parts += [_TENSOR.pack(len(text), len(kind), len(shape), size), text, kind, struct.pack(f"={len(shape)}q", *shape)]
        offsets.append(_aligned(end))
        end = offsets[-1] + size
    parts.append(_U16.pack(len(wanted)))
    for name in wanted:
        text = name.encode()
        parts += [_U16.pack(len(text)), text]
    return b"".join(parts), tuple(offsets), end


def pack_head(
    tensors: Sequence[tuple[str, str, tuple[int, ...], int]], wanted: tuple[str, ...], parameters: Mapping[str, Any]
) -> tuple[bytes, tuple[int, ...], int]:
    """(head, each tensor's offset in the body, size of the body) for tensors given as (name, datatype, shape, bytes)."""
    pack = (
        _pack_tensors
        if sum([len(tensor[0]) for tensor in tensors]) + sum(map(len, wanted)) <= REMEMBERED_BYTES
        else _pack_tensors.__wrapped__
    )
    head, offsets, size = pack(tuple(tensors), wanted)
    return head + (json.dumps(dict(parameters)).encode() if parameters else b""), offsets, size


def unpack_head(head: bytes) -> Head:
    """Raises LaneError where the head is not one. The same head, seen again, costs a look-up, unless it is a long one."""
    return _remembered(head) if len(head) <= REMEMBERED_BYTES else _unpack(head)


def _unpack(head: bytes) -> Head:
    try:
        return _unpack_head(head)
    except (struct.error, ValueError, IndexError, RecursionError) as error:
        raise LaneError(f"a head that cannot be read: {error}") from error


_remembered = lru_cache(maxsize=1024)(_unpack)


def _unpack_head(head: bytes) -> Head:
    (count,) = _U16.unpack_from(head, 0)
    position, end, tensors = 2, 0, []
    for _ in range(count):
        name_size, kind_size, rank, size = _TENSOR.unpack_from(head, position)
        position += _TENSOR.size
        name = head[position : position + name_size].decode()
        position += name_size
        datatype = head[position : position + kind_size].decode()
        position += kind_size
        shape = struct.unpack_from(f"={rank}q", head, position)
        position += 8 * rank
        offset = _aligned(end)
        end = offset + size
        tensors.append(TensorHead(name, datatype, shape, offset, size))
    (count,) = _U16.unpack_from(head, position)
    position += 2
    wanted = []
    for _ in range(count):
        (size,) = _U16.unpack_from(head, position)
        wanted.append(head[position + 2 : position + 2 + size].decode())
        position += 2 + size
    parameters = json.loads(head[position:]) if position < len(head) else {}
    if not isinstance(parameters, dict):
        raise ValueError("parameters are an object")
    return Head(tuple(tensors), tuple(wanted), parameters, end)


class SharedMemory:
    """A memfd that this side writes and the peer reads. Grows by being replaced."""

    __slots__ = ("descriptor", "map", "size")

    def __init__(self, size: int) -> None:
        self.size = max(LEAST_MEMORY, 1 << (size - 1).bit_length())
        self.descriptor = os.memfd_create("outboard-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.size)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self.map = mmap.mmap(self.descriptor, self.size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.map.close()


def map_peer_memory(descriptor: int, limit: int) -> mmap.mmap:
    """Maps what a peer passed, read-only; takes the descriptor over. Raises LaneError for memory that could shrink or is over `limit`."""
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK == 0:
            raise LaneError("the peer's memory is not sealed against shrinking")
        size = os.fstat(descriptor).st_size
        if not 0 < size <= limit:
            raise LaneError(f"the peer's memory has {size} bytes, at most {limit} are taken")
        return mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    except OSError as error:
        raise LaneError(f"the peer's memory cannot be mapped: {error.strerror}") from error
    finally:
        os.close(descriptor)


class Frame(NamedTuple):
    """A frame as received. `body` is a view that holds until the next receive on the same end; `descriptor` is the receiver's to close."""

    kind: int
    sequence: int
    numbers: tuple[int, int, int, int]
    head: bytes
    body: memoryview
    descriptor: int = -1


class LaneEnd:
    """One end of a lane connection: sends and receives frames, and owns the memory of both directions.

    Not thread-safe: one request at a time. `memory_limit` bounds what a peer can make this end map, in bytes.
    """

    __slots__ = ("_buffer", "_into", "_memory_limit", "_ours", "_peer", "_view", "sock")

    def __init__(self, sock: socket.socket, memory_limit: int) -> None:
        self.sock = sock
        self._memory_limit = max(2 * memory_limit, LEAST_MEMORY)
        self._buffer = mmap.mmap(-1, FRAME_BYTES)  # page-aligned, so tensors inside it are aligned too
        self._view = memoryview(self._buffer)
        self._into = [self._buffer]
        self._ours: SharedMemory | None = None
        self._peer: mmap.mmap | None = None

    def send(
        self, kind: int, sequence: int, numbers: tuple[int, int, int, int], head: bytes, parts: Sequence[tuple[int, Any]], size: int
    ) -> None:
        """`parts` are (offset in the body, C-contiguous buffer); `size` is the body's. Raises OSError when the peer is gone."""
        flags = 0
        start = _aligned(HEADER.size + len(head))
        if start + size <= INLINE_BYTES:
            frame: list[Any] = [HEADER.pack(MAGIC, kind, 0, sequence, *numbers, len(head), size), head]
            at = HEADER.size + len(head) - start
            for offset, data in parts:
                if offset > at:
                    frame.append(bytes(offset - at))
                view = memoryview(data).cast("B") if not isinstance(data, bytes) else data
                frame.append(view)
                at = offset + len(view)
            self.sock.send(b"".join(frame))
            return
        if HEADER.size + len(head) > FRAME_BYTES:
            raise LaneError("the description of the tensors is too long for a frame")
        flags = SHARED
        if self._ours is None or self._ours.size < size:
            if self._ours is not None:
                self._ours.close()
                self._ours = None
            self._ours = SharedMemory(size)
            flags |= NEW_MEMORY
        target = self._ours.map
        for offset, data in parts:
            view = memoryview(data).cast("B")
            target[offset : offset + len(view)] = view
        header = HEADER.pack(MAGIC, kind, flags, sequence, *numbers, len(head), size)
        rights = [(*_RIGHTS, array.array("i", [self._ours.descriptor]))] if flags & NEW_MEMORY else []
        try:
            self.sock.sendmsg([header, head], rights)
        except OSError:
            if rights:  # the peer has not got it, and would take what comes next out of the memory that it has
                self._ours.close()
                self._ours = None
            raise

    def receive(self, flags: int = 0) -> Frame | None:
        """The next frame, None at end of file. Raises LaneError for what is not one, OSError and TimeoutError as the socket does.

        `flags`: of recvmsg."""
        size, ancillary, flags, _ = self.sock.recvmsg_into(self._into, 64, flags)
        if size < HEADER.size or ancillary or flags & _TRUNCATED:
            return self._unusual(size, ancillary, flags)
        return self._frame(size)

    def _frame(self, size: int, passed: bool = False) -> Frame:
        """`passed`: new memory came with it."""
        buffer = self._buffer
        magic, kind, bits, sequence, a, b, c, d, head_size, body_size = HEADER.unpack_from(buffer)
        start = HEADER.size + head_size
        if magic != MAGIC or start > size:
            raise LaneError("not a lane frame")
        head = buffer[HEADER.size : start]
        if kind == WELCOME:
            raise LaneError("a greeting without its descriptor")
        if bits & SHARED:
            if bits & NEW_MEMORY and not passed:
                raise LaneError("memory that did not come: this process has no descriptor left")
            if self._peer is None or body_size > len(self._peer):
                raise LaneError("a body in memory that was not passed")
            return Frame(kind, sequence, (a, b, c, d), head, memoryview(self._peer)[:body_size])
        start = -(-start // ALIGNMENT) * ALIGNMENT
        if body_size and start + body_size > size:
            raise LaneError("a body that is longer than its frame")
        return Frame(kind, sequence, (a, b, c, d), head, self._view[start : start + body_size])

    def _unusual(self, size: int, ancillary: list[tuple[int, int, bytes]], flags: int) -> Frame | None:
        """The end, a frame that comes with descriptors, or one that is none."""
        descriptors = [fd for level, kind, data in ancillary if (level, kind) == _RIGHTS for fd in _ints(data)]
        if size == 0:
            return None
        if flags & _TRUNCATED or size < HEADER.size:
            _close_all(descriptors)
            raise LaneError(f"a frame of {size} bytes")
        _close_all(descriptors[1:])
        if descriptors and HEADER.unpack_from(self._buffer)[:2] == (MAGIC, WELCOME):
            return Frame(WELCOME, 0, HEADER.unpack_from(self._buffer)[4:8], b"", memoryview(b""), descriptors[0])
        if descriptors:
            self._take_memory(descriptors[0])
        return self._frame(size, passed=bool(descriptors))

    def welcome(self, slot: int, board: int) -> None:
        """What an executor says first: the connection's cell in the journal, and a descriptor of the board."""
        header = HEADER.pack(MAGIC, WELCOME, 0, 0, slot, 0, 0, 0, 0, 0)
        self.sock.sendmsg([header], [(*_RIGHTS, array.array("i", [board]))])

    def _take_memory(self, descriptor: int) -> None:
        old, self._peer = self._peer, None
        self._peer = map_peer_memory(descriptor, self._memory_limit)
        if old is not None:
            _close_map(old)

    def close(self) -> None:
        """Idempotent. Views handed out before keep what they show alive."""
        self.sock.close()
        if self._ours is not None:
            self._ours.close()
            self._ours = None
        if self._peer is not None:
            _close_map(self._peer)
            self._peer = None
        self._view = memoryview(b"")
        _close_map(self._buffer)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _close_map(memory: mmap.mmap) -> None:
    try:
        memory.close()
    except BufferError:
        return  # a view is still out: the last of them frees the map


def _ints(data: bytes) -> list[int]:
    numbers = array.array("i")
    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return list(numbers)


def pack_request(
    tensors: Sequence[Tensor], wanted: tuple[str, ...], parameters: Mapping[str, Any]
) -> tuple[bytes, list[tuple[int, Any]], int]:
    """(head, parts, body size) of an INFER frame."""
    described = [(tensor.name, tensor.datatype, tensor.shape, len(tensor.data)) for tensor in tensors]
    head, offsets, size = pack_head(described, wanted, parameters)
    return head, [(offset, tensor.data) for offset, tensor in zip(offsets, tensors, strict=True)], size


def unpack_tensors(head: Head, body: memoryview) -> tuple[Tensor, ...]:
    """The tensors of a frame, their bytes copied out. Raises LaneError where the body is shorter than the head says."""
    if head.body_size > len(body):
        raise LaneError("the body is shorter than its tensors")
    return tuple(Tensor(t.name, t.datatype, t.shape, bytes(body[t.offset : t.offset + t.size])) for t in head.tensors)
