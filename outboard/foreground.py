"""What `outboard up` and `outboard web` have in common: parts are started, waited for and watched in the foreground, until a stop."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from outboard import nginx
from outboard.processes import Children

START_TIMEOUT_S = 120.0
CHECK_EVERY_S = 0.05


class CannotStart(Exception):
    """The message says what to do, or shows the log of what failed."""


class Foreground:
    """One run of several parts."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._stop = threading.Event()

    def run(self) -> int:
        """Until it is stopped. Raises CannotStart, also where a part ends."""
        raise NotImplementedError

    def obey_signals(self) -> None:
        """SIGTERM and SIGINT: the first one stops in order; a second one at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._stop.is_set():
            self._children.kill()
            os._exit(130)
        self._stop.set()

    def _check(self) -> None:
        """Raises CannotStart where a part has ended."""
        if child := self._children.ended():
            raise CannotStart(child.obituary())

    def _wait(self, answers: Callable[[], bool], too_late: str) -> None:
        """Until `answers`, or a stop was asked for. Raises CannotStart where a part ends or time is up, then saying `too_late`."""
        waited = 0.0
        while not answers() and not self._stop.wait(CHECK_EVERY_S):
            self._check()
            waited += CHECK_EVERY_S
            if waited > START_TIMEOUT_S:
                raise CannotStart(too_late)

    def _watch(self) -> int:
        """Until a stop was asked for; then 0. Raises CannotStart where a part ends."""
        while not self._stop.wait(CHECK_EVERY_S):
            self._check()
        return 0


def run(verb: str, parts: Foreground) -> int:
    """Exit status: 0 after a stop that was asked for, 1 where something failed, which is said."""
    parts.obey_signals()
    try:
        return parts.run()
    except CannotStart as error:
        print(f"outboard {verb}: {error}", file=sys.stderr)
        return 1


def configure_nginx(binary: str, path: Path, render: Callable[[], str]) -> Path:
    """Writes nginx's configuration, which nginx itself finds good. Raises CannotStart."""
    try:
        path.write_text(render(), encoding="utf-8")
        check = subprocess.run(nginx.command(binary, path, "-t", "-q"), capture_output=True, text=True, check=False)
    except (OSError, ValueError) as error:
        raise CannotStart(f"nginx cannot be started: {error}") from error
    if check.returncode:
        raise CannotStart(f"nginx refuses its configuration or its port:\n{check.stderr.strip()}")
    return path


def reachable(host: str) -> str:
    """Where this machine reaches what listens on `host`; an address of IPv6 with its brackets or without them, as it was given."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "[::1]"}.get(host, host)
