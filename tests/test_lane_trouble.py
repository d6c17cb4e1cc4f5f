"""The lane where something is short, or a number is odd: nobody gets another's bytes, nobody waits for ever, no loop ends."""

import contextlib
import errno
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from idl import board as boards
from idl import lane, lane_calls
from idl.board import Board
from idl.codes import Code, ServingError
from idl.event_loop import Loop
from idl.lane import LaneEnd, LaneError
from idl.lane_calls import ExecutorGone, LaneConnection
from idl.lane_loop import Lanes
from idl.lane_pool import LanePool
from idl.lane_routes import Route
from idl.linger import Linger
from idl.messages import InferRequest, Tensor
from idl.nginx_http import Door
from idl.spare import Spare

LIMIT = 4 * 2**20


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "x.lane"))
        sock.listen(2)
        yield sock


def asked(data: bytes = b"1234", deadline: float | None = None) -> InferRequest:
    return InferRequest("m", (Tensor("x", "UINT8", (len(data),), data),), deadline=deadline)


def sent(end: LaneEnd, data: bytes) -> None:
    head, parts, size = lane.pack_request(asked(data).inputs, (), {})
    end.send(lane.INFER, 1, (0, 0, 0, 0), head, parts, size)


def received(end: LaneEnd) -> bytes:
    frame = end.receive()
    assert frame is not None
    return lane.unpack_tensors(lane.unpack_head(frame.head), frame.body)[0].data


class Failing:
    """A socket whose next `sendmsg` has no memory."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self.fails = sock, False

    def sendmsg(self, *arguments: object) -> int:
        if self.fails:
            self.fails = False
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return self._sock.sendmsg(*arguments)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_new_memory_that_did_not_arrive_is_sent_again() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    failing = Failing(ours)
    left, right = LaneEnd(failing, LIMIT), LaneEnd(theirs, LIMIT)  # type: ignore[arg-type]
    with contextlib.closing(left), contextlib.closing(right):
        sent(left, b"1" * 200_000)
        assert received(right) == b"1" * 200_000
        failing.fails = True
        with pytest.raises(OSError, match="allocate"):
            sent(left, b"2" * 300_000)
        sent(left, b"3" * 200_000)
        assert received(right) == b"3" * 200_000


@pytest.mark.parametrize("deadline", [float("inf"), 1e10, 1e300])
def test_a_deadline_that_nobody_lives_to_see_is_none(listener: socket.socket, deadline: float) -> None:
    connection = LaneConnection(listener.getsockname(), LIMIT)
    connection.send(asked(deadline=deadline))
    peer, _ = listener.accept()
    with peer, contextlib.closing(LaneEnd(peer, LIMIT)) as end:
        frame = end.receive()
        assert frame is not None and frame.numbers[0] == 0
        connection.close()


def test_descriptors_that_could_not_come_are_an_error_of_the_lane() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.closing(LaneEnd(theirs, LIMIT)) as end, ours:
        ours.send(lane.HEADER.pack(lane.MAGIC, lane.WELCOME, 0, 0, 3, 0, 0, 0, 0, 0))
        with pytest.raises(LaneError, match="greeting"):
            end.receive()
        ours.send(lane.HEADER.pack(lane.MAGIC, lane.RESULT, lane.SHARED | lane.NEW_MEMORY, 1, 0, 0, 0, 0, 0, 5))
        with pytest.raises(LaneError, match="did not come"):
            end.receive()


class Told:
    def __init__(self) -> None:
        self.failure: object = None

    def answered(self, lane: object, frame: object) -> None:
        raise AssertionError("nobody answered")

    def failed(self, error: object) -> None:
        self.failure = error


def test_a_loop_survives_a_greeting_without_its_descriptor(listener: socket.socket) -> None:
    loop = Loop(0.05, lambda now: None)
    lanes, told = Lanes(loop, LIMIT), Told()
    route = Route("m", "1", (listener.getsockname(),), LIMIT)
    lanes.take(route).ask(told, 1e9, *lane.pack_head([("x", "UINT8", (1,), 1)], (), {})[:1], [(0, b"1")], 1)
    peer, _ = listener.accept()
    peer.send(lane.HEADER.pack(lane.MAGIC, lane.WELCOME, 0, 0, 3, 0, 0, 0, 0, 0))
    turn(loop)
    assert isinstance(told.failure, LaneError)
    peer.close()
    lanes.trim(float("inf"))
    loop.close()


def turn(loop: Loop) -> None:
    """Runs a loop for a moment."""
    threading.Timer(0.2, loop.stop).start()
    loop.run()


def test_connecting_does_not_wait_for_an_executor_that_lets_nobody_in(listener: socket.socket) -> None:
    path, connections = listener.getsockname(), []
    with pytest.raises(ServingError, match="let in") as refused:
        for _ in range(10):
            connections.append(LaneConnection(path, LIMIT))
    assert refused.value.code == Code.OVERLOADED and refused.value.retry_after_ms > 0
    for connection in connections:
        connection.close()


@contextlib.contextmanager
def no_descriptors_left(but: int = 0) -> Iterator[None]:
    """As where a process has used up what it may open, but for so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(but)]
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    filling = []
    try:
        with contextlib.suppress(OSError):
            while True:
                filling.append(os.dup(0))
        for descriptor in free:
            os.close(descriptor)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filling:
            os.close(descriptor)


