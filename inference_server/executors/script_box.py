"""The box that scripts of users run in, seen from outside: started once, asked call by call, ended whatever goes on in it.

Always bubblewrap: no network, no /proc, nothing that can be written, no environment, its own version's folder as /script. What is in it:
`script_worker`. Everything that comes out of it is read as a stranger's.
"""

import contextlib
import json
import math
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from inference_server import errors
from inference_server.backends import script_frames as frames
from inference_server.backends.script import BoxEnded, Ended, Limits
from inference_server.executors import sandbox

_MAIN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inference_server.executors.script_worker import main; main(sys.argv[1:])"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CREDENTIALS = struct.Struct("3i")
BORN_TIMEOUT_S, END_TIMEOUT_S = 30.0, 5.0
_LAST_WORD_S = 0.2
"""How long a call's process that has hung up may take to end by itself."""
_SHARED_BYTES = 256 << 20
"""Of address space, besides a call's memory: libraries that the script imports."""
_UNKNOWN_BYTES = 512 << 20
"""What the interpreter itself has, where that is not told."""
_SLOWER = 2
"""What a call has imported within its time may take so many times that, and as many seconds, on a busy host."""
_PIECE = 1 << 16
_KILL = b'{"kill": true}'
_LAST_PRINTED = 1000


def unusable() -> str:
    """Why scripts cannot run here; "" where they can."""
    return sandbox.unusable()


