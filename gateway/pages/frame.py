"""What every page has around it: who looks at it, in which language, its forms' token, its headers, and its errors as pages."""

import functools
import math
import secrets
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote, urlsplit

from flask import Blueprint, g, make_response, redirect, render_template, request
from flask_babel import gettext as _
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from gateway.context import FORM_TOKEN, client_address, request_id, services
from gateway.errors import NOTHING_HERE, STATUS, InvalidFields, http_problem, internal
from gateway.operations.browsers import SESSION, Browsers, Visit
from gateway.pages import languages
from gateway.pages.failures import failure
from gateway.storage.audit import Doer
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

VISITOR, THEME = "outboard_visitor", "outboard_theme"
THEMES = ("auto", "light", "dark")
TOKEN_FIELD, TOKEN_HEADER = "form_token", "X-Form-Token"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_YEAR_S = 365 * 86_400
View = Callable[..., "Response | str"]


def browsers() -> Browsers:
    if "browsers" not in g:
        g.browsers = services().browsers
    return cast(Browsers, g.browsers)


def visitor() -> Principal | None:
    """Who is signed in with this browser."""
    if "visitor" not in g:
        cookie = request.cookies.get(SESSION)
        g.visitor = browsers().principal(cookie) if cookie else None
    return cast("Principal | None", g.visitor)


def me() -> Principal:
    """Who is signed in. Raises unauthenticated where nobody is, which shows the page to sign in."""
    found = visitor()
    if found is None:
        raise ServingError(Code.UNAUTHENTICATED, "sign in to see this page")
    return found


def doer() -> Doer:
    """Who does it, for the audit log."""
    found = visitor()
    return Doer(found.user_id if found else None, found.name if found else "", client_address(), request_id())


def sign_in_with(response: Response, visit: Visit) -> Response:
    """`response` with the cookie of a new session; what came before it in this browser is ended."""
    if (old := visitor()) is not None:
        browsers().sign_out(old)
    _set(response, SESSION, visit.cookie, visit.max_age_s)
    return response


def sign_out_of(response: Response) -> Response:
    if (old := visitor()) is not None:
        browsers().sign_out(old)
    response.delete_cookie(SESSION, path="/", secure=request.is_secure, httponly=True, samesite="Lax")
    return response


def _set(response: Response, name: str, value: str, max_age_s: int | None) -> None:
    response.set_cookie(name, value, max_age=max_age_s, path="/", secure=request.is_secure, httponly=True, samesite="Lax")


def holder() -> str:
    """Whose forms these are: of a session, or of a browser that has none."""
    found = visitor()
    if found is not None:
        return found.session
    if "stranger" not in g:
        g.stranger = request.cookies.get(VISITOR, "")[:64]
    return cast(str, g.stranger)


def form_token() -> str:
    """What a form on this page carries."""
    if not holder():
        g.stranger = g.new_stranger = secrets.token_urlsafe(16)
    if g.get("token_of") != holder():
        g.token_of, g.token = holder(), browsers().form_token(holder())
    return cast(str, g.token)


def check_form() -> None:
    """Raises forbidden for a change that no page of ours asked for."""
    browsers().check_form(holder(), request.headers.get(FORM_TOKEN) or request.form.get(TOKEN_FIELD, ""))


def is_part() -> bool:
    """Whether a piece of a page is asked for, by htmx, and not a whole one."""
    headers = request.headers
    return headers.get("HX-Request") == "true" and "true" not in (headers.get("HX-Boosted"), headers.get("HX-History-Restore-Request"))


def render(template: str, status: int = 200, **values: Any) -> Response:
    """A page, or a piece of one."""
    return make_response(render_template(template, **values), status)


def go(where: str) -> Response:
    """To another page of ours."""
    if is_part():
        return make_response("", 204, {"HX-Redirect": where})
    return make_response(redirect(where, 303))


def ours(where: str | None, otherwise: str = "/ui") -> str:
    """An address that a form gave, where it is a page of ours."""
    if not where or not where.startswith("/ui") or "\\" in where or any(ord(character) < 33 for character in where):
        return otherwise
    parts = urlsplit(where)
    return otherwise if parts.scheme or parts.netloc else where


