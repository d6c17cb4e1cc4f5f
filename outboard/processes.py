"""Child processes of `outboard up`: started so that they end with it, watched, stopped in order."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_TAIL_BYTES = 4000


def _end_with_parent(parent: int) -> None:
    """In the child, before exec: SIGTERM when the thread that started it ends, however it ends. `parent`: that one's process."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


@dataclass(slots=True)
class Child:
    """One part of the product. `log` None: it prints where we do. `stop_signal` asks it to finish what it has and end."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None
    log_start: int
    stop_signal: signal.Signals = signal.SIGTERM

    def obituary(self) -> str:
        """What to say where it has ended."""
        said = f"{self.name} ended with status {self.process.returncode}"
        return f"{said}; its log is above" if self.log is None else f"{said}\n{self.tail()}"

    def tail(self) -> str:
        """The end of what it has logged since its start: what to show when it failed."""
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log_start, self.log.stat().st_size - _TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""


class Children:
    """Everything that was started, in order. Start from the main thread: the parent-death signal follows the thread."""

    def __init__(self, log_dir: Path | None) -> None:
        """`log_dir` None: everything they print goes where this process's standard error goes."""
        self._log_dir = log_dir
        self._children: list[Child] = []

    def start(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        on_output: Callable[[str], None] | None = None,
        on_message: Callable[[str], None] | None = None,
    ) -> Child:
        """Its output goes to `<log_dir>/<name>.log`, but lines of standard output to `on_output` where that is given.

        With `on_message`, lines of standard error that are no log lines (JSON objects) go there, and not to the log: what a person at
        the terminal is to read, and perhaps nobody else. In a session of its own: a Ctrl-C reaches only us, and the parts stop in order.
        """
        log = self._log_dir / f"{name}.log" if self._log_dir else Path(os.devnull)
        with log.open("ab") if self._log_dir else open(2, "wb", closefd=False) as output:
            log_start = output.tell() if self._log_dir else 0
            process = subprocess.Popen(
                command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if on_output else output,
                stderr=subprocess.PIPE if on_message else output,
                start_new_session=True,
                preexec_fn=partial(_end_with_parent, os.getpid()),  # noqa: PLW1509 - prctl takes no lock that another thread could hold
            )
        child = Child(name, process, log if self._log_dir else None, log_start, stop_signal)
        self._children.append(child)
        if on_output and process.stdout:
            _read(process.stdout, on_output)
        if on_message and process.stderr:
            _read(process.stderr, lambda line: _sort(line, log, on_message))
        return child

    def ended(self) -> Child | None:
        """A child that is not running any more, None while all are."""
        return next((child for child in self._children if child.process.poll() is not None), None)

    def stop(self, timeout_s: float) -> None:
        """Last started, first stopped; each gets `timeout_s`, then it and what it started is killed. Idempotent."""
        while self._children:
            child = self._children.pop()
            if child.process.poll() is None:
                child.process.send_signal(child.stop_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout_s)
            _kill_session(child.process.pid)  # what it left: nginx's workers outlive a killed master, and keep its port
            child.process.wait()

    def kill(self) -> None:
        """Ends everything at once."""
        for child in self._children:
            if child.process.poll() is None:
                _kill_session(child.process.pid)
        for child in self._children:
            child.process.wait()
        self._children.clear()


def _kill_session(pid: int) -> None:
    """The child leads its process group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _read(stream: IO[bytes], on_line: Callable[[str], None]) -> None:
    def lines() -> None:
        with stream:
            for line in stream:
                with contextlib.suppress(OSError, ValueError):  # a full disk costs lines, not the stream
                    on_line(line.decode(errors="replace").rstrip("\n"))

    threading.Thread(target=lines, name="output", daemon=True).start()


def _sort(line: str, log: Path, on_message: Callable[[str], None]) -> None:
    if not line.startswith("{"):
        on_message(line)
        return
    with log.open("a") as file:
        file.write(line + "\n")
