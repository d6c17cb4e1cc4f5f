"""TOML that somebody sent: read without giving its nesting the stack.

The parser of the standard library calls itself for each list in a list. Near the end of the stack Python cannot finish what it happens to
clean up meanwhile, in any thread's objects, so what nests deeply is refused before.
"""

import re
import tomllib
from typing import Any

DEEPEST = 100
"""Lists and tables inside each other."""

_TEXTS_AND_COMMENTS = re.compile(
    r'"""(?:\\[\s\S]|[^\\"]|"(?!""))*+(?:"{3,5}|\\?\Z)'  # up to two quotes may stand before the three that end it
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5}|\Z)"
    r'|"(?:\\.|[^"\\\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+"
)
"""What begins and never ends is taken too, up to where it would have to: nothing is read twice, whatever the text."""


def loads(data: bytes) -> dict[str, Any]:
    """What the TOML document says. Raises ValueError, with the reason, for what is no UTF-8, no TOML, or nests over `DEEPEST` levels."""
    text = data.decode()
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _TEXTS_AND_COMMENTS.sub("", text)):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        if depth > DEEPEST:
            raise _deep()
    try:
        given = tomllib.loads(text)
    except RecursionError:
        raise _deep() from None
    if _is_deep(given):  # by keys with dots
        raise _deep()
    return given


def _deep() -> ValueError:
    return ValueError(f"more than {DEEPEST} lists and tables inside each other")


def _is_deep(given: dict[str, Any]) -> bool:
    level: list[Any] = [given]
    for _ in range(DEEPEST + 1):
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each) if isinstance(child, dict | list)]
        if not level:
            return False
    return True
