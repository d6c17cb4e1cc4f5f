"""Webhooks: addresses that are told of the ends of one's tasks, and what was sent to them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import request
from werkzeug.wrappers import Response

from gateway import clock
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations.task_notices import EVENTS
from gateway.operations.webhooks import MOST
from gateway.pages import paging
from gateway.pages.forms import again, field
from gateway.pages.frame import Pages, doer, go, me, render
from gateway.storage.webhooks import DELIVERED, FAILED, PENDING, WebhookRecord
from idl.codes import Code, ServingError

_pages = Pages("account_webhooks")
blueprint = _pages.blueprint
_STATES = ("", PENDING, DELIVERED, FAILED)
_SIZE = 25
_MOST_DESCRIPTION = 500


@_pages.page("/ui/account/webhooks")
def webhooks() -> Response:
    return render("account/webhooks.html", **_listed(), reasons={})


@_pages.page("/ui/account/webhooks", "POST")
def make_webhook() -> Response:
    """Its secret is in this answer, and never again."""
    typed = _typed()
    try:
        _refuse(typed)
        made = services().webhooks.create(me(), typed["url"], typed["events"], typed["description"], None, doer())
    except ServingError as error:
        return again("account/webhooks.html", error, **_listed(typed=typed))
    return render("account/webhooks.html", **_listed(made=made), reasons={})


@_pages.page("/ui/account/webhooks/<webhook_id>")
def webhook(webhook_id: str) -> Response:
    hook = services().webhooks.get(me(), webhook_id)
    return render("account/webhook.html", **_one(hook, _of(hook)), reasons={}, done=request.args.get("done", ""))


@_pages.page("/ui/account/webhooks/<webhook_id>", "POST")
def change_webhook(webhook_id: str) -> Response:
    """`verb`: change, on, off, secret or delete."""
    hooks, mine, verb = services().webhooks, me(), field("verb")
    typed = _typed()
    if verb == "delete":
        _unless_gone(lambda: hooks.delete(mine, webhook_id, doer()))
        return go("/ui/account/webhooks")
    if verb == "secret":
        hook = hooks.new_secret(mine, webhook_id, doer())
        return render("account/webhook.html", **_one(hook, _of(hook), hook.secret), reasons={}, done="")
    try:
        if verb == "change":
            _refuse(typed)
        changes = typed if verb == "change" else {"enabled": verb == "on"}
        hooks.change(mine, webhook_id, changes, None, doer())
    except InvalidFields as error:
        return again("account/webhook.html", error, **_one(hooks.get(mine, webhook_id), typed), done="")
    return go(f"/ui/account/webhooks/{webhook_id}?done={'changed' if verb == 'change' else ''}")


@_pages.page("/ui/account/webhooks/<webhook_id>/log")
def log(webhook_id: str) -> Response:
    """What changes while one looks at it."""
    hook = services().webhooks.get(me(), webhook_id)
    return render("account/deliveries.html", **_one(hook, {}))


@_pages.page("/ui/account/webhooks/<webhook_id>/log", "POST")
def deliver_again(webhook_id: str) -> Response:
    services().webhooks.again(me(), webhook_id, field("delivery"))
    return go(f"/ui/account/webhooks/{webhook_id}")


def _typed() -> dict[str, Any]:
    chosen = request.form.getlist("events")
    events = [event for event in EVENTS if event in chosen]
    return {
        "url": field("url").strip(),
        "description": field("description").strip(),
        "events": [] if len(events) == len(EVENTS) else events,
    }


def _refuse(typed: Mapping[str, Any]) -> None:
    reasons = {}
    if not typed["url"]:
        reasons["url"] = "is missing"
    if len(typed["description"]) > _MOST_DESCRIPTION:
        reasons["description"] = f"must have at most {_MOST_DESCRIPTION} characters"
    if not request.form.getlist("events"):
        reasons["events"] = "choose at least one"
    if reasons:
        raise InvalidFields(reasons)


def _of(hook: WebhookRecord) -> dict[str, Any]:
    return {"url": hook.url, "description": hook.description, "events": hook.events}


def _listed(made: WebhookRecord | None = None, typed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "hooks": services().webhooks.page(me(), "", MOST),
        "most": MOST,
        "events": EVENTS,
        "made": made,
        "typed": typed or {"url": "", "description": "", "events": []},
    }


def _one(hook: WebhookRecord, typed: Mapping[str, Any], secret: str = "") -> dict[str, Any]:
    state = request.args.get("state", "")
    state = state if state in _STATES else ""
    found = services().webhooks.deliveries(me(), hook.id, state or None, paging.cursor()[:64] or None, _SIZE + 1)
    return {
        "hook": hook,
        "typed": typed,
        "secret": secret,
        "events": EVENTS,
        "states": _STATES,
        "state": state,
        "log": paging.paged(found, lambda delivery: delivery.id, _SIZE),
        "at": lambda moment: clock.to_text(datetime.fromtimestamp(moment, UTC)),
    }


def _unless_gone(do: Any) -> None:
    """What a second click would find gone is what was wanted."""
    try:
        do()
    except ServingError as error:
        if error.code is not Code.NOT_FOUND:
            raise
