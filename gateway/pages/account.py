"""One's own account: who one is, the picture, the address, the password, and the end of it."""

from typing import Any

from flask import request
from werkzeug.wrappers import Response

from gateway.context import client_address, services
from gateway.errors import InvalidFields
from gateway.operations import avatars, quotas
from gateway.pages.forms import again, field, given
from gateway.pages.frame import Pages, doer, go, me, render, sign_out_of
from idl.codes import ServingError

_pages = Pages("account")
blueprint = _pages.blueprint
_RESEND_S = 60
_KEPT = "private, max-age=31536000, immutable"


def _mine(**more: Any) -> dict[str, Any]:
    """What every part of the account shows."""
    return {"user": services().users.read(me()), "done": request.args.get("done", "")} | more


@_pages.page("/ui/account")
def account() -> Response:
    return render(
        "account/profile.html",
        **_mine(shares=quotas.shares(services().storage, me().user_id), side=avatars.SIDE, most_bytes=avatars.MOST_BYTES),
    )


@_pages.page("/ui/account/picture", "POST")
def remove_picture() -> Response:
    services().storage.users.set_avatar(me().user_id, None, services().now(), doer=doer())
    return go("/ui/account")


@_pages.page("/ui/avatars/<name>")
def picture(name: str) -> Response:
    """Somebody's picture. Its address names its content: browsers keep it."""
    sha256, content = avatars.read(services().storage, name)
    answer = Response(content, content_type=avatars.TYPE)
    answer.headers["Cache-Control"] = _KEPT if request.args.get("v") == sha256[:12] else "private, max-age=60"
    return answer


# address -----------------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/account/email")
def address() -> Response:
    wait = _RESEND_S if request.args.get("done") == "sent" else 0
    return render("account/email.html", **_mine(typed={"email": ""}, wait=wait), reasons={})


@_pages.page("/ui/account/email", "POST")
def change_address() -> Response:
    """`verb`: change it, remove it, confirm it by its code, or have another code sent."""
    owned, typed = services(), given("email")
    confirmations = owned.users.confirmations
    try:
        verb = field("verb")
        if verb == "confirm":
            confirmations.verify(typed["email"], field("code").strip(), doer())
            return go("/ui/account/email?done=confirmed")
        if verb == "resend":
            confirmations.resend(typed["email"], client_address())
            return go("/ui/account/email?done=sent")
        email = None if verb == "remove" else typed["email"].strip()
        changed = owned.users.change(me(), {"email": email}, field("current_password"), client_address(), doer=doer())
    except ServingError as error:
        return again("account/email.html", error, **_mine(typed=typed, wait=0))
    if email is None:
        return go("/ui/account/email?done=removed")
    return go("/ui/account/email" + ("" if changed.email_verified_at and not changed.pending_email else "?done=sent"))


# password ----------------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/account/password")
def password() -> Response:
    return render("account/password.html", **_mine(), reasons={})


@_pages.page("/ui/account/password", "POST")
def change_password() -> Response:
    try:
        if field("password") != field("again"):
            raise InvalidFields({"again": "is not the same password"})
        services().users.change(me(), {"password": field("password")}, field("current_password"), client_address(), doer=doer())
    except ServingError as error:
        return again("account/password.html", error, user=services().users.read(me()), done="")
    return go("/ui/account/password?done=changed")


# the end -----------------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/account/delete")
def delete() -> Response:
    return render("account/delete.html", **_mine(typed={"name": ""}), reasons={})


@_pages.page("/ui/account/delete", "POST")
def really_delete() -> Response:
    users, mine = services().users, me()
    try:
        if field("name") != mine.name:
            raise InvalidFields({"name": "is not the name of this account"})
        users.confirm(mine, field("current_password"), client_address())
        users.delete(mine, doer())
    except ServingError as error:
        return again("account/delete.html", error, user=users.read(mine), typed=given("name"), done="")
    return sign_out_of(go("/?account=deleted"))
