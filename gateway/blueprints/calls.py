"""What the inference faces take from a request before anything looks at it: who calls, until when, and the whole body."""

from flask import g, request

from gateway import wsgi_request
from gateway.context import principal, request_id, services
from gateway.operations.inference import Call


def current_call(timeout_s: float = 0.0, *, inference: str = "") -> Call:
    """This request's call; `timeout_s` 0: what a quick one has; `inference`: the model that is asked, "" where none is. Raises
    unauthenticated for a token that is not valid."""
    owned, traceparent = services(), request.headers.get("Traceparent", "")
    if owned.tracer is not None:
        if "trace" not in g:
            g.trace = owned.tracer.begin(traceparent, inference)
        traceparent = g.trace.header
    return wsgi_request.call(
        principal(), request_id(), timeout_s or owned.settings.request_timeout_s, traceparent, owned.connection(), owned.deployed
    )


def read_body() -> bytes:
    """The whole body without its content coding; see `wsgi_request.read_body`."""
    return wsgi_request.read_body(request.environ, services().settings.max_body_bytes)
