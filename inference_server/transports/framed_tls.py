"""TLS for the framed server: sockets that never wait, and connections that shake hands before their first frame."""

import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from idl.event_loop import GONE, READ, WRITE
from inference_server.transports.framed_connection import HUNG_UP, Connection
from inference_server.transports.framing import FrameReader, Lost

HANDSHAKE_S = 10.0
"""From being accepted to the end of the handshake: a peer that takes longer is closed."""
_MOST_AT_ONCE = 1 << 16
"""Bytes that one call encrypts: OpenSSL says nothing of a part that is on its way, and wants the same bytes again."""

CurrentContext = Callable[[], ssl.SSLContext]
"""What the next handshake is made with."""


class TlsSocket(ssl.SSLSocket):
    """Speaks as a non-blocking socket does: BlockingIOError where nothing comes or goes, and OSError for the rest.

    A peer whose messages would have OpenSSL send something while nothing can be sent does not read: an OSError as well.
    """

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        try:
            return super().recv_into(buffer, nbytes or len(buffer), flags)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(memoryview(data)[:_MOST_AT_ONCE], flags)
        except ssl.SSLWantWriteError:
            raise BlockingIOError from None


class TlsReader(FrameReader):
    """What OpenSSL has decrypted and nobody has read yet is here already: the kernel will not say so again."""

    _sock: TlsSocket

    @property
    def ahead(self) -> bool:
        return super().ahead or self._sock.pending() > 0


class TlsConnection(Connection):
    """A connection over a TlsSocket."""

    __slots__ = ("_shaken",)

    sock: TlsSocket

    def __init__(self, sock: TlsSocket, *arguments: Any, limit: int, start: bytes) -> None:
        self._shaken = False
        super().__init__(sock, *arguments, limit=limit, start=start)
        self.reader = TlsReader(sock, limit, start)

    @property
    def opening(self) -> bool:
        return not self._shaken

    def _turn(self, events: int) -> None:
        if not self._shaken:
            if events & GONE or not events:  # no events: the server stops
                raise Lost("the peer has gone, or the server stops, in the middle of a handshake")
            if not self._shake():
                return
            events = 0
        super()._turn(events)

    def _shake(self) -> bool:
        """Goes on with the handshake; whether it is over."""
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(READ | HUNG_UP)
            return False
        except ssl.SSLWantWriteError:
            self._watch(WRITE)
            return False
        except ssl.SSLError as error:
            with suppress(OSError):  # closed over what it has sent, the peer would get a reset in place of the reason
                os.read(self.sock.fileno(), _MOST_AT_ONCE)
            raise Lost(f"no TLS: {error.reason or 'the peer has closed'}") from None
        except OSError as error:
            raise Lost(str(error)) from None
        self._shaken = True
        return True

    def _watch(self, events: int) -> None:
        """A socket can nearly always be written to: what has been decrypted is read in the next turn, after the others had theirs."""
        waiting = events & READ and not self.busy and self._shaken and self.sock.pending()
        super()._watch(events | WRITE if waiting else events)
