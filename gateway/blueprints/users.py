"""`/v1/users` and `/v1/me`: registering, and one's own account."""

from typing import cast

from flask import Blueprint
from flask.typing import ResponseReturnValue

from gateway.blueprints.json_body import read_fields
from gateway.context import client_address, required_principal, services
from gateway.errors import InvalidFields
from gateway.storage.users import UserRecord

blueprint = Blueprint("users", __name__)


@blueprint.post("/v1/users")
def register() -> ResponseReturnValue:
    """A new account from {username, password, [email], [signup_token]}."""
    fields = read_fields(("username", "password"), ("email", "signup_token"), nullable=("email",))
    username, password = cast(str, fields["username"]), cast(str, fields["password"])
    user = services().users.register(username, password, fields.get("email"), fields.get("signup_token") or "")
    return _body(user), 201, {"Location": "/v1/me"}


@blueprint.get("/v1/me")
def read() -> ResponseReturnValue:
    """The caller's account."""
    return _body(services().users.read(required_principal()))


@blueprint.patch("/v1/me")
def change() -> ResponseReturnValue:
    """Changes {[email], [password]}, confirmed by {current_password}."""
    caller = required_principal()
    fields = read_fields(("current_password",), ("email", "password"), nullable=("email",))
    current = cast(str, fields.pop("current_password"))
    if not fields:
        raise InvalidFields({"email": "this or password must be there"})
    return _body(services().users.change(caller, fields, current, client_address()))


@blueprint.delete("/v1/me")
def delete() -> ResponseReturnValue:
    """Deletes the caller's account and ends all its sessions."""
    services().users.delete(required_principal())
    return "", 204


def _body(user: UserRecord) -> dict[str, object]:
    return {
        "username": user.name,
        "email": user.email,
        "role": user.role.value,
        "created_at": user.created_at,
        "updated_at": user.updated_at,
    }
