"""What a browser chooses for itself: language and colours; and the token of its forms, for a page that was left open."""

from flask import jsonify, request
from werkzeug.wrappers import Response

from gateway.pages import languages
from gateway.pages.frame import THEME, THEMES, Pages, form_token, go, keep, ours, visitor

_pages = Pages("choices")
blueprint = _pages.blueprint


@_pages.page("/ui/choices", "POST", who="anyone")
def choose() -> Response:
    where = request.form.get("next", "")
    answer = go("/" if where == "/" else ours(where))
    language, theme = request.form.get("language", ""), request.form.get("theme", "")
    if language in languages.NAMES:
        keep(answer, languages.COOKIE, language)
    if theme in THEMES:
        keep(answer, THEME, theme)
    return answer


@_pages.page("/ui/form-token", who="anyone")
def renew() -> Response:
    """{token, user}: `user` is the id of who is signed in now, "" for nobody; a page of somebody else does not take the token."""
    found = visitor()
    return jsonify(token=form_token(), user=str(found.user_id) if found else "")
