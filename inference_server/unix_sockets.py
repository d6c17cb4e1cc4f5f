"""Unix sockets of a server: a path belongs to who listens on it, whatever file lies there."""

import errno
import socket
from pathlib import Path

Identity = tuple[int, int, int]


def free(path: Path) -> None:
    """Takes away a socket file that a killed server left. Raises OSError where a server listens on it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, "another server listens there")
    path.unlink(missing_ok=True)


def listen(path: Path, backlog: int) -> socket.socket:
    """For the owner and its group. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o660)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def identity(path: Path) -> Identity | None:
    """Which file it is; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns  # a number is used again at once
