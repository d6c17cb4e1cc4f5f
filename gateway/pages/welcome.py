"""The first page: what this is, and a picture classified while one looks."""

from flask import request
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.pages.frame import Pages, render
from idl.codes import ServingError

_pages = Pages("welcome")
blueprint = _pages.blueprint
DEMO = "efficientnet-lite0"


@_pages.page("/", who="anyone")
def welcome() -> Response:
    return render("welcome/page.html", demo=DEMO if _is_served(DEMO) else "", home=request.host_url.rstrip("/"))


def _is_served(name: str) -> bool:
    try:
        services().host_models.find(None, name)
    except ServingError:
        return False
    return True


@_pages.page("/ui/<path:anything>", who="anyone")
def missing(anything: str) -> Response:
    raise NotFound
