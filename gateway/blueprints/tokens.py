"""`/v1/tokens`: signing in, refreshing, signing out."""

from typing import cast

from flask import Blueprint
from flask.typing import ResponseReturnValue

from gateway.blueprints.json_body import read_fields
from gateway.context import client_address, required_principal, services
from gateway.errors import InvalidFields
from gateway.operations.tokens import Issued

blueprint = Blueprint("tokens", __name__)


@blueprint.post("/v1/tokens")
def sign_in() -> ResponseReturnValue:
    """{username or email, password} -> tokens."""
    fields = read_fields(("password",), ("username", "email"))
    login = fields.get("username") or fields.get("email")
    if not login or ("username" in fields and "email" in fields):
        raise InvalidFields({"username": "either this or email must be there"})
    return _body(services().tokens.sign_in(login, cast(str, fields["password"]), client_address()))


@blueprint.post("/v1/tokens/refresh")
def refresh() -> ResponseReturnValue:
    """{refresh_token} -> the next tokens; the one shown is used up."""
    fields = read_fields(("refresh_token",))
    return _body(services().tokens.refresh(cast(str, fields["refresh_token"])))


@blueprint.delete("/v1/tokens")
def sign_out() -> ResponseReturnValue:
    """Ends the caller's session."""
    services().tokens.sign_out(required_principal())
    return "", 204


def _body(issued: Issued) -> ResponseReturnValue:
    body = {
        "access_token": issued.access_token,
        "refresh_token": issued.refresh_token,
        "expires_in": issued.expires_in,
        "token_type": "Bearer",
    }
    # RFC 6749, section 5.1
    return body, {"Cache-Control": "no-store"}
