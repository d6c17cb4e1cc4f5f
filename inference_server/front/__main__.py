"""The front's process. Its standard input is a socket to the server: first the configuration, then a question from time to time whether
it still turns; the end of file there ends it.
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path

from idl.event_loop import Loop
from idl.lane_loop import Lanes
from idl.lane_routes import Routes
from idl.nginx_http import Door
from inference_server import logs, tracing
from inference_server.front.callers import Callers
from inference_server.front.calls import Calls
from inference_server.front.configuration import Configuration
from inference_server.transports.tokens import Token

_PR_SET_PDEATHSIG = 1
SWEEP_S = 0.1
IDLE_LANE_S = 30.0
"""How long a lane that nobody uses keeps its memory."""


class Front:
    """Everything of one process."""

    def __init__(self, configuration: Configuration, server: socket.socket) -> None:
        self._server = server
        self._loop = Loop(SWEEP_S, self._tick)
        self._lanes = Lanes(self._loop, configuration.max_message_bytes)
        self._calls = Calls(
            Routes(configuration.run_dir),
            self._lanes,
            Token(configuration.token, configuration.token_file),
            default_timeout_s=configuration.default_timeout_s,
            max_message_bytes=configuration.max_message_bytes,
        )
        self._log_level = logs.Follower(Path(configuration.run_dir))
        path = Path(configuration.socket)
        self._calls.tracer = self._tracer = tracing.tracer(
            Path(configuration.run_dir), path.name, configuration.trace_endpoint, configuration.trace_rate
        )
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)  # of one that was killed: whoever holds the run folder starts one front at a time on a path
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(4096)
        Door(self._listener, self._loop, Callers(self._calls))
        self._loop.add(server.fileno(), self._asked)
        self._trim_at = time.monotonic() + IDLE_LANE_S

    def serve(self) -> None:
        self._server.send(b"listening")
        gc.collect()
        gc.freeze()
        self._loop.run()
        if self._tracer is not None:
            self._tracer.close()

    def stop(self) -> None:
        """For a signal's handler: tells what is left of traces, and ends."""
        self._loop.stop()

    def _asked(self, events: int) -> None:
        try:
            if self._server.recv(64):
                self._server.send(b"turning")
                return
        except OSError:
            pass
        self._loop.stop()

    def _tick(self, now: float) -> None:
        self._calls.sweep(now)
        self._log_level.look()
        if now >= self._trim_at:
            self._lanes.trim(now - IDLE_LANE_S)
            self._trim_at = now + IDLE_LANE_S


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also where it hangs and sees no end of file
    server = socket.socket(fileno=os.dup(0))
    text = server.recv(1 << 16)
    if not text:
        return 0
    configuration = Configuration.from_json(text)
    logs.configure(configuration.log_level)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server has gone
        front = Front(configuration, server)
        signal.signal(signal.SIGTERM, lambda *_: front.stop())
        front.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
