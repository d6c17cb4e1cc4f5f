"""A dialogue with a model or a deployment that takes text and gives text. The script of the page asks it; the words stay in the browser."""

from flask import request
from flask_babel import gettext as _
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.operations.dialogues import Partner
from gateway.pages.frame import Pages, me, render

_pages = Pages("talk")
blueprint = _pages.blueprint
DEMO = "dialogue"
LONGEST = 100_000
"""Characters that the box takes: a model may take fewer, and says so."""


@_pages.page("/ui/dialogue")
def dialogue() -> Response:
    partners = services().dialogues.partners(me())
    wanted = request.args.get("with", "")[:200]
    chosen = next((each for each in partners if each.name == wanted), None) if wanted else _first(partners)
    missing = wanted if wanted and chosen is None else ""
    values = {"partners": partners, "chosen": chosen, "missing": missing, "questions": _questions(chosen), "longest": LONGEST}
    return render("talk/page.html", 404 if missing else 200, **values)


def _first(partners: list[Partner]) -> Partner | None:
    """One's own that runs, else the demo's."""
    running = (each for each in partners if each.state == "running" and each.owner == me().name)
    return next(running, None) or next((each for each in partners if each.name == DEMO), None) or next(iter(partners), None)


def _questions(chosen: Partner | None) -> tuple[str, ...]:
    """To begin with, where it is known what is answered."""
    if chosen is None or chosen.name != DEMO:
        return ()
    return _("What is Outboard?"), _("How do I add my own model?"), _("What happens when a model crashes?"), _("How do I make green tea?")
