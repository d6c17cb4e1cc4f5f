"""What a model host's address says."""

from dataclasses import dataclass
from typing import Literal

Protocol = Literal["thrift", "grpc"]
_PROTOCOLS: dict[str, Protocol] = {"thrift": "thrift", "grpc": "grpc"}
_SECURE = {"thrifts": "thrift", "grpcs": "grpc"}
_MAX_UNIX_PATH = 107
"""Bytes of a unix socket's path that fit in `sockaddr_un`, its final NUL not counted."""


@dataclass(frozen=True, slots=True)
class Address:
    """`path` is that of a unix socket; where it is empty, `host` and `port` are a TCP address, with TLS where `secure`."""

    protocol: Protocol
    host: str = ""
    port: int = 0
    path: str = ""
    secure: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"{self.protocol}+unix://{self.path}"
        return f"{self.protocol}{'s' if self.secure else ''}://{self.authority}"

    @property
    def authority(self) -> str:
        """host:port, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Reads `thrift://host:port`, `thrift+unix:///path`, the same two with `grpc`, `thrifts://` and `grpcs://host:port` for TLS, and
    `host:port`, which means gRPC.

    Raises ValueError.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "grpc", text
    name, unix = (scheme[:-5], True) if scheme.endswith("+unix") else (scheme, False)
    secure = name in _SECURE and not unix
    protocol = _PROTOCOLS.get(_SECURE[name] if secure else name)
    if protocol is None:
        raise ValueError(f"address {text!r} begins with none of thrift://, thrift+unix://, thrifts://, grpc://, grpc+unix://, grpcs://")
    if unix:
        return _unix(protocol, text, rest)
    host, separator, port = rest.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"address {text!r} needs a host and a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"address {text!r}: an IPv6 host stands in brackets")
    return Address(protocol, host, int(port), secure=secure)


def _unix(protocol: Protocol, text: str, path: str) -> Address:
    if not path.startswith("/"):
        raise ValueError(f"address {text!r} needs an absolute path after the two slashes")
    if len(path.encode()) > _MAX_UNIX_PATH:
        raise ValueError(f"address {text!r}: a unix socket's path has at most {_MAX_UNIX_PATH} bytes")
    return Address(protocol, path=path)
