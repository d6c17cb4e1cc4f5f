"""All ambient state of a request, in one typed file: the process's services, the request's id, and who asks."""

import re
import uuid
from dataclasses import dataclass
from typing import cast

from flask import current_app, g, request

from gateway.metrics import Metrics
from gateway.models_rpc import Models
from gateway.operations.tokens import Tokens
from gateway.operations.users import Users
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

__all__ = [
    "Models",
    "Principal",
    "Role",
    "Services",
    "client_address",
    "principal",
    "request_id",
    "request_id_from",
    "required_principal",
    "services",
]

EXTENSION = "outboard"
REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Services:
    """What one gateway process owns."""

    settings: Settings
    storage: Storage
    models: Models
    users: Users
    tokens: Tokens
    metrics: Metrics

    def close(self) -> None:
        self.models.close()
        self.storage.close()


def services() -> Services:
    return cast(Services, current_app.extensions[EXTENSION])


def request_id_from(header: str | None) -> str:
    """The caller's id where it can be logged as it stands, else a new one."""
    return header if header and _REQUEST_ID.fullmatch(header) else uuid.uuid4().hex


def request_id() -> str:
    """This request's id: in the answer, in the log, and in the call to the model host."""
    if "request_id" not in g:
        g.request_id = request_id_from(request.headers.get(REQUEST_ID_HEADER))
    return cast(str, g.request_id)


def client_address() -> str:
    """The address that the request came from, "" where there is none. nginx puts it where a direct connection has it."""
    return request.remote_addr or ""


def principal() -> Principal | None:
    """Who asks, None for a request without a token. Raises unauthenticated for a token that is not valid (any more)."""
    if "principal" not in g:
        header = request.headers.get("Authorization")
        g.principal = None if header is None else services().tokens.authenticate(bearer_token(header))
    return cast("Principal | None", g.principal)


def required_principal() -> Principal:
    """Who asks. Raises unauthenticated where nobody is signed in."""
    caller = principal()
    if caller is None:
        raise ServingError(Code.UNAUTHENTICATED, "this needs a token: Authorization: Bearer <access token>")
    return caller


def bearer_token(header: str) -> str:
    """The token of an Authorization header. Raises unauthenticated for another scheme."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise ServingError(Code.UNAUTHENTICATED, "the Authorization header must be: Bearer <access token>")
    return token.strip()