def test_without_a_descriptor_a_call_says_what_is_short(listener: socket.socket) -> None:
    with no_descriptors_left(), pytest.raises(ServingError, match="no room for a connection") as refused:
        LaneConnection(listener.getsockname(), LIMIT)
    assert refused.value.code == Code.INSUFFICIENT_CAPACITY


def test_without_a_descriptor_a_caller_is_shown_out_and_not_left_waiting(listener: socket.socket) -> None:
    spare = Spare()
    listener.setblocking(False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second:
        first.connect(listener.getsockname())
        with no_descriptors_left():
            assert spare.accept(listener) is None
            first.settimeout(5)
            assert first.recv(1) == b"", "shown out"
            assert spare.accept(listener) is None  # nobody there
        second.connect(listener.getsockname())
        accepted = spare.accept(listener)
        assert accepted is not None
        accepted.close()
    spare.close()
    spare.close()


@contextlib.contextmanager
def before_a_door(path: Path, error: Exception) -> Iterator[tuple[Loop, socket.socket]]:
    """nginx, connected to a door that is not answered yet; looking at a request raises `error`."""

    class Handler:
        most_bytes = 10

        def parse(self, head: bytes) -> object:
            raise error

        begin = parse

    loop = Loop(0.05, lambda now: None)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(str(path))
        listener.listen(4)
        door = Door(listener, loop, Handler())  # type: ignore[arg-type]
        caller.connect(str(path))
        caller.settimeout(5)
        yield loop, caller
        door.close()
    loop.close()


def test_nginx_is_shown_out_where_there_is_no_descriptor(tmp_path: Path) -> None:
    with before_a_door(tmp_path / "door.sock", AssertionError()) as (loop, caller), no_descriptors_left():
        turn(loop)
        assert caller.recv(1) == b""


def test_a_failing_handler_ends_its_connection_and_not_the_loop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with before_a_door(tmp_path / "door.sock", RuntimeError("a fault of ours")) as (loop, caller):
        caller.send(b"POST / HTTP/1.1\r\n\r\n")
        turn(loop)
        assert caller.recv(1) == b"" and "a fault of ours" in caplog.text


def test_long_heads_are_not_remembered() -> None:
    def head(text: str) -> bytes:
        return lane.pack_head([("x", "UINT8", (1,), 1)], (), {"text": text})[0]

    short, long = head("a"), head("b" * lane.REMEMBERED_BYTES)
    assert lane.unpack_head(short) is lane.unpack_head(bytes(bytearray(short)))
    assert lane.unpack_head(long) is not lane.unpack_head(bytes(bytearray(long)))
    assert lane.unpack_head(long).parameters == {"text": "b" * lane.REMEMBERED_BYTES}


@pytest.mark.parametrize("parameters", [b"[]", b"5", b"null", b"[" * 60_000], ids=["list", "number", "null", "deep"])
def test_parameters_that_are_no_object_are_refused(parameters: bytes) -> None:
    head = lane.pack_head([("x", "UINT8", (1,), 1)], (), {})[0] + parameters
    with pytest.raises(LaneError):
        lane.unpack_head(head)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_board_that_is_read_cannot_be_opened_anew_to_be_written() -> None:
    descriptor = boards.create()
    shown = boards.read_only(descriptor)
    code = "import os, sys\nos.setuid(65534)\ntry: os.open('/proc/self/fd/' + sys.argv[1], os.O_RDWR)\nexcept PermissionError: print('no')"
    done = subprocess.run([sys.executable, "-c", code, str(shown)], pass_fds=[shown], capture_output=True, text=True, check=True)
    assert done.stdout == "no\n"
    Board(descriptor, writable=True).begin(1, 5)
    assert Board(shown, writable=False).began(1) == 5
    for each in (descriptor, shown):
        os.close(each)


def test_only_one_caller_of_a_process_looks(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Linger] = []

    def wait(self: Linger, look: Callable[[], lane.Frame], sleep: Callable[[], lane.Frame]) -> lane.Frame:
        looked.append(self)
        return sleep()

    monkeypatch.setattr(Linger, "wait", wait)
    path = listener.getsockname()
    for expected in (0, 1):
        connection = LaneConnection(path, LIMIT, LanePool(path, LIMIT))
        peer, _ = listener.accept()
        peer.close()
        with lane_calls._LOOKING if not expected else contextlib.nullcontext(), pytest.raises(ExecutorGone):
            connection._await(None, -1)
        assert len(looked) == expected
        connection.close()
