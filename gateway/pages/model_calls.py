"""Trying a model, and calling it from a program: the tabs Test and Use of its page."""

from typing import Any

from flask import request, send_from_directory
from flask_babel import gettext as _
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

import idl
from gateway.blueprints.models import number_of
from gateway.context import services
from gateway.operations.access import Can
from gateway.operations.deployment_changes import Wanted
from gateway.operations.host_models import HostModel
from gateway.operations.models import Found
from gateway.pages import signatures, snippets
from gateway.pages.frame import Pages, me, render
from gateway.pages.model_places import model_at, model_head
from gateway.pages.signatures import Signature
from gateway.pages.snippets import Endpoint
from gateway.storage.model_records import VersionRecord

_pages = Pages("model_calls")
blueprint = _pages.blueprint
_IDL = ("inference.thrift", "inference.proto")
_MOST_CHOICES = 50


@_pages.page("/ui/models/<owner>/<name>/test")
def test(owner: str, name: str) -> Response:
    found = model_at(owner, name) if owner == "-" else model_at(owner, name, Can.CHANGE)
    head = model_head(found, "test")
    if isinstance(found, HostModel):
        signature = of_host(found)
        return render(
            "model/test.html", head=head, path=_host_path(found, signature), signature=signatures.for_form(signature), versions=[]
        )
    version = wanted_version(found)
    path = f"/v1/models/{head.called}/test" + (f"?version={version.number}" if version.number != found.model.latest else "")
    signature = signatures.of_version(services().storage, version)
    versions = [each.number for each in services().library.versions(found, None, _MOST_CHOICES)]
    return render(
        "model/test.html", head=head, path=path, signature=signatures.for_form(signature), versions=versions, version=version.number
    )


@_pages.page("/ui/models/<owner>/<name>/use")
def use(owner: str, name: str) -> Response:
    """Snippets. `?of=` says for which deployment; without it the first that the reader has, else the model itself."""
    found = model_at(owner, name)
    head = model_head(found, "use")
    if isinstance(found, HostModel):
        endpoint = host_endpoint(found)
        return render("model/use.html", head=head, snippets=snippets.snippets(endpoint), endpoint=endpoint, targets=[], chosen="")
    deployments = services().deployments.listed(me(), Wanted(model=found.model.full_name, shared=True), 0, _MOST_CHOICES)
    choices = [*((each.rpc_name, each.rpc_name) for each in deployments), *([("", _("test only"))] if Can.CHANGE in found.can else [])]
    if not choices:
        return render("model/use.html", head=head, snippets=[], endpoint=None, targets=[], chosen="")
    asked = request.args.get("of", choices[0][0])
    if asked not in [key for key, _text in choices]:
        raise NotFound
    version = next((services().library.version(found, each.version) for each in deployments if each.rpc_name == asked), None)
    endpoint = user_endpoint(head.called, asked, signatures.of_version(services().storage, version or wanted_version(found)))
    return render("model/use.html", head=head, snippets=snippets.snippets(endpoint), endpoint=endpoint, targets=choices, chosen=asked)


@_pages.page("/ui/idl/<name>", who="anyone")
def interface(name: str) -> Response:
    """What generates clients for gRPC and Thrift."""
    if name not in _IDL:
        raise NotFound
    return send_from_directory(next(iter(idl.__path__)), name, mimetype="text/plain", as_attachment=True)


def wanted_version(found: Found) -> VersionRecord:
    """Of the query, else the newest. Raises version_not_found."""
    asked = request.args.get("version")
    return services().library.version(found, number_of(asked) if asked else None)


def of_host(found: HostModel) -> Signature:
    models = services().models
    assert found.metadata is not None, "it was found by name"
    return signatures.of_host(found.metadata, models.declaration(found.name), models.config(found.name))


def _host_path(found: HostModel, signature: Signature) -> str:
    return f"/v2/models/{found.name}/generate_stream" if signature.streams else f"/v1/models/{found.name}/predictions"


def host_endpoint(found: HostModel) -> Endpoint:
    signature = of_host(found)
    return endpoint_of(_host_path(found, signature), signature, found.name, needs_token=not found.public)


def user_endpoint(called: str, rpc_name: str, signature: Signature) -> Endpoint:
    """Of a deployment, or with "" of the model itself."""
    path = f"/v1/deployments/{rpc_name}/predictions" if rpc_name else f"/v1/models/{called}/test"
    return endpoint_of(path, signature, rpc_name, needs_token=True)


def endpoint_of(path: str, signature: Signature, rpc_name: str, *, needs_token: bool) -> Endpoint:
    """What snippets are about, at the address that this page was asked of."""
    settings = services().settings
    grpc, thrift = snippets.rpc_addresses(settings, request.host.rpartition(":")[0] or request.host)
    more: dict[str, Any] = {"rpc_name": rpc_name, "grpc": grpc, "thrift": thrift, "rpc_needs_token": bool(settings.model_host_token)}
    base = request.host_url.rstrip("/")
    return Endpoint(base, path, signature.inputs, signature.outputs, needs_token, streams=signature.streams, **more)
