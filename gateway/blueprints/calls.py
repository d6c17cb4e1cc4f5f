"""What the inference faces take from a request before anything looks at it: who calls, until when, and the whole body."""

from collections.abc import Mapping
from typing import Any

from flask import g, request

from gateway import wsgi_request
from gateway.context import client_address, principal, request_id, required_principal, services
from gateway.operations.inference import Call
from gateway.storage.audit import Doer


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


def note(action: str, subject: str, detail: Mapping[str, Any] | None = None) -> None:
    """A line of the audit log about what the caller is about to have a model host do: it stays where the host then refuses."""
    owned, caller = services(), required_principal()
    doer = Doer(caller.user_id, caller.name, client_address(), request_id())
    owned.storage.audit.note(doer, action, subject, owned.now(), detail)


def read_body() -> bytes:
    """The whole body without its content coding; see `wsgi_request.read_body`."""
    return wsgi_request.read_body(request.environ, services().settings.max_body_bytes)
