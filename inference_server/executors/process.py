"""The supervisor's side of executors: asks the zygote for one, loads a model in it, calls it, notices its death, ends it."""

import array
import contextlib
import errno
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from idl import board as boards
from idl import last_words
from idl.board import Board
from idl.codes import Code, ServingError
from idl.lane import LaneError
from idl.lane_calls import LaneAnswer
from idl.lane_pool import LanePool
from idl.lane_streams import LaneStream
from idl.messages import InferRequest
from inference_server import errors
from inference_server.executors.batcher import QueuePolicy
from inference_server.executors.farewell import ask_to_leave, has_left
from inference_server.executors.memory_groups import descendants
from inference_server.executors.tuning import Tuning
from inference_server.types import Signature

_ROOT = Path(__file__).resolve().parent.parent.parent
_LONGEST_SOCKET_PATH = 107
LOAD_TIMEOUT_S = 600.0
FORK_TIMEOUT_S = 10.0
"""Longest wait for the zygote, which answers in milliseconds; past it, it hangs, and is started again."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What an executor is to load: `asked` is the JSON message of `executors.loading`. `placed(pid)` is called between the birth of the
    process and its load, `why(pid)` after its death: "" or what it died of; `forget(pid)` last.
    """

    name: str
    asked: Mapping[str, Any]
    placed: Callable[[int], None] = lambda pid: None
    why: Callable[[int], str] = lambda pid: ""
    forget: Callable[[int], None] = lambda pid: None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an executor says of its model. `sandbox`: what its supervisor knows, "on", "off: why", or "" for what has no code."""

    signature: Signature
    providers: tuple[str, ...]
    tuning: Tuning
    queue: QueuePolicy
    sandbox: str = ""


def _pidfd(pid: int) -> int:
    """-1 where it is dead already. Raises OSError, as where there is no descriptor left for it."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