class ScriptBox:
    """One box. Not thread-safe; `close` is idempotent. `folder` None: the script has none. `printed` hears what a call has printed: how many
    bytes, and the last of them; None: nobody does.

    To be made, and used, in threads that live as long as it does: the kernel ends it with the one that started it.
    """

    def __init__(
        self, folder: Path | None, limits: Limits, printed: Callable[[], Callable[[int, str], None] | None] = lambda: None
    ) -> None:
        self._folder, self._limits, self._printed = folder, limits, printed
        self._modules: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pid = 0
        self._cores: set[int] = set()
        self._leaving = False
        self._data = self._space = 0

    # life ------------------------------------------------------------------------------------------------------------------------

    def prepare(self, modules: Sequence[str]) -> None:
        """Imports them now, and whenever the box is started again, so that no call has to. Which they are a script says: where they take too
        long, or more memory than a call may, the box is given up and does without them.
        """
        self.settle()
        self._modules = list(modules)
        if self._control is not None:
            self._import(self._control)

    def close(self) -> None:
        self._leaving = False
        process, self._process = self._process, None
        control, self._control = self._control, None
        if control is not None:
            control.close()
        if process is not None:
            process.kill()
            process.wait()

    def _started(self) -> socket.socket:
        """Its control socket. Raises BoxEnded, unsupported."""
        if self._control is not None:
            return self._control
        if why := unusable():
            raise errors.unsupported(f"scripts only run in a sandbox, and there is none here: {why}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._control = ours
            try:
                self._process = subprocess.Popen(
                    [*self._box(), sys.executable, "-I", "-c", _MAIN, str(sandbox.ROOT), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={},
                )
            except OSError as error:
                self.close()
                raise BoxEnded(f"no process can be started for it: {error.strerror}") from error
        try:
            self._born(ours)
        except BaseException:
            self.close()
            raise
        if self._modules and not self._import(ours):
            return self._started()
        return ours

    def _box(self) -> list[str]:
        command = [sandbox.program(), *sandbox.isolation(), "--hostname", "script", "--clearenv", *sandbox.system()]
        command += ["--dev", "/dev", "--remount-ro", "/dev", "--tmpfs", "/tmp"]
        command += sandbox.seen(sandbox.PACKAGES)
        if self._folder is not None:
            command += ["--ro-bind", str(self._folder), frames.FOLDER]
        for name, value in (("HOME", "/"), ("LANG", "C.UTF-8"), *((name, "1") for name in _THREADS)):
            command += ["--setenv", name, value]
        # last: some of these may lie in /tmp
        return [*command, "--remount-ro", "/tmp", "--remount-ro", "/", "--chdir", frames.FOLDER if self._folder is not None else "/", "--"]

    def _born(self, control: socket.socket) -> None:
        control.settimeout(BORN_TIMEOUT_S)
        try:
            text, ancillary, _, _ = control.recvmsg(4096, 64)
        except OSError:
            text, ancillary = b"", []
        if not text:
            raise BoxEnded("its box ended before it began; the server's log has what it said")
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        told = [data for level, kind, data in ancillary if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)]
        self._cores = os.sched_getaffinity(0)  # a process begins with its parent's
        self._pid = _CREDENTIALS.unpack(told[0][: _CREDENTIALS.size])[0] if told else 0
        self._measure()

    def _measure(self) -> None:
        """What the interpreter itself has, before a script comes: limits of a call stand above it."""
        found = {"VmData": _UNKNOWN_BYTES, "VmSize": _UNKNOWN_BYTES}
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
                name = line.partition(":")[0]
                if name in found:
                    found[name] = 1024 * int(line.split()[1])
        self._data = found["VmData"] + self._limits.memory
        self._space = found["VmSize"] + self._limits.memory + _SHARED_BYTES

    def _import(self, control: socket.socket) -> bool:
        """False where the box could not do it, and has ended."""
        before = self._data
        with contextlib.suppress(OSError):
            control.settimeout(_SLOWER * self._limits.timeout_s + _SLOWER)
            control.send(json.dumps({"import": self._modules}).encode())
            if control.recv(4096):
                self._measure()
                if self._data - before <= self._limits.memory:
                    return True
        self._modules = []
        self.close()
        return False

    def _dismiss(self, control: socket.socket) -> int:
        """Ends a process that has answered; `settle` waits for that, so that nobody else has to. 0, for its status."""
        self._leaving = True
        with contextlib.suppress(OSError):
            control.send(_KILL)
        return 0

    def settle(self) -> None:
        """Waits for the end of the call's process before, whose answer has been given. Raises nothing: a box that does not end it is ended."""
        if not self._leaving or self._control is None:
            return
        self._leaving = False
        try:
            self._control.settimeout(END_TIMEOUT_S)
            _status(self._control.recv(4096))
        except (OSError, ValueError, KeyError):
            self.close()

    def _follow(self) -> None:
        """Onto the cores that its owner may use: some may have been reserved for others meanwhile."""
        cores = os.sched_getaffinity(0)
        if cores != self._cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self._pid, cores)
            self._cores = cores

    # one call --------------------------------------------------------------------------------------------------------------------

    def call(self, parts: Sequence[bytes | memoryview], deadline: float | None, watch: int) -> Ended:
        """Asks a fresh process of it. `deadline`: monotonic seconds; `watch`: a descriptor whose hang-up means that nobody waits any more.

        Raises BoxEnded, after which the next call starts it again; unsupported.
        """
        self.settle()
        control = self._started()
        self._follow()
        heard = self._printed()
        with contextlib.ExitStack() as closing:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            closing.enter_context(ours)
            passed, listening = [theirs.fileno()], -1
            if heard is not None:
                listening, write_end = os.pipe()
                closing.callback(os.close, listening)
                passed.append(write_end)
            try:
                control.settimeout(END_TIMEOUT_S)
                limits = {"data": self._data, "space": self._space, "cpu_s": math.ceil(self._limits.timeout_s) + 1}
                socket.send_fds(control, [json.dumps({"call": limits}).encode()], passed)
            except OSError as error:
                self.close()
                raise BoxEnded("its box has ended") from error
            finally:
                theirs.close()
                for each in passed[1:]:
                    os.close(each)
            exchange = _Exchange(ours, control, listening, parts, self._limits)
            try:
                why, status = exchange.run(deadline, watch), exchange.status
                if status is None and why == Ended.ANSWERED:
                    status = self._dismiss(control)
                elif status is None:
                    why, status = _end(control, why)
            except BoxEnded:
                self.close()
                raise
            if heard is not None:
                exchange.listen()
                if exchange.printed_bytes:
                    heard(exchange.printed_bytes, exchange.printed.decode("utf-8", "replace"))
            return Ended(why, status, exchange.head, exchange.body)


def _end(control: socket.socket, why: str) -> tuple[str, int]:
    """Ends a call's process, where it has not ended by itself: why it is over, and its status. Raises BoxEnded."""
    try:
        if why == Ended.HUNG_UP:
            control.settimeout(_LAST_WORD_S)
            with contextlib.suppress(TimeoutError):
                return why, _status(control.recv(4096))
            why = Ended.CLOSED
        control.settimeout(END_TIMEOUT_S)
        control.send(_KILL)
        return why, _status(control.recv(4096))
    except (OSError, ValueError, KeyError) as error:
        raise BoxEnded("its box has ended") from error


