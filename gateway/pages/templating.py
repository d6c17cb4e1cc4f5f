"""What templates may call."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Flask, request
from flask_babel import gettext as _
from flask_babel import lazy_gettext as later

from gateway.clock import to_text
from gateway.context import services
from gateway.error_texts import TEXTS
from gateway.pages import frame, languages, people_names, sentences
from gateway.pages.admin_people import place as user_place
from gateway.pages.assets import asset
from gateway.pages.deployment_places import deployment_at, new_deployment_at
from gateway.pages.model_places import FORMATS, called
from gateway.pages.model_places import place as model_place
from gateway.pages.refusals import refusal
from gateway.types import Role
from idl.codes import Code

STATES: Mapping[str, Any] = {
    "running": later("running"),
    "succeeded": later("succeeded"),
    "ready": later("ready"),
    "starting": later("starting"),
    "queued": later("queued"),
    "waking": later("waking up"),
    "draining": later("draining"),
    "pausing": later("pausing"),
    "deleting": later("being deleted"),
    "paused": later("paused"),
    "sleeping": later("sleeping"),
    "pending": later("waiting"),
    "waiting": later("waiting"),
    "delivered": later("delivered"),
    "sent": later("sent"),
    "active": later("active"),
    "disabled": later("disabled"),
    "deleted": later("deleted"),
    "away": later("not reachable"),
    "failed": later("failed"),
    "expired": later("expired"),
    "cancelled": later("cancelled"),
}
_KINDS: Mapping[str, Any] = {
    "models": later("Models"),
    "bytes": later("Storage"),
    "deployments": later("Deployments"),
    "instances": later("Instances"),
    "tasks": later("Unfinished tasks"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the site. `here`: the reader is in it."""

    name: str
    where: str
    picture: str
    here: bool


@dataclass(frozen=True, slots=True)
class CodeText:
    """What an error code means, in the reader's language."""

    title: str
    hint: str


def prepare(app: Flask) -> None:
    """Gives the templates of `app` what they need."""
    app.context_processor(frame.context)
    app.jinja_env.globals.update(
        asset=asset,
        places=places,
        here=lambda: request.full_path.rstrip("?"),
        said=sentences.said,
        code_text=code_text,
        code_titles=lambda: {code.value: code_text(code).title for code in TEXTS},
        state_name=lambda name: STATES.get(name, name),
        kind_name=lambda name: _KINDS.get(name, name),
        amount=amount,
        iso=iso,
        deployment_at=deployment_at,
        new_deployment_at=new_deployment_at,
        model_place=model_place,
        refusal_of=refusal,
        my_picture=my_picture,
        role_name=people_names.role_name,
        team_role=people_names.team_role,
        event_name=people_names.event_name,
        model_called=called,
        format_name=lambda name: FORMATS.get(name, name),
        visibility_name=people_names.visibility_name,
        cleaned_name=people_names.cleaned_name,
        host_state=people_names.host_state,
        states_of=lambda states: people_names.states_of(states, STATES),
        role_choices=people_names.role_choices,
        user_place=user_place,
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True


def places() -> list[Place]:
    """Where the reader may go."""
    visitor = frame.visitor()
    if visitor is None:
        return []
    known: list[tuple[str, str, str]] = [
        (_("Home"), "/ui", "home"),
        (_("Models"), "/ui/models", "box"),
        (_("Deployments"), "/ui/deployments", "rocket"),
        (_("Tasks"), "/ui/tasks", "list-check"),
        (_("Batches"), "/ui/batches", "stack-2"),
    ]
    known.append((_("Dialogue"), "/ui/dialogue", "messages"))
    if visitor.role is Role.ADMINISTRATOR:
        known.append((_("Administration"), "/ui/admin", "shield"))
    elif visitor.may_operate:
        known.append((_("Hosts"), "/ui/admin/hosts", "server"))
    path = request.path
    return [Place(name, where, picture, path == where or (where != "/ui" and path.startswith(where))) for name, where, picture in known]


def my_picture() -> str:
    """The SHA-256 of the picture of whoever looks, "" for none."""
    visitor = frame.visitor()
    user = services().storage.users.by_id(visitor.user_id) if visitor is not None else None
    return (user.avatar_sha256 or "") if user is not None else ""


def code_text(code: Code) -> CodeText:
    text = TEXTS[code]
    if languages.current() == "zh":
        return CodeText(text.title_zh, text.hint_zh)
    return CodeText(text.title, text.hint)


def amount(kind: str, number: int) -> str:
    """Bytes with a unit, anything else as it is."""
    if kind != "bytes":
        return f"{number:,}"
    size, unit = float(number), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, bigger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def iso(at: datetime | str | None) -> str:
    """A moment as HTML wants it, "" for none."""
    return to_text(at) if isinstance(at, datetime) else at or ""
