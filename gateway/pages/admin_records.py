"""Administration: who changed what, letters, and the disk."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from flask import request
from werkzeug.wrappers import Response

from gateway import clock
from gateway.context import services
from gateway.operations.administration import Administration, Cleaned
from gateway.pages import paging
from gateway.pages.forms import field, whole
from gateway.pages.frame import Pages, doer, go, render
from gateway.storage.audit import AuditFilter
from idl.codes import ServingError

_pages = Pages("admin_records")
blueprint = _pages.blueprint
_LETTER_STATES = ("waiting", "failed", "sent")
_NOUNS = ("user", "api_key", "team", "model", "deployment", "script", "golden", "webhook", "invitation", "storage")
_MOST_MINUTES = 24 * 60


@_pages.page("/ui/admin/audit", who="administrator")
def audit() -> Response:
    """Days are those of the reader, whose zone comes with the form."""
    asked = {name: request.args.get(name, "").strip()[:300] for name in ("actor", "subject", "action", "since", "until")}
    reasons = {name: "is not a day" for name in ("since", "until") if asked[name] and _day(asked[name]) is None}
    since, until = _day(asked["since"]), _day(asked["until"])
    wanted = AuditFilter(
        asked["actor"],
        asked["subject"],
        asked["action"].replace("*", ""),
        clock.to_text(since) if since else "",
        clock.to_text(until + timedelta(days=1)) if until else "",
    )
    found = services().storage.audit.page(wanted, paging.number(None), paging.SIZE + 1)
    return render("admin/audit.html", found=paging.paged(found, lambda line: line.id), asked=asked, reasons=reasons, nouns=_NOUNS)


def _day(text: str) -> datetime | None:
    """When a day begins; None for what is none."""
    offset = request.args.get("offset", "0")
    minutes = whole(offset.removeprefix("-"), 4) or 0
    minutes = 0 if minutes >= _MOST_MINUTES else -minutes if offset.startswith("-") else minutes
    try:
        moment = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone(timedelta(minutes=minutes)))
        return moment.astimezone(UTC) if 1970 < moment.year < 9000 else None
    except ValueError:
        return None


# letters -----------------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/admin/outbox", who="administrator")
def outbox() -> Response:
    owned, state = services(), request.args.get("state", "")
    state = state if state in _LETTER_STATES else ""
    found = owned.storage.outbox.page(state, paging.number(None), paging.SIZE + 1)
    return render(
        "admin/outbox.html",
        found=paging.paged(found, lambda letter: letter.id),
        state=state,
        states=_LETTER_STATES,
        now=owned.now().timestamp(),
        has_server=bool(owned.settings.smtp_host),
        problem=request.args.get("problem", "") == "late",
    )


@_pages.page("/ui/admin/outbox", "POST", who="administrator")
def send_again() -> Response:
    number, state = field("letter"), field("state")
    where = f"/ui/admin/outbox?state={state if state in _LETTER_STATES else ''}"
    try:
        owned = services()
        Administration(owned.storage, owned.now, owned.bell.ring).send_again(whole(number, 18) or 0)
    except ServingError:
        return go(f"{where}&problem=late")
    return go(where)


# the disk ----------------------------------------------------------------------------------------------------------------------


@_pages.page("/ui/admin/storage", who="administrator")
def storage() -> Response:
    return render("admin/storage.html", **_storage())


@_pages.page("/ui/admin/storage", "POST", who="administrator")
def clean() -> Response:
    """What would go; or, with `verb` clean, it goes."""
    owned, dry_run = services(), field("verb") != "clean"
    cleaned = Administration(owned.storage, owned.now).clean(dry_run=dry_run, doer=doer())
    return render("admin/storage.html", **_storage(cleaned, dry_run=dry_run))


def _storage(cleaned: list[Cleaned] | None = None, *, dry_run: bool = True) -> dict[str, Any]:
    return {
        "totals": services().storage.platform.totals(),
        "cleaned": cleaned,
        "dry_run": dry_run,
        "count": sum(each.count for each in cleaned or ()),
        "bytes": sum(each.bytes or 0 for each in cleaned or ()),
        "purge_days": services().settings.purge_after_days,
    }
