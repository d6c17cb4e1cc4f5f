"""`/v1/api-keys`: keys for programs, with scopes, shown once."""

from datetime import timedelta
from typing import Any

from flask import Blueprint

from gateway import clock
from gateway.blueprints.account_shapes import TIME
from gateway.blueprints.rest import PAGE, Answer, Asked, Reply, Rest, page, page_of
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations.api_keys import ApiKeys
from gateway.shapes import Items, Object, OrNull, Text, Whole, optional, required
from gateway.storage.api_keys import KeyRecord
from gateway.types import Scope
from idl.codes import Code

blueprint = Blueprint("api_keys", __name__)
_rest = Rest(blueprint, "API keys")
_SCOPES = Items(Text(choices=tuple(scope.value for scope in Scope)), len(Scope), 1)
_FIELDS = {
    "id": required(Text()),
    "name": required(Text()),
    "scopes": required(_SCOPES),
    "created_at": required(TIME),
    "expires_at": required(OrNull(TIME), "null: never"),
    "last_used_at": required(OrNull(TIME), "right to the minute"),
}
KEY = Object(_FIELDS, "ApiKey")
MADE = Object(_FIELDS | {"key": required(Text(), "shown this once, and kept nowhere")}, "NewApiKey")


@_rest.route(
    "POST",
    "/v1/api-keys",
    "Makes a key; needs a sign-in, not a key",
    {201: Answer("the key, whole, this once", MADE)},
    scope=Scope.WRITE,
    body=Object(
        {
            "name": required(Text(1, 100), "what it is for"),
            "scopes": required(_SCOPES, "admin is what gives it the role of its owner"),
            "expires_in_days": optional(OrNull(Whole(1, 3650)), "null, and without it: never"),
            "expires_at": optional(OrNull(Text(10, 40, format="date-time")), "the same as a time"),
        },
        "ApiKeyRequest",
    ),
    errors=(Code.CONFLICT,),
    rate=("keys", 200, 10.0),
)
def create_api_key(asked: Asked) -> Reply:
    # no Idempotency-Key: its answers are kept, and this one must not be
    body = asked.body
    expires_at = _end(body)
    made = _keys().create(asked.me, body["name"], frozenset(map(Scope, body["scopes"])), expires_at, asked.doer)
    return Reply(_body(made.record) | {"key": made.secret}, 201, {"Location": f"/v1/api-keys/{made.record.id}"})


@_rest.route("GET", "/v1/api-keys", "One's own keys", {200: Answer("a page", page_of("ApiKeys", KEY))}, query=PAGE)
def list_api_keys(asked: Asked) -> Reply:
    key = asked.key(str, str)
    return page(_keys().page(asked.me, key, asked.limit + 1), lambda one: (one.created_at, one.id), _body, asked.limit)


@_rest.route("GET", "/v1/api-keys/<key_id>", "One of one's keys", {200: Answer("the key", KEY)}, errors=(Code.NOT_FOUND,))
def read_api_key(asked: Asked, key_id: str) -> Reply:
    return Reply(_body(_keys().read(asked.me, key_id)))


@_rest.route(
    "DELETE",
    "/v1/api-keys/<key_id>",
    "Revokes a key: it is refused from now on",
    {204: Answer("revoked")},
    scope=Scope.READ,
    errors=(Code.NOT_FOUND,),
)
def revoke_api_key(asked: Asked, key_id: str) -> Reply:
    _keys().revoke(asked.me, key_id, asked.doer)
    return Reply()


def _keys() -> ApiKeys:
    return ApiKeys(services().storage, services().now)


def _end(body: Any) -> Any:
    """When the key is to end, None for never. Raises invalid_input for two ends, and for what is no time."""
    days, text = body.get("expires_in_days"), body.get("expires_at")
    if days is not None and text is not None:
        raise InvalidFields({"expires_at": "either this or expires_in_days"})
    if days is not None:
        return services().now() + timedelta(days=days)
    try:
        return None if text is None else clock.utc_from_text(text)
    except ValueError:
        raise InvalidFields({"expires_at": "is not a time such as 2027-01-31T12:00:00Z"}) from None


def _body(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "scopes": sorted(record.scopes),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "last_used_at": record.last_used_at,
    }
