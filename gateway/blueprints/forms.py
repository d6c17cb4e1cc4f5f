"""Form bodies, multipart and urlencoded, held in memory and bounded in what they may contain."""

import io
from typing import IO
from urllib.parse import parse_qsl

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from idl.codes import Code, ServingError
from idl.tensors import invalid

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
MAX_PARTS = 1000
"""Fields and files of one form."""

Fields = list[tuple[str, str]]
Files = list[tuple[str, bytes]]


def parse(body: bytes, content_type: str) -> tuple[Fields, Files]:
    """(fields, files) in their order, repeated names included. Raises invalid_input, and too_large for more than MAX_PARTS."""
    mimetype, options = parse_options_header(content_type)
    return (_urlencoded(body), []) if mimetype == URLENCODED else _multipart(body, options)


def _urlencoded(body: bytes) -> Fields:
    if body.count(b"&") >= MAX_PARTS:
        raise _too_many()
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise invalid("the form is not UTF-8 text in URL encoding") from None


def _multipart(body: bytes, options: dict[str, str]) -> tuple[Fields, Files]:
    if not options.get("boundary"):
        raise invalid("the multipart body has no boundary in its Content-Type")
    parser = FormDataParser(_in_memory, silent=False, max_form_parts=MAX_PARTS)
    try:
        _, form, files = parser.parse(io.BytesIO(body), MULTIPART, len(body), options)
    except RequestEntityTooLarge:
        raise _too_many() from None
    except ValueError:
        raise invalid("the multipart body is cut off or malformed") from None
    return list(form.items(multi=True)), [(name, file.read()) for name, file in files.items(multi=True)]


def _in_memory(
    total_content_length: int | None, content_type: str | None, filename: str | None, content_length: int | None = None
) -> IO[bytes]:
    """Not the default, which puts large files on the disk: the body is in memory already."""
    return io.BytesIO()


def _too_many() -> ServingError:
    return ServingError(Code.TOO_LARGE, f"the form has over {MAX_PARTS} parts")
