"""`/v1/admin`: accounts of others, invitations, who changed what, letters."""

from typing import Any

from flask import Blueprint

from gateway import clock
from gateway.blueprints.account_shapes import ADMIN_ACCOUNT, EMAIL, ROLE, SHARES, TIME, admin_account, shares
from gateway.blueprints.rest import ADMINISTRATOR, PAGE, Answer, Asked, Reply, Rest, page, page_of
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations import quotas
from gateway.operations.administration import Administration
from gateway.shapes import Dictionary, Flag, Free, Object, OrNull, Text, Whole, answer, optional, required
from gateway.storage.audit import AuditFilter, AuditRecord
from gateway.storage.outbox import OutboxRecord
from gateway.storage.quotas import KINDS
from gateway.storage.users import UserFilter
from gateway.types import Role, Scope
from idl.codes import Code

blueprint = Blueprint("admin_users", __name__)
_rest = Rest(blueprint, "administration")
_BY: dict[str, Any] = {"who": ADMINISTRATOR, "scope": Scope.ADMIN}
DETAIL = Object({"account": required(ADMIN_ACCOUNT), "shares": required(SHARES)}, "AdminAccountDetail")
INVITATION = answer("Invitation", {"signup_token": (Text(), "shown this once"), "role": (ROLE, ""), "expires_at": (TIME, "")})
LINE = answer(
    "AuditLine",
    {
        "id": (Whole(), ""),
        "at": (TIME, ""),
        "actor": (Text(), "as the account was called then; gateway: nobody asked for it"),
        "action": (Text(), "a noun and a verb, such as user.delete"),
        "subject": (Text(), ""),
        "detail": (Dictionary(Free()), ""),
        "address": (Text(), "where the request came from"),
        "request_id": (Text(), ""),
    },
)
LETTER = answer(
    "Letter",
    {
        "id": (Whole(), ""),
        "address": (EMAIL, ""),
        "subject": (Text(), ""),
        "body": (Text(), "empty once it was sent"),
        "state": (Text(choices=("waiting", "sent", "failed")), ""),
        "attempts": (Whole(), ""),
        "error": (Text(), "of the last attempt"),
        "created_at": (TIME, ""),
        "finished_at": (OrNull(TIME), ""),
    },
)


@_rest.route(
    "GET",
    "/v1/admin/users",
    "Every account, oldest first",
    {200: Answer("a page", page_of("AdminAccounts", ADMIN_ACCOUNT))},
    query=PAGE
    | {
        "search": optional(Text(1, 100), "a part of the name or the address"),
        "role": optional(ROLE),
        "state": optional(Text(choices=("active", "disabled", "deleted")), "without it the active and the disabled ones"),
    },
    **_BY,
)
def list_users(asked: Asked) -> Reply:
    (after,) = asked.key(int) or (0,)
    wanted = UserFilter(asked.query.get("search", ""), asked.query.get("role", ""), asked.query.get("state", ""))
    found = _administration().users(wanted, after, asked.limit + 1)
    return page(found, lambda user: (user.id,), admin_account, asked.limit)


@_rest.route(
    "GET",
    "/v1/admin/users/<name>",
    "One account, and what it has of its quota",
    {200: Answer("the account", DETAIL)},
    errors=(Code.NOT_FOUND,),
    **_BY,
)
def read_user(asked: Asked, name: str) -> Reply:
    return _detail(name)


@_rest.route(
    "PATCH",
    "/v1/admin/users/<name>",
    "Changes somebody's role or quota, disables or enables them",
    {200: Answer("the account", DETAIL)},
    body=Object(
        {
            "role": optional(ROLE),
            "disabled": optional(Flag(), "who is disabled is signed out, cannot sign in, and their keys do not work"),
            "quota": optional(
                Object({kind: optional(OrNull(Whole(0, 1 << 50))) for kind in KINDS}), "0: no limit; null: what the settings say"
            ),
        },
        "AdminAccountChange",
    ),
    errors=(Code.NOT_FOUND, Code.CONFLICT),
    matches=True,
    **_BY,
)
def change_user(asked: Asked, name: str) -> Reply:
    body = asked.body
    role = Role(body["role"]) if "role" in body else None
    _administration().change(name, role, body.get("disabled"), body.get("quota"), asked.revision, asked.doer)
    return _detail(name)


