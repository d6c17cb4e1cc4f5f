"""What roles, and the ends of tasks, are called in the reader's language."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask_babel import lazy_gettext as later

from gateway.types import Role

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


_VISIBILITY: Mapping[str, Any] = {"private": later("the owner alone"), "team": later("a team"), "public": later("everybody")}
_CLEANED: Mapping[str, Any] = {"files": later("Files that nothing names"), "broken_off": later("Left by writes that broke off")}
_HOST_STATES: Mapping[str, str] = {"READY": "ready", "LOADING": "starting", "UNLOADING": "draining", "UNAVAILABLE": "failed"}


def visibility_name(visibility: str) -> Any:
    return _VISIBILITY.get(visibility, visibility)


def cleaned_name(what: str) -> Any:
    return _CLEANED.get(what, what)


def host_state(state: str) -> str:
    """What a model host says of a model, as the states of deployments are called."""
    return _HOST_STATES.get(state, state.lower())


def states_of(states: Sequence[str], known: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Choices of a filter."""
    return [("", later("any")), *((state, known.get(state, state)) for state in states)]


def role_choices(roles: Sequence[Role], with_any: bool = True) -> list[tuple[str, Any]]:
    return [*([("", later("any"))] if with_any else []), *((role.value, role_name(role)) for role in roles)]
