"""Administration: accounts of others, and invitations."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from flask import request
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations import quotas
from gateway.operations.administration import INVITATION_TTL, Administration
from gateway.pages import paging
from gateway.pages.forms import again, field
from gateway.pages.frame import Pages, doer, go, render
from gateway.storage.quotas import KINDS
from gateway.storage.users import UserFilter, UserRecord
from gateway.types import Role
from idl.codes import ServingError

_pages = Pages("admin_people")
blueprint = _pages.blueprint
LIST = "/ui/admin/users"
_STATES = ("active", "disabled", "deleted")
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmgt]?b?)", re.ASCII | re.IGNORECASE)
_MOST = 1 << 50


def place(name: str) -> str:
    """The address of somebody's page."""
    return f"{LIST}/{quote(name, safe='')}"


@_pages.page("/ui/admin/users", who="administrator")
def users() -> Response:
    search, role, state = request.args.get("search", "").strip()[:100], request.args.get("role", ""), request.args.get("state", "")
    wanted = UserFilter(search, role if role in tuple(Role) else "", state if state in _STATES else "")
    found = _administration().users(wanted, paging.number(), paging.SIZE + 1)
    return render(
        "admin/users.html", found=paging.paged(found, lambda user: user.id), wanted=wanted, roles=list(Role), states=_STATES, place=place
    )


@_pages.page("/ui/admin/users/<name>", who="administrator")
def one_user(name: str) -> Response:
    return render("admin/user.html", **_one(name), reasons={}, done=request.args.get("done", ""))


@_pages.page("/ui/admin/users/<name>", "POST", who="administrator")
def change_user(name: str) -> Response:
    """`verb`: role, disable, enable, quota, sign-out, delete or restore."""
    operations, verb = _administration(), field("verb")
    try:
        match verb:
            case "role":
                role = next((role for role in Role if role.value == field("role")), None)
                operations.change(name, role, None, None, None, doer())
            case "disable" | "enable":
                operations.change(name, None, verb == "disable", None, None, doer())
            case "quota":
                operations.change(name, None, None, _quota(), None, doer())
            case "sign-out":
                operations.sign_out(name, doer())
            case "delete":
                operations.delete(name, doer())
            case "restore":
                operations.restore(name, doer())
    except ServingError as error:
        user = operations.user(name)
        typed = {kind: field(f"quota_{kind}") for kind in KINDS} if verb == "quota" else _spelled(user)
        return again("admin/user.html", error, **_one(name) | {"typed": typed}, done="")
    return go(f"{place(name)}?done={verb}")


@_pages.page("/ui/admin/invitations", who="administrator")
def invitations() -> Response:
    return render("admin/invitations.html", **_invited())


@_pages.page("/ui/admin/invitations", "POST", who="administrator")
def invite() -> Response:
    """The token is in this answer, and never again."""
    role = next((role for role in Role if role.value == field("role")), Role.USER)
    token, expires_at = _administration().invite(role, doer())
    return render("admin/invitations.html", **_invited(role, token, expires_at))


def _invited(role: Role = Role.USER, token: str = "", expires_at: str = "") -> dict[str, Any]:
    site = services().settings.public_url.rstrip("/") or request.host_url.rstrip("/")
    return {
        "roles": list(Role),
        "role": role,
        "days": INVITATION_TTL.days,
        "expires_at": expires_at,
        # behind the #: no server sees it, and no log keeps it
        "link": f"{site}/ui/register#invitation={token}" if token else "",
    }


def _one(name: str) -> dict[str, Any]:
    owned, user = services(), _administration().user(name)
    return {
        "user": user,
        "where": place(user.name),
        "shares": quotas.shares(owned.storage, user.id),
        "defaults": quotas.defaults(owned.settings),
        "roles": list(Role),
        "sessions": [] if user.deleted_at else owned.storage.sessions.page(user.id, owned.now(), 100),
        "typed": _spelled(user),
    }


def _spelled(user: UserRecord) -> dict[str, str]:
    return {kind: str(user.quota[kind]) if kind in user.quota else "" for kind in KINDS}


def _quota() -> Mapping[str, int | None]:
    """Raises invalid_input."""
    amounts: dict[str, int | None] = {}
    reasons = {}
    for kind in KINDS:
        text = field(f"quota_{kind}").strip().replace(",", "").replace("_", "")
        found = _AMOUNT.fullmatch(text) if text else None
        unit = found[2].lower() if found else ""
        unit = unit if not unit or unit.endswith("b") else unit + "b"
        size = float(found[1]) * _UNITS[unit] if found else 0.0
        if text and (found is None or size > _MOST or (kind != "bytes" and (unit or "." in found[1]))):
            reasons[f"quota_{kind}"] = "is not a size such as 20 GB" if kind == "bytes" else "is not a whole number"
        amounts[kind] = int(size) if text else None
    if reasons:
        raise InvalidFields(reasons)
    return amounts


def _administration() -> Administration:
    return Administration(services().storage, services().now)
