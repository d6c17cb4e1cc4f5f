"""What is said of a model: its card, and changing that."""

from typing import Any
from urllib.parse import urlencode

from flask import request
from werkzeug.wrappers import Response

from gateway.blueprints.model_bodies import CHANGE
from gateway.context import services
from gateway.errors import STATUS, ChangedMeanwhile, InvalidFields
from gateway.operations.access import Can
from gateway.operations.models import Found
from gateway.pages import cards
from gateway.pages.frame import Pages, doer, go, is_part, me, render
from gateway.pages.model_places import LIST, called, model_head, place
from gateway.pages.models import teams_to_share_with
from gateway.shapes import Reasons
from idl.codes import Code, ServingError

_pages = Pages("model_about")
blueprint = _pages.blueprint
_ONE = f"{LIST}/<owner>/<name>"
_TEXTS = ("description", "type", "card")
_MOST = 20_000


def _found(owner: str, name: str, wanted: Can = Can.READ) -> Found:
    return services().library.find(me(), called(owner, name), wanted)


@_pages.page(f"{_ONE}/about")
def about(owner: str, name: str) -> Response:
    return _page(_found(owner, name), saved=bool(request.args.get("saved")))


@_pages.page(f"{_ONE}/edit")
def edit(owner: str, name: str) -> Response:
    """The same with the dialog to change it."""
    return _page(_found(owner, name, Can.CHANGE), editing=True)


@_pages.page(f"{_ONE}/edit", "POST")
def change(owner: str, name: str) -> Response:
    found = _found(owner, name, Can.CHANGE)
    values, reasons = _values(found), Reasons()
    try:
        checked = CHANGE.check(values, "", reasons)
        if reasons:
            raise InvalidFields(reasons)
        revision = request.form.get("revision", "")
        known = int(revision) if revision.isascii() and revision.isdigit() and len(revision) < 18 else None
        made = services().library.change(me(), called(owner, name), checked, doer(), known)
    except ChangedMeanwhile as error:
        return _page(found, STATUS[error.code], editing=True, typed=request.form, meanwhile=True)
    except ServingError as error:
        return _page(found, STATUS[error.code], editing=True, typed=request.form, reasons=_reasons(error))
    return go(f"{place(made.model.owner, made.model.name, 'about')}?{urlencode({'saved': '1'})}")


def _values(found: Found) -> dict[str, Any]:
    """What the form says; name and who may see it of those who may change that."""
    form = request.form
    values: dict[str, Any] = {name: form[name].replace("\r\n", "\n").strip() for name in _TEXTS if name in form}
    if "tags" in form:
        values["tags"] = [tag.strip() for tag in form["tags"].replace("，", ",").split(",") if tag.strip()]
    if Can.OWN in found.can and "name" in form:
        values["name"] = form["name"].strip()
        values["visibility"] = form.get("visibility", "private")
        values["team"] = form.get("team") or None
    return values


def _reasons(error: ServingError) -> dict[str, str]:
    if isinstance(error, InvalidFields):
        return {name.partition("[")[0].partition(".")[0]: reason for name, reason in error.reasons.items()}
    name, _, reason = error.message.partition(": ")
    if error.code is Code.ALREADY_EXISTS and reason:
        return {name: reason}
    raise error


def _page(found: Found, status: int = 200, **values: Any) -> Response:
    model = found.model
    typed = {
        **{name: getattr(model, name) for name in ("name", "description", "type", "card", "visibility")},
        "team": model.team or "",
        "tags": ", ".join(model.tags),
    }
    known: dict[str, Any] = {
        "head": model_head(found, "about"),
        "found": found,
        "card": cards.html_of(model.card),
        "teams": teams_to_share_with(model.team or ""),
        "typed": typed,
        "reasons": {},
        "editing": False,
        "saved": False,
        "meanwhile": False,
    }
    if not is_part():
        return render("models/about.html", status, **{**known, **values})
    answer = render("models/edit.html", status, **{**known, **values})
    # only what was wrong in the form itself puts it anew: what says that nobody is signed in any more leaves it as it is
    answer.headers["HX-Retarget"], answer.headers["HX-Reswap"] = "#edit-form", "outerHTML"
    return answer


@_pages.page(f"{LIST}/preview", "POST")
def preview() -> Response:
    """A card as it would look."""
    return render("models/preview.html", card=cards.html_of(request.form.get("card", "").replace("\r\n", "\n")[:_MOST]))
