"""What roles, and the ends of tasks, are called in the reader's language."""

from collections.abc import Mapping
from typing import Any

from flask_babel import lazy_gettext as later

_ROLES: Mapping[str, Any] = {"user": later("User"), "operator": later("Operator"), "administrator": later("Administrator")}
_TEAM_ROLES: Mapping[str, Any] = {"viewer": later("Viewer"), "editor": later("Editor"), "owner": later("Owner")}
_EVENTS: Mapping[str, Any] = {
    "task.succeeded": later("succeeded"),
    "task.failed": later("failed"),
    "task.cancelled": later("cancelled"),
    "task.expired": later("expired"),
}


def role_name(role: str) -> Any:
    return _ROLES.get(str(role), role)


def team_role(role: str) -> Any:
    return _TEAM_ROLES.get(role, role)


def event_name(event: str) -> Any:
    return _EVENTS.get(event, event)
