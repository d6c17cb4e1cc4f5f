"""Whom the client trusts, and how it shows who it is: PEM files, read again when they have changed."""

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_REASONS = {
    "certificate has expired": "its certificate has expired",
    "certificate is not yet valid": "its certificate is not valid yet",
    "hostname mismatch": "its certificate is for another name",
    "ip address mismatch": "its certificate is for another address",
    "self-signed": "its certificate is of an authority that is not trusted",
    "self signed": "its certificate is of an authority that is not trusted",
    "unable to get": "its certificate is of an authority that is not trusted",
    "certificate_verify_failed": "its certificate is not trusted",
    "wrong_version_number": "it does not speak TLS",
    "wrong version number": "it does not speak TLS",
    "record_layer_failure": "it does not speak TLS",
    "certificate_required": "it asks for a client certificate",
    "certificate required": "it asks for a client certificate",
    "certificate_expired": "this client's certificate has expired",
    "unknown_ca": "it does not trust the authority of this client's certificate",
    "unknown ca": "it does not trust the authority of this client's certificate",
    "alert": "it refuses this client's certificate, or TLS as this client speaks it",
}
"""What OpenSSL or BoringSSL says, lower case -> what it means to the caller. The first that fits."""


@dataclass(frozen=True, slots=True)
class Tls:
    """For addresses grpcs:// and thrifts://. `ca`: a PEM file of the authorities that hosts' certificates are of; None: the system's.

    `certificate`, `key`: PEM files, for hosts that ask who the client is; both or none. A host's certificate must be for the name in its address.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None


class Pems(NamedTuple):
    """What the files hold."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None


class Credentials:
    """What a connection is made with; as the files are when it is made. Thread-safe."""

    def __init__(self, tls: Tls) -> None:
        """Raises ValueError, with the reason, for files that cannot be used."""
        if (tls.certificate is None) != (tls.key is None):
            raise ValueError("tls: a client's certificate and its key go together")
        self._paths = [None if path is None else Path(path) for path in (tls.ca, tls.certificate, tls.key)]
        self._lock = threading.Lock()
        self._known: tuple[object, ssl.SSLContext] | None = None
        try:
            self.context()
        except OSError as error:  # an SSLError as well
            name = Path(error.filename).name if error.filename else "the files"
            raise ValueError(f"tls: {name} cannot be used: {error.strerror or error}") from None

    def pems(self) -> Pems:
        """Raises OSError."""
        return Pems(*(None if path is None else path.read_bytes() for path in self._paths))

    def context(self) -> ssl.SSLContext:
        """Raises OSError, of which SSLError is one."""
        ca, certificate, key = self._paths
        stamps = [None if path is None else _stamp(path) for path in self._paths]
        with self._lock:
            if self._known is None or self._known[0] != stamps:
                context = ssl.create_default_context(cafile=None if ca is None else str(ca))
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                if certificate is not None and key is not None:
                    context.load_cert_chain(certificate, key, password=_no_password)
                self._known = stamps, context
            return self._known[1]


def _stamp(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _no_password() -> str:
    raise ValueError("tls: the client's key has a password")


def reason(said: str) -> str | None:
    """What a failed handshake means, in few words; None where `said` is about something else."""
    lowered = said.lower()
    return next((meaning for sign, meaning in _REASONS.items() if sign in lowered), None)
