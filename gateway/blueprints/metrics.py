"""`/metrics`: what all worker processes counted."""

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue

from gateway.context import services
from gateway.metrics import CONTENT_TYPE

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> ResponseReturnValue:
    """Prometheus's text format."""
    return Response(services().metrics.render(), content_type=CONTENT_TYPE)
