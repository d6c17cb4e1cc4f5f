"""The settings of one deployment: its version and canary, pinned requests, size, sharing; each part a form of its own."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from flask import request
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.errors import STATUS, InvalidFields
from gateway.operations.access import Can
from gateway.pages import deployment_forms as forms
from gateway.pages import signatures
from gateway.pages.deployment_places import Opened, deployment_at, opened, render_tab
from gateway.pages.forms import whole
from gateway.pages.frame import Pages, doer, go, is_part, me, render
from gateway.storage.model_records import VersionRecord
from idl.codes import Code, ServingError

_pages = Pages("deployment_settings")
blueprint = _pages.blueprint
_FIELDS = {
    "size": ("instances", "cpus", "memory"),
    "scaling": ("min_instances", "max_instances", "sleep_after_s"),
    "sharing": ("visibility", "team"),
    "golden": ("golden_tolerance",),
}
_MOST_SHOWN = 100_000
"""Characters of a pinned answer."""


@_pages.page("/ui/deployments/<name>/settings")
def settings(name: str) -> Response:
    return _whole(opened(name, Can.CHANGE))


@_pages.page("/ui/deployments/<name>/settings/now")
def settings_now(name: str) -> Response:
    """What changes while one looks: which version serves, and what became of the last change."""
    found = opened(name, Can.CHANGE)
    return render("deployments/settings/now.html", opened=found, deployment=found.record, **_versions(found))


@_pages.page("/ui/deployments/<name>/settings/fit")
def settings_fit(name: str) -> Response:
    """What is free for it, its own reservation with it, and what is about to be reserved."""
    record = opened(name, Can.CHANGE).record
    version = services().storage.models.version_by_id(record.version_id)
    return render("deployments/fit.html", **forms.fit(version, record.rpc_name, request.args))


@_pages.page("/ui/deployments/<name>/settings/<part>", "POST")
def change(name: str, part: str) -> Response:
    """Carries out what one of the forms says, and shows that form again."""
    if part not in _VERBS:
        raise ServingError(Code.NOT_FOUND, "there is nothing at this address")
    found = opened(name, Can.CHANGE)
    name = found.record.rpc_name
    try:
        _VERBS[part](name)
    except ServingError as error:
        return _part(found, part, STATUS[error.code], forms.reasons_of(error))
    if not is_part():
        return go(f"{deployment_at(name, 'settings')}#part-{part}")
    answer = _part(opened(name, Can.CHANGE), part)
    answer.headers["HX-Trigger"] = "changed"
    return answer


@_pages.page("/ui/deployments/<name>/golden")
def golden_list(name: str) -> Response:
    """The part of pinned requests, after one was pinned."""
    return _part(opened(name, Can.CHANGE), "golden")


@_pages.page("/ui/deployments/<name>/golden/<request_name>")
def golden_answer(name: str, request_name: str) -> Response:
    """The answer that is pinned."""
    owned, record = services(), opened(name, Can.CHANGE).record
    for pinned in owned.storage.golden.of(record.id):
        if pinned.name == request_name:
            text = json.dumps(json.loads(owned.storage.blobs.read(pinned.answer_sha256)), ensure_ascii=False)
            return render("deployments/settings/answer.html", text=text[:_MOST_SHOWN], cut=len(text) > _MOST_SHOWN)
    raise ServingError(Code.NOT_FOUND, f"there is no golden request {request_name[:80]!r}")


# what the forms do ---------------------------------------------------------------------------------------------------------------


def _change_version(name: str) -> None:
    if request.form.get("verb") == "back":
        services().deployments.roll_back(me(), name, doer())
    else:
        _change(name, forms.read("version"))


def _change_canary(name: str) -> None:
    deployments, verb = services().deployments, request.form.get("verb")
    if verb == "promote":
        deployments.promote(me(), name, doer())
    elif verb == "back":
        _change(name, {"canary": None})
    else:
        percent = whole(request.form.get("percent", ""), 3)
        if percent is None or percent > 100:
            raise InvalidFields({"percent": "must be a whole number from 0 to 100"})
        try:
            _change(name, {"canary": {**forms.read("version"), "percent": percent}})
        except InvalidFields as error:  # by the names that this form has
            raise InvalidFields({field.removeprefix("canary."): reason for field, reason in error.reasons.items()}) from error


def _change_golden(name: str) -> None:
    if request.form.get("verb") != "remove":
        _change(name, forms.read("golden_tolerance"))
        return
    owned, pinned = services(), request.form.get("name", "")
    record = opened(name, Can.CHANGE).record
    if not owned.storage.golden.remove(record.id, pinned, doer(), owned.now()):
        raise ServingError(Code.NOT_FOUND, f"there is no golden request {pinned[:80]!r}")


def _change_sharing(name: str) -> None:
    values = forms.read(*_FIELDS["sharing"])
    _change(name, values | ({"team": None} if values.get("visibility") == "private" else {}))


def _change(name: str, values: dict[str, Any]) -> None:
    services().deployments.change(me(), name, values, doer())


_VERBS: dict[str, Callable[[str], None]] = {
    "version": _change_version,
    "canary": _change_canary,
    "golden": _change_golden,
    "size": lambda name: _change(name, forms.read(*_FIELDS["size"])),
    "scaling": lambda name: _change(name, forms.read(*_FIELDS["scaling"])),
    "sharing": _change_sharing,
}
_FORMS = {"canary": ("version", "percent"), "version": ("version",), **_FIELDS}


# what is shown -------------------------------------------------------------------------------------------------------------------


def _part(found: Opened, part: str, status: int = 200, reasons: dict[str, str] | None = None) -> Response:
    """One form; without scripts the whole page with it."""
    if not is_part():
        return _whole(found, status, part, reasons)
    values = _values(found, part, reasons)
    return render(
        f"deployments/settings/{part}.html",
        status,
        opened=found,
        deployment=found.record,
        **values,
        saved=reasons is None and request.method == "POST",
    )


def _whole(found: Opened, status: int = 200, part: str = "", reasons: dict[str, str] | None = None) -> Response:
    return render_tab("deployments/settings/page.html", found, "settings", status, **_values(found, part, reasons), saved=False)


def _values(found: Opened, part: str, reasons: dict[str, str] | None) -> dict[str, Any]:
    """For the templates; `part` is the form that was sent, with `reasons` why it was refused."""
    record, now = found.record, forms.texts_of_record(found.record)
    typed: dict[str, dict[str, str]] = dict.fromkeys(_FORMS, now)
    typed["canary"] = {"version": str(record.canary_version or ""), "percent": str(record.canary_percent if record.canary_version else 10)}
    if reasons is not None and part in typed:
        typed[part] = typed[part] | forms.typed(*_FORMS[part])
    known = _versions(found)
    return {
        "typed": typed,
        "reasons": {each: (reasons or {}) if each == part else {} for each in _FORMS},
        "teams": forms.teams(),
        "sample": _sample(known["versions"], record.version),
        **known,
    }


def _versions(found: Opened) -> dict[str, Any]:
    record = found.record
    return {"versions": forms.versions_of(record.model_id), "pinned": services().storage.golden.of(record.id)}


def _sample(versions: Sequence[VersionRecord], number: int) -> str:
    """A request that the version takes, as JSON."""
    version = next((each for each in versions if each.number == number), None)
    inputs = signatures.of_version(services().storage, version).inputs if version is not None else ()
    return json.dumps({"inputs": {each.name: signatures.sample(each) if each.is_small else [] for each in inputs}})