class Zygote:
    """The process that executors are forked from; restarted when it dies. One owner, thread-safe, `close` is idempotent."""

    def __init__(self, run_dir: Path, memory_limit: int) -> None:
        self.run_dir = run_dir
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._closed = False
        longest = len(os.fsencode(self._socket_path(10**7)))
        if longest > _LONGEST_SOCKET_PATH:
            raise ValueError(
                f"run directory {run_dir} is too long a path for unix sockets: {longest} bytes, at most {_LONGEST_SOCKET_PATH}"
            )
        for left_over in (*run_dir.glob("x*.lane"), *run_dir.glob(f"x*{last_words.SUFFIX}")):
            left_over.unlink(missing_ok=True)
        # The parent-death signal fires when the thread that created a process ends: one thread, as old as this object, starts them all.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="zygote-keeper")
        self._keeper.submit(self._start).result()

    def _socket_path(self, number: int) -> Path:
        return self.run_dir / f"x{number}.lane"

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "inference_server.executors.zygote", str(theirs.fileno()), str(os.getpid())]
        # this very code, whatever the current folder holds and however this process found it
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environ)
        theirs.close()
        self._channel = ours

    def spawn(self, name: str, board: int) -> tuple[Path, socket.socket, int, int]:
        """(lane socket path, control socket, pid, pidfd) of a fresh executor; pidfd is -1 where it is dead already."""
        path = self._socket_path(next(self._numbers))
        try:
            return path, *self._spawn(path, name, board)
        except BaseException as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):  # no descriptors, no room or no run folder: it may pass
                raise errors.not_ready(f"no process can be started for it: {error.strerror}") from error
            raise

    def _spawn(self, path: Path, name: str, board: int) -> tuple[socket.socket, int, int]:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener:
            listener.bind(str(path))
            path.chmod(0o660)  # the folder's mode decides who may call
            listener.listen(4096)
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    with self._lock:
                        return control, *self._ask(name, listener.fileno(), theirs.fileno(), board)
                except BaseException:
                    control.close()
                    raise

    def _ask(self, name: str, *descriptors: int) -> tuple[int, int]:
        if self._closed:
            raise errors.not_ready("the server is stopping")
        if self._process.poll() is not None:
            self._channel.close()
            self._keeper.submit(self._start).result()
        message = json.dumps({"name": f"outboard:{name}", "memory_limit": self._memory_limit}).encode()
        self._channel.settimeout(FORK_TIMEOUT_S)
        try:
            self._channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
            text, ancillary, _, _ = self._channel.recvmsg(4096, 64)
        except OSError:  # it died or hangs, or this server is closing
            text, ancillary = b"", []
            self._process.kill()
        if not text:
            raise errors.not_ready("the process that executors are forked from has ended")
        received = array.array("i")
        for _, _, data in ancillary:
            received.frombytes(data)
        reply = json.loads(text)
        if "failed" in reply:
            raise errors.not_ready(f"no process can be started for it: {reply['failed']}")
        return int(reply["pid"]), received[0] if received else _pidfd(int(reply["pid"]))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._channel.close()
            try:
                self._process.wait(FORK_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._keeper.shutdown()


class Starter(Protocol):
    """What makes processes for executors: the zygote, or `fresh_processes`."""

    def spawn(self, name: str, board: int) -> tuple[Path, socket.socket, int, int]:
        """(lane socket path, control socket, pid, pidfd) of a fresh executor; pidfd is -1 where it is dead already. Raises ServingError."""
        ...


class ProcessExecutor:
    """One model instance in a process of its own. Thread-safe.

    The constructor returns when the model is loaded and warm, or raises what the loader said. `on_death` is called once, from the
    watcher's thread, when the process ends without having been asked to.
    """

    def __init__(self, starter: Starter, watcher: "Watcher", wanted: LoadRequest, memory_limit: int) -> None:
        descriptor = _fresh_board()
        try:
            self.board = Board(descriptor, writable=False)
            self.path, self._control, self.pid, self._pidfd = starter.spawn(wanted.name, descriptor)
        finally:
            os.close(descriptor)
        self._watcher = watcher
        self._wanted = wanted
        self._pool = LanePool(str(self.path), memory_limit)
        self._why = ""
        self._closed = False
        self._lock = threading.Lock()
        try:
            wanted.placed(self.pid)
            self.loaded = self._load(wanted)
        except BaseException:
            self.close()
            raise

    def watch(self, on_death: Callable[[], None]) -> None:
        """Calls `on_death` when the process ends unasked; at once if it has."""
        self._watcher.add(self._control.fileno(), on_death)

    def _load(self, wanted: LoadRequest) -> Loaded:
        self._control.settimeout(LOAD_TIMEOUT_S)
        try:
            self._control.send(json.dumps({"load": wanted.asked}).encode())
            text = self._control.recv(1 << 20)
        except TimeoutError:
            raise errors.invalid_model(wanted.name, f"not loaded after {LOAD_TIMEOUT_S:.0f} s") from None
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise errors.invalid_model(wanted.name, "its settings and warm-up samples are too long; put samples into files") from error
            text = b""
        if not text:
            self._wait_for_end()
            if why := wanted.why(self.pid):
                raise errors.insufficient_capacity(f"model {wanted.name!r}: its process was {why} while loading it")
            raise errors.invalid_model(wanted.name, "its process died while loading it")
        try:
            return read_loaded(text)
        except ServingError:
            raise
        except Exception as error:  # code of its owner has that socket too, and may have spoken first
            raise errors.invalid_model(wanted.name, "its process told something that cannot be read") from error

    @property
    def outstanding(self) -> int:
        """Requests in its queue or in its model, whoever asked."""
        return self.board.in_flight

    def call(self, request: InferRequest) -> LaneAnswer:
        """Raises Answered (what the executor refuses or fails with, and counts), Moved, ExecutorGone, and ServingError."""
        try:
            return self._pool.call(request)
        except LaneError as error:
            raise ServingError(Code.INTERNAL, f"the lane to model {request.model_name!r} broke: {error}") from error

    def stream(self, request: InferRequest, watch: int) -> LaneStream:
        """Its answers, each when it is asked for; see `idl.lane_streams`."""
        return LaneStream(self._pool, request, watch)

    def leave(self) -> None:
        """Takes no new requests from now on: who asks is sent to the routes. `left` waits for those inside."""
        self._watcher.remove(self._control.fileno())
        ask_to_leave(self._control)

    def left(self, timeout_s: float) -> bool:
        """True when everything that it had taken is answered."""
        return has_left(self._control, timeout_s)

    def why(self) -> str:
        """What it died of, where that is known."""
        return self._why or self._wanted.why(self.pid) or self._why  # `close`, meanwhile, may have asked and then forgotten

    def kill(self) -> None:
        """Ends the process as a crash does; whoever watches it is told."""
        with self._lock:
            if not self._closed and self._pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def trim(self, idle_since: float) -> None:
        """Gives the memory of idle connections back."""
        self._pool.trim(idle_since)

    def memory_bytes(self) -> int:
        """Resident private memory of the process, and of what it has started, in bytes, 0 when it is gone."""
        return sum(_private_bytes(pid) for pid in (self.pid, *descendants(self.pid)))

    def close(self) -> None:
        """Ends the process, whatever it is doing, and waits for its end. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._watcher.remove(self._control.fileno())
        self._pool.close()
        self.path.unlink(missing_ok=True)
        self._control.close()
        if self._pidfd >= 0:
            try:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                self._wait_for_end()
            finally:
                os.close(self._pidfd)
        self._why = self._why or self._wanted.why(self.pid)
        self._wanted.forget(self.pid)

    def _wait_for_end(self) -> None:
        if self._pidfd >= 0:
            ended = select.poll()  # select() refuses descriptors above 1023
            ended.register(self._pidfd, select.POLLIN)
            ended.poll(10_000)


def _private_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return 0


def _fresh_board() -> int:
    try:
        return boards.create()
    except OSError as error:
        raise errors.not_ready(f"no process can be started for it: {error.strerror}") from error


def read_loaded(text: bytes) -> Loaded:
    """An executor's answer to its load message. Raises what it says that went wrong."""
    reply = json.loads(text)
    if "failed" in reply:
        raise ServingError(Code(reply["failed"]), reply["message"])
    queue = QueuePolicy(**reply["queue"] | {"preferred": tuple(reply["queue"]["preferred"])})
    return Loaded(Signature.from_json(reply["ready"]), tuple(reply["providers"]), Tuning.from_json(reply["tuning"]), queue)


class Watcher:
    """One thread that notices the death of executors by the end of file on their control sockets."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._wake, self._waker = socket.socketpair()
        self._poll.register(self._wake.fileno(), select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="executor-watcher", daemon=True)
        self._thread.start()

    def add(self, descriptor: int, on_death: Callable[[], None]) -> None:
        with self._lock:
            self._poll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT)
            self._watched[descriptor] = on_death

    def remove(self, descriptor: int) -> None:
        """To be called before the descriptor is closed."""
        with self._lock:
            if self._watched.pop(descriptor, None) is not None:
                self._poll.unregister(descriptor)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake.fileno():
                    return
                self._notice(descriptor)

    def _notice(self, descriptor: int) -> None:
        # a method of its own: a local of the loop would keep the last dead model, board and all, until the next death
        with self._lock:
            on_death = self._watched.pop(descriptor, None)
            if on_death is not None:
                self._poll.unregister(descriptor)
        if on_death is not None:
            on_death()

    def close(self) -> None:
        """Idempotent."""
        if self._thread.is_alive():
            self._waker.send(b"x")
            self._thread.join()
            for resource in (self._poll, self._wake, self._waker):
                resource.close()