class Pages:
    """The pages of one part. A page of `who` "anyone" needs no sign-in; "user", "operator" and "administrator" need one of that role."""

    def __init__(self, name: str) -> None:
        self.blueprint = Blueprint(f"pages_{name}", __name__)
        self.blueprint.register_error_handler(ServingError, _refused)
        self.blueprint.register_error_handler(HTTPException, _http)
        self.blueprint.register_error_handler(Exception, _unexpected)
        self.blueprint.after_request(_finish)

    def page(self, rule: str, *methods: str, who: str = "user") -> Callable[[View], View]:
        """Registers a view; every method but GET carries the form's token."""

        def register(view: View) -> View:
            @functools.wraps(view)
            def answered(**values: str) -> Response | str:
                if who != "anyone":
                    _require(me(), who)  # before the token: one of a session that has ended is not right any more
                if request.method not in ("GET", "HEAD"):
                    check_form()
                return view(**values)

            self.blueprint.add_url_rule(rule, view.__name__, answered, methods=list(methods or ("GET",)))
            return view

        return register


_ABOVE = {"user": tuple(Role), "operator": (Role.OPERATOR, Role.ADMINISTRATOR), "administrator": (Role.ADMINISTRATOR,)}


def _require(principal: Principal, who: str) -> None:
    if principal.role not in _ABOVE[who]:
        raise ServingError(Code.FORBIDDEN, "this page is for administrators" if who == "administrator" else "this page is for operators")


def context() -> dict[str, Any]:
    """What every template may use."""
    theme = request.cookies.get(THEME, "auto")
    return {
        "visitor": visitor(),
        "form_token": form_token,
        "language": languages.current(),
        "languages": languages.NAMES,
        "theme": theme if theme in THEMES else "auto",
        "request_id": request_id(),
        "is_part": is_part(),
    }


def keep(response: Response, name: str, value: str) -> Response:
    """A choice of this browser's, which is no secret."""
    _set(response, name, value, _YEAR_S)
    return response


def _finish(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Vary"] = "Cookie, HX-Request, Accept-Language"
    if "new_stranger" in g:
        _set(response, VISITOR, g.new_stranger, None)
    return response


def _refused(error: ServingError) -> Response:
    g.error_code = error.code.value
    if error.code is Code.UNAUTHENTICATED and visitor() is None:
        where = f"/ui/sign-in?next={quote(_here(), safe='/')}"
        if is_part() or request.method != "GET":
            return make_response(render_template("errors/expired.html" if is_part() else "errors/expired-page.html", sign_in=where), 401)
        return make_response(redirect(where, 303))
    return _error_page(error, STATUS[error.code])


def _here() -> str:
    """The page that the reader is on."""
    if is_part():
        return ours(urlsplit(request.headers.get("HX-Current-URL", "")).path)
    return ours(request.full_path.rstrip("?")) if request.method == "GET" else "/ui"


def _http(error: HTTPException) -> Response:
    problem = http_problem(error, request.path, request_id())
    code = Code.NOT_FOUND if problem.status_code in (404, 405) else Code.INTERNAL if problem.status_code >= 500 else Code.INVALID_INPUT
    return _error_page(ServingError(code, cast(Mapping[str, Any], problem.json)["detail"]), problem.status_code)


def _unexpected(error: Exception) -> Response:
    internal(error, request.method, request.path, request_id())
    return _error_page(ServingError(Code.INTERNAL, _("The server made a mistake; its log names it by the number below.")), 500)


def _error_page(error: ServingError, status: int) -> Response:
    reasons = error.reasons if isinstance(error, InvalidFields) else {}
    told = failure(error.code)
    wait = max(1, math.ceil(error.retry_after_ms / 1000)) if told.again else 0
    again = request.full_path.rstrip("?") if request.method == "GET" else ""
    values = {
        "error": error,
        "status": status,
        "reasons": reasons,
        "told": told,
        "wait": wait,
        "again": again,
        "nothing_here": NOTHING_HERE,
    }
    answer = make_response(render_template("errors/part.html" if is_part() else "errors/page.html", **values), status)
    if wait and status in (429, 503):
        answer.headers["Retry-After"] = str(wait)
    return answer


def missing_page(error: HTTPException) -> Response | None:
    """A page for a browser that looks at an address where nothing is; None for programs."""
    looks = request.method == "GET" and request.url_rule is None and "text/html" in request.headers.get("Accept", "")
    return _finish(_http(error)) if looks and error.code == 404 and not request.path.startswith(("/v1/", "/v2/")) else None
