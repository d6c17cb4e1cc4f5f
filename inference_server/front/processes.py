"""The two kinds of process that the front is made of, as `keeper` starts and watches them."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from inference_server.front.configuration import Configuration

log = logging.getLogger("outboard.server")

SILENT_S, STARTING_S = 15.0, 60.0
"""A front process that has not answered for so long hangs, and is ended; and one that has just been started."""
_ROOT = Path(__file__).resolve().parent.parent.parent
_LAST_WORDS = 500


class NginxProcess:
    """nginx's master; it tells what goes wrong on standard error, which becomes lines of our log. Satisfies `keeper.Started`."""

    ready = True

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], inherited: Collection[int]) -> None:
        """Raises OSError."""
        self.last_words = ""
        launch = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(os.getpid())]
        self.channel, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.process = subprocess.Popen(
                [*launch, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
                env=dict(environ),
                pass_fds=inherited,
                start_new_session=True,
            )
        except BaseException:
            os.close(self.channel)
            raise
        finally:
            os.close(theirs)

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while text := os.read(self.channel, 1 << 16):
                for line in text.decode(errors="replace").splitlines():
                    quiet = "[notice]" in line  # it says where its sockets come from, before it has read how much it should say
                    log.log(logging.DEBUG if quiet else logging.WARNING, "nginx", extra={"fields": {"says": line[:_LAST_WORDS]}})
                    self.last_words = line[:_LAST_WORDS]

    def tick(self, now: float) -> None:
        """nginx watches over its workers itself."""

    def close(self) -> None:
        os.close(self.channel)


class FrontProcess:
    """One process of the front. `channel` is the socket that it reads its configuration from, and that ends it. Satisfies
    `keeper.Started`."""

    def __init__(self, name: str, configuration: Configuration, inherited: Collection[int]) -> None:
        """Raises OSError."""
        self.last_words = ""
        self.ready = False
        self._name = name
        self._heard = time.monotonic()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = self._ours.fileno()
        # this very code, whatever the current folder holds and however this process found it
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))}
        environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # numpy's: it computes nothing here
        with theirs:
            try:
                self._ours.send(configuration.to_json())
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "inference_server.front"],
                    stdin=theirs.fileno(),
                    env=environ,
                    pass_fds=inherited,
                    start_new_session=True,
                )
            except BaseException:
                self._ours.close()
                raise
        self._ours.setblocking(False)

    def read(self) -> None:
        try:
            text = self._ours.recv(4096)
        except OSError:
            return
        if text:
            self.ready = True
            self._heard = time.monotonic()

    def tick(self, now: float) -> None:
        patience_s = SILENT_S if self.ready else STARTING_S
        if now - self._heard > patience_s:
            self.last_words = f"it did not answer for {patience_s:.0f} s and was ended"
            self.process.kill()
            return
        with contextlib.suppress(OSError):
            self._ours.send(b"?")

    def close(self) -> None:
        self._ours.close()
