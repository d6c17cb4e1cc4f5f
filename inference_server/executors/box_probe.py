"""What a process does in a box to see whether that holds: it tries what must not work. Nothing but the standard library."""

import contextlib
import ctypes
import os
import socket
from pathlib import Path

_NEW_USER, _NEW_NAMES = 0x10000000, 0x00020000
_AF_VSOCK = 40
_WRITTEN = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/fs/dir-notify-enable",
    "/proc/sysrq-trigger",
    "/proc/self/oom_score_adj",
    "/dev/outboard",
    "/outboard",
    "/usr/outboard",
)
_READ = ("/proc/kcore", "/proc/kpagecount", "/proc/kmsg", "/etc/shadow", "/root/.ssh")


def main() -> None:
    """Prints the first thing that should not be so."""
    print(hole(), end="")


def hole() -> str:
    """What is open in the box that this process is in, "" for nothing that is known."""
    for path in _WRITTEN:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            return f"{path} can be opened for writing"
    for path in _READ:
        with contextlib.suppress(OSError):
            if Path(path).read_bytes()[:1]:
                return f"{path} can be read"
    if Path("/proc/1/environ").read_bytes():
        return "the environment of the box's first process is not empty"
    if names := [name for _, name in socket.if_nameindex() if name != "lo"]:
        return f"it has the network of {names[0]}"
    return _calls()


def _calls() -> str:
    with contextlib.suppress(OSError):
        socket.socket(_AF_VSOCK, socket.SOCK_STREAM).close()
        return "sockets of machines (AF_VSOCK) can be made"
    with contextlib.suppress(OSError):
        if not os.fork():
            os._exit(0)
        return "processes can be made"
    libc = ctypes.CDLL(None)
    return "name spaces can be made" if not libc.unshare(_NEW_USER) or not libc.unshare(_NEW_NAMES) else ""
