"""Where a webhook may lead: an address of the public internet, and none that its name is changed to afterwards."""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.errors import InvalidFields
from idl.codes import Code, ServingError

MOST_URL = 2000
"""Characters."""
Resolve = Callable[[str, int], Sequence[str]]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SHARED = ipaddress.ip_network("100.64.0.0/10")


@dataclass(frozen=True, slots=True)
class Place:
    """An address taken apart. `path` with the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"https": 443, "http": 80}


def place(url: str) -> Place:
    """Raises invalid_input for what cannot be an http or https address."""
    reason = _reason_against(url)
    if reason:
        raise InvalidFields({"url": reason})
    parts = urlsplit(url)
    assert parts.hostname is not None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme], path)


def _reason_against(url: str) -> str:
    if not url.isascii() or not url.isprintable() or any(character in url for character in ' "<>\\^`{|}'):
        return "holds a character that no address has; encode it"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return "is not an address"
    if parts.scheme not in _PORTS or not host:
        return "must begin with https:// or http:// and name a host"
    if parts.username is not None or parts.password is not None:
        return "must hold no user and password"
    if parts.fragment:
        return "must have no fragment"
    return "has port 0" if port == 0 else ""


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, each once. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def address_of(target: Place, any_address: bool, look_up: Resolve = resolve) -> str:
    """The one address that is to be connected to: it is looked up once, and what the name means a moment later does not matter.

    Raises unavailable where the name has none, forbidden where one of them is not public and only public ones are allowed.
    """
    try:
        found = look_up(target.host, target.port)
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise ServingError(Code.UNAVAILABLE, f"the name {target.host[:100]!r} has no address")
    if not any_address:
        for address in found:
            if not is_public(address):
                raise ServingError(Code.FORBIDDEN, f"{target.host[:100]!r} is not an address of the public internet")
    return found[0]


def is_public(address: str) -> bool:
    """False for loopback, private, link-local, shared, multicast and reserved addresses, and for those of version 4 inside of version 6."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if int(ip) >> 32 == 0:  # ::, ::1 and the old way to write version 4
            return False
    elif ip in _SHARED:
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)
