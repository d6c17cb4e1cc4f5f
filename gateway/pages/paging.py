"""Lists that are shown in pages: where the reader came from stands in the address, so that there is a way back without counting rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import request

SIZE = 50
"""Rows of one page."""
_MOST_STEPS = 40


@dataclass(frozen=True, slots=True)
class Paged:
    """`before`, `after`: addresses of the pages around this one, "" where there is none."""

    items: Sequence[Any]
    before: str
    after: str


def cursor() -> str:
    """Of the last row of the page before this one; "" on the first page."""
    steps = _steps()
    return steps[-1] if steps else ""


def number(otherwise: Any = 0) -> Any:
    """The same where rows have numbers."""
    text = cursor()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else otherwise


def paged(found: Sequence[Any], key: Callable[[Any], object], size: int = SIZE) -> Paged:
    """`found`: one row more than are shown, where there are more; `key`: what the next page begins after, text without a comma."""
    steps, shown = _steps(), found[:size]
    before = _address(steps[:-1]) if steps else ""
    after = _address([*steps, str(key(shown[-1]))][-_MOST_STEPS:]) if len(found) > size else ""
    return Paged(shown, before, after)


def _steps() -> list[str]:
    text = request.args.get("after", "")[:4000]
    return [step for step in text.split(",") if step]


def _address(steps: Sequence[str]) -> str:
    query = {name: value for name, value in request.args.items() if name != "after" and value}
    if steps:
        query["after"] = ",".join(steps)
    return request.path + ("?" + urlencode(query, safe=",") if query else "")
