"""`/v1/oidc`: sign-in at an OpenID provider, by two visits of a browser. One that began at a page ends at a page (gateway/pages/openid.py).

Plain routes, not described ones: a provider may send more back than anybody here knows the names of.
"""

from typing import cast

from flask import Blueprint, current_app, request
from werkzeug.wrappers import Response

from gateway.blueprints import tokens
from gateway.context import client_address, request_id, services
from gateway.operations.openid import ATTEMPT_TTL, CALLBACK, OpenId
from gateway.storage.audit import Doer
from gateway.storage.users import UserRecord
from idl.codes import Code, ServingError

blueprint = Blueprint("openid", __name__)
COOKIE = "outboard_oidc"
BY_PAGE = "outboard_oidc_by_page"
"""The cookie of a browser that began at a page."""
PATH = CALLBACK.rpartition("/")[0]
PAGE = "/ui/sign-in/openid/back"
_KEPT = "outboard-openid"


@blueprint.get("/v1/oidc/login")
def begin_openid() -> Response:
    """Sends the browser to the provider."""
    answer = to_the_provider(COOKIE, PATH)
    if BY_PAGE in request.cookies:
        answer.delete_cookie(BY_PAGE, path=PATH)  # of a sign-in at a page that was given up
    return answer


def to_the_provider(cookie: str, path: str) -> Response:
    """Begins; the browser keeps its secret as `cookie`, for addresses below `path`. Raises as `OpenId.begin`."""
    begun = openid().begin(client_address())
    answer = Response(status=302, headers={"Location": begun.url, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    keep(answer, cookie, begun.browser, path)
    return answer


def keep(answer: Response, name: str, value: str, path: str) -> None:
    """A cookie for as long as the attempt holds."""
    is_secure = services().settings.public_url.startswith("https://")
    # Lax: it is sent with the visit that the provider causes, and with no other of a stranger's
    answer.set_cookie(name, value, int(ATTEMPT_TTL.total_seconds()), path=path, secure=is_secure, httponly=True, samesite="Lax")


@blueprint.get(CALLBACK)
def end_openid() -> Response:
    """The browser comes back: tokens, as from `POST /v1/tokens`."""
    if BY_PAGE in request.cookies:
        where = f"{PAGE}?{request.query_string.decode('latin-1')}"
        onward = Response(status=303, headers={"Location": where, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        onward.delete_cookie(BY_PAGE, path=PATH)
        return onward
    answer = tokens.spelled(services().tokens.begin(who_came_back(COOKIE), client_address()))
    answer.delete_cookie(COOKIE, path=PATH)
    return answer


def who_came_back(cookie: str) -> UserRecord:
    """Raises as `OpenId.end`, and unauthenticated for what the provider refused."""
    given = request.args
    if "error" in given:
        raise ServingError(Code.UNAUTHENTICATED, f"the provider said {given['error'][:100]!r}")
    origin = Doer(None, "", client_address(), request_id())
    return openid().end(given.get("state", ""), given.get("code", ""), request.cookies.get(cookie, ""), given.get("iss", ""), origin)


def openid() -> OpenId:
    """One of a process: it remembers what the provider is like."""
    if _KEPT not in current_app.extensions:
        owned = services()
        current_app.extensions[_KEPT] = OpenId(owned.storage, owned.users, owned.settings, owned.now)
    return cast(OpenId, current_app.extensions[_KEPT])
