"""Signing in at an OpenID provider with a browser: it begins at the page to sign in, and ends there, or signed in.

The provider sends the browser to the address of `/v1` that it knows; from there it comes here. The attempt's secret is a cookie of these two
addresses alone, so what began here cannot end as tokens, nor the other way round.
"""

from urllib.parse import quote, unquote, urlsplit

from flask import make_response, redirect, request
from werkzeug.wrappers import Response

from gateway.blueprints import openid
from gateway.context import client_address, services
from gateway.errors import STATUS
from gateway.pages.frame import Pages, browsers, go, ours, render, sign_in_with
from idl.codes import ServingError

_pages = Pages("openid")
blueprint = _pages.blueprint
BEGIN = openid.PAGE.rpartition("/")[0]
COOKIE, NEXT = "outboard_oidc_page", "outboard_oidc_next"


def provider() -> str:
    """The host of the provider, "" where there is none."""
    return urlsplit(services().settings.oidc_issuer).netloc


@_pages.page(BEGIN, who="anyone")
def begin() -> Response:
    where = ours(request.args.get("next"))
    public = services().settings.public_url.rstrip("/")
    if public and request.host != urlsplit(public).netloc and "moved" not in request.args:  # cookies are for the host that is come back to
        return make_response(redirect(f"{public}{BEGIN}?moved=1&next={quote(where, safe='')}", 303))
    try:
        answer = openid.to_the_provider(COOKIE, BEGIN)
    except ServingError as error:
        return _refused(error, where)
    openid.keep(answer, NEXT, quote(where, safe=""), BEGIN)
    openid.keep(answer, openid.BY_PAGE, "1", openid.PATH)
    return answer


@_pages.page(openid.PAGE, who="anyone")
def end() -> Response:
    """The browser has come back, by way of `/v1/oidc/callback`."""
    where = ours(unquote(request.cookies.get(NEXT, "")))
    try:
        visit = browsers().begin(openid.who_came_back(COOKIE), client_address(), remember=False, agent=request.user_agent.string)
    except ServingError as error:
        answer = _refused(error, where)
    else:
        answer = sign_in_with(go(where), visit)
    for name in (COOKIE, NEXT):
        answer.delete_cookie(name, path=BEGIN)
    return answer


def _refused(error: ServingError, where: str) -> Response:
    """The page to sign in, and why it was not done."""
    typed = {"login": "", "next": where}
    return render(
        "accounts/sign-in.html", STATUS[error.code], typed=typed, reasons={"": error.message}, said_before="", provider=provider()
    )
