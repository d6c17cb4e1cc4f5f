"""The verbs on webhooks. A notice is signed as Standard Webhooks 1.0.0 says: HMAC-SHA256 over `id.timestamp.body`."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from gateway import clock
from gateway.bells import Bell
from gateway.errors import InvalidFields
from gateway.operations import task_notices, webhook_targets
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.task_records import TaskRecord
from gateway.storage.webhooks import DeliveryRecord, WebhookRecord
from gateway.types import Principal
from idl.codes import Code, ServingError

MOST = 20
"""Webhooks of one user."""
_PREFIX = "whsec_"
_SECRET_BYTES = (24, 64)


class Webhooks:
    """Thread-safe."""

    def __init__(self, storage: Storage, settings: Settings, bell: Bell, now: clock.Clock = clock.now) -> None:
        self._hooks = storage.webhooks
        self._settings = settings
        self._bell = bell
        self._now = now

    def create(
        self, principal: Principal, url: str, events: Sequence[str], description: str, secret: str | None, doer: Doer
    ) -> WebhookRecord:
        """Raises invalid_input naming the field, conflict for too many. An address that is not public is refused here already; what its
        name means later is looked at with each notice."""
        self._check(url, secret)
        at = clock.to_text(self._now())
        made = WebhookRecord(
            f"wh_{int(self._now().timestamp() * 1e6):014x}{secrets.token_hex(9)}",
            principal.user_id,
            url,
            secret or new_secret(),
            tuple(dict.fromkeys(events)),
            description,
            True,
            0,
            1,
            at,
            at,
        )
        self._hooks.create(made, MOST, self._now(), doer)
        return made

    def get(self, principal: Principal, webhook_id: str) -> WebhookRecord:
        """Raises not_found, also for somebody else's."""
        found = self._hooks.of_user(principal.user_id, webhook_id)
        if found is None:
            raise _missing(webhook_id)
        return found

    def page(self, principal: Principal, after: str, limit: int) -> list[WebhookRecord]:
        return self._hooks.page(principal.user_id, after, limit)

    def change(self, principal: Principal, webhook_id: str, changes: Mapping[str, Any], revision: int | None, doer: Doer) -> WebhookRecord:
        """`changes`: url, events, description, enabled. Raises as `create`, and ChangedMeanwhile."""
        known = self.get(principal, webhook_id)
        self._check(changes.get("url", known.url), None)
        values = {name: int(value) if name == "enabled" else value for name, value in changes.items()}
        found = self._hooks.change(webhook_id, principal.user_id, values, revision, self._now(), doer)
        if found is None:
            raise _missing(webhook_id)
        return found

    def new_secret(self, principal: Principal, webhook_id: str, doer: Doer) -> WebhookRecord:
        """Another secret, which signs from now on."""
        self.get(principal, webhook_id)
        found = self._hooks.change(webhook_id, principal.user_id, {"secret": new_secret()}, None, self._now(), doer)
        if found is None:
            raise _missing(webhook_id)
        return found

    def delete(self, principal: Principal, webhook_id: str, doer: Doer) -> None:
        if not self._hooks.delete(webhook_id, principal.user_id, self._now(), doer):
            raise _missing(webhook_id)

    def deliveries(self, principal: Principal, webhook_id: str, state: str | None, before: str | None, limit: int) -> list[DeliveryRecord]:
        """The newest first."""
        self.get(principal, webhook_id)
        return self._hooks.deliveries(webhook_id, state, before, limit)

    def of_task(self, principal: Principal, task: TaskRecord) -> list[tuple[str, DeliveryRecord]]:
        """(where to, delivery) of the notices of a task that is the caller's own; none of another's."""
        return self._hooks.of_task(task.user_id, task.id) if task.user_id == principal.user_id else []

    def again(self, principal: Principal, webhook_id: str, delivery_id: str) -> DeliveryRecord:
        """Sends a notice once more."""
        hook = self.get(principal, webhook_id)
        if not hook.enabled:
            raise ServingError(Code.CONFLICT, "the webhook is turned off: turn it on first")
        found = self._hooks.again(webhook_id, delivery_id, self._now())
        if found is None:
            raise ServingError(Code.NOT_FOUND, f"there is no delivery {delivery_id[:64]!r}")
        self._bell.ring(task_notices.JOB)
        return found

    def _check(self, url: str, secret: str | None) -> None:
        reasons: dict[str, str] = {}
        try:
            target = webhook_targets.place(url)
            is_number = target.host.replace(".", "").isdigit() or ":" in target.host
            local = target.host == "localhost" or target.host.endswith(".localhost")
            if self._settings.webhook_addresses == "public" and (local or (is_number and not webhook_targets.is_public(target.host))):
                reasons["url"] = "must lead to the public internet"
        except InvalidFields as error:
            reasons |= error.reasons
        if secret is not None and (reason := _reason_against(secret)):
            reasons["secret"] = reason
        if reasons:
            raise InvalidFields(reasons)


def _missing(webhook_id: str) -> ServingError:
    return ServingError(Code.NOT_FOUND, f"there is no webhook {webhook_id[:64]!r}")


def new_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode("ascii")


def _reason_against(secret: str) -> str:
    low, high = _SECRET_BYTES
    try:
        size = len(key_of(secret))
    except ValueError:
        return f"must be {_PREFIX} and base64"
    return "" if low <= size <= high else f"must hold {low} to {high} bytes"


def key_of(secret: str) -> bytes:
    """Raises ValueError."""
    if not secret.startswith(_PREFIX):
        raise ValueError("prefix")
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)


def headers(secret: str, delivery_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """What a notice carries besides its body (Standard Webhooks, "Webhook headers")."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.new(key_of(secret), signed, hashlib.sha256).digest()).decode("ascii")
    return {"webhook-id": delivery_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}
