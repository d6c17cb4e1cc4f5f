"""The first page: what this is, and a picture classified while one looks."""

from flask import request, send_from_directory
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.pages.assets import FOLDER
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


@_pages.page("/ui/offline", who="anyone")
def offline() -> Response:
    """What the browser keeps, and shows where a page cannot be loaded."""
    return render("errors/offline.html")


@_pages.page("/ui/service-worker.js", who="anyone")
def service_worker() -> Response:
    """Which keeps it. At this address, and with this header, it may stand before every page of the site."""
    answer = send_from_directory(FOLDER, "service-worker.js", etag=True)
    answer.headers["Service-Worker-Allowed"] = "/"
    answer.headers["Cache-Control"] = "max-age=3600"
    return answer


@_pages.page("/ui/<path:anything>", who="anyone")
def missing(anything: str) -> Response:
    raise NotFound
