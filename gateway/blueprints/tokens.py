"""`/v1/tokens`: signing in, refreshing, signing out."""

import json

from flask import Blueprint
from werkzeug.wrappers import Response

from gateway.blueprints.account_shapes import PASSWORD, SECRET
from gateway.blueprints.rest import WHOEVER, Answer, Asked, Reply, Rest
from gateway.context import client_address, services
from gateway.errors import InvalidFields
from gateway.operations.tokens import Issued
from gateway.shapes import Flag, Object, Text, Whole, answer, optional, required
from idl.codes import Code

blueprint = Blueprint("tokens", __name__)
_rest = Rest(blueprint, "sign-in")
TOKENS = answer(
    "Tokens",
    {
        "access_token": (Text(), ""),
        "refresh_token": (Text(), "works once"),
        "expires_in": (Whole(), "seconds that the access token is good for"),
        "token_type": (Text(choices=("Bearer",)), ""),
    },
)


@_rest.route(
    "POST",
    "/v1/tokens",
    "Signs in: username or email, and the password",
    {200: Answer("tokens", TOKENS)},
    who=WHOEVER,
    body=Object({"username": optional(SECRET), "email": optional(SECRET), "password": required(PASSWORD)}, "SignIn"),
    errors=(Code.UNAUTHENTICATED, Code.FORBIDDEN),
)
def sign_in(asked: Asked) -> Reply:
    body = asked.body
    login = body.get("username") or body.get("email")
    if not login or ("username" in body and "email" in body):
        raise InvalidFields({"username": "either this or email must be there"})
    return issued(services().tokens.sign_in(login, body["password"], client_address()))


@_rest.route(
    "POST",
    "/v1/tokens/refresh",
    "The next tokens; the refresh token shown is used up",
    {200: Answer("tokens", TOKENS)},
    who=WHOEVER,
    body=Object({"refresh_token": required(SECRET)}, "Refresh"),
    errors=(Code.UNAUTHENTICATED,),
)
def refresh_tokens(asked: Asked) -> Reply:
    return issued(services().tokens.refresh(asked.body["refresh_token"]))


@_rest.route(
    "DELETE",
    "/v1/tokens",
    "Signs out: ends the session, or with everywhere=true each one of the account",
    {204: Answer("ended")},
    query={"everywhere": optional(Flag(), "every session of the account; API keys go on")},
)
def sign_out(asked: Asked) -> Reply:
    owned = services()
    owned.tokens.sign_out(asked.me)
    if asked.query.get("everywhere"):
        owned.users.sign_out_everywhere(asked.me, asked.doer)
    return Reply()


def issued(tokens: Issued) -> Reply:
    """The answer of every way to sign in; never stored (RFC 6749, section 5.1), as no answer of these routes is."""
    return Reply(_body(tokens))


def spelled(tokens: Issued) -> Response:
    """The same for a route that is not described."""
    return Response(json.dumps(_body(tokens)), headers={"Cache-Control": "no-store"}, content_type="application/json")


def _body(tokens: Issued) -> dict[str, object]:
    return {
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "expires_in": tokens.expires_in,
        "token_type": "Bearer",
    }
