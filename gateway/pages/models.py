"""The list of models: one's own, one's teams', the public ones and those that were deleted; deleting and restoring."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from flask import request
from flask_babel import gettext as _
from flask_babel import lazy_gettext as later
from werkzeug.wrappers import Response

from gateway.blueprints.rest import read_cursor, write_cursor
from gateway.context import services
from gateway.errors import STATUS, InvalidFields
from gateway.operations.access import Can
from gateway.operations.host_models import HostModel
from gateway.operations.models import VISIBILITIES, Found
from gateway.operations.teams import Teams
from gateway.pages.frame import Pages, doer, go, is_part, me, render
from gateway.pages.model_places import FORMATS, LIST, called, model_head, place, purged
from gateway.storage.model_records import Wanted
from idl.codes import Code, ServingError

_pages = Pages("models")
blueprint = _pages.blueprint
SHOWN: Mapping[str, Any] = {
    "mine": later("Mine"),
    "teams": later("My teams'"),
    "public": later("Public"),
    "all": later("All"),
    "deleted": later("Deleted"),
}
_ORDERS = ("name", "-name", "updated", "-updated", "created", "-created")
_ON_A_PAGE, _OF_HOST = 25, 100
_FILTERS = ("show", "q", "visibility", "format", "type", "tag", "order")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the list: a user's model, or the operators' (`found` None)."""

    where: str
    found: Found | None = None
    host: HostModel | None = None
    latest: bool = True
    """Of deleted models of one name only the one that was deleted last can be restored."""

    @property
    def may_change(self) -> bool:
        return self.found is not None and Can.CHANGE in self.found.can

    @property
    def may_own(self) -> bool:
        return self.found is not None and Can.OWN in self.found.can


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address says is wanted. Anything that is none of the choices counts as not said."""

    values: Mapping[str, str]

    @property
    def show(self) -> str:
        return self.values["show"]

    @property
    def order(self) -> str:
        return self.values["order"]

    @property
    def narrowed(self) -> bool:
        return any(self.values[name] for name in ("q", "visibility", "format", "type", "tag"))

    def address(self, **changes: str) -> str:
        """Of the same list with something changed, from its beginning."""
        plain = {"show": "mine", "order": ""}
        said = {name: value for name, value in (dict(self.values) | changes).items() if value and value != plain.get(name)}
        return f"{LIST}?{urlencode(said)}" if said else LIST

    def sorted_by(self, name: str) -> str:
        """The address of the same list, in that order, or in that order turned round."""
        first = name if name == "name" else f"-{name}"
        turned = name if first.startswith("-") else f"-{name}"
        return self.address(order=turned if (self.order or "name") == first else first)

    def direction(self, name: str) -> str:
        """For aria-sort."""
        order = self.order or "name"
        return "" if order.lstrip("-") != name else "descending" if order.startswith("-") else "ascending"


def _asked() -> Asked:
    given = {name: request.args.get(name, "").strip()[:100] for name in _FILTERS}
    choices: Mapping[str, Sequence[str]] = {"show": (*SHOWN,), "visibility": VISIBILITIES, "format": (*FORMATS,), "order": _ORDERS}
    values = {name: value if name not in choices or value in choices[name] else "" for name, value in given.items()}
    return Asked(values | {"show": values["show"] or "mine"})


@_pages.page(LIST)
def models() -> Response:
    asked = _asked()
    if is_part():
        return render("models/results.html", **_listing(asked))
    return _page(asked)


@_pages.page(f"{LIST}/new")
def new_model() -> Response:
    """The list with the dialog to upload a model."""
    return _page(_asked(), uploading=True)


def _page(asked: Asked, status: int = 200, **values: Any) -> Response:
    notice = _notice()
    listing = _listing(asked)
    about: dict[str, Any] = {"uploading": False, "refused": None, "teams": teams_to_share_with(), "shown": SHOWN, **notice, **listing}
    return render("models/page.html", status, **{**about, **values})


def teams_to_share_with(now: str = "") -> list[tuple[str, str]]:
    """The teams that one may give things to, and the one that something has `now`, for a choice."""
    owned, principal = services(), me()
    roles = owned.storage.teams.roles_of(principal.user_id)
    teams = Teams(owned.storage, owned.now).page(principal, 0, 200)
    names = {team.name for team in teams if roles.get(team.id) in ("owner", "editor")} | ({now} if now else set())
    return [(name, name) for name in sorted(names)]


def _listing(asked: Asked) -> dict[str, Any]:
    owned, principal = services(), me()
    wanted = _wanted(asked)
    key, backwards = _cursor()
    turned = replace(wanted, order=wanted.order.removeprefix("-") if wanted.order.startswith("-") else f"-{wanted.order}")
    found = owned.library.listed(principal, turned if backwards else wanted, key, _ON_A_PAGE + 1)
    more, found = len(found) > _ON_A_PAGE, found[:_ON_A_PAGE]
    if backwards:
        found.reverse()
    of_host = _of_host(asked) if not (more if backwards else key) else []
    before = bool(found) and (more if backwards else key is not None)
    after = bool(found) and (backwards or more)
    return {
        "asked": asked,
        "formats": FORMATS,
        "rows": [Row(place(None, each.name), host=each) for each in of_host] + _rows(found, deleted=wanted.deleted),
        "before": _turn(asked, "before", wanted.order, found[0]) if before else "",
        "after": _turn(asked, "after", wanted.order, found[-1]) if after else "",
        "purged": purged,
        "keep_days": owned.settings.purge_after_days,
    }


def _wanted(asked: Asked) -> Wanted:
    values = asked.values
    deleted = asked.show == "deleted"
    order = values["order"] or ("-deleted" if deleted else "name")
    scope = asked.show if asked.show in ("mine", "teams", "public") else ""
    return Wanted(
        None,
        text=values["q"],
        type=values["type"],
        tag=values["tag"],
        visibility=values["visibility"],
        deleted=deleted,
        scope=scope,
        format=values["format"],
        order=order,
    )


def _rows(found: Sequence[Found], *, deleted: bool) -> list[Row]:
    last: dict[str, str] = {}
    for each in found:
        name = each.model.name.lower()
        last[name] = max(last.get(name, ""), each.model.deleted_at or "")
    return [
        Row(place(each.model.owner, each.model.name), each, latest=not deleted or last[each.model.name.lower()] == each.model.deleted_at)
        for each in found
    ]


def _of_host(asked: Asked) -> list[HostModel]:
    """The operators' models stand above the others: they have neither type nor tags, and their format is not known."""
    values = asked.values
    if asked.show not in ("public", "all") or values["type"] or values["tag"] or values["format"] or values["visibility"] == "team":
        return []
    return services().host_models.listed(me(), values["q"], values["visibility"], "", _OF_HOST)


