"""Small JSON request bodies: an object of text fields, checked before anything looks at them."""

import json
from collections.abc import Collection
from typing import Any

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from gateway.errors import InvalidFields
from gateway.shapes import is_unicode
from idl.codes import Code, ServingError

MAX_BYTES = 64 * 1024


def read_fields(required: Collection[str], optional: Collection[str] = (), nullable: Collection[str] = ()) -> dict[str, str | None]:
    """The body's fields, all of them text; those of `nullable` may be null.

    Raises unsupported_media for another content type, too_large above 64 KiB, and invalid_input, naming each field, for one that is
    missing, unknown, or no text.
    """
    body = read_object()
    reasons = {name: "is missing" for name in required if name not in body}
    for name, value in body.items():
        if name not in required and name not in optional:
            reasons[name] = "is unknown here"
        elif not isinstance(value, str) and not (value is None and name in nullable):
            reasons[name] = "must be text"
        elif value is not None and not is_unicode(value):
            reasons[name] = "is not valid Unicode text"
    if reasons:
        raise InvalidFields(reasons)
    return body


def read_object() -> dict[str, Any]:
    """The body as a JSON object. Raises as `read_fields`."""
    if not request.is_json:
        raise ServingError(Code.UNSUPPORTED_MEDIA, "the body must be JSON, with Content-Type: application/json")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise ServingError(Code.UNSUPPORTED_MEDIA, "the body must not be compressed")
    value = _parse(_bytes())
    if not isinstance(value, dict):
        raise ServingError(Code.INVALID_INPUT, "the body must be a JSON object")
    return value


def _bytes() -> bytes:
    request.max_content_length = MAX_BYTES
    try:
        return request.get_data(cache=True)
    except RequestEntityTooLarge:
        raise ServingError(Code.TOO_LARGE, f"the body has more than {MAX_BYTES} bytes") from None


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError:
        raise ServingError(Code.INVALID_INPUT, "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        if not body.strip():
            raise ServingError(Code.INVALID_INPUT, "the body is empty") from None
        raise ServingError(Code.INVALID_INPUT, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # Python reads no whole number of so many digits
        raise ServingError(Code.INVALID_INPUT, "the body holds a number of too many digits") from None
    except RecursionError:
        raise ServingError(Code.INVALID_INPUT, "the body nests too deep") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ServingError(Code.INVALID_INPUT, "a field stands twice in an object")
    return fields
