"""`/v1/webhooks`: who is told of the ends of tasks, and the log of what was sent."""

import json
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint

from gateway import clock
from gateway.blueprints import rest
from gateway.blueprints.rest import Answer, Asked, Reply, Rest, page_of
from gateway.blueprints.task_shapes import DELIVERY, NEW_WEBHOOK, WEBHOOK, WEBHOOK_CHANGES, WEBHOOK_SECRET
from gateway.blueprints.tasks import before_of
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.shapes import Text, optional
from gateway.storage.webhooks import DELIVERED, FAILED, PENDING, DeliveryRecord, WebhookRecord
from gateway.types import Scope
from idl.codes import Code

blueprint = Blueprint("webhooks", __name__)
routes = Rest(blueprint, "Webhooks")
_MISSING = (Code.NOT_FOUND,)


@routes.route(
    "POST",
    "/v1/webhooks",
    "Has the ends of one's tasks told to an address",
    {201: Answer("the webhook, with its secret", WEBHOOK_SECRET)},
    scope=Scope.WRITE,
    body=NEW_WEBHOOK,
    errors=(Code.CONFLICT,),
    creates=True,
)
def create_webhook(asked: Asked) -> Reply:
    body = asked.body
    made = services().webhooks.create(
        asked.me, body["url"], body.get("events", []), body.get("description", ""), body.get("secret"), asked.doer
    )
    return Reply(spelled(made) | {"secret": made.secret}, 201, {"Location": f"/v1/webhooks/{made.id}"}, made.revision)


@routes.route("GET", "/v1/webhooks", "One's own webhooks", {200: Answer("a page", page_of("Webhooks", WEBHOOK))}, query=rest.PAGE)
def list_webhooks(asked: Asked) -> Reply:
    found = services().webhooks.page(asked.me, before_of(asked) or "", asked.limit + 1)
    return rest.page(found, lambda hook: [hook.id], spelled, asked.limit)


@routes.route("GET", "/v1/webhooks/<webhook_id>", "A webhook", {200: Answer("the webhook", WEBHOOK)}, errors=_MISSING)
def read_webhook(asked: Asked, webhook_id: str) -> Reply:
    hook = services().webhooks.get(asked.me, webhook_id)
    return Reply(spelled(hook), revision=hook.revision)


@routes.route(
    "PATCH",
    "/v1/webhooks/<webhook_id>",
    "Changes a webhook",
    {200: Answer("the webhook", WEBHOOK)},
    scope=Scope.WRITE,
    body=WEBHOOK_CHANGES,
    errors=_MISSING,
    matches=True,
)
def change_webhook(asked: Asked, webhook_id: str) -> Reply:
    if not asked.body:
        raise InvalidFields({"url": "nothing is to be changed"})
    hook = services().webhooks.change(asked.me, webhook_id, asked.body, asked.revision, asked.doer)
    return Reply(spelled(hook), revision=hook.revision)


@routes.route(
    "POST",
    "/v1/webhooks/<webhook_id>/secret",
    "Makes another secret, which signs from now on",
    {200: Answer("the webhook, with its secret", WEBHOOK_SECRET)},
    scope=Scope.WRITE,
    errors=_MISSING,
)
def renew_webhook_secret(asked: Asked, webhook_id: str) -> Reply:
    hook = services().webhooks.new_secret(asked.me, webhook_id, asked.doer)
    return Reply(spelled(hook) | {"secret": hook.secret}, revision=hook.revision)


@routes.route("DELETE", "/v1/webhooks/<webhook_id>", "Removes a webhook", {204: Answer("it is gone")}, scope=Scope.WRITE, errors=_MISSING)
def delete_webhook(asked: Asked, webhook_id: str) -> Reply:
    services().webhooks.delete(asked.me, webhook_id, asked.doer)
    return Reply()


@routes.route(
    "GET",
    "/v1/webhooks/<webhook_id>/deliveries",
    "What was sent, the newest first",
    {200: Answer("a page", page_of("Deliveries", DELIVERY))},
    query={**rest.PAGE, "state": optional(Text(choices=(PENDING, DELIVERED, FAILED)), "only those in this state")},
    errors=_MISSING,
)
def list_deliveries(asked: Asked, webhook_id: str) -> Reply:
    found = services().webhooks.deliveries(asked.me, webhook_id, asked.query.get("state"), before_of(asked), asked.limit + 1)
    return rest.page(found, lambda delivery: [delivery.id], _delivery, asked.limit)


@routes.route(
    "POST",
    "/v1/webhooks/<webhook_id>/deliveries/<delivery_id>/retry",
    "Sends a notice once more",
    {202: Answer("the delivery", DELIVERY)},
    scope=Scope.WRITE,
    errors=(*_MISSING, Code.CONFLICT),
)
def retry_delivery(asked: Asked, webhook_id: str, delivery_id: str) -> Reply:
    return Reply(_delivery(services().webhooks.again(asked.me, webhook_id, delivery_id)), 202)


def spelled(hook: WebhookRecord) -> dict[str, Any]:
    """The JSON value of a webhook, without its secret."""
    return {
        "id": hook.id,
        "url": hook.url,
        "events": list(hook.events),
        "description": hook.description,
        "enabled": hook.enabled,
        "created_at": hook.created_at,
        "updated_at": hook.updated_at,
    }


def _delivery(delivery: DeliveryRecord) -> dict[str, Any]:
    next_at = clock.to_text(datetime.fromtimestamp(delivery.next_at, UTC)) if delivery.state == PENDING else None
    return {
        "id": delivery.id,
        "task_id": delivery.task_id,
        "event": delivery.event,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "next_at": next_at,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "payload": json.loads(delivery.payload),
        "created_at": delivery.created_at,
        "finished_at": delivery.finished_at,
    }
