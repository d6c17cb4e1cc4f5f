"""The first page of one deployment: what it did and does, as figures and charts, and the last calls of it that failed."""

from collections.abc import Mapping
from typing import Any

from flask import request
from flask_babel import gettext as _
from flask_babel import lazy_gettext as later
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.operations import deployment_statistics
from gateway.operations.deployment_statistics import SPANS
from gateway.pages.deployment_places import deployment_at, opened, render_tab
from gateway.pages.frame import Pages, render
from gateway.storage.deployments import DeploymentRecord

_pages = Pages("deployment")
blueprint = _pages.blueprint
RANGES: Mapping[str, tuple[Any, str, int]] = {
    "15m": (later("15 min"), "10s", 900),
    "1h": (later("1 hour"), "minute", 3600),
    "24h": (later("1 day"), "minute", 86_400),
    "90d": (later("90 days"), "hour", 90 * 86_400),
}
"""Key of the query string -> name, span of its points, seconds."""
_SHOWN = 10


@_pages.page("/ui/deployments/<name>")
def overview(name: str) -> Response:
    found = opened(name)
    chosen = request.args.get("range", "1h")
    chosen = chosen if chosen in RANGES else "1h"
    ranges = [
        {"key": key, "name": label, "span": span, "span_s": SPANS[span], "seconds": seconds, "here": key == chosen}
        for key, (label, span, seconds) in RANGES.items()
    ]
    return render_tab(
        "deployment/overview.html", found, "overview", ranges=ranges, **_figures(found.record, chosen), **_failed(found.record)
    )


@_pages.page("/ui/deployments/<name>/failed")
def failed(name: str) -> Response:
    """The last calls that failed, and how many instances there are: what changes while one looks."""
    found = opened(name)
    return render("deployment/failed.html", opened=found, deployment=found.record, where=deployment_at(name), **_failed(found.record))


def _figures(record: DeploymentRecord, chosen: str) -> dict[str, Any]:
    """As they stand in the database; the page's script asks for those of this moment at once."""
    owned = services()
    _label, span, seconds = RANGES[chosen]
    now = int(owned.now().timestamp())
    points = deployment_statistics.points(owned.storage, record, span, now - seconds, now + SPANS[span])
    told = deployment_statistics.told(deployment_statistics.total(points))
    errors = sum(told["errors"].values())
    return {
        "requests": told["requests"],
        "error_share": 100 * errors / told["requests"] if told["requests"] else 0.0,
        "p95": told["latency_ms"]["p95"],
        "memory": points[-1].counts.memory if points else 0,
        "never_called": record.last_call_at is None and not told["requests"],
    }


def _failed(record: DeploymentRecord) -> dict[str, Any]:
    return {"failures": services().deployed.errors.last(record.id, _SHOWN), "instances": instances(record)}


def instances(record: DeploymentRecord) -> str:
    """How many there are, in words."""
    if record.max_instances is not None:
        return str(_("%(now)s of %(low)s–%(high)s", now=record.instances, low=record.min_instances, high=record.max_instances))
    return str(record.instances)
