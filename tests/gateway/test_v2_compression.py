"""Content codings: both ways, damaged, and bombs."""

import gzip
import tracemalloc
import zlib

import pytest

from gateway.operations import compression
from idl.codes import Code, ServingError

BODY = b"outboard " * 1000


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("", BODY),
        ("identity", BODY),
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("GZip ", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("gzip", gzip.compress(BODY[:10], mtime=0) + gzip.compress(BODY[10:], mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
    ],
)
def test_decompress(encoding: str, data: bytes) -> None:
    assert compression.decompress(data, encoding, len(BODY)) == BODY


@pytest.mark.parametrize(
    ("encoding", "data", "code"),
    [
        ("br", BODY, Code.UNSUPPORTED_MEDIA),
        ("gzip, gzip", BODY, Code.UNSUPPORTED_MEDIA),
        ("gzip", BODY, Code.INVALID_INPUT),
        ("gzip", b"", Code.INVALID_INPUT),
        ("gzip", gzip.compress(BODY, mtime=0)[:-1], Code.INVALID_INPUT),
        ("gzip", gzip.compress(BODY, mtime=0)[:20], Code.INVALID_INPUT),
        ("gzip", gzip.compress(BODY, mtime=0)[:-5] + b"12345", Code.INVALID_INPUT),
        ("gzip", gzip.compress(BODY, mtime=0) + b"?", Code.INVALID_INPUT),
        ("deflate", b"", Code.INVALID_INPUT),
        ("deflate", zlib.compress(BODY)[:-1], Code.INVALID_INPUT),
        ("deflate", zlib.compress(BODY) + b"?", Code.INVALID_INPUT),
        ("deflate", b"\xff\xff\xff", Code.INVALID_INPUT),
        ("gzip", gzip.compress(BODY + b"!", mtime=0), Code.TOO_LARGE),
        ("deflate", zlib.compress(BODY + b"!"), Code.TOO_LARGE),
    ],
)
def test_refused(encoding: str, data: bytes, code: Code) -> None:
    with pytest.raises(ServingError) as caught:
        compression.decompress(data, encoding, len(BODY))
    assert caught.value.code is code


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    limit = 1 << 20
    bomb = gzip.compress(bytes(200 << 20), 9, mtime=0)
    many = b"".join(gzip.compress(bytes(limit // 4), mtime=0) for _ in range(50))
    tracemalloc.start()
    try:
        for body in (bomb, many):
            with pytest.raises(ServingError) as caught:
                compression.decompress(body, "gzip", limit)
            assert caught.value.code is Code.TOO_LARGE
        assert tracemalloc.get_traced_memory()[1] < 6 * limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.2, deflate;q=0.8", "deflate"),
        ("gzip;q=0", ""),
        ("*", "gzip"),
        ("*;q=0.5, gzip;q=0", "deflate"),
        ("identity", ""),
        ("br", ""),
        ("GZIP ; Q=1", "gzip"),
        ("gzip;q=nonsense", ""),
        (",,;", ""),
    ],
)
def test_choose(accept: str, coding: str) -> None:
    assert compression.choose(accept) == coding


@pytest.mark.parametrize("coding", compression.SUPPORTED)
def test_compress(coding: str) -> None:
    assert compression.decompress(compression.compress(BODY, coding), coding, len(BODY)) == BODY
