"""How the server sends an executor off, over its control socket: it takes nothing more, and says when all that it had is answered."""

import contextlib
import socket

_SEND_S = 1.0


def ask_to_leave(control: socket.socket) -> None:
    """Does not wait for the answer. Where the executor has gone there is nobody to ask."""
    with contextlib.suppress(OSError):
        control.settimeout(_SEND_S)
        control.send(b'{"leave": true}')


def has_left(control: socket.socket, timeout_s: float) -> bool:
    """True when everything that it had taken is answered, as it says within `timeout_s`."""
    try:
        control.settimeout(max(0.001, timeout_s))
        return b"left" in control.recv(1 << 16)
    except OSError:
        return False
