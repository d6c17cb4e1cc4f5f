"""What makes a process an executor."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def be_an_executor(name: str, parent: int) -> None:
    """Process-wide set-up: dies with its parent, whose pid is `parent`, is told apart in `ps`, and leaves Ctrl-C and SIGTERM to the supervisor."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be told that we die with it
        os._exit(1)
    libc.prctl(_PR_SET_NAME, name.encode()[:15])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
