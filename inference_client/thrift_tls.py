"""A framed Thrift connection over TLS. OpenSSL is never left to wait: it knows nothing of deadlines."""

import select
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from idl.codes import Code, ServingError
from inference_client.addresses import Address
from inference_client.channel import Lost, Unreachable
from inference_client.deadline import Deadline, passed
from inference_client.thrift_connection import Connection
from inference_client.tls import Credentials, reason

Taken = TypeVar("Taken")
_MOST_AT_ONCE = 1 << 16


class TlsConnection(Connection):
    """As `Connection`. A host whose certificate is not in order is Unreachable; where it refuses ours, that is unauthenticated."""

    __slots__ = ("_tls",)

    _tls: ssl.SSLSocket

    def __init__(self, address: Address, connect_timeout_s: float, deadline: Deadline, credentials: Credentials) -> None:
        begun = time.monotonic()
        super().__init__(address, connect_timeout_s, deadline)
        plain = self._socket
        try:
            plain.settimeout(max(0.001, min(connect_timeout_s - (time.monotonic() - begun), deadline.left())))
            self._tls = self._socket = credentials.context().wrap_socket(plain, server_hostname=address.host)
        except TimeoutError:
            plain.close()
            if deadline.is_passed():
                raise passed() from None
            raise Unreachable("no answer to the TLS handshake") from None
        except (OSError, ValueError) as error:
            plain.close()
            raise _why_not(error) from None
        except BaseException:
            plain.close()
            raise
        self._tls.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._tls, select.POLLIN)

    def is_quiet(self) -> bool:
        return not self._tls.pending() and super().is_quiet()

    def _send_some(self, buffers: list[bytes | memoryview]) -> int:
        try:
            return self._tls.send(memoryview(buffers[0])[:_MOST_AT_ONCE])
        except ssl.SSLWantWriteError:
            raise BlockingIOError from None
        except ssl.SSLWantReadError:  # a message of TLS's own has to be read first
            return 0
        except (ssl.SSLError, ConnectionError) as error:
            self._hear_why()
            if isinstance(error, ssl.SSLError):
                raise _why_lost(error) from None
            raise

    def _hear_why(self) -> None:
        """Over TLS 1.3 a host refuses a client's certificate when the client has begun to send: its reason lies there to be read."""
        try:
            self._tls.recv(1)
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLWantReadError):
                raise _why_lost(error) from None
        except OSError:
            pass

    def _waiting(self, deadline: Deadline, take: Callable[[], Taken]) -> Taken:
        while True:
            try:
                return take()
            except ssl.SSLWantReadError:
                deadline.wait_for(self._tls.fileno())
            except ssl.SSLWantWriteError:
                self._wait_to_send(deadline)
            except ssl.SSLError as error:
                raise _why_lost(error) from None


def _meaning(error: Exception) -> str | None:
    return reason(f"{getattr(error, 'reason', '')} {getattr(error, 'verify_message', '')} {error}")


def _why_not(error: Exception) -> ServingError:
    """No handshake came to its end."""
    meaning = _meaning(error)
    if not isinstance(error, ssl.SSLError):
        meaning = (getattr(error, "strerror", None) or str(error)).lower()
    elif isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        meaning = "it closed the connection in the middle of the TLS handshake"
    elif meaning is not None and "client" in meaning:
        return _refused(meaning)
    return Unreachable(meaning or "no TLS with it")


def _why_lost(error: ssl.SSLError) -> ServingError:
    meaning = _meaning(error)
    if meaning is not None and "client" in meaning:
        return _refused(meaning)
    return Lost(Code.UNAVAILABLE, f"the connection to the model host broke: {meaning or error.reason or 'no TLS any more'}")


def _refused(meaning: str) -> ServingError:
    return ServingError(Code.UNAUTHENTICATED, f"the model host lets nobody in without a certificate that it trusts: {meaning}")
