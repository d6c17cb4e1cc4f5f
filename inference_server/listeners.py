"""The sockets that the server listens on with its own code; an error says which."""

import socket
from pathlib import Path

from inference_server import unix_sockets

_WAITING = 1024


def tcp_listener(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_WAITING)
    except OSError as error:
        raise OSError(f"port {port} of {host} for Thrift: {error.strerror}") from error


def unix_listener(path: Path) -> socket.socket:
    """Raises OSError."""
    try:
        return unix_sockets.listen(path, _WAITING)
    except OSError as error:
        raise OSError(f"socket {path}: {error.strerror or error}") from error


def bracketed(host: str) -> str:
    """As it stands in an address, before the port."""
    return f"[{host}]" if ":" in host else host
