"""Every piece that pages are made of, on one page."""

from werkzeug.wrappers import Response

from gateway.context import services
from gateway.pages.frame import Pages, render

_pages = Pages("components")
blueprint = _pages.blueprint


@_pages.page("/ui/components", who="administrator")
def components() -> Response:
    return render("components_page/page.html", now=services().now())
