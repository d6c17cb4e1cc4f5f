"""One trial, from outside: a process within limits of memory, time and processor time, and what became of it."""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idl.codes import Code, ServingError
from inference_server import errors
from inference_server.executors import sandbox, thread_limit
from inference_server.executors.fresh_processes import FreshProcesses, Surroundings, Trial
from inference_server.executors.memory_limit import MemoryLimits
from inference_server.reservations import in_units
from inference_server.validation import formats
from inference_server.validation.trial import MODEL, NO_MEMORY

_MODULE = "inference_server.validation.trial"
_LOOK_S = 0.05
_START_S = 30.0
_END_S = 2.0
_MOST_REPORT = 8 * 2**20
_PASSED_ON = frozenset({Code.INVALID_MODEL, Code.UNSUPPORTED, Code.INSUFFICIENT_CAPACITY})
_LONGEST = 600


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """Bytes and seconds."""

    memory: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Tried:
    """What the process told, and the most memory that it had for the model, in bytes."""

    report: Mapping[str, Any]
    memory_bytes: int


class Hopeless(Exception):
    """The model cannot be served; the message says why."""


class Trials:
    """Thread-safe."""

    def __init__(self, fresh: FreshProcesses, limits: MemoryLimits) -> None:
        self._fresh = fresh
        self._limits = limits

    def run(self, kind: str, folder: Path, within: TrialLimits, active: Callable[[], bool]) -> Tried:
        """Tries the model in `folder`, of the format `kind`. Raises Hopeless, unsupported, cancelled where nobody waits, not_ready."""
        why = sandbox.unusable()
        if why and kind in formats.CODE:
            raise errors.unsupported(f"a {kind} model is code, which is run only in a sandbox, and there is none on this host: {why}")
        readable = (folder, *(Path("/etc").glob("java-*") if kind == formats.PMML else ()))
        cpu_s = max(1, int(within.timeout_s))
        told = {"format": kind, "folder": str(folder), "memory": within.memory, "cpu_s": cpu_s}
        trial = self._fresh.trial(_MODULE, told, Surroundings(boxed=not why, readable=readable, threads=1, silent=True))
        try:
            return _Run(trial, self._limits, within, active, cpu_s, 0 if why else thread_limit.to_watch()).result(
                counts_all=kind != formats.ONNX
            )
        finally:
            trial.end()
            self._limits.forget(trial.pid)


@dataclass(slots=True)
class _Run:
    trial: Trial
    limits: MemoryLimits
    within: TrialLimits
    active: Callable[[], bool]
    cpu_s: int
    threads: int
    """That somebody has to count, 0 where none or the kernel does."""

    def result(self, *, counts_all: bool) -> Tried:
        """`counts_all`: an instance has a process of its own, with nothing shared, so that all of it is the model's."""
        self._receive(time.monotonic() + _START_S, "its process did not begin")
        before = _resident(self.trial.pid, "VmRSS")
        private = _private(self.trial.pid)
        self.limits.apply(self.trial.pid, self.within.memory + private, self.threads)
        self._send(b"go")
        text = self._report(time.monotonic() + self.within.timeout_s)
        grown = max(0, _resident(self.trial.pid, "VmHWM") - before)
        try:
            report = json.loads(text)
            if not isinstance(report, dict):
                raise TypeError
        except (ValueError, TypeError, RecursionError):
            raise Hopeless("its process told something that cannot be read") from None
        if "failed" in report:
            raise self._failure(report)
        return Tried(report, grown + (private if counts_all else 0))

    def _failure(self, report: Mapping[str, Any]) -> Exception:
        message = _plain(report.get("message", ""))
        if report.get("memory") or any(sign in message for sign in NO_MEMORY):
            return Hopeless(f"it needs more than {in_units(self.within.memory)} of memory, which is what a validation may take")
        with contextlib.suppress(ValueError):
            if (code := Code(str(report["failed"]))) in _PASSED_ON and code is not Code.INVALID_MODEL:
                return ServingError(code, message)
        return Hopeless(message or "it cannot be loaded")

    def _report(self, until: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        while (part := self._receive(until, f"it was not loaded and run within {self.within.timeout_s:g} s")) != b"\n":
            parts.append(part)
            if (size := size + len(part)) > _MOST_REPORT:
                raise Hopeless("its process tells too much")
        return b"".join(parts)

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.trial.control.send(data)

    def _receive(self, until: float, late: str) -> bytes:
        poll = select.poll()
        poll.register(self.trial.control, select.POLLIN)
        while not poll.poll(_LOOK_S * 1000):
            if not self.active():
                raise ServingError(Code.CANCELLED, "nobody waits for the validation any more")
            if time.monotonic() > until:
                raise Hopeless(late)
        try:
            part: bytes = self.trial.control.recv(1 << 17)
        except OSError:
            part = b""
        if not part:
            raise Hopeless(self._death())
        return part

    def _death(self) -> str:
        with contextlib.suppress(Exception):
            self.trial.process.wait(_END_S)
        if why := self.limits.reason(self.trial.pid):
            if "over its memory limit" in why:
                return f"it needs more than {in_units(self.within.memory)} of memory, which is what a validation may take"
            return why
        number = self.trial.end() - 128
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return f"its process was ended: it used more than {self.cpu_s} s of processor time, or the host was out of memory"
        if number > 0:
            with contextlib.suppress(ValueError):
                return f"its process died of {signal.Signals(number).name} while it was loaded or run"
        return "its process ended while it was loaded or run"


def _plain(text: object) -> str:
    """Words of a stranger's process, on one line; the model's name in them is ours."""
    words = " ".join(str(text).replace("\0", " ").split())[:_LONGEST]
    for said in (f"model {MODEL!r} version 1: ", f"model {MODEL!r}: "):
        words = words.removeprefix(said)
    return "".join(letter for letter in words if letter.isprintable())


def _resident(pid: int, key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    return 0


def _private(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return 32 * os.sysconf("SC_PAGE_SIZE")