def _cursor() -> tuple[list[Any] | None, bool]:
    """Where to go on, and whether backwards. Raises invalid_input."""
    for name in ("before", "after"):
        if text := request.args.get(name, ""):
            match read_cursor(text[:500]):
                case [str(value), int(number)] if abs(number) < 2**63:
                    return [value, number], name == "before"
            raise InvalidFields({"cursor": "is none that an answer gave"})
    return None, False


def _turn(asked: Asked, name: str, order: str, found: Found) -> str:
    column = {"name": "name", "updated": "updated_at", "created": "created_at", "deleted": "deleted_at"}[order.lstrip("-")]
    return asked.address(**{name: write_cursor([getattr(found.model, column), found.model.id])})


def _notice() -> dict[str, Any]:
    """What was done last, so that it can be said, and taken back; only where it is so."""
    library, principal = services().library, me()
    gone, restored = request.args.get("gone", "")[:140], request.args.get("restored", "")[:140]
    try:
        if gone:
            return {"gone": library.deleted(principal, gone)}
        return {"restored": library.find(principal, restored)} if restored else {}
    except ServingError:
        return {}


@_pages.page(f"{LIST}/<owner>/<name>/delete", "POST")
def delete_model(owner: str, name: str) -> Response:
    full = called(owner, name)
    try:
        services().library.delete(me(), full, doer())
    except ServingError as error:
        if error.code is not Code.CONFLICT:
            raise
        return _in_use(full, error)
    return go(f"{LIST}?{urlencode({'gone': full})}")


def _in_use(full: str, error: ServingError) -> Response:
    library, principal = services().library, me()
    found = library.find(principal, full)
    users = sorted({name for entry in library.history(found, None, 1000) for name in entry.used_by})
    said = _("%(name)s is not deleted: deployments use it. Delete them first, or give them another model.", name=found.model.name)
    return _page(_asked(), STATUS[error.code], refused=said, used_by=users)


@_pages.page(f"{LIST}/<owner>/<name>/restore", "POST")
def restore_model(owner: str, name: str) -> Response:
    full = called(owner, name)
    try:
        services().library.restore(me(), full, doer())
    except ServingError as error:
        if error.code is not Code.ALREADY_EXISTS:
            raise
        said = _("There is another model named %(name)s now. Rename or delete that first.", name=name)
        return _page(Asked(dict(_asked().values) | {"show": "deleted"}), STATUS[error.code], refused=said)
    return go(f"{LIST}?{urlencode({'restored': full})}")


@_pages.page(f"{LIST}/refusal", "POST")
def refusal() -> Response:
    """What `/v1` said against an upload, as a page says it."""
    form = request.form
    try:
        code = Code(form.get("code", ""))
    except ValueError:
        code = Code.INTERNAL
    detail, file = form.get("detail", "")[:4096], form.get("file", "")[:255]
    fields = {name[6:]: text[:1000] for name, text in form.items() if name.startswith("field.")}
    name, _colon, reason = detail.partition(": ")
    if not fields and reason and name in ("name", "team", "tags", "description", "type"):
        fields = {name: reason}
    command = f"outboard models convert {shlex.quote(file) if file else 'FILE'}" if "outboard models convert" in detail else ""
    return render(
        "models/refusal.html", code=code, detail=detail, fields=fields, command=command, request_id=form.get("request_id", "")[:64]
    )


@_pages.page(f"{LIST}/<owner>/<name>/result")
def result(owner: str, name: str) -> Response:
    """What was found out about the newest version, when it has just come."""
    library = services().library
    found = library.find(me(), called(owner, name))
    return render("models/result.html", head=model_head(found), found=found, version=library.version(found, None))
