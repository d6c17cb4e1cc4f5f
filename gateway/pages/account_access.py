"""Where one's account is open: signed-in browsers, and keys of programs."""

from datetime import timedelta
from typing import Any

from flask import request
from flask_babel import lazy_gettext as later
from werkzeug.wrappers import Response

from gateway.blueprints.rest import take
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations.api_keys import ApiKeys, Made
from gateway.pages import devices
from gateway.pages.forms import again, field
from gateway.pages.frame import Pages, doer, go, me, render
from gateway.storage import api_keys
from gateway.types import Role, Scope
from idl.codes import Code, ServingError

_pages = Pages("account_access")
blueprint = _pages.blueprint
_SESSIONS = 50
SCOPES = (
    (Scope.READ, later("Read"), later("Sees models, deployments and tasks.")),
    (Scope.CALL, later("Call"), later("Has models and deployments compute.")),
    (Scope.WRITE, later("Change"), later("Makes, changes and deletes models, deployments and the rest.")),
    (Scope.ADMIN, later("Administer"), later("Does what your role allows besides.")),
)
DAYS = (("30", later("30 days")), ("90", later("90 days")), ("365", later("One year")), ("", later("Never")))


# browsers ----------------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/account/sessions")
def sessions() -> Response:
    mine = me()
    return render("account/sessions.html", **_sessions(), this_session=mine.session, done=request.args.get("done", ""))


@_pages.page("/ui/account/sessions", "POST")
def end_sessions() -> Response:
    """One, or without a name every other one."""
    users, mine = services().users, me()
    one = field("session")
    try:
        if one:
            users.end_session(mine, one, doer())
        else:
            users.end_other_sessions(mine, doer())
    except ServingError as error:
        if error.code is not Code.NOT_FOUND:  # it has ended meanwhile: that was wanted
            raise
    return go("/ui/account/sessions?done=" + ("one" if one else "others"))


def _sessions() -> dict[str, Any]:
    found = services().users.sessions(me(), _SESSIONS + 1)
    return {"sessions": found[:_SESSIONS], "has_more": len(found) > _SESSIONS, "devices": devices}


# keys --------------------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/account/keys")
def keys() -> Response:
    return render("account/keys.html", **_keys(), reasons={})


@_pages.page("/ui/account/keys", "POST")
def make_key() -> Response:
    """The key is in this answer, and never again."""
    mine, name, days = me(), field("name").strip(), field("days")
    scopes = [scope for scope in Scope if scope.value in request.form.getlist("scopes")]
    try:
        wrong = {"name": "must have 1 to 100 characters"} if not 1 <= len(name) <= 100 else {}
        if not scopes:
            wrong["scopes"] = "choose at least one"
        if days and not (days.isascii() and days.isdigit() and 1 <= int(days) <= 3650):
            wrong["days"] = "must be 1 to 3650 days"
        if wrong:
            raise InvalidFields(wrong)
        take(("keys", 200, 10.0), mine)
        ends = services().now() + timedelta(days=int(days)) if days else None
        made = _operations().create(mine, name, frozenset(scopes), ends, doer())
    except ServingError as error:
        return again("account/keys.html", error, **_keys(typed={"name": name, "scopes": scopes, "days": days}))
    return render("account/keys.html", **_keys(made), reasons={})


@_pages.page("/ui/account/keys/revoke", "POST")
def revoke_key() -> Response:
    try:
        _operations().revoke(me(), field("key"), doer())
    except ServingError as error:
        if error.code is not Code.NOT_FOUND:
            raise
    return go("/ui/account/keys")


def _keys(made: Made | None = None, typed: dict[str, Any] | None = None) -> dict[str, Any]:
    scopes = SCOPES if me().role is not Role.USER else SCOPES[:-1]
    return {
        "keys": list(reversed(_operations().page(me(), None, api_keys.MOST))),
        "made": made,
        "typed": typed or {"name": "", "scopes": [Scope.READ, Scope.CALL], "days": "90"},
        "scopes": scopes,
        "scopes_all": SCOPES,
        "days": DAYS,
        "now": services().now(),
    }


def _operations() -> ApiKeys:
    return ApiKeys(services().storage, services().now)
