"""`/v1/users` and `/v1/me`: registering, and one's own account."""

from flask import Blueprint, request
from werkzeug.wrappers import Response

from gateway import wsgi_request
from gateway.blueprints.account_shapes import ACCOUNT, CODE, EMAIL, NEW_PASSWORD, PASSWORD, SECRET, SHARES, USERNAME, account, shares
from gateway.blueprints.rest import WHOEVER, Answer, Asked, Reply, Rest
from gateway.context import client_address, services
from gateway.errors import InvalidFields
from gateway.operations import avatars, quotas
from gateway.operations.access import require_session
from gateway.shapes import Object, OrNull, optional, required
from gateway.types import Scope
from idl.codes import Code

blueprint = Blueprint("users", __name__)
_rest = Rest(blueprint, "accounts")
_PICTURE = Answer("the picture", types=(avatars.TYPE,))


@_rest.route(
    "POST",
    "/v1/users",
    "Registers a new account; an e-mail address gets a code",
    {201: Answer("the account", ACCOUNT)},
    who=WHOEVER,
    scope=Scope.WRITE,
    body=Object(
        {
            "username": required(USERNAME, "unique whatever its case; stays taken when the account is deleted"),
            "password": required(NEW_PASSWORD),
            "email": optional(OrNull(EMAIL)),
            "signup_token": optional(SECRET, "a one-time invitation, which may give a role"),
        },
        "Registration",
    ),
    errors=(Code.ALREADY_EXISTS, Code.FORBIDDEN),
)
def register(asked: Asked) -> Reply:
    body = asked.body
    user = services().users.register(
        body["username"], body["password"], body.get("email"), body.get("signup_token") or "", origin=asked.origin
    )
    return Reply(account(user), 201, {"Location": "/v1/me"})


@_rest.route(
    "POST",
    "/v1/users/verify",
    "Confirms an e-mail address by the code that was sent to it; without a code, sends another one",
    {202: Answer("a code is on its way, if an account waits for one"), 204: Answer("confirmed")},
    who=WHOEVER,
    scope=Scope.WRITE,
    body=Object({"email": required(EMAIL), "code": optional(CODE)}, "Confirmation"),
    errors=(Code.ALREADY_EXISTS,),
)
def verify_email(asked: Asked) -> Reply:
    confirmations = services().users.confirmations
    if "code" not in asked.body:
        confirmations.resend(asked.body["email"], client_address())
        return Reply(status=202)
    confirmations.verify(asked.body["email"], asked.body["code"], asked.origin)
    return Reply()


@_rest.route(
    "POST",
    "/v1/password-resets",
    "Sends a code to an e-mail address; with that code, gives its account a new password",
    {202: Answer("a code is on its way, if an account has the address"), 204: Answer("the password was changed; every session has ended")},
    who=WHOEVER,
    scope=Scope.WRITE,
    body=Object({"email": required(EMAIL), "code": optional(CODE), "password": optional(NEW_PASSWORD)}, "PasswordReset"),
)
def reset_password(asked: Asked) -> Reply:
    body, confirmations = asked.body, services().users.confirmations
    if "code" not in body and "password" not in body:
        confirmations.ask_reset(body["email"], client_address())
        return Reply(status=202)
    if missing := {name: "is missing" for name in ("code", "password") if name not in body}:
        raise InvalidFields(missing)
    confirmations.reset(body["email"], body["code"], body["password"], asked.origin)
    return Reply()


@_rest.route("GET", "/v1/me", "One's own account", {200: Answer("the account", ACCOUNT)})
def read_me(asked: Asked) -> Reply:
    user = services().users.read(asked.me)
    return Reply(account(user), revision=user.revision)


@_rest.route(
    "PATCH",
    "/v1/me",
    "Changes one's e-mail address or password",
    {200: Answer("the account", ACCOUNT)},
    scope=Scope.WRITE,
    body=Object(
        {
            "current_password": required(PASSWORD),
            "email": optional(OrNull(EMAIL), "null removes it; one that takes the place of a confirmed one waits for its code"),
            "password": optional(NEW_PASSWORD, "ends all other sessions"),
        },
        "AccountChange",
    ),
    errors=(Code.ALREADY_EXISTS,),
    matches=True,
)
def change_me(asked: Asked) -> Reply:
    require_session(asked.me, "an API key cannot change an account")
    fields = dict(asked.body)
    current = fields.pop("current_password")
    if not fields:
        raise InvalidFields({"email": "this or password must be there"})
    user = services().users.change(asked.me, fields, current, client_address(), revision=asked.revision, doer=asked.doer)
    return Reply(account(user), revision=user.revision)


@_rest.route(
    "DELETE",
    "/v1/me",
    "Deletes one's account and ends all its sessions; an administrator can restore it",
    {204: Answer("deleted")},
    scope=Scope.WRITE,
    errors=(Code.CONFLICT,),
)
def delete_me(asked: Asked) -> Reply:
    require_session(asked.me, "an API key cannot delete an account")
    services().users.delete(asked.me, asked.doer)
    return Reply()


@_rest.route("GET", "/v1/me/quota", "What one has, and how much one may have", {200: Answer("by kind", SHARES)})
def read_quota(asked: Asked) -> Reply:
    return Reply(shares(quotas.shares(services().storage, asked.me.user_id)))


@_rest.route(
    "PUT",
    "/v1/me/avatar",
    "Gives the account a picture: made square and small, without what else was in the file",
    {204: Answer("it has it")},
    scope=Scope.WRITE,
    raw=avatars.TAKEN,
    rate=("pictures", 30, 10.0),
)
def put_avatar(asked: Asked) -> Reply:
    body = wsgi_request.read_body(request.environ, avatars.MOST_BYTES)
    avatars.put(services().storage, services().settings, asked.me, body, services().now(), asked.doer)
    return Reply()


@_rest.route("DELETE", "/v1/me/avatar", "Takes the account's picture away", {204: Answer("it has none")}, scope=Scope.WRITE)
def delete_avatar(asked: Asked) -> Reply:
    services().storage.users.set_avatar(asked.me.user_id, None, services().now(), doer=asked.doer)
    return Reply()


@_rest.route("GET", "/v1/me/avatar", "The account's picture", {200: _PICTURE}, errors=(Code.NOT_FOUND,))
def read_avatar(asked: Asked) -> Response:
    return _picture(asked.me.name)


@_rest.route("GET", "/v1/users/<name>/avatar", "Somebody's picture", {200: _PICTURE}, errors=(Code.NOT_FOUND,))
def read_avatar_of(asked: Asked, name: str) -> Response:
    return _picture(name)


def _picture(name: str) -> Response:
    sha256, content = avatars.read(services().storage, name)
    made = Response(
        content, content_type=avatars.TYPE, headers={"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}
    )
    made.set_etag(sha256)
    made.make_conditional(request.environ)
    return made
