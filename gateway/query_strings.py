"""Query strings as anybody sends them."""

from typing import Any
from urllib.parse import quote_from_bytes

from flask import Request


class AsciiRequest(Request):
    """Bytes that no URL may have are escaped in its query string: Werkzeug takes them for UTF-8, and fails where they are none."""

    def __init__(self, environ: dict[str, Any], populate_request: bool = True, shallow: bool = False) -> None:
        super().__init__(environ, populate_request, shallow)
        if not self.query_string.isascii():
            self.query_string = quote_from_bytes(self.query_string, _ASCII).encode()


_ASCII = bytes(range(128))
