"""The certificate of the RPC ports and who may call them, out of files that are renewed while the server runs."""

import logging
import os
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("outboard.server")

_MOST_BYTES = 1 << 20
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all good."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `client_ca`: the authorities whose certificates callers must have; None: callers need none."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamps(self) -> object:
        """What changes with the files. Raises OSError."""
        found = [path.stat() for path in (self.certificate, self.key, self.client_ca) if path is not None]
        return [(each.st_size, each.st_mtime_ns, each.st_ctime_ns, each.st_ino, each.st_dev) for each in found]


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files held at one moment, and a context for Python's own sockets made of it. `client_ca` None: callers need no certificate."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class Certificates:
    """What is in force. A change of the files that cannot be used leaves it as it is, and the log says why. Thread-safe."""

    def __init__(self, files: TlsFiles, socket_class: type[ssl.SSLSocket] = ssl.SSLSocket) -> None:
        """`socket_class`: what the context makes. Raises ValueError, with the reason, for files that cannot be used."""
        self._files = files
        self._socket_class = socket_class
        self._lock = threading.Lock()
        self._followers: list[Callable[[Pems], None]] = []
        self._complained = ""
        try:
            self._stamps = files.stamps()
            self.current = self._read()
        except (OSError, ValueError) as error:
            raise ValueError(f"TLS cannot be served: {_why(error)}") from None

    def follow(self, changed: Callable[[Pems], None]) -> None:
        """`changed` is called with what is in force from now on, by whoever calls `look`."""
        self._followers.append(changed)

    def look(self) -> None:
        """Reads the files again where they have changed. To be called about once a second."""
        with self._lock:
            try:
                stamps = self._files.stamps()
                if stamps == self._stamps:
                    return
                made = self._read()
            except (OSError, ValueError) as error:  # perhaps only half of them are there yet: they are read again the next time
                if (reason := _why(error)) != self._complained:
                    self._complained = reason
                    log.warning("the changed TLS files cannot be used: those of before stay", extra={"fields": {"reason": reason}})
                return
            self._stamps, self._complained, self.current = stamps, "", made
        for changed in self._followers:
            changed(made)
        log.info("the TLS files were read again")

    def _read(self) -> Pems:
        files = self._files
        certificate, key = _bytes(files.certificate), _bytes(files.key)
        ca = _bytes(files.client_ca) if files.client_ca else None
        return Pems(certificate, key, ca, self._context(certificate, key, ca))

    def _context(self, certificate: bytes, key: bytes, ca: bytes | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = self._socket_class
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.num_tickets = 0  # a session taken up again would not look at the caller's certificate
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        _load_pair(context, certificate, key)
        if ca is not None:
            try:
                context.load_verify_locations(cadata=ca.decode("ascii"))
            except (ssl.SSLError, UnicodeDecodeError):
                raise ValueError("the file of the authorities holds no certificates in PEM") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Python takes them from a file only: one in memory, so that what is checked is what is used. Raises ValueError."""
    descriptor = os.memfd_create("tls")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(certificate + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError("the key is not that of the certificate") from None
        raise ValueError(f"certificate and key are not a pair in PEM ({error.reason or 'nothing found'})") from None
    finally:
        os.close(descriptor)


def _no_password() -> str:
    raise ValueError("the key has a password, and nobody is there to type it")


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if not data or len(data) > _MOST_BYTES:
        raise ValueError(f"{path.name} is {'too large' if data else 'empty'}")
    return data


def _why(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return f"{Path(error.filename).name}: {error.strerror}" if error.filename else str(error.strerror)
