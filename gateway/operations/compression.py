"""Content codings of HTTP bodies: gzip and deflate, both ways (RFC 9110, section 8.4.1)."""

import gzip
import zlib

from idl.codes import Code, ServingError
from idl.tensors import invalid

SUPPORTED = ("gzip", "deflate")
MIN_SIZE = 1024
"""Bytes from which compressing an answer is worth its time."""
_LEVEL = 1  # tensors hardly shrink more at a higher one, and it takes several times as long
_GZIP, _ZLIB, _RAW = zlib.MAX_WBITS | 16, zlib.MAX_WBITS, -zlib.MAX_WBITS


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its coding; at most `limit` bytes are ever made.

    Raises unsupported_media for another coding, too_large over `limit`, invalid_input for data that is damaged or cut off.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding in ("gzip", "x-gzip"):
        return _inflate(body, _GZIP, coding, limit)
    if coding == "deflate":
        # "deflate" means the zlib format; some clients send the bare stream all the same
        return _inflate(body, _ZLIB if _is_zlib(body) else _RAW, coding, limit)
    raise ServingError(Code.UNSUPPORTED_MEDIA, f"Content-Encoding {encoding!r} is not one of {', '.join(SUPPORTED)}")


def _is_zlib(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _inflate(body: bytes, bits: int, coding: str, limit: int) -> bytes:
    parts, left, rest = [], limit, body
    try:
        while rest:
            stream = zlib.decompressobj(bits)
            part = stream.decompress(rest, left + 1)
            if len(part) > left:
                raise ServingError(Code.TOO_LARGE, f"the decompressed body is over {limit} bytes")
            if not stream.eof:
                raise invalid(f"the {coding} body is cut off")
            parts.append(part)
            left -= len(part)
            rest = stream.unused_data
            if rest and bits != _GZIP:  # only gzip may have several members
                raise invalid(f"the {coding} body has {len(rest)} bytes after its end")
    except zlib.error:
        raise invalid(f"the body is not {coding} data") from None
    if not parts:
        raise invalid(f"the {coding} body is empty")
    return b"".join(parts)


def choose(accept: str) -> str:
    """The coding for an answer from an Accept-Encoding header, "" for none."""
    weights = dict(_weight(item) for item in accept.split(","))
    best = max(SUPPORTED, key=lambda coding: weights.get(coding, weights.get("*", 0.0)))
    return best if weights.get(best, weights.get("*", 0.0)) > 0 else ""


def _weight(item: str) -> tuple[str, float]:
    coding, _, parameter = item.partition(";")
    name, _, value = parameter.partition("=")
    try:
        return coding.strip().lower(), float(value) if name.strip().lower() == "q" else 1.0
    except ValueError:
        return coding.strip().lower(), 0.0


def compress(body: bytes, coding: str) -> bytes:
    """`coding` is one that `choose` gave."""
    return gzip.compress(body, _LEVEL, mtime=0) if coding == "gzip" else zlib.compress(body, _LEVEL)
