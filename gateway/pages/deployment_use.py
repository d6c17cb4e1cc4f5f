"""Calling a deployment: the form that tries it, and what a program does, with a key to copy."""

from datetime import timedelta
from typing import Any

from flask import request
from werkzeug.wrappers import Response

from gateway.blueprints.rest import take
from gateway.context import services
from gateway.errors import STATUS
from gateway.operations import deployments
from gateway.operations.access import Can
from gateway.operations.api_keys import ApiKeys
from gateway.operations.deployment_calls import PREPROCESS
from gateway.pages import snippets
from gateway.pages.deployment_places import Opened, opened, render_tab
from gateway.pages.deployment_script import signature_for, signature_of
from gateway.pages.frame import Pages, doer, me
from gateway.pages.model_calls import endpoint_of
from gateway.types import Scope
from idl.codes import ServingError

_pages = Pages("deployment_use")
blueprint = _pages.blueprint
DAYS = (30, 90, 365)
"""How long a key may be good for, besides for good."""


@_pages.page("/ui/deployments/<name>/try")
def try_it(name: str) -> Response:
    found = opened(name, Can.CALL)
    functions = deployments.target_of(found.record).functions
    signature = signature_for(found, signature_of(found), open_inputs=PREPROCESS in functions)
    if functions:  # what comes out is the script's: labels are not given
        signature["labelled"] = ""
    return render_tab("deployment/try.html", found, "try", path=f"{_called(found)}/predictions", signature=signature)


@_pages.page("/ui/deployments/<name>/use")
def use(name: str) -> Response:
    return _use(opened(name, Can.CALL))


@_pages.page("/ui/deployments/<name>/use/key", "POST")
def make_key(name: str) -> Response:
    """A key that may call, and nothing else. It is on the answer's page, this once."""
    found = opened(name, Can.CALL)
    days, now = request.form.get("days", ""), services().now()
    ends = now + timedelta(days=int(days)) if days in map(str, DAYS) else None
    keys = ApiKeys(services().storage, services().now)
    try:
        take(("keys", 200, 10.0), me())
        made = keys.create(me(), f"deployment {found.record.rpc_name}"[:100], frozenset({Scope.CALL}), ends, doer())
    except ServingError as error:
        return _use(found, STATUS[error.code], error=error)
    return _use(found, key=made.secret)


def _called(found: Opened) -> str:
    return f"/v1/deployments/{found.record.rpc_name}"


def _use(found: Opened, status: int = 200, **values: Any) -> Response:
    record, signature = found.record, signature_of(found)
    shown: list[snippets.Snippet] = []
    if signature is not None:
        # gRPC and Thrift go past a script
        rpc_name = "" if record.script_version_id is not None else record.rpc_name
        needs_token = record.visibility != "public"
        shown = snippets.snippets(endpoint_of(f"{_called(found)}/predictions", signature, rpc_name, needs_token=needs_token))
    functions = deployments.target_of(record).functions
    more = {"key": "", "error": None, "days": DAYS, "own_inputs": PREPROCESS in functions} | values
    return render_tab("deployment/use.html", found, "use", status, snippets=shown, **more)
