"""What the forms of deployments carry: numbers and choices as they were typed, what is wrong with them, and what fits the hosts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flask import request

from gateway.blueprints.deployment_bodies import CHANGE, CREATE
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations import admission
from gateway.operations.access import Can
from gateway.pages.forms import reasons
from gateway.pages.frame import me
from gateway.shapes import Object, OrNull, texts_of
from gateway.storage.deployments import DeploymentRecord
from gateway.storage.model_records import VersionRecord, Wanted
from idl.codes import Code, ServingError

MIB = 1 << 20
_SCALES = {"memory": (MIB, 1, 1 << 30, "MiB"), "sleep_after_s": (60, 0.1, 43_200, "minutes")}
"""Field -> what it is told in, in the units of `/v1`; the least and the most; the unit's name."""
_PLACES = {Code.MODEL_NOT_FOUND: "model", Code.VERSION_NOT_FOUND: "version", Code.INSUFFICIENT_CAPACITY: "capacity"}
"""Beside which field it stands what was refused as a whole."""
_TIMEOUT_S = 1.0
_VERSIONS, _MODELS = 100, 50


def typed(*names: str, source: Mapping[str, str] | None = None) -> dict[str, str]:
    """As it was typed, to be shown again."""
    given = request.form if source is None else source
    return {name: given.get(name, "").strip()[:4096] for name in names}


def read(*names: str) -> dict[str, Any]:
    """The values of fields as `/v1` takes them: what is empty is None where that means something, and not there otherwise.

    Raises invalid_input by field.
    """
    made: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name, text in typed(*names).items():
        shape = CREATE.fields[name] if name in CREATE.fields else CHANGE.fields[name]
        if not text:
            made |= {name: None} if isinstance(shape.shape, OrNull) else {}
            if shape.required or name == "instances":
                wrong[name] = "is missing"
        elif name in _SCALES:
            made[name] = _scaled(name, text, wrong)
        else:
            made |= texts_of(Object({name: shape}), [(name, text)], "", wrong)
    if wrong:
        raise InvalidFields(wrong)
    return made


def _scaled(name: str, text: str, wrong: dict[str, str]) -> int:
    scale, low, high, unit = _SCALES[name]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        wrong[name] = f"must be a number of {unit} from {low} to {high}"
        return 0
    return round(number * scale)


def reasons_of(error: ServingError) -> dict[str, str]:
    """By field; "capacity" for what does not fit, "" for what is no field's."""
    place = _PLACES.get(error.code)
    return {place: error.message} if place is not None else reasons(error)


def texts_of_record(record: DeploymentRecord) -> dict[str, str]:
    """What is so now, as it would be typed."""
    made = {
        name: _number(getattr(record, name))
        for name in ("instances", "min_instances", "max_instances", "cpus", "version", "golden_tolerance")
    }
    made["memory"] = _number(record.memory / MIB if record.memory else None)
    made["sleep_after_s"] = _number(record.sleep_after_s / 60 if record.sleep_after_s else None)
    return made | {"visibility": record.visibility, "team": record.team or ""}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.12g}"


def teams() -> list[str]:
    """Names of those that the reader may give things to."""
    rows = services().storage.teams
    found = [rows.by_id(team_id) for team_id, role in rows.roles_of(me().user_id).items() if role in ("owner", "editor")]
    return sorted((team.name for team in found if team is not None), key=str.lower)


def models(text: str) -> list[str]:
    """Names of models that the reader may deploy, as `/v1` takes them; of those that have `text` in them."""
    principal, library = me(), services().library
    wanted = Wanted(principal.user_id, text=text[:100])
    found = library.listed(principal, replace(wanted, owner=principal.name), None, _MODELS)
    found += library.listed(principal, replace(wanted, visibility="team"), None, _MODELS)
    known = {each.model.id: each.model for each in found if Can.CHANGE in each.can and each.model.latest is not None}
    return [model.name if model.owner_id == principal.user_id else model.full_name for model in known.values()]


def versions_of(model_id: int) -> Sequence[VersionRecord]:
    """The newest first; those that a form offers."""
    return services().storage.models.versions(model_id, None, _VERSIONS)


def fit(version: VersionRecord | None, name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """For deployments/fit.html: what was measured of a version, what each host has free, and what `given` (instances, cpus, memory as
    typed) would take of it. `name`: what the deployment is called there, whose own counts as free: one that the reader may change, or ""."""

    def number(field: str, otherwise: float) -> float:
        try:
            value = float(given.get(field, ""))
        except ValueError:
            return otherwise
        return value if math.isfinite(value) and 0 <= value < 1e9 else otherwise

    count = max(1.0, number("instances", 1))
    cores, memory = number("cpus", 0) * count, int(number("memory", 0) * MIB * count)
    return {
        "measured": version.measured if version is not None else {},
        "version": version,
        "rooms": admission.rooms(services().models, name, _TIMEOUT_S),
        "cores": cores,
        "memory": memory,
        "mib": MIB,
    }
