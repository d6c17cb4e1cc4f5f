"""`/livez` and `/readyz`."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from gateway.context import services
from gateway.operations.health import Check, readiness

blueprint = Blueprint("health", __name__)
_NO_STORE = {"Cache-Control": "no-store"}


@blueprint.get("/livez")
def livez() -> ResponseReturnValue:
    """This process answers."""
    return {"status": "alive"}, _NO_STORE


@blueprint.get("/readyz")
def readyz() -> ResponseReturnValue:
    """Whether work can be sent here: 200 or 503, with each check."""
    owned = services()
    state = readiness(owned.storage, owned.models.ready, owned.settings.ready_timeout_s)
    body = {"status": "ready" if state.ready else "not_ready", "checks": [_entry(check) for check in state.checks]}
    return body, 200 if state.ready else 503, _NO_STORE


def _entry(check: Check) -> dict[str, object]:
    return {"kind": check.kind, "name": check.name, "ready": check.ready, "reason": check.reason}
