"""The files of a zip archive one after the other, however many there are: of its directory only the entry that is looked at is in memory.

Python's `zipfile` makes an object of each entry before it gives the first one: of an archive that a stranger has sent, gigabytes of them.
Source: APPNOTE.TXT of PKWARE 6.3.10, sections 4.3.7 (local file header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (its end), 4.5.3 (Zip64).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from idl.codes import Code, ServingError
from idl.tensors import invalid

STORED, DEFLATED = 0, 8
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_LONGEST_COMMENT = 65_535
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _UTF8 = 0x1, 0x800
_ZIP64 = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive; `offset` of its local header, `compressed` bytes of its content there."""

    name: str
    flags: int
    method: int
    checksum: int
    compressed: int
    offset: int


def members(file: IO[bytes]) -> Iterator[Member]:
    """The files, without folders, in the directory's order; `file` is read from nowhere else meanwhile. Raises invalid_input."""
    begin, size, shift = _directory(file)
    file.seek(begin)
    at, end = begin, begin + size
    while at < end:
        head = file.read(_ENTRY.size)
        if len(head) < _ENTRY.size or not head.startswith(b"PK\1\2"):
            raise _broken()
        _, _, _, flags, method, _, _, checksum, compressed, plain, *lengths, _, _, _, offset = _ENTRY.unpack(head)
        name, extra, comment = (file.read(length) for length in lengths)
        if (len(name), len(extra), len(comment)) != tuple(lengths):
            raise _broken()
        at += _ENTRY.size + sum(lengths)
        if _MAX32 in (compressed, plain, offset):
            compressed, offset = _long(extra, plain, compressed, offset)
        if not name.endswith(b"/"):
            yield Member(name.decode("utf-8" if flags & _UTF8 else "cp437", "replace"), flags, method, checksum, compressed, offset + shift)


def content(file: IO[bytes], member: Member, most_bytes: int) -> bytes:
    """What the file holds; what the directory says of its size is not believed. Raises invalid_input, too_large over `most_bytes`."""
    if member.flags & _ENCRYPTED:
        raise invalid("the file is encrypted")
    if member.method not in (STORED, DEFLATED):
        raise invalid("the file is compressed in a way that is not read (deflate is)")
    try:
        file.seek(member.offset)
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
            raise invalid("the file cannot be unpacked: it is not where the archive says")
        name, extra = _LOCAL.unpack(head)[-2:]
        file.seek(name + extra, 1)
        data = file.read(min(member.compressed, most_bytes + 1)) if member.method == STORED else _inflated(file, member, most_bytes)
    except (zlib.error, OSError, ValueError, OverflowError):
        raise invalid("the file cannot be unpacked") from None
    if len(data) > most_bytes:
        raise ServingError(Code.TOO_LARGE, f"the file has over {most_bytes} bytes when it is unpacked")
    if zlib.crc32(data) != member.checksum:
        raise invalid("the file cannot be unpacked: its checksum is another one")
    return data


def _inflated(file: IO[bytes], member: Member, most_bytes: int) -> bytes:
    stream, parts, size, left = zlib.decompressobj(-zlib.MAX_WBITS), [], 0, member.compressed
    while not stream.eof and size <= most_bytes:
        piece = stream.unconsumed_tail
        if not piece:
            piece = file.read(min(left, 1 << 16))
            left -= len(piece)
            if not piece:
                raise invalid("the file cannot be unpacked: it is cut off")
        parts.append(stream.decompress(piece, most_bytes + 1 - size))
        size += len(parts[-1])
    return b"".join(parts)


def _directory(file: IO[bytes]) -> tuple[int, int, int]:
    """(where the directory begins, its bytes, what is to be added to the offsets in it, for something may stand before the archive)."""
    size = file.seek(0, 2)
    begin = max(0, size - _END.size - _LONGEST_COMMENT - _LOCATOR.size)
    file.seek(begin)
    tail = file.read()
    at, length, offset = _end(tail)
    end = begin + at
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size : at].startswith(b"PK\6\7"):
        before = end - _LOCATOR.size - _END64.size
        file.seek(max(0, before))
        record = file.read(_END64.size)
        if before < 0 or len(record) < _END64.size or not record.startswith(b"PK\6\6"):
            raise _broken()
        *_, length, offset = _END64.unpack(record)
        end = before
    first = end - length
    if first < 0 or offset > first:
        raise _broken()
    return first, length, first - offset


def _end(tail: bytes) -> tuple[int, int, int]:
    """(place in `tail`, bytes and offset of the directory) of the record at the end, behind which there is its comment and nothing else."""
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if len(tail) - at >= _END.size:
            *_, length, offset, comment = _END.unpack_from(tail, at)
            if at + _END.size + comment == len(tail):
                return at, length, offset
    raise _broken()


def _long(extra: bytes, plain: int, compressed: int, offset: int) -> tuple[int, int]:
    """(compressed, offset) where the directory has no room for them."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64:
            given = iter(
                struct.unpack(f"<{length // 8}Q", extra[at + 4 : at + 4 + length // 8 * 8]) if at + 4 + length <= len(extra) else ()
            )
            try:
                if plain == _MAX32:
                    next(given)
                compressed = next(given) if compressed == _MAX32 else compressed
                offset = next(given) if offset == _MAX32 else offset
            except StopIteration:
                raise _broken() from None
            return compressed, offset
        at += 4 + length
    return compressed, offset


def _broken() -> ServingError:
    return invalid("the file is not a zip archive")