@_rest.route(
    "DELETE",
    "/v1/admin/users/<name>",
    "Deletes somebody's account; it can be restored",
    {204: Answer("deleted")},
    errors=(Code.NOT_FOUND, Code.CONFLICT),
    **_BY,
)
def delete_user(asked: Asked, name: str) -> Reply:
    _administration().delete(name, asked.doer)
    return Reply()


@_rest.route(
    "POST",
    "/v1/admin/users/<name>/restore",
    "Takes a deletion back",
    {200: Answer("the account", DETAIL)},
    errors=(Code.NOT_FOUND,),
    **_BY,
)
def restore_user(asked: Asked, name: str) -> Reply:
    _administration().restore(name, asked.doer)
    return _detail(name)


@_rest.route(
    "POST",
    "/v1/admin/invitations",
    "Makes a sign-up token, with which one account with the role can be made, also where registration is closed",
    {201: Answer("the token", INVITATION)},
    body=Object({"role": required(ROLE)}, "InvitationRequest"),
    **_BY,
)
def create_invitation(asked: Asked) -> Reply:
    token, expires_at = _administration().invite(Role(asked.body["role"]), asked.doer)
    return Reply({"signup_token": token, "role": asked.body["role"], "expires_at": expires_at}, 201)


@_rest.route(
    "GET",
    "/v1/admin/audit",
    "Who changed what, newest first",
    {200: Answer("a page", page_of("AuditLines", LINE))},
    query=PAGE
    | {
        "actor": optional(Text(1, 100), "the name of an account"),
        "subject": optional(Text(1, 300)),
        "action": optional(
            Text(1, 100, r"[a-z_]+(\.[a-z_]+)?", "must be as user.delete, or user"), "a whole one, or what stands before its dot"
        ),
        "since": optional(Text(1, 40, format="date-time")),
        "until": optional(Text(1, 40, format="date-time"), "not included"),
    },
    **_BY,
)
def list_audit(asked: Asked) -> Reply:
    query = asked.query
    wanted = AuditFilter(
        query.get("actor", ""), query.get("subject", ""), query.get("action", ""), _time(query, "since"), _time(query, "until")
    )
    (before,) = asked.key(int) or (None,)
    return page(services().storage.audit.page(wanted, before, asked.limit + 1), lambda line: (line.id,), _line, asked.limit)


@_rest.route(
    "GET",
    "/v1/admin/outbox",
    "Letters that wait, were sent or could not be, newest first; without a mail server this is where codes are",
    {200: Answer("a page", page_of("Letters", LETTER))},
    query=PAGE | {"state": optional(Text(choices=("waiting", "sent", "failed")))},
    **_BY,
)
def list_outbox(asked: Asked) -> Reply:
    (before,) = asked.key(int) or (None,)
    found = services().storage.outbox.page(asked.query.get("state", ""), before, asked.limit + 1)
    return page(found, lambda letter: (letter.id,), _letter, asked.limit)


def _administration() -> Administration:
    return Administration(services().storage, services().now)


def _detail(name: str) -> Reply:
    user = _administration().user(name)
    found = quotas.shares(services().storage, user.id)
    return Reply({"account": admin_account(user), "shares": shares(found)}, revision=user.revision)


def _time(query: Any, name: str) -> str:
    if name not in query:
        return ""
    try:
        return clock.to_text(clock.utc_from_text(query[name]))
    except ValueError:
        raise InvalidFields({name: "is not a time such as 2026-11-21T12:00:00Z"}) from None


def _line(line: AuditRecord) -> dict[str, Any]:
    return {name: getattr(line, name) for name in ("id", "at", "actor", "action", "subject", "detail", "address", "request_id")}


def _letter(letter: OutboxRecord) -> dict[str, Any]:
    names = ("id", "address", "subject", "body", "state", "attempts", "error", "created_at", "finished_at")
    return {name: getattr(letter, name) for name in names}
