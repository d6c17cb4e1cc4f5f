"""Model cards: Markdown that somebody wrote, as HTML that can do nothing.

Raw HTML is shown as text, links lead to web pages and mail addresses only, and a picture is what is said of it: the policy of the pages
would not load it.
"""

import functools
import re
from collections.abc import MutableMapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_LINK = re.compile(r"(?i)(?:https?://|mailto:|#|/(?!/))[^\s\\]*\Z")
_LOWER, _LOWEST = 2, 6
"""The page has headings of its own above the card's."""
_MOST_BRACKETS = 2000
"""The time that a parser takes grows with their square; what has more is shown as it is written."""


@functools.lru_cache(maxsize=64)
def html_of(text: str) -> Markup:
    """The card, to be put into a page as it is."""
    if text.count("[") > _MOST_BRACKETS:
        return Markup("<pre>{}</pre>").format(text)
    environment: MutableMapping[str, Any] = {}
    tokens = _MARKDOWN.parse(text, environment)
    for token in tokens:
        _tame(token)
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, environment))


def _tame(token: Token) -> None:
    token.attrs.pop("style", None)  # how columns of tables are set: the policy of the pages allows none
    if token.type in ("heading_open", "heading_close"):
        token.tag = f"h{min(_LOWEST, int(token.tag[1:]) + _LOWER)}"
    if token.type == "link_open":
        token.attrs["rel"] = "nofollow noopener noreferrer"
        if not _LINK.match(str(token.attrs.get("href", ""))):
            del token.attrs["href"]
    for inner in token.children or ():
        _tame(inner)


def _picture(renderer: Any, tokens: Sequence[Token], index: int, options: Any, environment: Any) -> str:
    said = renderer.renderInlineAsText(tokens[index].children or [], options, environment)
    return f'<span class="card-picture">{Markup.escape(said)}</span>' if said else ""


def _wide(opens: str) -> Any:
    """What is wider than the window scrolls by itself, with the keyboard as well."""

    def rendered(renderer: Any, tokens: Sequence[Token], index: int, options: Any, environment: Any) -> str:
        return opens

    return rendered


def _code(renderer: Any, tokens: Sequence[Token], index: int, options: Any, environment: Any) -> str:
    return f'<pre tabindex="0"><code>{Markup.escape(tokens[index].content)}</code></pre>\n'


def _made() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    markdown.validateLink = lambda url: True  # type: ignore[method-assign] # `_tame` knows a link from a picture, which may have any address
    for name, rule in (
        ("image", _picture),
        ("fence", _code),
        ("code_block", _code),
        ("table_open", _wide('<div class="table-wide" tabindex="0"><table class="table">\n')),
        ("table_close", _wide("</table></div>\n")),
    ):
        markdown.add_render_rule(name, rule)
    return markdown


_MARKDOWN = _made()
