"""Accepting connections where descriptors may run out."""

import contextlib
import errno
import os
import socket

_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})


class Spare:
    """A descriptor kept for the day when there is none: with it a caller is let in and shown out, and goes elsewhere at once.

    Without it, a listening socket stays readable and its owner spins, while callers wait in its queue for nobody. `close` is idempotent.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        self._keep()

    def _keep(self) -> None:
        try:
            self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = -1

    def accept(self, listener: socket.socket) -> socket.socket | None:
        """The next caller's connection; None where there is none, or no descriptor for it."""
        try:
            return listener.accept()[0]
        except OSError as error:
            if error.errno not in _NONE_LEFT or self._descriptor < 0:
                if self._descriptor < 0:
                    self._keep()
                return None
        self.close()
        with contextlib.suppress(OSError):
            listener.accept()[0].close()
        self._keep()
        return None

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
