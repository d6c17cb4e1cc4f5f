"""What a form carries, and what is wrong with it, beside its field."""

from flask import request
from werkzeug.wrappers import Response

from gateway.errors import STATUS, InvalidFields
from gateway.pages.frame import render
from idl.codes import ServingError

_MOST = 4096
"""Characters of one field."""


def field(name: str) -> str:
    return request.form.get(name, "")[:_MOST]


def whole(text: str, digits: int) -> int | None:
    """The number that `text` is; None where it is anything but 1 to `digits` of the digits 0 to 9."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None


def given(*names: str) -> dict[str, str]:
    """What was typed, to be shown again; never for a password or a code."""
    return {name: field(name) for name in names}


def reasons(error: ServingError) -> dict[str, str]:
    """By field; "" for what is none's."""
    if isinstance(error, InvalidFields):
        return error.reasons
    name, _, reason = error.message.partition(": ")
    return {name: reason} if reason and name in request.form else {"": error.message}


def again(template: str, error: ServingError, **values: object) -> Response:
    """The form as it was sent, and what is wrong with it beside its fields."""
    return render(template, STATUS[error.code], reasons=reasons(error), **values)
