"""Multipart bodies as they come in: fields and small files in memory, the files that the route names straight to the disk."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import chain
from typing import IO

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from gateway.blueprints.forms import MAX_PARTS, MULTIPART
from gateway.storage.incoming import Incoming
from idl.codes import Code, ServingError
from idl.tensors import invalid

_PIECE = 1 << 18
FORM_BYTES = 1 << 20
"""What the fields of a form, and what stands between its parts, may take besides its files."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a form, in memory."""

    field: str
    file_name: str
    content: bytes


@dataclass(slots=True)
class Sent:
    """What a form holds. `kept`: by field name, what went to the disk; whoever reads the form discards them."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    files: list[Part] = field(default_factory=list)
    kept: dict[str, list[Incoming]] = field(default_factory=dict)

    def discard(self) -> None:
        for incoming in chain.from_iterable(self.kept.values()):
            incoming.discard()


def read(keep: Collection[str], begin: Callable[[str], Incoming], memory: int, limit: int, sent: Sent | None = None) -> Sent:
    """The request's form. `keep`: fields whose files go where `begin(file name)` says, `memory`: most bytes of everything else,
    `limit`: most bytes of the body. `sent`: what the form is read into, for a `begin` that looks at the fields which have come.

    Raises invalid_input for a body that broke off or is malformed, too_large, unsupported_media for a compressed one, and what writing
    raises; nothing is then left on the disk.
    """
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise ServingError(Code.UNSUPPORTED_MEDIA, "the body must not be compressed")
    boundary = parse_options_header(request.headers.get("Content-Type", ""))[1].get("boundary", "")
    if request.mimetype != MULTIPART or not boundary or not boundary.isascii():
        raise ServingError(Code.UNSUPPORTED_MEDIA, f"the body must be {MULTIPART} with a boundary")
    request.max_content_length = limit
    sent = Sent() if sent is None else sent
    try:
        _Reader(sent, keep, begin, memory).run(request.stream, MultipartDecoder(boundary.encode(), max_parts=MAX_PARTS))
        for incoming in chain.from_iterable(sent.kept.values()):
            incoming.finish()
    except BaseException as error:
        sent.discard()
        if isinstance(error, RequestEntityTooLarge):
            raise ServingError(Code.TOO_LARGE, f"the form has over {limit} bytes or {MAX_PARTS} parts") from None
        if isinstance(error, (ValueError, OSError)):
            raise invalid("the multipart body is cut off or malformed") from None
        raise
    return sent


class _Reader:
    def __init__(self, sent: Sent, keep: Collection[str], begin: Callable[[str], Incoming], memory: int) -> None:
        self._sent = sent
        self._keep = keep
        self._begin = begin
        self._memory = memory
        self._part: Field | File | None = None
        self._pieces: list[bytes | bytearray] = []

    def run(self, stream: IO[bytes], decoder: MultipartDecoder) -> None:
        whole = False
        while True:
            data = stream.read(_PIECE)
            decoder.receive_data(data or None)
            while not isinstance(event := decoder.next_event(), NeedData):
                if isinstance(event, (Field, File)):
                    self._open(event)
                elif isinstance(event, Data):
                    self._take(event)
                elif isinstance(event, Epilogue):
                    whole = True
                    break
            if whole:
                return
            if not data:
                raise ValueError("cut off")

    def _open(self, part: Field | File) -> None:
        self._part, self._pieces = part, []
        if isinstance(part, File) and part.name in self._keep:
            self._sent.kept.setdefault(part.name, []).append(self._begin(part.filename or ""))

    def _take(self, event: Data) -> None:
        part = self._part
        assert part is not None
        if isinstance(part, File) and part.name in self._keep:
            self._sent.kept[part.name][-1].write(event.data)
            return
        self._memory -= len(event.data)
        if self._memory < 0:
            raise ServingError(Code.TOO_LARGE, f"the form's part {(part.name or '')[:80]!r} makes it too large")
        self._pieces.append(event.data)
        if event.more_data:
            return
        content = b"".join(self._pieces)
        if isinstance(part, File):
            self._sent.files.append(Part(part.name or "", part.filename or "", content))
            return
        try:
            self._sent.fields.append((part.name or "", content.decode()))
        except UnicodeDecodeError:
            raise invalid(f"the form's field {(part.name or '')[:80]!r} is not UTF-8 text") from None
