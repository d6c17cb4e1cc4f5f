"""The versions of a model: what each is, who sent it and when; a new one, deleting one and taking that back."""

from typing import Any
from urllib.parse import urlencode

from flask import request
from flask_babel import gettext as _
from werkzeug.wrappers import Response

from gateway.blueprints.models import number_of
from gateway.context import services
from gateway.errors import STATUS, InvalidFields
from gateway.operations.access import Can
from gateway.operations.models import Found
from gateway.pages.frame import Pages, doer, go, me, render
from gateway.pages.model_places import LIST, called, model_head, place, purged
from idl.codes import Code, ServingError

_pages = Pages("model_versions")
blueprint = _pages.blueprint
_ON_A_PAGE = 20
_ONE = f"{LIST}/<owner>/<name>/versions"


def _found(owner: str, name: str, wanted: Can = Can.READ) -> Found:
    return services().library.find(me(), called(owner, name), wanted)


@_pages.page(_ONE)
def versions(owner: str, name: str) -> Response:
    return _page(_found(owner, name))


@_pages.page(f"{_ONE}/new")
def new_version(owner: str, name: str) -> Response:
    """The same with the dialog to upload one."""
    return _page(_found(owner, name, Can.CHANGE), uploading=True)


def _page(found: Found, status: int = 200, **values: Any) -> Response:
    owned, before = services(), request.args.get("before", "")
    if before and not (before.isascii() and before.isdigit() and len(before) < 10):
        raise InvalidFields({"before": "is none that an answer gave"})
    entries = owned.library.history(found, int(before) if before else None, _ON_A_PAGE + 1)
    gone = request.args.get("gone", "")
    about = {
        "head": model_head(found, "versions"),
        "found": found,
        "entries": entries[:_ON_A_PAGE],
        "back": place(found.model.owner, found.model.name, "versions") if before else "",
        "more": f"?{urlencode({'before': entries[_ON_A_PAGE - 1].version.number})}" if len(entries) > _ON_A_PAGE else "",
        "gone": next((each.version.number for each in entries if each.deleted_at and str(each.version.number) == gone), None),
        "alone": sum(not each.deleted_at for each in owned.library.history(found, None, 1000)) == 1,
        "purged": purged,
        "keep_days": owned.settings.purge_after_days,
        "uploading": False,
        "refused": None,
    }
    return render("models/versions.html", status, **{**about, **values})


@_pages.page(f"{_ONE}/<number>/delete", "POST")
def delete_version(owner: str, name: str, number: str) -> Response:
    found = _found(owner, name, Can.CHANGE)
    try:
        services().library.delete_version(me(), called(owner, name), number_of(number), doer())
    except ServingError as error:
        if error.code is not Code.CONFLICT:
            raise
        said = _("Version %(number)s is not deleted: it is the only one, or deployments use it.", number=number_of(number))
        return _page(found, STATUS[error.code], refused=said)
    return go(f"{place(found.model.owner, found.model.name, 'versions')}?{urlencode({'gone': number})}")


@_pages.page(f"{_ONE}/<number>/restore", "POST")
def restore_version(owner: str, name: str, number: str) -> Response:
    services().library.restore_version(me(), called(owner, name), number_of(number), doer())
    return go(place(owner, name, "versions"))
