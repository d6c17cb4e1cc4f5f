"""What a browser chooses for itself: language and colours; and the token of its forms, for a page that was left open."""

from flask import request
from werkzeug.wrappers import Response

from gateway.pages import languages
from gateway.pages.frame import THEME, THEMES, Pages, form_token, go, keep, ours

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
    return Response(form_token(), content_type="text/plain")
