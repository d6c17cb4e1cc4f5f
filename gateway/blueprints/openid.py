"""`/v1/oidc`: sign-in at an OpenID provider, by two visits of a browser.

Plain routes, not described ones: a provider may send more back than anybody here knows the names of.
"""

from typing import cast

from flask import Blueprint, current_app, request
from werkzeug.wrappers import Response

from gateway.blueprints import tokens
from gateway.context import client_address, request_id, services
from gateway.operations.openid import ATTEMPT_TTL, CALLBACK, OpenId
from gateway.storage.audit import Doer
from idl.codes import Code, ServingError

blueprint = Blueprint("openid", __name__)
COOKIE = "outboard_oidc"
_KEPT = "outboard-openid"
_PATH = CALLBACK.rpartition("/")[0]


@blueprint.get("/v1/oidc/login")
def begin_openid() -> Response:
    """Sends the browser to the provider."""
    begun = _openid().begin(client_address())
    answer = Response(status=302, headers={"Location": begun.url, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    is_secure = services().settings.public_url.startswith("https://")
    # Lax: it is sent with the visit that the provider causes, and with no other of a stranger's
    answer.set_cookie(COOKIE, begun.browser, int(ATTEMPT_TTL.total_seconds()), path=_PATH, secure=is_secure, httponly=True, samesite="Lax")
    return answer


@blueprint.get(CALLBACK)
def end_openid() -> Response:
    """The browser comes back: tokens, as from `POST /v1/tokens`."""
    given = request.args
    if "error" in given:
        raise ServingError(Code.UNAUTHENTICATED, f"the provider said {given['error'][:100]!r}")
    openid, browser = _openid(), request.cookies.get(COOKIE, "")
    origin = Doer(None, "", client_address(), request_id())
    user = openid.end(given.get("state", ""), given.get("code", ""), browser, given.get("iss", ""), origin)
    answer = tokens.spelled(services().tokens.begin(user, client_address()))
    answer.delete_cookie(COOKIE, path=_PATH)
    return answer


def _openid() -> OpenId:
    """One of a process: it remembers what the provider is like."""
    if _KEPT not in current_app.extensions:
        owned = services()
        current_app.extensions[_KEPT] = OpenId(owned.storage, owned.users, owned.settings, owned.now)
    return cast(OpenId, current_app.extensions[_KEPT])
