"""What a browser chooses for itself: language and colours; and for its scripts the token of forms, and what they hear in English in words
of the page's language."""

from flask import jsonify, make_response, request
from werkzeug.wrappers import Response

from gateway.pages import languages
from gateway.pages.frame import THEME, THEMES, Pages, form_token, go, keep, ours, visitor
from gateway.pages.sentences import said

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


@_pages.page("/ui/sentence", "POST", who="anyone")
def sentence() -> Response:
    """`text`, which an operation or a model host said, in the reader's language."""
    answer = make_response(said(request.form.get("text", "")))
    answer.mimetype = "text/plain"
    return answer
