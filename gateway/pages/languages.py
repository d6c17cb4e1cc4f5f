"""In which language a page is: what its reader chose, else what the browser asks for."""

from typing import Any

from flask import Flask, g, has_request_context, request
from flask_babel import Babel, get_locale, get_translations

COOKIE = "outboard_language"
NAMES = {"en": "English", "zh": "中文"}
_WANTED = {"en": "en", "zh": "zh", "zh-hans": "zh", "zh-cn": "zh", "zh-sg": "zh"}


def prepare(app: Flask) -> None:
    Babel(app, default_locale="en", locale_selector=_select)
    # a page has hundreds of sentences: Flask-Babel would look for the request's catalogue at each
    app.jinja_env.install_gettext_callables(  # type: ignore[attr-defined]
        lambda text: _catalogue().ugettext(text), lambda one, many, count: _catalogue().ungettext(one, many, count), newstyle=True
    )


def _catalogue() -> Any:
    if "catalogue" not in g:
        g.catalogue = get_translations()
    return g.catalogue


def _select() -> str:
    if not has_request_context():
        return "en"
    chosen = request.cookies.get(COOKIE, "")
    if chosen in NAMES:
        return chosen
    found = request.accept_languages.best_match(list(_WANTED))
    return _WANTED[found.lower()] if found and found.lower() in _WANTED else "en"


def current() -> str:
    """The language of this request: en or zh."""
    locale = get_locale()
    return str(locale.language) if locale else "en"
