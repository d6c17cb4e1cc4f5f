"""Executors that are not forked from the zygote: what runs an owner's code gets an interpreter, and where it can a box, of its own.

None of the server's own files reaches them: standard input is empty, standard output and error are a pipe that `printed` reads.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference_server import errors
from inference_server.executors import sandbox, thread_limit
from inference_server.executors.printed import Printed

_CREDENTIALS = struct.Struct("3i")
BORN_TIMEOUT_S = 30.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_EXECUTOR = "inference_server.executors.fresh"
_MAIN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from {} import main; main(sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Of one process: `flags` of its interpreter; `readable`: folders that a boxed one sees besides the interpreter's own; `devices`: files
    below /dev that it may use. `silent`: nobody reads what it prints; else the log has it, with the model's name and `told`.
    """

    flags: tuple[str, ...] = ()
    boxed: bool = False
    readable: tuple[Path, ...] = ()
    threads: int = 0
    devices: tuple[Path, ...] = ()
    silent: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)


class FreshProcesses:
    """Starts them. Thread-safe, `close` is idempotent; they end with the thread that starts them all, so with this object's process."""

    def __init__(self, run_dir: Path, memory_limit: int) -> None:
        self.run_dir = run_dir
        self._memory_limit = memory_limit
        self._numbers = itertools.count(1)
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="fresh-keeper")
        self._printed = Printed()

    def starter(self, surroundings: Surroundings) -> "Starter":
        return Starter(self, surroundings)

    def spawn(self, name: str, board: int, surroundings: Surroundings) -> tuple[Path, socket.socket, int, int]:
        """As `Zygote.spawn`."""
        path = self.run_dir / f"xf{next(self._numbers)}.lane"
        try:
            return path, *self._spawn(path, name, board, surroundings)
        except BaseException as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise errors.not_ready(f"no process can be started for it: {error.strerror or error}") from error
            raise

    def _spawn(self, path: Path, name: str, board: int, surroundings: Surroundings) -> tuple[socket.socket, int, int]:
        with contextlib.ExitStack() as closing:
            listener = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            listener.bind(str(path))
            path.chmod(0o660)  # the folder's mode decides who may call
            listener.listen(4096)
            told = {"name": f"outboard:{name}", "memory_limit": self._memory_limit}
            around = replace(surroundings, told={"model": name, **surroundings.told})
            control, pid, pidfd, _ = self._run(_EXECUTOR, told, [listener.fileno()], [board], around)
            return control, pid, pidfd

    def trial(self, module: str, told: Mapping[str, Any], surroundings: Surroundings) -> "Trial":
        """A process of `main` in `module`, which is given `told` and the descriptor of its end of the control socket. Raises not_ready."""
        try:
            return Trial(*self._run(module, told, [], [], surroundings))
        except OSError as error:
            raise errors.not_ready(f"no process can be started for it: {error.strerror or error}") from error

    def _run(
        self, module: str, told: Mapping[str, Any], before: list[int], after: list[int], surroundings: Surroundings
    ) -> tuple[socket.socket, int, int, "subprocess.Popen[bytes]"]:
        """(control socket, pid, pidfd, what was started). `before`, `after`: descriptors beside that of its control socket."""
        with contextlib.ExitStack() as closing:
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            closing.enter_context(theirs)
            try:
                control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                descriptors = [*before, theirs.fileno(), *after]
                command = self._command(module, told, descriptors, surroundings)
                if surroundings.boxed:
                    filtered = closing.enter_context(sandbox.seccomp_filter())
                    readable, environ = (*sandbox.PACKAGES, *surroundings.readable), _threads(surroundings)
                    command = [*sandbox.box(readable, filtered, surroundings.devices, environ), *command]
                    descriptors.append(filtered)
                process = self._keeper.submit(self._start, command, descriptors, surroundings).result()
                theirs.close()  # else its end would not be seen
                return control, *_born(control, process), process
            except BaseException:
                control.close()
                raise

    def _command(self, module: str, told: Mapping[str, Any], descriptors: Sequence[int], surroundings: Surroundings) -> list[str]:
        box = {"parent": 0, "most_threads": thread_limit.to_hold()} if surroundings.boxed else {"parent": os.getpid(), "most_threads": 0}
        text = json.dumps({**told, **box})
        return [
            sys.executable,
            "-P",
            "-s",
            *surroundings.flags,
            "-c",
            _MAIN.format(module),
            str(sandbox.ROOT),
            text,
            *map(str, descriptors),
        ]

    def _start(self, command: list[str], descriptors: list[int], surroundings: Surroundings) -> "subprocess.Popen[bytes]":
        listening, output = (-1, subprocess.DEVNULL) if surroundings.silent else os.pipe2(os.O_CLOEXEC)
        try:
            process = subprocess.Popen(
                command, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environ(surroundings)
            )
        except BaseException:
            if listening >= 0:
                os.close(listening)
            raise
        finally:
            if listening >= 0:
                os.close(output)
        if listening >= 0:
            self._printed.listen(listening, surroundings.told)
        threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
        return process

    def close(self) -> None:
        self._keeper.shutdown()
        self._printed.close()


def _environ(surroundings: Surroundings) -> dict[str, str]:
    """None of a boxed one: what starts the box shows its own to the code, and sets the code's."""
    if surroundings.boxed:
        return {}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOARD_", "PYTHON"))}
    return kept | _threads(surroundings)


def _threads(surroundings: Surroundings) -> dict[str, str]:
    return dict.fromkeys(_THREADS, str(surroundings.threads)) if surroundings.threads else {}


@dataclass(slots=True)
class Trial:
    """A process that is not an executor. `process`: what was started, which in a box is another one than `pid`, and ends with it."""

    control: socket.socket
    pid: int
    pidfd: int
    process: "subprocess.Popen[bytes]"

    def end(self) -> int:
        """Ends it, whatever it does, and gives its exit status, as the shell has it (128 and the signal's number)."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self.process.kill()
        status = self.process.wait()
        self.control.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        return 128 - status if status < 0 else status


@dataclass(frozen=True, slots=True)
class Starter:
    """Has the zygote's `spawn`, for one kind of process."""

    processes: FreshProcesses
    surroundings: Surroundings

    def spawn(self, name: str, board: int) -> tuple[Path, socket.socket, int, int]:
        return self.processes.spawn(name, board, self.surroundings)


def _born(control: socket.socket, process: "subprocess.Popen[bytes]") -> tuple[int, int]:
    """(pid, pidfd) of the process that speaks on `control`: in a box it is not the one that was started, but the kernel says which.

    Raises not_ready where none does.
    """
    control.settimeout(BORN_TIMEOUT_S)
    try:
        text, ancillary, _, _ = control.recvmsg(4096, 64)
    except OSError:
        text, ancillary = b"", []
    finally:
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    if not text:
        process.kill()
        raise errors.not_ready("its process ended before it began; the server's log has what it said")
    told = [data for level, kind, data in ancillary if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)]
    pid = _CREDENTIALS.unpack(told[0][: _CREDENTIALS.size])[0] if told else process.pid
    try:
        return pid, os.pidfd_open(pid)
    except ProcessLookupError:
        return pid, -1
