"""TOML that somebody sent: read without giving its nesting the stack.

The parser of the standard library calls itself for each list in a list. Near the end of the stack Python cannot finish what it happens to
clean up meanwhile, in any thread's objects, so what nests deeply is refused before.
"""

import re
import tomllib
from typing import Any

DEEPEST = 100
"""Lists and inline tables inside each other."""

_TEXTS_AND_COMMENTS = re.compile(
    r'"""(?:\\[\s\S]|[^\\])*?"""|\'\'\'[\s\S]*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*',
)


def loads(data: bytes) -> dict[str, Any]:
    """What the TOML document says. Raises ValueError, with the reason, for what is no UTF-8, no TOML, or nests over `DEEPEST` levels."""
    text = data.decode()
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _TEXTS_AND_COMMENTS.sub("", text)):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists and tables inside each other")
    return tomllib.loads(text)
