"""Deployments: the list of them; starting, pausing and deleting one."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from flask import request
from werkzeug.wrappers import Response

from gateway.blueprints.deployment_bodies import STATES
from gateway.context import services
from gateway.errors import STATUS
from gateway.operations import deployment_lists
from gateway.operations.access import Can
from gateway.operations.deployment_lists import Listed
from gateway.pages.deployment_places import DEPLOYMENTS, deployment_at, opened
from gateway.pages.frame import Pages, doer, go, is_part, me, ours, render
from gateway.storage.deployment_lists import MINE, ORDERS, WHOSE, Browsed, Key
from gateway.storage.deployments import DELETING, PAUSED, RUNNING
from idl.codes import ServingError

_pages = Pages("deployments")
blueprint = _pages.blueprint
_SHOWN = 20
_DEFAULTS = {"q": "", "state": "", "whose": MINE, "sort": "newest"}


@dataclass(frozen=True, slots=True)
class Page:
    """`before` and `after`: addresses of the pages around it, "" for none. `here`: its own."""

    items: Sequence[Listed]
    before: str
    after: str
    here: str


@_pages.page("/ui/deployments")
def deployments() -> Response:
    """The list; for htmx, which asks again and again and while one types, only what stands below the form."""
    asked = _asked()
    template = "deployments/list.html" if is_part() else "deployments/page.html"
    plain = asked | {"sort": _DEFAULTS["sort"]} == _DEFAULTS
    return render(template, page=_page(asked), asked=asked, plain=plain, states=STATES, orders=tuple(ORDERS), whose=WHOSE)


def _asked() -> dict[str, str]:
    """What the address says that is wanted; what it cannot mean is as if it were not there."""
    given = {name: request.args.get(name, "").strip()[:100] for name in _DEFAULTS}
    known = {"state": STATES, "whose": WHOSE, "sort": tuple(ORDERS)}
    return {name: text if text and text in known.get(name, (text,)) else _DEFAULTS[name] for name, text in given.items()}


def _page(asked: dict[str, str]) -> Page:
    owned = services()
    wanted = Browsed(0, whose=asked["whose"], text=asked["q"], state=asked["state"], order=asked["sort"])
    before, after = _key("before"), _key("after")
    found = deployment_lists.browse(
        owned.storage, owned.access, me(), wanted, before or after, _SHOWN + 1, owned.now().timestamp(), backwards=before is not None
    )
    more = len(found) > _SHOWN
    items = found[1:] if more and before else found[:_SHOWN]
    ends = [_spelled(deployment_lists.key_of(wanted.order, each.record)) for each in (items[0], items[-1])] if items else ["", ""]
    return Page(
        items,
        _address(asked, before=ends[0]) if items and (more if before else after is not None) else "",
        _address(asked, after=ends[1]) if items and (more or before is not None) else "",
        _address(asked, **{name: request.args[name] for name in ("before", "after") if name in request.args}),
    )


def _address(asked: dict[str, str], **more: str) -> str:
    said = {name: text for name, text in (asked | more).items() if text != _DEFAULTS.get(name)}
    return DEPLOYMENTS + ("?" + urlencode(said) if said else "")


def _spelled(key: Key) -> str:
    return f"{key[0]}~{key[1]}"


def _key(name: str) -> Key | None:
    first, tilde, number = request.args.get(name, "")[:200].rpartition("~")
    return (first, int(number)) if tilde and number.isascii() and number.isdigit() and len(number) < 19 else None


@_pages.page("/ui/deployments/<name>/now")
def now(name: str) -> Response:
    """The head of one deployment, which changes while one looks."""
    found = opened(name)
    return render("deployments/now.html", opened=found, deployment=found.record, tab=request.args.get("tab", ""))


@_pages.page("/ui/deployments/<name>/turn", "POST")
def turn(name: str) -> Response:
    """Starts or pauses it; from its own page, or from the list."""
    record = opened(name, Can.OPERATE).record
    desired = PAUSED if request.form.get("desired") == PAUSED else RUNNING
    try:
        services().deployments.change(me(), name, {"desired_state": desired}, doer())
    except ServingError as error:
        return refused(error)
    return changed(ours(request.form.get("next"), deployment_at(record.rpc_name)))


@_pages.page("/ui/deployments/<name>/delete", "POST")
def delete(name: str) -> Response:
    record = opened(name, Can.OWN).record
    services().deployments.delete(me(), name, doer())
    return go(ours(request.form.get("next"), DEPLOYMENTS) if record.state != DELETING else DEPLOYMENTS)


def changed(where: str) -> Response:
    """After a change: what of the page is asked for again and again is asked for at once. Without scripts to the page at `where`."""
    return Response("", 204, {"HX-Trigger": "changed"}) if is_part() else go(where)


def refused(error: ServingError) -> Response:
    """Why something could not be done, in the place of the page that is for it. Raises it for a page without scripts."""
    if not is_part():
        raise error
    answer = render("errors/part.html", STATUS[error.code], error=error, reasons={})
    answer.headers["HX-Retarget"], answer.headers["HX-Reswap"] = "#refused", "innerHTML"
    return answer
