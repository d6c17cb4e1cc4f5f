"""When a certificate ends: read from its DER form (RFC 5280, section 4.1), because Python's own reader is no public function."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def ends_at(path: Path) -> datetime:
    """Of the first certificate of a PEM file. Raises OSError, and ValueError where there is none that can be read."""
    text = path.read_text(encoding="ascii", errors="replace")
    begin, end = text.find(_BEGIN), text.find(_END)
    if not 0 <= begin < end:
        raise ValueError("it has no certificate in PEM form")
    return _not_after(ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)]))


def _not_after(der: bytes) -> datetime:
    try:
        signed = _items(_inner(der, _SEQUENCE))
        fields = _items(_inner_of(signed[0], _SEQUENCE))
        validity = _items(_inner_of(fields[4 if fields[0][0] == _VERSION else 3], _SEQUENCE))
        kind, text = validity[1][0], validity[1][1].decode("ascii")
        if kind == _UTC_TIME:  # two digits of the year: 50 to 99 are of the last century
            text = ("19" if text[:2] >= "50" else "20") + text
        elif kind != _GENERALIZED_TIME:
            raise ValueError(kind)
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except (IndexError, ValueError, UnicodeDecodeError):
        raise ValueError("its certificate cannot be read") from None


def _items(data: bytes) -> list[tuple[int, bytes]]:
    """(tag, contents) of what stands side by side."""
    found, at = [], 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + size > len(data):
            raise ValueError("cut off")
        found.append((tag, data[at : at + size]))
        at += size
    return found


def _inner(data: bytes, tag: int) -> bytes:
    return _inner_of(_items(data)[0], tag)


def _inner_of(item: tuple[int, bytes], tag: int) -> bytes:
    if item[0] != tag:
        raise ValueError(item[0])
    return item[1]
