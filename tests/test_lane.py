"""The local lane's frames: what is sent arrives, memory is used again and grows, and a peer that lies is refused."""

import array
import os
import socket
import time
from collections.abc import Iterator

import pytest

from idl import lane
from idl.lane import LaneEnd, LaneError
from idl.messages import Tensor

LIMIT = 4 * 2**20


@pytest.fixture
def ends() -> Iterator[tuple[LaneEnd, LaneEnd]]:
    left, right = (LaneEnd(sock, LIMIT) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield left, right
    left.close()
    right.close()


def exchange(
    left: LaneEnd, right: LaneEnd, tensors: tuple[Tensor, ...], wanted: tuple[str, ...] = (), parameters: object = None
) -> lane.Head:
    head, parts, size = lane.pack_request(tensors, wanted, parameters or {})  # type: ignore[arg-type]
    left.send(lane.INFER, 7, (1, -2, 3, 4), head, parts, size)
    frame = right.receive()
    assert frame is not None and (frame.kind, frame.sequence, frame.numbers) == (lane.INFER, 7, (1, -2, 3, 4))
    unpacked = lane.unpack_head(frame.head)
    assert lane.unpack_tensors(unpacked, frame.body) == tensors
    return unpacked


def test_small_tensors_names_and_parameters(ends: tuple[LaneEnd, LaneEnd]) -> None:
    tensors = (Tensor("x", "FP32", (2, 1), b"12345678"), Tensor("\u540d", "BYTES", (), b"\0\0\0\0"), Tensor("empty", "INT8", (0, 3), b""))
    head = exchange(*ends, tensors, ("y", "\u51fa"), {"a": 1, "b": [True]})
    assert head.wanted == ("y", "\u51fa") and head.parameters == {"a": 1, "b": [True]}
    assert all(tensor.offset % lane.ALIGNMENT == 0 for tensor in head.tensors)
    exchange(*ends, ())


def test_the_frame_fits_from_every_size_around_the_limits(ends: tuple[LaneEnd, LaneEnd]) -> None:
    for size in (1, 63, 64, 65, lane.INLINE_BYTES - 200, lane.INLINE_BYTES - 1, lane.INLINE_BYTES, lane.INLINE_BYTES + 1, LIMIT - 1, 10):
        data = os.urandom(size)
        exchange(*ends, (Tensor("x", "UINT8", (size,), data), Tensor("z", "UINT8", (3,), b"abc")))


def test_shared_memory_is_passed_once_and_again_when_it_grows(ends: tuple[LaneEnd, LaneEnd]) -> None:
    left, right = ends
    before = len(os.listdir("/proc/self/fd"))
    counts = []
    for size in (2**17, 2**17, 2**18, 2**20, 2**19):
        exchange(left, right, (Tensor("x", "UINT8", (size,), os.urandom(size)),))
        counts.append(len(os.listdir("/proc/self/fd")) - before)
    assert len(set(counts)) == 1, f"descriptors grew: {counts}"
    left.close()
    right.close()
    assert len(os.listdir("/proc/self/fd")) < before


def test_a_views_memory_outlives_the_connection(ends: tuple[LaneEnd, LaneEnd]) -> None:
    left, right = ends
    head, parts, size = lane.pack_request((Tensor("x", "UINT8", (2**18,), b"\7" * 2**18),), (), {})
    left.send(lane.INFER, 1, (0, 0, 0, 0), head, parts, size)
    frame = right.receive()
    assert frame is not None
    left.close()
    right.close()
    assert bytes(frame.body[-3:]) == b"\7\7\7"


def test_end_of_file_is_none(ends: tuple[LaneEnd, LaneEnd]) -> None:
    ends[0].close()
    assert ends[1].receive() is None


@pytest.mark.parametrize(
    "frame",
    [
        b"x",
        b"\0" * lane.HEADER.size,
        lane.HEADER.pack(lane.MAGIC, lane.INFER, 0, 1, 0, 0, 0, 0, 10**6, 0),
        lane.HEADER.pack(lane.MAGIC, lane.INFER, 0, 1, 0, 0, 0, 0, 0, 10**12),
        lane.HEADER.pack(lane.MAGIC, lane.INFER, lane.SHARED, 1, 0, 0, 0, 0, 0, 100),
        b"y" * (lane.FRAME_BYTES + 1),
    ],
)
def test_what_is_no_frame_is_refused(ends: tuple[LaneEnd, LaneEnd], frame: bytes) -> None:
    ends[0].sock.send(frame)
    with pytest.raises(LaneError):
        ends[1].receive()


@pytest.mark.parametrize("head", [b"", b"\1", b"\5\0", b"\1\0\1\0\1\0\0\0\0\0\0\0\0\0\0\0\xff", b"\0\0\0\0{", b"\0\0\2\0\1\0a"])
def test_a_head_that_lies_is_refused(head: bytes) -> None:
    with pytest.raises(LaneError):
        lane.unpack_head(head)


def test_memory_that_could_shrink_or_is_too_large_is_refused(ends: tuple[LaneEnd, LaneEnd]) -> None:
    left, right = ends
    before = len(os.listdir("/proc/self/fd"))
    for size, seal in ((2**18, False), (64 * LIMIT, True)):
        descriptor = os.memfd_create("t", os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        if seal:
            import fcntl

            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        header = lane.HEADER.pack(lane.MAGIC, lane.INFER, lane.SHARED | lane.NEW_MEMORY, 1, 0, 0, 0, 0, 0, 100)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor, descriptor]))]
        left.sock.sendmsg([header], rights)
        os.close(descriptor)
        with pytest.raises(LaneError, match="memory"):
            right.receive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_room_for_shared_memory_is_said_and_is_no_crash() -> None:
    import resource

    from idl.codes import Code, ServingError
    from idl.lane_calls import LaneConnection
    from idl.messages import InferRequest

    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = LaneConnection.__new__(LaneConnection)
    connection._end, connection._sequence, connection.last_used = LaneEnd(left, LIMIT), 0, 0.0
    connection._memory_limit, connection._pool, connection._board, connection._slot = LIMIT, None, None, -1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(ServingError) as caught:
            connection.call(InferRequest("m", (Tensor("x", "UINT8", (2**20,), bytes(2**20)),), deadline=time.monotonic() + 5))
        assert caught.value.code is Code.INSUFFICIENT_CAPACITY
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        connection.close()
        right.close()