def _status(text: bytes) -> int:
    """Raises ValueError for the end of the box."""
    return int(json.loads(text)["ended"])


class _Exchange:
    """The question out, the answer in, while clock, caller and what is printed are looked after. `status` where its process has ended."""

    def __init__(
        self, channel: socket.socket, control: socket.socket, listening: int, parts: Sequence[bytes | memoryview], limits: Limits
    ) -> None:
        self._channel, self._control, self._listening, self._limits = channel, control, listening, limits
        self._out = [memoryview(part).cast("B") for part in parts if len(part)]
        self._in = bytearray(frames.ANSWER.size)
        self._view = memoryview(self._in)
        self._at = self._head_size = 0
        self._is_body = False
        self.head = b""
        self.body = memoryview(b"")
        self.status: int | None = None
        self.printed, self.printed_bytes = b"", 0
        channel.setblocking(False)
        if listening >= 0:
            os.set_blocking(listening, False)

    def run(self, deadline: float | None, watch: int) -> str:
        """Why it is over, one of `Ended`. Raises BoxEnded."""
        late = time.monotonic() + self._limits.timeout_s
        until = late if deadline is None else min(late, deadline)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._channel, select.POLLIN | select.POLLOUT)
        for descriptor, events in ((self._listening, select.POLLIN), (watch, select.POLLRDHUP)):
            if descriptor >= 0:
                poll.register(descriptor, events)
        while (left := until - time.monotonic()) > 0:
            for descriptor, events in poll.poll(math.ceil(1000 * left)):
                if descriptor == watch:
                    return Ended.GONE
                if descriptor == self._listening:
                    self.listen()
                    if events & select.POLLHUP:
                        poll.unregister(descriptor)
                elif why := self._step(descriptor, events):
                    return why
            if not self._out:
                poll.modify(self._channel, select.POLLIN)
        return Ended.LATE if until == late else Ended.DEADLINE

    def _step(self, descriptor: int, events: int) -> str:
        """Why it is over; "" where it goes on."""
        try:
            if descriptor == self._control.fileno():
                self.status = self._last_word()
                return self._read() or Ended.HUNG_UP  # what it sent before
            if events & select.POLLOUT and self._out:
                self._write()
            if events & ~select.POLLOUT:
                return self._read()
        except (BrokenPipeError, ConnectionResetError):
            return Ended.HUNG_UP
        return ""

    def _last_word(self) -> int:
        try:
            return _status(self._control.recv(4096, socket.MSG_DONTWAIT))
        except (OSError, ValueError, KeyError) as error:
            raise BoxEnded("its box has ended") from error

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = self._channel.sendmsg(self._out[:16])
            while sent:
                first = self._out[0]
                if sent < len(first):
                    self._out[0] = first[sent:]
                    return
                sent -= len(first)
                del self._out[0]

    def _read(self) -> str:
        """As much as is there."""
        while True:
            try:
                got = self._channel.recv_into(self._view[self._at :])
            except BlockingIOError:
                return ""
            if not got:
                return Ended.HUNG_UP
            self._at += got
            if self._at == len(self._view) and (why := self._whole()):
                return why

    def _whole(self) -> str:
        """A part of it has come whole: the sizes, or all of it."""
        if self._is_body:
            return self._over()
        head_size, body_size = frames.ANSWER.unpack(self._in)
        if head_size > frames.MOST_HEAD or body_size > self._limits.answer + 64 * frames.MOST_TENSORS:
            return Ended.LARGE
        self._head_size, self._is_body, self._at = head_size, True, 0
        self._view = memoryview(bytearray(head_size + body_size))
        return "" if len(self._view) else self._over()

    def _over(self) -> str:
        self.head, self.body = bytes(self._view[: self._head_size]), self._view[self._head_size :]
        return Ended.ANSWERED

    def listen(self) -> None:
        """Takes what was printed: its last part is kept."""
        if self._listening < 0:
            return
        for _ in range(64):
            try:
                text = os.read(self._listening, _PIECE)
            except OSError:
                return
            if not text:
                return
            self.printed_bytes += len(text)
            self.printed = (self.printed + text)[-_LAST_PRINTED:]
